"""One round of a lineage: what it did to every input, whatever the other rounds did.

The last global fixes what is explained (`Asked`); with that, rounds can be read in any order and anywhere.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from flforensics.errors import EvidenceError, NotComputableError
from flforensics.fusion.rule import Rule
from flforensics.gradients import Call
from flforensics.provenance.case import Case, Scores, Settings, network_state
from flforensics.provenance.chain import Effect, Link, Standing
from flforensics.provenance.ledger import ledger
from flforensics.provenance.localize.departure import Habit, departure, habits
from flforensics.provenance.logits import class_logits_of
from flforensics.provenance.profile import Profile
from flforensics.provenance.reading import class_names, line_error, prediction, require_classes, took_part
from flforensics.provenance.targets import ClassTarget, class_target
from flforensics.provenance.trace import Questions
from flforensics.results import Progress, no_progress
from flforensics.rounds import Round, StoredModel

_Departures = tuple[tuple[float, float] | None, ...]
"""One input's departures and their suspicion, client by client; None of whom nothing earlier is known."""


@dataclass(frozen=True)
class Step:
    """One round as the archive has it: its global, its clients, or why either cannot be had (`reason`).

    `earlier` are the rounds before, for rules with server state; `before` those that departures are measured from.
    A first step without `round` and `reason` is the model to start from.
    """

    number: int
    fused: StoredModel | None
    round: Round | None = None
    earlier: tuple[Round, ...] = ()
    before: tuple[Round, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Asked:
    """The inputs in batches of one shape with their targets, and what the last global, which fixed them, says.

    Plain data: it can be sent to where a round is read. `source` is the last global.
    """

    calls: tuple[Call, ...]
    targets: tuple[ClassTarget, ...]
    names: tuple[str, ...]
    settings: Settings
    source: str
    standing: Standing


@dataclass(frozen=True)
class Linked:
    """What one round did, what it leaves out, and how often its clients' files were read for that."""

    link: Link
    untraced: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    passes: int = 0


def ask(
    last: Step, network: nn.Module, batches: Sequence[Questions], *, settings: Settings, labels: Sequence[str]
) -> Asked:
    """The targets, fixed by the global of the last step.

    Raises EvidenceError where that global does not exist or does not fit the network, and NotComputableError
    (NON_FINITE) where its target is not finite.
    """
    if last.fused is None:
        raise EvidenceError(last.reason, reason="MISSING", hint="choose a round that has a global (--round)")
    state = network_state(_readied(network, settings), last.fused, settings=settings)
    calls = tuple(batch.call.to(torch.device(settings.device), settings.dtype) for batch in batches)
    logits = [class_logits_of(network, state, call) for call in calls]
    names = tuple(class_names(labels, logits[0].shape[1], settings))
    opponents = [settings.opponents([subject.true for subject in batch.subjects]) for batch in batches]
    for versus in opponents:
        require_classes(versus, len(names))
    targets = tuple(
        class_target(settings.target, one, chosen=settings.chosen, versus=versus)
        for one, versus in zip(logits, opponents, strict=True)
    )
    standing = _standing(logits, targets, names)
    if not all(map(math.isfinite, standing.values)):
        raise NotComputableError(
            f"the target is not finite under the global of round {last.number}",
            reason="NON_FINITE",
            hint="choose an earlier round with --round; `replay` says which file holds such numbers",
        )
    return Asked(calls, targets, names, settings, last.fused.source, standing)


def _readied(network: nn.Module, settings: Settings) -> nn.Module:
    return network.to(settings.device, settings.dtype).eval().requires_grad_(False)


def _standing(logits: Sequence[Tensor], targets: Sequence[ClassTarget], names: Sequence[str]) -> Standing:
    """Values and predictions of all batches."""
    values = [
        value for target, one in zip(targets, logits, strict=True) for value in target(one).double().tolist()
    ]
    return Standing(tuple(values), tuple(prediction(row, names) for one in logits for row in one))


@dataclass(frozen=True)
class _Model:
    """One global on the way: where it is stored, its state, and what it says about every input."""

    source: str
    state: Mapping[str, Tensor]
    standing: Standing


class Linking:
    """Reads rounds one at a time, in any order; a global where one round ends and the next starts is kept."""

    def __init__(self, asked: Asked, network: nn.Module, rule: Rule) -> None:
        self.asked = asked
        self.network = _readied(network, asked.settings)
        self.rule = rule
        self._recent: dict[str, _Model] = {}

    def linked(self, step: Step, *, before: StoredModel | None = None, progress: Progress = no_progress) -> Linked:
        """What the round of `step` did; `before` is the global of the step before, where there is one.

        What is wrong with the round is the reason in its link.
        """
        return _Linking(self, step, before, progress).linked()

    def under(self, model: StoredModel) -> _Model:
        """What `model` says. Raises EvidenceError where its file does not fit the network."""
        if model.source not in self._recent:
            state = network_state(self.network, model, settings=self.asked.settings)
            while len(self._recent) > 1:
                self._recent.pop(next(iter(self._recent)))
            self._recent[model.source] = _Model(model.source, state, self._standing(model, state))
        return self._recent[model.source]

    def _standing(self, model: StoredModel, state: Mapping[str, Tensor]) -> Standing:
        asked = self.asked
        if model.source == asked.source:
            return asked.standing
        logits = [class_logits_of(self.network, state, call) for call in asked.calls]
        return _standing(logits, asked.targets, asked.names)


@dataclass(frozen=True)
class _Linking:
    """One step; `untraced`, `warnings` and `profile` collect what is to be known besides."""

    linking: Linking
    step: Step
    before: StoredModel | None
    progress: Progress
    untraced: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    profile: Profile = field(default_factory=Profile)

    def linked(self) -> Linked:
        """What the round did, as far as it can be read."""
        return Linked(self._link(), self.untraced, tuple(self.warnings), self.profile.passes)

    def _link(self) -> Link:
        number = self.step.number
        if self.step.fused is None:
            return Link(number, None, None, reason=self.step.reason)
        try:
            reached = self.linking.under(self.step.fused)
        except EvidenceError as error:
            return Link(number, None, None, reason=error.message)
        try:
            return self._ledger(reached)
        except EvidenceError as error:
            return Link(number, None, reached.standing, reason=error.message)

    def _ledger(self, reached: _Model) -> Link:
        """The link with everybody's part. Raises EvidenceError where there is none."""
        step, round_, asked = self.step, self.step.round, self.linking.asked
        if round_ is None:
            return Link(step.number, None, reached.standing, reason=step.reason)
        start = self._start(round_)
        scene = took_part(self.linking.rule, round_, earlier=step.earlier)
        cases = [
            Case(
                round=round_,
                rule=self.linking.rule,
                scene=scene,
                network=self.linking.network,
                new=reached.state,
                previous=start.state,
                call=call,
                target=target,
                settings=replace(asked.settings, profile=self.profile),
                progress=self.progress,
                earlier=step.earlier,
            )
            for call, target in zip(asked.calls, asked.targets, strict=True)
        ]
        names = tuple(client.client for client in cases[0].clients)
        self._warn_of_absent(round_, names)
        known = habits(cases[0], step.before) if step.before else ()
        effects: list[Effect | str] = []
        for case in cases:
            rows = range(len(effects), len(effects) + case.call.count)
            effects += self._effects(case, known, [_not_finite((start, reached), row) for row in rows])
        return Link(
            step.number,
            start.standing,
            reached.standing,
            continues=self._continues(start),
            clients=tuple(zip(names, scene.coefficients.values, strict=True)),
            effects=tuple(effects),
        )

    def _start(self, round_: Round) -> _Model:
        """The model that the round started from: mostly the global of the step before."""
        if round_.previous is None:
            raise NotComputableError(f"round {round_.number} has no previous global", reason="PREVIOUS")
        return self.linking.under(round_.previous)

    def _continues(self, start: _Model) -> bool:
        """Whether the round started from the global before, be it stored in another file.

        Where that cannot be read there is a gap anyway, with its own reason.
        """
        if self.before is None or self.before.source == start.source:
            return True
        try:
            before = network_state(self.linking.network, self.before, settings=self.linking.asked.settings)
        except EvidenceError:
            return True
        return all(torch.equal(tensor, before[name]) for name, tensor in start.state.items())

    def _warn_of_absent(self, round_: Round, names: Sequence[str]) -> None:
        absent = [client.client for client in round_.clients if client.client not in names]
        if absent:
            self.warnings.append(
                f"round {round_.number}: no part could be computed for {', '.join(absent)} (file or weight"
                " missing): it is in `unexplained`"
            )

    def _effects(self, case: Case, known: Sequence[Habit], obstacles: Sequence[str]) -> list[Effect | str]:
        """Everybody's part for each input of a batch, or what stands in its way."""
        if not any(obstacles):
            return self._computed(case, known)
        found: Iterator[Effect | str] = iter(())
        if not all(obstacles):
            free = torch.tensor([not one for one in obstacles], device=case.target.classes.device)
            rows = free.nonzero().squeeze(1)
            found = iter(self._computed(replace(case, call=case.call[rows], target=case.target[rows]), known))
        return [one or next(found) for one in obstacles]

    def _computed(self, case: Case, known: Sequence[Habit]) -> list[Effect | str]:
        """The ledger of the batch or, where one input spoils it, of each input alone."""
        try:
            scores = ledger(case)
        except NotComputableError as error:
            if error.reason != "NON_FINITE" or case.call.count == 1:
                return [error.message] * case.call.count
            rows = [slice(n, n + 1) for n in range(case.call.count)]
            alone = [replace(case, call=case.call[row], target=case.target[row]) for row in rows]
            return [effect for one in alone for effect in self._computed(one, known)]
        self.untraced.update(scores.untraced)
        departures = self._departures(case, known)
        return [_effect(scores, n, case, departures) for n in range(case.call.count)]

    def _departures(self, case: Case, known: Sequence[Habit]) -> list[_Departures] | None:
        """For each input what departs from each client's earlier updates, where anything is known of these."""
        if not any(habit.before for habit in known):
            return None
        try:
            found = departure(case, known)
        except NotComputableError as error:
            self.warnings.append(f"round {case.round.number}: no departures: {error.message}")
            return None
        cells: list[list[list[float]]] = torch.stack([found.scores, found.suspicion], 2).tolist()
        return [
            tuple(
                (score, doubt) if habit.before else None for (score, doubt), habit in zip(row, known, strict=True)
            )
            for row in cells
        ]


def _not_finite(models: Sequence[_Model], index: int) -> str:
    """Which model gives no target for this input; empty if all do."""
    sources = [model.source for model in models if not model.standing.finite(index)]
    return f"the target is not finite under {sources[0]}" if sources else ""


def _effect(scores: Scores, index: int, case: Case, departures: Sequence[_Departures] | None) -> Effect | str:
    """One input's lines as numbers."""
    lines = scores.lines
    assert lines is not None
    assert lines.nodes is not None
    parts = (*scores.clients[index].tolist(), float(lines.server[index]), float(lines.unexplained[index]))
    if not all(map(math.isfinite, parts)):
        return f"the scores of round {case.round.number} are not finite"
    fixed = case.settings.nodes is not None or lines.converged is None
    return Effect(
        scores=parts[:-2],
        server=parts[-2],
        unexplained=parts[-1],
        nodes=int(lines.nodes[index]),
        converged=None if fixed or lines.converged is None else bool(lines.converged[index]),
        error=line_error(lines, index),
        departures=None if departures is None else departures[index],
    )
