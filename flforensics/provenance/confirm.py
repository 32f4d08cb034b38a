"""Does anything else carry an answer of the ledger? Other methods, precisions and targets, controls, repair.

Every method runs once over all inputs of a batch; controls are batched by the class that is explained. How a grade
follows from what is found: `flforensics.provenance.grades`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Literal

import torch
from torch import nn

from flforensics.fusion.rule import Rule
from flforensics.gradients import Call
from flforensics.provenance import controls
from flforensics.provenance.case import Settings, network_state
from flforensics.provenance.grades import LEAST_AGREEING, LEVEL, at_least, exceeds, graded, spearman
from flforensics.provenance.logits import class_logits_of
from flforensics.provenance.trace import Answers, Questions, trace_round
from flforensics.results import (
    Agreement,
    ClientScore,
    Confirmation,
    Controls,
    Counterfactual,
    InputTrace,
    Others,
    Progress,
    Rate,
    Repair,
    Stability,
    no_progress,
)
from flforensics.rounds import Round

TARGETS = ("margin", "logit", "logprob")
LAYER_DECAYS = (1.0, 0.9, 0.8)
MOST_CLASSES = 16
"""Of more other classes than these, a seeded sample is asked."""

_Asked = tuple[int | None, int | Literal["true"] | None]  # the class to explain, and the one its margin is over

_BUDGET = 1 << 28
_BEYOND = {
    "server": "the largest effect is the server's own",
    "unexplained": "the largest effect is not explained by the stored clients",
}
_PRECISION = "float32 and float64 put different files first"


@dataclass(frozen=True)
class Inquiry:
    """What every question about a round has in common; `ask` puts one."""

    round: Round
    rule: Rule
    network: nn.Module
    labels: Sequence[str]
    replays: bool
    earlier: Sequence[Round] = ()
    progress: Progress = no_progress

    def ask(self, questions: Questions, settings: Settings) -> Answers:
        """The answers of `settings.method`."""
        return trace_round(
            self.round,
            self.rule,
            self.network,
            questions,
            settings=settings,
            labels=self.labels,
            replays=self.replays,
            earlier=self.earlier,
            progress=self.progress,
        )

    def classes(self, call: Call) -> int:
        """How many classes the model has."""
        if self.labels:
            return len(self.labels)
        network, settings = self.network.to("cpu", torch.float32).eval(), Settings()
        state = network_state(network, self.round.fused, settings=settings)
        return class_logits_of(network, state, call[:1].to(torch.device("cpu"), settings.dtype)).shape[1]


def confirmed(
    inquiry: Inquiry,
    batches: Sequence[Questions],
    positions: Sequence[Sequence[int]],
    found: Sequence[InputTrace],
    settings: Settings,
) -> tuple[InputTrace, ...]:
    """The ledger's answers `found`, each with its confirmation.

    `batches` are the inputs, and `positions` where the answers of each batch stand in `found`. Raises what the
    methods raise.
    """
    grounds: dict[int, _Grounds] = {}
    for questions, rows in zip(batches, positions, strict=True):
        batch = _Batch(inquiry, questions, tuple(found[row] for row in rows), settings)
        grounds |= {row: batch.grounds(index) for index, row in enumerate(rows)}
    inputs = [grounds[row] for row in range(len(found))]
    return tuple(
        replace(one.answer, confirmation=_confirmation(one, inputs, replays=inquiry.replays)) for one in inputs
    )


@dataclass(frozen=True)
class _Grounds:
    """All that was found out about one input; the repair test needs those of the others too."""

    answer: InputTrace
    rankings: Mapping[str, Mapping[str, float]]
    refused: Mapping[str, Counterfactual | None]
    stability: Stability
    controls: Controls

    @property
    def client(self) -> str:
        """Whom the ledger puts first."""
        return self.answer.clients[0].client


@dataclass(frozen=True)
class _Batch:
    """Inputs of one shape, their answers, and everything else that is asked about them, once for all of them."""

    inquiry: Inquiry
    questions: Questions
    found: tuple[InputTrace, ...]
    settings: Settings

    def grounds(self, index: int) -> _Grounds:
        """What was found out about one of the inputs."""
        answer, counterfactual = self.found[index], self._counterfactual[index]
        rankings = {
            "ledger": _scores(answer.clients),
            "tracefl": _scores(self._tracefl[str(self.settings.layer_decay)][index].clients),
            "drop": _scores(counterfactual.clients),
        }
        refused = {client.client: client.refuse for client in counterfactual.clients}
        if all(refused.values()):
            rankings["refuse"] = {name: one.change for name, one in refused.items() if one is not None}
        kinds = (self._dtypes, self._targets, self._tracefl)
        stability = Stability(
            *(tuple((name, _first(rows[index])) for name, rows in kind.items()) for kind in kinds)
        )
        return _Grounds(answer, rankings, refused, stability, self._controls(index))

    def _ask(self, **changes: object) -> tuple[InputTrace, ...]:
        return self.inquiry.ask(self.questions, replace(self.settings, **changes)).inputs  # type: ignore[arg-type]

    @cached_property
    def _counterfactual(self) -> tuple[InputTrace, ...]:
        return self._ask(method="counterfactual")

    @cached_property
    def _tracefl(self) -> dict[str, tuple[InputTrace, ...]]:
        decays = dict.fromkeys((*LAYER_DECAYS, self.settings.layer_decay))
        return {str(decay): self._ask(method="tracefl", layer_decay=decay) for decay in decays}

    @cached_property
    def _dtypes(self) -> dict[str, tuple[InputTrace, ...]]:
        own = {self.settings.precise: self.found}
        answers = {precise: own.get(precise) or self._ask(precise=precise) for precise in (False, True)}
        return {"float32": answers[False], "float64": answers[True]}

    @cached_property
    def _targets(self) -> dict[str, tuple[InputTrace, ...]]:
        own = {self.settings.target: self.found}
        return {target: own.get(target) or self._ask(target=target) for target in TARGETS}

    def _controls(self, index: int) -> Controls:
        first = _first(self.found[index])
        rates = {
            kind: Rate(sum(one == first for one in rows[index]), len(rows[index]))
            for kind, rows in self._control_tops.items()
        }
        return Controls(self.settings.seed, **rates, p_value=exceeds(rates["neighbours"], rates["noise"]))

    @cached_property
    def _control_tops(self) -> dict[str, list[list[str]]]:
        """For each kind of control and input, whom the ledger puts first in each of its controls."""
        tops: dict[str, list[list[str]]] = {
            kind: [[] for _ in self.found] for kind in ("neighbours", "other_classes", "noise")
        }
        blocks = torch.split(torch.arange(len(self.found)), self._block)
        for step, block in enumerate(blocks):
            for (chosen, versus), rows in self._asked(block.tolist()).items():
                call = _joined([call for _, _, call in rows])
                owners = [(kind, index) for kind, index, one in rows for _ in range(one.count)]
                subjects = tuple(self.found[index].subject for _, index in owners)
                settings = replace(self.settings, chosen=chosen, versus=versus)
                answers = self.inquiry.ask(Questions(call, subjects), settings).inputs
                for (kind, index), answer in zip(owners, answers, strict=True):
                    tops[kind][index].append(_first(answer))
            self.inquiry.progress("controls", step + 1, len(blocks))
        return tops

    @property
    def _block(self) -> int:
        """For how many inputs all controls are kept at once."""
        call = self.questions.call[:1]
        size = sum(tensor.nbytes for tensor in (*call.arguments, *call.keywords.values()))
        return max(1, _BUDGET // (2 * controls.COUNT * size))

    def _asked(self, rows: Sequence[int]) -> dict[_Asked, list[tuple[str, int, Call]]]:
        """The controls by the class to explain: noise is explained for what is predicted (None).

        Neighbours are asked what the input was asked; the margins of the others are over the best other class.
        """
        asked: dict[_Asked, list[tuple[str, int, Call]]] = {}
        for index in rows:
            answer, one, seed = self.found[index], self.questions.call[index : index + 1], self.settings.seed
            digest = f"{answer.subject.sha256} {answer.subject.index}"
            near = controls.neighbours(one, seed=seed, digest=digest)
            asked.setdefault((answer.target.index, self.settings.versus), []).append(("neighbours", index, near))
            noise = controls.noise(one, seed=seed, digest=digest)
            asked.setdefault((None, None), []).append(("noise", index, noise))
            for chosen in self._other_classes(answer.target.index):
                asked.setdefault((chosen, None), []).append(("other_classes", index, one))
        return asked

    def _other_classes(self, index: int) -> list[int]:
        others = [one for one in range(self._classes) if one != index]
        generator = torch.Generator().manual_seed(self.settings.seed)
        drawn = torch.randperm(len(others), generator=generator)[:MOST_CLASSES]
        return [others[one] for one in sorted(drawn.tolist())]

    @cached_property
    def _classes(self) -> int:
        return self.inquiry.classes(self.questions.call)


def _joined(calls: Sequence[Call]) -> Call:
    """Several calls of one shape as one."""
    arguments = tuple(torch.cat(tensors) for tensors in zip(*(call.arguments for call in calls), strict=True))
    names = calls[0].keywords
    return Call(arguments, {name: torch.cat([call.keywords[name] for call in calls]) for name in names})


def _scores(clients: Sequence[ClientScore]) -> dict[str, float]:
    return {client.client: client.score for client in clients}


def _first(answer: InputTrace) -> str:
    return answer.clients[0].client


def _confirmation(one: _Grounds, inputs: Sequence[_Grounds], *, replays: bool) -> Confirmation:
    """The grade, and what it rests on."""
    agreement = _agreement(one)
    repair = _repair(one, inputs)
    neighbours = one.controls.neighbours
    responsible = one.answer.responsible
    precise = len({first for _, first in one.stability.dtype}) == 1
    row = graded(
        {
            "named": replays and responsible.kind == "client" and precise,
            "agree": agreement.agreeing >= LEAST_AGREEING,
            "decisive": repair is not None and _decisive(one.answer, repair),
            "specific": one.controls.p_value <= LEVEL and 2 * neighbours.on_top > neighbours.of,
        }
    )
    reason = row.says
    if not row.needs:
        cause = responsible.reason or _BEYOND.get(responsible.kind) or _PRECISION
        reason = f"{row.says}: {cause}"
    return Confirmation(one.client, row.grade, reason, agreement, one.stability, one.controls, repair)


def _agreement(one: _Grounds) -> Agreement:
    first = {name: max(scores, key=lambda client: scores[client]) for name, scores in one.rankings.items()}
    agreeing = sum(client == one.client for client in first.values())
    clients = [client.client for client in one.answer.clients]
    pairs = tuple(
        (a, b, spearman([one.rankings[a][client] for client in clients], [one.rankings[b][c] for c in clients]))
        for a, b in combinations(one.rankings, 2)
    )
    chance = at_least(agreeing - 1, len(first) - 1, 1 / len(clients))
    return Agreement(tuple(first.items()), agreeing, len(first), chance, pairs)


def _decisive(answer: InputTrace, repair: Repair) -> bool:
    """Whether the explained prediction, or most of its margin, is gone."""
    explained = answer.target.index == answer.prediction.index
    return explained and (repair.changes or (repair.removed or 0.0) > 1 / 2)


def _repair(one: _Grounds, inputs: Sequence[_Grounds]) -> Repair | None:
    """What a fusion without the client predicts, here and for the other inputs."""
    answer, refused = one.answer, one.refused[one.client]
    if refused is None:
        return None
    target, true = answer.target, answer.subject.true
    margin = target.function == "margin" and target.index == answer.prediction.index and target.value > 0
    right = refused.flips if true is None else refused.index == true
    fates = [_fate(other, one.client) for other in inputs if other is not one]
    return Repair(
        refused.index,
        refused.label,
        refused.flips,
        None if true == answer.prediction.index else right,
        refused.change / target.value if margin else None,
        Others(**{name: fates.count(name) for name in dict.fromkeys(fates) if name}),
    )


_FATES = {
    (True, True): "stays_right",
    (True, False): "becomes_wrong",
    (False, True): "becomes_right",
    (False, False): "stays_wrong",
}


def _fate(other: _Grounds, client: str) -> str:
    """What becomes of another input without the client; empty where there is no such fusion."""
    refused, answer = other.refused[client], other.answer
    if refused is None:
        return ""
    true = answer.subject.true
    if true is None:
        return "changes" if refused.flips else "keeps"
    return _FATES[answer.prediction.index == true, refused.index == true]
