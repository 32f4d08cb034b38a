"""Under every fusion rule the ledger adds up, and an edit of the global stands in `unexplained`."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flforensics.fusion import FUSIONS
from flforensics.fusion.rule import surveyed
from flforensics.fusion.specification import FusionSpecification, rule_of
from flforensics.provenance.case import Settings
from flforensics.provenance.trace import Answers, Questions, trace_round
from flforensics.results import Subject
from flforensics.rounds import Round, StoredModel
from tests.provenance.architectures import ARCHITECTURES, Architecture, make_round

STATED: Mapping[str, Mapping[str, float]] = {
    "norm-clipping": {"clip_norm": 0.5},
    "q-fedavg": {"client_learning_rate": 0.1},
    "fedavgm": {"momentum": 0.5},
}
WEIGHTS = (400.0, 250.0, 90.0, 120.0, 60.0, 300.0, 200.0)


def specification(name: str) -> FusionSpecification:
    """The rule with its defaults, and what must be stated."""
    defaults = {key: value for key, value in FUSIONS[name].parameters.items() if value is not None}
    return FusionSpecification(name, None, {**defaults, **STATED.get(name, {})})


def fused_round(architecture: Architecture, name: str) -> Round:
    """A first round whose global is what the rule gives."""
    honest = replace(make_round(architecture.network(), weights=WEIGHTS), number=1)
    clients = tuple(
        replace(client, extras={"steps": 10.0 + k, "train_loss": 0.5 + 0.1 * k})
        for k, client in enumerate(honest.clients)
    )
    honest = replace(honest, clients=clients)
    rule = rule_of(specification(name))
    scene = surveyed(rule, honest)
    fused: dict[str, Tensor] = {}
    for tensor in scene.names:
        stored = scene.read(tensor)
        if not stored.fused.is_floating_point():
            fused[tensor] = stored.fused
            continue
        assert stored.previous is not None
        shares = rule.shares(stored, scene)
        value = stored.previous.double() + shares.clients.sum(0) + shares.server
        fused[tensor] = value.float()
    return replace(honest, fused=StoredModel(fused, "global"))


def answers(architecture: Architecture, round_: Round, name: str, **settings: object) -> Answers:
    call = architecture.call()
    return trace_round(
        round_,
        rule_of(specification(name)),
        architecture.network(),
        Questions(call, tuple(Subject("input", n, "", None) for n in range(call.count))),
        settings=Settings(precise=True, target="logit", **settings),  # type: ignore[arg-type]
        labels=(),
        replays=True,
    )


def in_domain(round_: Round) -> bool:
    """Adaptive servers take sign steps first, which can make BatchNorm variances negative."""
    return all(bool((t > 0).all()) for n, t in round_.fused.tensors.items() if n.endswith("running_var"))


@pytest.mark.parametrize("architecture", ["one logit", "cnn", "batch norm"])
@pytest.mark.parametrize("name", FUSIONS)
def test_the_lines_add_up(name: str, architecture: str) -> None:
    network = ARCHITECTURES[architecture]
    round_ = fused_round(network, name)
    if not in_domain(round_):
        pytest.skip("this rule's first step leaves the domain of the network's variances")
    for one in answers(network, round_, name).inputs:
        assert one.parts is not None
        clients = sum(client.score for client in one.clients)
        total = one.parts.previous + one.parts.server + one.parts.unexplained + one.parts.residual + clients
        movement = sum(abs(client.score) for client in one.clients) + abs(one.parts.server)
        assert total == pytest.approx(one.target.value, abs=1e-12)
        assert abs(one.parts.unexplained) <= 1e-4 * movement
        assert abs(one.parts.residual) <= 0.011 * movement


@pytest.mark.parametrize("name", FUSIONS)
def test_an_edit_of_the_global_stands_in_unexplained(name: str) -> None:
    """On a linear network the edit's part of the target is exactly what it adds to the logit."""
    architecture = ARCHITECTURES["one logit"]
    round_ = fused_round(architecture, name)
    before = answers(architecture, round_, name)
    edit = torch.zeros(1, 144)
    edit[0, 70] = 0.25
    tensors = {**round_.fused.tensors, "1.weight": round_.fused.read("1.weight") + edit}
    after = answers(architecture, replace(round_, fused=StoredModel(tensors, "global")), name)
    pixels = architecture.call().arguments[0].flatten(1)[:, 70]
    for pixel, one, other in zip(pixels.tolist(), before.inputs, after.inputs, strict=True):
        if one.target.index != other.target.index:
            continue
        sign = 1 if other.target.index == 1 else 0  # of one sigmoid logit, class 0's logit is 0 by convention
        assert other.parts is not None
        assert one.parts is not None
        expected = one.parts.unexplained + sign * 0.25 * pixel
        assert other.parts.unexplained == pytest.approx(expected, abs=1e-6)
        if name not in ("fedadam", "fedyogi", "fedadagrad"):
            for client in one.clients:
                twin = next(c for c in other.clients if c.client == client.client)
                assert twin.score == pytest.approx(client.score, abs=1e-9)
