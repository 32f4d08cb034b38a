"""Edits that were found: they cancel in the fusion, are as small as is said, overturn the ranking and replay."""

import math
from dataclasses import replace

import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from flforensics.fusion import rule_named
from flforensics.fusion.rule import surveyed
from flforensics.fusion.specification import FusionSpecification
from flforensics.provenance.case import Case, Scores, Settings, network_state
from flforensics.provenance.counterfactual import counterfactual
from flforensics.provenance.logits import class_logits_of
from flforensics.provenance.margins import tamper_margins
from flforensics.provenance.shapley import shapley
from flforensics.provenance.tampering import SEARCHES, Edit, tamper_edits
from flforensics.provenance.targets import class_target
from flforensics.provenance.tracefl import tracefl
from flforensics.replay import replay_round
from flforensics.results import no_progress
from flforensics.rounds import Round, StoredModel
from tests.provenance.architectures import ARCHITECTURES, Architecture, make_round
from tests.provenance.test_margins import norm, planted
from tests.provenance.test_oracle import double, matrix, traced
from tests.provenance.test_rules import answers, fused_round

METHODS = {"tracefl": tracefl, "counterfactual": counterfactual, "shapley": shapley}
WEIGHTS = (400.0, 250.0, 90.0, 120.0)


def case_of(architecture: Architecture, round_: Round, settings: Settings) -> Case:
    """What a method is asked, as `trace_round` asks it."""
    network, rule = architecture.network().double().eval().requires_grad_(False), rule_named("fedavg")
    assert round_.previous is not None
    new, previous = (network_state(network, one, settings=settings) for one in (round_.fused, round_.previous))
    call = architecture.call().to(torch.device("cpu"), torch.float64)
    function = "logit" if settings.method == "tracefl" else settings.target
    target = class_target(function, class_logits_of(network, new, call))
    scene = surveyed(rule, round_)
    return Case(round_, rule, scene, network, new, previous, call, target, settings, no_progress)


def found_edits(name: str, **settings: object) -> tuple[Round, Case, Scores, list[Edit | None]]:
    """All inputs' edits on one architecture."""
    architecture = ARCHITECTURES[name]
    round_ = make_round(architecture.network(), weights=WEIGHTS)
    case = case_of(architecture, round_, Settings(precise=True, **settings))  # type: ignore[arg-type]
    scores = METHODS[case.settings.method](case)
    return round_, case, scores, tamper_edits(case, scores, [True] * case.call.count)


def deltas(edit: Edit, round_: Round) -> list[dict[str, Tensor]]:
    names = [name for name, tensor in round_.fused.tensors.items() if tensor.is_floating_point()]
    return [
        {n: step * edit.direction[n] if n in edit.direction else torch.zeros(()) for n in names}
        for step in edit.steps
    ]


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *((name, "tracefl") for name in ARCHITECTURES),
        *((name, method) for name in ("cnn", "batch norm") for method in ("counterfactual", "shapley")),
    ],
)
def test_a_found_edit_overturns_the_ranking_and_replays(name: str, method: str) -> None:
    """The edit is planted into the clients' float32 files, and everything runs anew from there."""
    round_, _, scores, edits = found_edits(name, method=method)
    assert round_.previous is not None
    previous, seen = double(round_.previous.tensors), 0
    for n, edit in enumerate(edits):
        if edit is None or seen == 2:
            continue
        seen += 1
        own = deltas(edit, round_)
        cancelling = {
            key: sum((w * d[key] for w, d in zip(WEIGHTS, own, strict=True)), torch.zeros(())) for key in own[0]
        }
        updates = [
            norm({key: double(client.model.tensors)[key] - previous[key] for key in own[0]})
            for client in round_.clients
            if client.model
        ]
        assert norm(cancelling) <= 1e-12 * sum(w * norm(d) for w, d in zip(WEIGHTS, own, strict=True))
        assert max(norm(d) / u for d, u in zip(own, updates, strict=True)) <= edit.size * (1 + 1e-9)
        other = planted(round_, own)
        after = matrix(traced(ARCHITECTURES[name], other, method=method), other)
        assert int(after[n].argmax()) != int(scores.clients[n].argmax())
        assert replay_round(other, FusionSpecification("fedavg")).verdict.replays
    assert seen


def test_half_of_an_edit_overturns_nothing() -> None:
    """The test above can fail: TraceFL is linear, so that less than what was found is not enough."""
    round_, _, scores, edits = found_edits("cnn", method="tracefl")
    for n, edit in enumerate(edits):
        assert edit is not None
        other = planted(round_, deltas(edit.scaled(0.99 * edit.size), round_))
        after = matrix(traced(ARCHITECTURES["cnn"], other, method="tracefl"), other)
        assert int(after[n].argmax()) == int(scores.clients[n].argmax())


@pytest.mark.parametrize("method", ["counterfactual", "shapley"])
def test_on_a_linear_network_the_smallest_edit_is_nearly_found(method: str) -> None:
    """There both are the ledger, whose margin has a closed form."""
    round_, _, _, edits = found_edits("one logit", method=method, target="margin")
    architecture = ARCHITECTURES["one logit"]
    for one, edit in zip(traced(architecture, round_, nodes=1).inputs, edits, strict=True):
        if one.tamper_margin is not None:
            assert edit is not None
            assert 1 <= edit.size / one.tamper_margin <= 1.06


@pytest.mark.parametrize("scale", [True, False])
def test_tracefl_on_affine_layers_against_a_linear_programme(scale: bool) -> None:
    """Along the gradient its margin is a linear programme's answer, with or without weights in the scores."""
    _, case, scores, edits = found_edits("cnn", method="tracefl", scale_clients=scale)
    p = torch.tensor(case.scene.coefficients.values, dtype=torch.float64)
    shares = [case.rule.shares(case.scene.read(name), case.scene).clients for name in case.floating]
    sizes = torch.cat([share.flatten(1) for share in shares], 1).norm(dim=1)
    for n, edit in enumerate(edits):
        assert edit is not None
        assert norm(edit.direction) == pytest.approx(1)
        unit = edit.scaled(0.1)
        row = slice(n, n + 1)
        one = replace(case, call=case.call[row], target=case.target[row])
        moved = (tracefl(unit.applied(one)).clients[0] - scores.clients[n]).double()
        step = torch.tensor(unit.steps, dtype=torch.float64)
        slopes = (moved / step) / p
        truth = min(
            _programme(scores.clients[n], slopes, sizes, rival)
            for rival in range(len(p))
            if rival != int(scores.clients[n].argmax())
        )
        assert edit.size == pytest.approx(1.001 * truth, rel=1e-4)
        if scale:
            closed = tamper_margins(scores.clients[n : n + 1], slopes=slopes[:1], sizes=sizes)
            assert edit.size == pytest.approx(1.001 * float(closed), rel=1e-4)


def _programme(scores: Tensor, slopes: Tensor, sizes: Tensor, rival: int) -> float:
    """min τ with |e_k| ≤ τ S_k, Σ e = 0 and score_b + slope_b e_b ≥ score_a + slope_a e_a."""
    count, top = len(scores), int(scores.argmax())
    gain = torch.zeros(count + 1, dtype=torch.float64)
    gain[top], gain[rival] = slopes[top], -slopes[rival]
    budget = torch.cat([torch.eye(count), -sizes[:, None]], 1)
    other_way = torch.cat([-torch.eye(count), -sizes[:, None]], 1)
    found = linprog(
        [0.0] * count + [1.0],
        A_ub=torch.cat([budget, other_way, gain[None]]).numpy(),
        b_ub=[0.0] * (2 * count) + [float(scores[rival] - scores[top])],
        A_eq=[[1.0] * count + [0.0]],
        b_eq=[0.0],
        bounds=[(None, None)] * count + [(0, None)],
    )
    return float(found.fun) if found.success else math.inf


@pytest.mark.parametrize("method", SEARCHES)
def test_a_bound_is_stated_for_named_clients_only_and_only_if_asked(method: str) -> None:
    architecture = ARCHITECTURES["batch norm"]
    round_ = make_round(architecture.network(), weights=WEIGHTS)
    assert all(one.tamper_bound is None for one in traced(architecture, round_, method=method).inputs)
    found = traced(architecture, round_, method=method, tamper=True)
    assert any(one.tamper_bound is not None for one in found.inputs)
    for one in found.inputs:
        assert one.tamper_margin is None
        assert one.tamper_bound is None or one.responsible.kind == "client"


def test_a_group_is_edited_as_one() -> None:
    groups = ("north=client-0,client-1",)
    round_, _, scores, edits = found_edits("cnn", method="shapley", groups=groups)
    assert scores.players is not None
    for n, edit in enumerate(edits):
        if edit is None:
            continue
        other = planted(round_, deltas(edit, round_))
        after = traced(ARCHITECTURES["cnn"], other, method="shapley", groups=groups).inputs[n]
        assert after.clients[0].client != scores.players[int(scores.clients[n].argmax())].name
        assert edit.steps[0] * edit.steps[1] >= 0
    assert any(edit is not None for edit in edits)


def test_updates_are_edited_like_models() -> None:
    """The same round stored as previous − client, under the same edit, gives the same scores."""
    architecture = ARCHITECTURES["cnn"]
    round_, case, scores, edits = found_edits("cnn", method="counterfactual")
    assert round_.previous is not None
    previous = round_.previous.tensors
    clients = tuple(
        replace(c, model=StoredModel({k: previous[k] - t for k, t in c.model.tensors.items()}, c.model.source))
        for c in round_.clients
        if c.model
    )
    stored = case_of(architecture, replace(round_, clients=clients, values="negative-delta"), case.settings)
    edit = next(edit for edit in edits if edit is not None)
    left, right = counterfactual(edit.applied(case)).clients, counterfactual(edit.applied(stored)).clients
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)
    assert (left - scores.clients).abs().max() > 1e-3


def test_other_rules_are_not_searched_and_say_so() -> None:
    architecture = ARCHITECTURES["cnn"]
    round_ = fused_round(architecture, "median")
    found = answers(architecture, round_, "median", method="counterfactual", tamper=True)
    assert all(one.tamper_bound is None for one in found.inputs)
    assert found.warnings == ("no edit was searched for: under this rule the shares depend on who else took part",)
