"""From a round, a network and inputs to every localizer's finding.

A program that wants the tensors alone makes a case and asks: `feddebug(case_of(round, rule, network, random
inputs, settings=...))` gives votes; with `batch = labelled(case, call, classes)`, `influence(batch.mispredicted(),
noise)` gives an order, and `mispredictions(batch.case).shares[batch.wrong].mean(0)` the mean shares.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import cast

import torch
from torch import Tensor, nn

from flforensics.errors import NotComputableError
from flforensics.fusion.rule import Rule
from flforensics.gradients import Call
from flforensics.provenance.case import Case, Settings, network_state
from flforensics.provenance.localize import LOCALIZERS
from flforensics.provenance.localize.mispredictions import error_margin
from flforensics.provenance.logits import class_logits_of
from flforensics.provenance.reading import require_classes, took_part
from flforensics.provenance.targets import ClassTarget
from flforensics.results import Finding, Progress, Silent, no_progress
from flforensics.rounds import Round


@dataclass(frozen=True)
class Materials:
    """What there is to look at.

    `probes` are feddebug's random inputs, `noise` the influence test's; `calls` the given inputs in batches of one
    shape, `true` their true classes, −1 where unknown, which counts as a misprediction. `threshold` is feddebug's,
    `before` are the rounds that departure compares with, oldest first: such as replay, with their previous global.
    """

    probes: Call | None = None
    noise: Call | None = None
    calls: tuple[Call, ...] = ()
    true: tuple[tuple[int, ...], ...] = ()
    threshold: float = 0.003
    before: tuple[Round, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Given inputs of one shape as a case with error margins; which are mispredicted [N], the true classes [N]."""

    case: Case
    wrong: Tensor
    true: Tensor

    def mispredicted(self) -> Case:
        """The case of the mispredictions alone."""
        rows = self.wrong.nonzero().flatten()
        return replace(self.case, call=self.case.call[rows], target=self.case.target[rows])


@dataclass(frozen=True)
class Scene:
    """One round and everything to look at; `case` holds the random inputs, if there are any."""

    case: Case
    materials: Materials
    batches: tuple[Batch, ...]
    replays: bool


@dataclass(frozen=True)
class Found:
    """Every method's finding, or why it has none, and what a reader must know besides."""

    findings: tuple[Finding, ...]
    silent: tuple[Silent, ...]
    warnings: tuple[str, ...]


def localize_round(
    round_: Round,
    rule: Rule,
    network: nn.Module,
    materials: Materials,
    *,
    methods: Sequence[str],
    settings: Settings,
    replays: bool,
    earlier: Sequence[Round] = (),
    progress: Progress = no_progress,
) -> Found:
    """The findings of `methods`, keys of LOCALIZERS; `earlier` rounds are for rules with server state.

    Raises UsageError where a true class is none of the model's, EvidenceError where the round's files do not fit
    the network, and the first method's NotComputableError if none has an answer.
    """
    case = case_of(round_, rule, network, materials.probes, settings=settings, earlier=earlier, progress=progress)
    given = zip(materials.calls, materials.true, strict=True)
    scene = Scene(case, materials, tuple(labelled(case, call, true) for call, true in given), replays)
    findings: list[Finding] = []
    refusals: list[tuple[str, NotComputableError]] = []
    for name in methods:
        try:
            findings.append(_finding(name, scene))
        except NotComputableError as error:
            refusals.append((name, error))
    if not findings:
        raise refusals[0][1]
    silent = tuple(Silent(name, error.message) for name, error in refusals)
    new = _strangers(scene) if any(LOCALIZERS[one.method.name].earlier for one in findings) else []
    return Found(tuple(findings), silent, (*_warnings(case), *new))


def case_of(
    round_: Round,
    rule: Rule,
    network: nn.Module,
    call: Call | None,
    *,
    settings: Settings,
    earlier: Sequence[Round] = (),
    progress: Progress = no_progress,
) -> Case:
    """The round on inputs of which no class is asked yet; `labelled` puts others and their classes in."""
    network = network.to(settings.device, settings.dtype).eval().requires_grad_(False)
    scene = took_part(rule, round_, earlier=earlier)
    new = network_state(network, round_.fused, settings=settings)
    previous = None if round_.previous is None else network_state(network, round_.previous, settings=settings)
    call = (call or Call((torch.zeros(0),))).to(torch.device(settings.device), settings.dtype)
    nothing = torch.zeros(call.count, dtype=torch.int64, device=settings.device)
    target = ClassTarget("logit", nothing, nothing)
    return Case(round_, rule, scene, network, new, previous, call, target, settings, progress, tuple(earlier))


def labelled(case: Case, call: Call, classes: Sequence[int]) -> Batch:
    """Inputs with their true classes, −1 where unknown. Raises UsageError where a class is none of the model's."""
    call = call.to(torch.device(case.settings.device), case.settings.dtype)
    logits = class_logits_of(case.network, case.new, call)
    true = torch.tensor(classes, device=logits.device)
    require_classes(classes, logits.shape[1])
    margins = error_margin(logits, true)
    return Batch(replace(case, call=call, target=margins), (true < 0) | (logits.argmax(1) != true), true)


def _finding(name: str, scene: Scene) -> Finding:
    if LOCALIZERS[name].mispredictions and not any(bool(batch.wrong.any()) for batch in scene.batches):
        raise NotComputableError(
            f"the global of round {scene.case.round.number} predicts every given input correctly",
            reason="INPUTS",
            hint="give inputs that it gets wrong, or use --method feddebug",
        )
    module, _, attribute = LOCALIZERS[name].where.partition(":")
    return cast("Callable[[Scene], Finding]", getattr(import_module(module), attribute))(scene)


def _warnings(case: Case) -> list[str]:
    absent = [client.client for client in case.round.clients if client not in case.clients]
    if not absent:
        return []
    return [f"nothing can be said about {', '.join(absent)} (file or weight missing)"]


def _strangers(scene: Scene) -> list[str]:
    """Which clients there is nothing to compare with."""
    known = {client.client for one in scene.materials.before for client in one.clients if client.model is not None}
    names = ", ".join(client.client for client in scene.case.clients if client.client not in known)
    return [f"nothing earlier is known of {names}: all that they sent counts as a departure"] if names else []
