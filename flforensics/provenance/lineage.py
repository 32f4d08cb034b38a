"""The ledger over all stored rounds: from the initial model to the final target, round by round.

For the class (and the class against it) that the last global fixes, the ledgers of the rounds telescope:

    f(θ_R) = f(θ_0) + Σ_rounds (clients + server + unexplained + residual) + gaps.

A gap is a movement that no ledger divides: a global whose clients are not stored, a round whose ledger is not
computable, a round that started from another model than the global before it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from flforensics.errors import EvidenceError, NotComputableError
from flforensics.fusion.rule import Rule
from flforensics.gradients import Call
from flforensics.provenance.case import Case, Scores, Settings, network_state
from flforensics.provenance.chain import Chain, Effect, Link, Reading, Standing, chained
from flforensics.provenance.ledger import ledger
from flforensics.provenance.logits import class_logits_of
from flforensics.provenance.reading import (
    class_names,
    line_error,
    prediction,
    require_classes,
    target_of,
    took_part,
)
from flforensics.provenance.targets import ClassTarget, class_target
from flforensics.provenance.trace import Questions
from flforensics.results import InputLineage, Progress, Target, Untraced, Verdict, no_progress
from flforensics.rounds import Round, StoredModel, spans


@dataclass(frozen=True)
class Step:
    """One round as the archive has it: its global, its clients, or why either cannot be had (`reason`).

    `earlier` are the rounds before, for rules with server state. A first step without `round` and `reason` is the
    model to start from.
    """

    number: int
    fused: StoredModel | None
    round: Round | None = None
    earlier: tuple[Round, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class LineageAnswers:
    """One lineage per input, in the order of the batches, and what a reader must know besides."""

    inputs: tuple[InputLineage, ...]
    untraced: tuple[Untraced, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Model:
    """One global on the way: where it is stored, its state, and what it says about every input."""

    source: str
    state: Mapping[str, Tensor]
    standing: Standing


@dataclass(frozen=True)
class _Asked:
    """The inputs in batches of one shape with their targets, and the last global, which fixed them."""

    network: nn.Module
    calls: tuple[Call, ...]
    targets: tuple[ClassTarget, ...]
    names: Sequence[str]
    settings: Settings
    last: _Model

    def under(self, model: StoredModel) -> _Model:
        """What `model` says. Raises EvidenceError where its file does not fit the network."""
        if model.source == self.last.source:
            return self.last
        state = network_state(self.network, model, settings=self.settings)
        logits = [class_logits_of(self.network, state, call) for call in self.calls]
        return _Model(model.source, state, _standing(logits, self.targets, self.names))


def trace_lineage(
    steps: Sequence[Step],
    rule: Rule,
    network: nn.Module,
    batches: Sequence[Questions],
    *,
    settings: Settings,
    labels: Sequence[str],
    verdicts: Mapping[int, Verdict],
    progress: Progress = no_progress,
) -> LineageAnswers:
    """The lineage of every input through `steps`, oldest first; the last one's global fixes what is explained.

    `verdicts` are the rounds' replays. What is wrong with an earlier round is the reason for a gap.
    Raises EvidenceError where the last global does not fit the network, and NotComputableError where its target
    is not finite (NON_FINITE) or no earlier model is known (PREVIOUS).
    """
    network = network.to(settings.device, settings.dtype).eval().requires_grad_(False)
    asked = _asked(steps[-1], network, batches, settings, labels)
    links: list[Link] = []
    untraced: dict[str, str] = {}
    warnings: list[str] = []
    here: _Model | None = None
    for place, step in enumerate(steps):
        round_ = _Round(asked, rule, step, here, untraced, warnings, _within(progress, step, steps[-1]))
        link, reached = round_.link()
        links.append(link)
        here = reached or here
        progress("rounds", place + 1, len(steps))
    doubtful = [link.number for link in links if _is_doubtful(link.number, verdicts)]
    subjects = [subject for batch in batches for subject in batch.subjects]
    chains = [chained(links, index) for index in range(len(subjects))]
    readings = [
        Reading(chain, subject, said, target, doubtful)
        for chain, subject, said, target in zip(
            chains, subjects, asked.last.standing.predictions, _targets(asked), strict=True
        )
    ]
    inputs = tuple(reading.answer() for reading in readings)
    return LineageAnswers(
        inputs,
        tuple(Untraced(name, reason) for name, reason in untraced.items()),
        (*_openings(chains), *_ways_out(inputs, doubtful, steps[-1].number), *warnings, *_rough(inputs, settings)),
    )


def _asked(
    last: Step, network: nn.Module, batches: Sequence[Questions], settings: Settings, labels: Sequence[str]
) -> _Asked:
    """The targets, fixed by the last global."""
    if last.fused is None:
        raise EvidenceError(last.reason, reason="MISSING", hint="choose a round that has a global (--round)")
    state = network_state(network, last.fused, settings=settings)
    calls = tuple(batch.call.to(torch.device(settings.device), settings.dtype) for batch in batches)
    logits = [class_logits_of(network, state, call) for call in calls]
    names = class_names(labels, logits[0].shape[1], settings)
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
    return _Asked(network, calls, targets, names, settings, _Model(last.fused.source, state, standing))


def _standing(logits: Sequence[Tensor], targets: Sequence[ClassTarget], names: Sequence[str]) -> Standing:
    """Values and predictions of all batches."""
    values = [
        value for target, one in zip(targets, logits, strict=True) for value in target(one).double().tolist()
    ]
    return Standing(tuple(values), tuple(prediction(row, names) for one in logits for row in one))


def _targets(asked: _Asked) -> list[Target]:
    """What is explained, for every input."""
    values = iter(asked.last.standing.values)
    return [
        target_of(target, index, value=next(values))
        for call, target in zip(asked.calls, asked.targets, strict=True)
        for index in range(call.count)
    ]


def _openings(chains: Sequence[Chain]) -> list[str]:
    """Why a lineage does not begin earlier, where something stands in its way."""
    found = {(chain.initial.round, chain.before): None for chain in chains if chain.initial and chain.before}
    return [f"the lineage begins with the global of round {number}: {reason}" for number, reason in found]


def _is_doubtful(number: int, verdicts: Mapping[int, Verdict]) -> bool:
    """Whether a round does not replay, or starts from a global that is none of its clients' making.

    A start that cannot be judged, such as the initial model, is taken as stored.
    """
    own, before = verdicts.get(number), verdicts.get(number - 1)
    return (own is not None and not own.replays) or before is Verdict.INCONSISTENT


def _ways_out(inputs: Sequence[InputLineage], doubtful: Sequence[int], last: int) -> list[str]:
    """How to ask again without the rounds that keep clients from being named, where that is possible."""
    used = {round_.round for one in inputs for round_ in one.rounds}
    rounds = [number for number in doubtful if number in used]
    if not rounds or rounds[-1] >= last:
        return []
    return [
        f"no client with a part in {spans(rounds)} is named; --from {rounds[-1]} leaves out what does not replay"
    ]


def _rough(inputs: Sequence[InputLineage], settings: Settings) -> list[str]:
    """A warning of lines that are less exact than was asked for."""
    rough = [one for one in inputs if any(round_.converged is False for round_ in one.rounds)]
    if not rough:
        return []
    return [
        f"{len(rough)} of {len(inputs)} inputs have rounds that did not converge within {settings.max_nodes}"
        " nodes: raise --max-nodes, or read those rounds' scores with their residual"
    ]


def _within(progress: Progress, step: Step, last: Step) -> Progress:
    """The progress of a ledger as a part of the whole."""
    return lambda stage, done, total: progress(f"round {step.number} of {last.number}: {stage}", done, total)


@dataclass(frozen=True)
class _Round:
    """One step from where the chain stands; `untraced` and `warnings` collect what is to be known besides."""

    asked: _Asked
    rule: Rule
    step: Step
    here: _Model | None
    untraced: dict[str, str]
    warnings: list[str]
    progress: Progress

    def link(self) -> tuple[Link, _Model | None]:
        """What the round did, and the global that it reached, where that can be read."""
        number = self.step.number
        if self.step.fused is None:
            return Link(number, None, None, reason=self.step.reason), None
        try:
            reached = self.asked.under(self.step.fused)
        except EvidenceError as error:
            return Link(number, None, None, reason=error.message), None
        try:
            return self._ledger(reached), reached
        except EvidenceError as error:
            return Link(number, None, reached.standing, reason=error.message), reached

    def _ledger(self, reached: _Model) -> Link:
        """The link with everybody's part. Raises EvidenceError where there is none."""
        step, round_ = self.step, self.step.round
        if round_ is None:
            return Link(step.number, None, reached.standing, reason=step.reason)
        start = self._start(round_)
        scene = took_part(self.rule, round_, earlier=step.earlier)
        cases = [
            Case(
                round=round_,
                rule=self.rule,
                scene=scene,
                network=self.asked.network,
                new=reached.state,
                previous=start.state,
                call=call,
                target=target,
                settings=self.asked.settings,
                progress=self.progress,
                earlier=step.earlier,
            )
            for call, target in zip(self.asked.calls, self.asked.targets, strict=True)
        ]
        names = tuple(client.client for client in cases[0].clients)
        self._warn_of_absent(round_, names)
        effects: list[Effect | str] = []
        for case in cases:
            rows = range(len(effects), len(effects) + case.call.count)
            effects += self._effects(case, [_not_finite((start, reached), row) for row in rows])
        return Link(
            step.number,
            start.standing,
            reached.standing,
            continues=self._continues(start),
            clients=tuple(zip(names, scene.coefficients.values, strict=True)),
            effects=tuple(effects),
        )

    def _start(self, round_: Round) -> _Model:
        """The model that the round started from: mostly the global where the chain stands, read before."""
        if round_.previous is None:
            raise NotComputableError(f"round {round_.number} has no previous global", reason="PREVIOUS")
        if self.here is not None and self.here.source == round_.previous.source:
            return self.here
        return self.asked.under(round_.previous)

    def _continues(self, start: _Model) -> bool:
        """Whether the round started from where the chain stands, be it stored in another file."""
        if self.here is None or start is self.here:
            return True
        return all(torch.equal(tensor, self.here.state[name]) for name, tensor in start.state.items())

    def _warn_of_absent(self, round_: Round, names: Sequence[str]) -> None:
        absent = [client.client for client in round_.clients if client.client not in names]
        if absent:
            self.warnings.append(
                f"round {round_.number}: no part could be computed for {', '.join(absent)} (file or weight"
                " missing): it is in `unexplained`"
            )

    def _effects(self, case: Case, obstacles: Sequence[str]) -> list[Effect | str]:
        """Everybody's part for each input of a batch, or what stands in its way."""
        if not any(obstacles):
            return self._computed(case)
        found: Iterator[Effect | str] = iter(())
        if not all(obstacles):
            free = torch.tensor([not one for one in obstacles], device=case.target.classes.device)
            rows = free.nonzero().squeeze(1)
            found = iter(self._computed(replace(case, call=case.call[rows], target=case.target[rows])))
        return [one or next(found) for one in obstacles]

    def _computed(self, case: Case) -> list[Effect | str]:
        """The ledger of the batch or, where one input spoils it, of each input alone."""
        try:
            scores = ledger(case)
        except NotComputableError as error:
            if error.reason != "NON_FINITE" or case.call.count == 1:
                return [error.message] * case.call.count
            rows = [slice(n, n + 1) for n in range(case.call.count)]
            alone = [replace(case, call=case.call[row], target=case.target[row]) for row in rows]
            return [effect for one in alone for effect in self._computed(one)]
        self.untraced.update(scores.untraced)
        return [_effect(scores, n, case) for n in range(case.call.count)]


def _not_finite(models: Sequence[_Model], index: int) -> str:
    """Which model gives no target for this input; empty if all do."""
    sources = [model.source for model in models if not model.standing.finite(index)]
    return f"the target is not finite under {sources[0]}" if sources else ""


def _effect(scores: Scores, index: int, case: Case) -> Effect | str:
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
    )
