"""From a round, a network and inputs to the answer for each input."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from typing import cast

import torch
from torch import Tensor, nn

from flforensics.fusion.rule import Rule
from flforensics.gradients import Call
from flforensics.provenance import METHODS
from flforensics.provenance.anatomy import with_anatomy
from flforensics.provenance.case import Case, Player, Scores, Settings, Without, network_state
from flforensics.provenance.logits import class_logits_of
from flforensics.provenance.reading import (
    class_names,
    line_error,
    prediction,
    require_classes,
    target_of,
    took_part,
)
from flforensics.provenance.responsible import ROUND, Evidence, responsible
from flforensics.provenance.tampering import unsearched, with_tamper_bounds
from flforensics.provenance.targets import class_target
from flforensics.results import (
    ClientScore,
    Counterfactual,
    InputTrace,
    Parts,
    Prediction,
    Progress,
    Subject,
    Target,
    Untraced,
    no_progress,
)
from flforensics.rounds import Round

_ROUNDING = 1e-5
_NOT_WRONG = "are right, or their true class is not known: their margins are over the best other class"
_NO_REPLAY = "this round does not replay"


@dataclass(frozen=True)
class Questions:
    """The inputs, as a batch for the network, and what to call each of them."""

    call: Call
    subjects: tuple[Subject, ...]


@dataclass(frozen=True)
class Answers:
    """One trace per input, what the method left out, and what a reader must know besides."""

    inputs: tuple[InputTrace, ...]
    untraced: tuple[Untraced, ...]
    warnings: tuple[str, ...]


def trace_round(
    round_: Round,
    rule: Rule,
    network: nn.Module,
    questions: Questions,
    *,
    settings: Settings,
    labels: Sequence[str],
    replays: bool,
    earlier: Sequence[Round] = (),
    progress: Progress = no_progress,
) -> Answers:
    """The answers of `settings.method` for every input; `earlier` rounds are for rules with server state.

    Raises EvidenceError where the round's files do not fit the network, NotComputableError where the method
    has no answer on them.
    """
    network = network.to(settings.device, settings.dtype).eval().requires_grad_(False)
    call = questions.call.to(torch.device(settings.device), settings.dtype)
    new = network_state(network, round_.fused, settings=settings)
    previous = None if round_.previous is None else network_state(network, round_.previous, settings=settings)
    logits = class_logits_of(network, new, call)
    names = class_names(labels, logits.shape[1], settings)
    function = settings.target if "target" in METHODS[settings.method].options else "logit"
    versus = settings.opponents([subject.true for subject in questions.subjects])
    require_classes(versus, logits.shape[1])
    target = class_target(function, logits, chosen=settings.chosen, versus=versus)
    scene = took_part(rule, round_, earlier=earlier)
    case = Case(round_, rule, scene, network, new, previous, call, target, settings, progress, tuple(earlier))
    scores = _method(settings.method)(case)
    reading = _Reading(case, scores, logits, _logits_before(case, scores), names, replays)
    inputs = tuple(reading.answer(index, subject) for index, subject in enumerate(questions.subjects))
    inputs = with_tamper_bounds(case, scores, with_anatomy(case, scores, inputs))
    untraced = tuple(Untraced(name, reason) for name, reason in scores.untraced.items())
    return Answers(inputs, untraced, (*scores.warnings, *unsearched(case, scores), *_warnings(case, inputs)))


def _logits_before(case: Case, scores: Scores) -> Tensor | None:
    """What the previous global says, [N, C], where the method has a ledger that starts from it."""
    if case.previous is None or scores.lines is None:
        return None
    known = scores.lines.before
    return class_logits_of(case.network, case.previous, case.call) if known is None else known


def joined(parts: Sequence[Answers], positions: Sequence[Sequence[int]]) -> Answers:
    """The answers of several batches as one, with each input at its position."""
    placed = {
        position: answer
        for part, rows in zip(parts, positions, strict=True)
        for position, answer in zip(rows, part.inputs, strict=True)
    }
    return Answers(
        tuple(placed[position] for position in sorted(placed)),
        tuple(dict.fromkeys(one for part in parts for one in part.untraced)),
        tuple(dict.fromkeys(warning for part in parts for warning in part.warnings)),
    )


@dataclass(frozen=True)
class _Reading:
    """Turns the tensors of a method's result into records, one input at a time."""

    case: Case
    scores: Scores
    logits: Tensor
    before: Tensor | None
    names: Sequence[str]
    replays: bool

    def answer(self, index: int, subject: Subject) -> InputTrace:
        after = prediction(self.logits[index], self.names)
        before = None if self.before is None else prediction(self.before[index], self.names)
        target = self._target(index)
        parts = self._parts(index)
        clients = self._clients(index, parts)
        stood = before is not None and before.index == target.index
        total = _total(clients, parts)
        verdict = responsible(self._evidence(index, clients, parts, total, stood), ROUND)
        answer = InputTrace(subject, after, target, clients, verdict)
        if self.scores.tamper_margins is not None and verdict.kind == "client":
            answer = replace(answer, tamper_margin=_finite(self.scores.tamper_margins[index]))
        return answer if parts is None else self._with_ledger(answer, index, before, parts)

    def _target(self, index: int) -> Target:
        target = self.case.target
        value = target[index : index + 1](self.logits[index : index + 1])
        return target_of(target, index, value=float(value))

    def _evidence(
        self, index: int, clients: tuple[ClientScore, ...], parts: Parts | None, total: float, stood: bool
    ) -> Evidence:
        """What the decision rests on; where the round does not replay, no client may be named."""
        scores = tuple((client.client, client.score) for client in clients)
        others = None if parts is None else (("server", parts.server), ("unexplained", parts.unexplained))
        doubts = {} if self.replays else dict.fromkeys((name for name, _ in scores), _NO_REPLAY)
        return Evidence(scores, others, total, self._error(index), doubts, stood)

    def _parts(self, index: int) -> Parts | None:
        """The other lines; the residual is what is left of f, so that the printed lines add up as printed."""
        lines = self.scores.lines
        if lines is None:
            return None
        previous, server, unexplained = (
            float(line[index]) for line in (lines.previous, lines.server, lines.unexplained)
        )
        explained = previous + server + unexplained + float(self.scores.clients[index].sum())
        return Parts(previous, server, unexplained, self._target(index).value - explained)

    def _clients(self, index: int, parts: Parts | None) -> tuple[ClientScore, ...]:
        """The clients, best first. Shares: of the movement, or the paper's softmax."""
        scores = self.scores.clients[index]
        if METHODS[self.case.settings.method].softmax:
            shares = scores.softmax(0)
        else:
            others = 0.0 if parts is None else abs(parts.server) + abs(parts.unexplained)
            movement = float(scores.abs().sum()) + others
            shares = scores / movement if movement else torch.zeros_like(scores)
        order, values, parts_of = scores.argsort(descending=True, stable=True), scores.tolist(), shares.tolist()
        return tuple(
            self._client(index, k, score=values[k], share=parts_of[k], rank=rank)
            for rank, k in enumerate(order.tolist(), start=1)
        )

    def _client(self, index: int, column: int, *, score: float, share: float, rank: int) -> ClientScore:
        """One line, with what the method adds to it."""
        player, weight, members = self._players[column]
        widths = self.scores.half_widths
        width = None if widths is None else float(widths[index, column])
        return ClientScore(
            player,
            weight,
            score,
            share,
            rank,
            members=members,
            interval=None if width is None else (score - width, score + width),
            drop=self._without(self.scores.dropped, index, column),
            refuse=self._without(self.scores.refused, index, column),
        )

    @cached_property
    def _players(self) -> list[tuple[str, float, tuple[str, ...] | None]]:
        """What the columns of the scores are: name, weight, and the members of what is no client alone."""
        clients, weights = self.case.clients, self.case.scene.coefficients.values
        alone = tuple(Player(client.client, (k,)) for k, client in enumerate(clients))
        found = []
        for player in self.scores.players or alone:
            names = tuple(clients[member].client for member in player.members)
            members = None if names == (player.name,) else names
            found.append((player.name, sum(weights[member] for member in player.members), members))
        return found

    def _without(self, outcomes: Without | None, index: int, column: int) -> Counterfactual | None:
        """What would be without this client, where there is such a thing."""
        change = None if outcomes is None else _finite(outcomes.change[index, column])
        if outcomes is None or change is None:
            return None
        predicted = int(outcomes.classes[index, column])
        flips = predicted != int(self.logits[index].argmax())
        return Counterfactual(change, predicted, self.names[predicted], flips)

    def _error(self, index: int) -> float:
        """How far a score can be off: the last change and the residual, doubled where it has not converged."""
        lines = self.scores.lines
        if self.scores.errors is not None:
            return float(self.scores.errors[index])
        if lines is None or lines.converged is None:
            return _ROUNDING * float(self.scores.clients[index].abs().max())
        return line_error(lines, index)

    def _with_ledger(self, answer: InputTrace, index: int, before: Prediction | None, parts: Parts) -> InputTrace:
        lines, permutations = self.scores.lines, self.scores.permutations
        assert lines is not None
        change = float(lines.change[index])
        fixed = lines.nodes is not None and self.case.settings.nodes is not None
        return replace(
            answer,
            before=before,
            parts=parts,
            round_effect=answer.target.value - parts.previous,
            nodes=None if lines.nodes is None else int(lines.nodes[index]),
            converged=None if fixed or lines.converged is None else bool(lines.converged[index]),
            change=None if math.isnan(change) else change,
            permutations=None if permutations is None else int(permutations[index]),
        )


def _finite(value: Tensor) -> float | None:
    """The number, or None where it does not exist."""
    number = float(value)
    return number if math.isfinite(number) else None


def _method(name: str) -> Callable[[Case], Scores]:
    module, _, attribute = METHODS[name].where.partition(":")
    return cast("Callable[[Case], Scores]", getattr(import_module(module), attribute))


def _total(clients: Sequence[ClientScore], parts: Parts | None) -> float:
    """What leads are measured against: Σ|line|, or 1 for shares that already sum to 1."""
    total = sum(abs(score.score) for score in clients)
    return total if parts is None else total + abs(parts.server) + abs(parts.unexplained)


def _themselves(case: Case, inputs: Sequence[InputTrace]) -> list[str]:
    """The inputs whose margin is not over the class that was asked for, which is explained itself or unknown."""
    if case.settings.versus == "true":
        unknown = sum(answer.subject.true in (None, answer.target.index) for answer in inputs)
        return [f"{unknown} of {len(inputs)} inputs {_NOT_WRONG}"] if unknown else []
    own = sum(answer.target.index == case.settings.versus for answer in inputs)
    if not own:
        return []
    return [
        f"{own} of {len(inputs)} inputs are predicted as the class of --against themselves: their margins are over"
        " the best other class"
    ]


def _warnings(case: Case, inputs: Sequence[InputTrace]) -> list[str]:
    rough = [answer for answer in inputs if answer.converged is False]
    warnings = _themselves(case, inputs)
    if rough and rough[0].permutations is None:
        warnings.append(
            f"{len(rough)} of {len(inputs)} inputs did not converge within {case.settings.max_nodes} nodes:"
            " raise --max-nodes, or read their scores with the change that is stated"
        )
    elif rough:
        warnings.append(
            f"{len(rough)} of {len(inputs)} inputs did not converge within {case.settings.max_permutations}"
            " permutations: raise --max-permutations, or read their scores with the intervals that are stated"
        )
    absent = [client.client for client in case.round.clients if client not in case.clients]
    if absent:
        warnings.append(
            "no part could be computed for "
            + ", ".join(absent)
            + " (file or weight missing): it is in `unexplained`"
        )
    return warnings
