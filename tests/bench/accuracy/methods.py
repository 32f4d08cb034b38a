"""Every method's answer to a question: a score for each input and client, and whom it holds responsible."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from flforensics.errors import NotComputableError
from flforensics.fusion import rule_named
from flforensics.fusion.rule import surveyed
from flforensics.gradients import Call
from flforensics.inputs.noise import kaiming_noise, uniform_noise
from flforensics.provenance.case import Case, Settings, network_state
from flforensics.provenance.ledger import ledger
from flforensics.provenance.lineage import LineageAnswers, Step, trace_lineage
from flforensics.provenance.localize.feddebug import feddebug
from flforensics.provenance.localize.influence import NOISE_INPUTS, influence
from flforensics.provenance.localize.localizing import case_of, labelled
from flforensics.provenance.logits import class_logits_of
from flforensics.provenance.targets import ClassTarget, class_target
from flforensics.provenance.trace import Answers, Questions, trace_round
from flforensics.results import ClientScore, Subject, Verdict, no_progress
from flforensics.rounds import Round
from tests.bench.accuracy.federations import Federation
from tests.bench.accuracy.scenarios import Question


@dataclass(frozen=True)
class Answer:
    """Scores [N, K] of `clients`; `named` is whom the trace holds responsible for each input, if anybody.

    `seconds` are what the run cost that the answer came from.
    """

    clients: tuple[str, ...]
    scores: Tensor
    named: tuple[str | None, ...] | None
    seconds: float

    @property
    def top(self) -> tuple[str, ...]:
        """The client with the largest score, for each input."""
        return tuple(self.clients[index] for index in self.scores.argmax(1).tolist())


@dataclass(frozen=True)
class Run:
    """One call of `trace_round`, and the answers that are read from it, by name."""

    settings: Settings
    columns: Mapping[str, Callable[[ClientScore], float]]


def _refused(client: ClientScore) -> float:
    assert client.refuse is not None
    return client.refuse.change


def _score(client: ClientScore) -> float:
    return client.score


RUNS: tuple[Run, ...] = (
    Run(Settings("ledger"), {"ledger": _score}),
    Run(Settings("tracefl"), {"tracefl (paper)": _score}),
    Run(Settings("tracefl", scale_clients=False), {"tracefl (published)": _score}),
    Run(Settings("counterfactual"), {"drop": _score, "re-fusion": _refused}),
    Run(Settings("shapley"), {"shapley": _score}),
)
"""The methods that look at one round."""

AGAINST_TRUTH = "ledger (against the true class)"
_RULE, _SETTINGS = rule_named("fedavg"), Settings()
_NUMBERS, _PROBES = {"kind": "tensor"}, 10


def answers_to(question: Question, federation: Federation, *, shapley: bool) -> dict[str, Answer]:
    """The answers of every method that has one on this question."""
    network, call = federation.network.eval().requires_grad_(False), federation.model.call(question.inputs.x)
    answers: dict[str, Answer] = {}
    for run in RUNS:
        if run.settings.method == "shapley" and not shapley:
            continue
        start = time.perf_counter()
        try:
            found = _traced(question.round, network, call, run.settings)
        except NotComputableError:
            continue
        seconds = time.perf_counter() - start
        for name, value in run.columns.items():
            answers[name] = _answer(found, question.round, value, seconds)
    if question.culprit is not None:
        answers[AGAINST_TRUTH] = _against_truth(question, network, call)
        answers |= _localizers(question, federation)
    if question.scenario.startswith("absent"):
        answers |= _lineages(question, network, call)
    return answers


def _traced(round_: Round, network: nn.Module, call: Call, settings: Settings) -> Answers:
    return trace_round(
        round_,
        _RULE,
        network,
        Questions(call, _subjects(call)),
        settings=settings,
        labels=(),
        replays=True,
    )


def _answer(found: Answers, round_: Round, value: Callable[[ClientScore], float], seconds: float) -> Answer:
    clients = tuple(client.client for client in round_.clients)
    rows = [{client.client: value(client) for client in one.clients} for one in found.inputs]
    scores = torch.tensor([[row[client] for client in clients] for row in rows], dtype=torch.float64)
    return Answer(clients, scores, tuple(one.responsible.client for one in found.inputs), seconds)


def _against_truth(question: Question, network: nn.Module, call: Call) -> Answer:
    """The ledger of the margin between the predicted and the true class."""
    start = time.perf_counter()
    target = replace(_margin(question, network, call), against=question.inputs.y)
    clients = tuple(client.client for client in question.round.clients)
    return Answer(clients, _ledger(question.round, network, call, target), None, time.perf_counter() - start)


def _localizers(question: Question, federation: Federation) -> dict[str, Answer]:
    """Those that name one client for a round, where inputs are pictures: the same answer for every input."""
    if federation.model.text:
        return {}
    network, call = federation.network.eval().requires_grad_(False), federation.model.call(question.inputs.x)
    clients = tuple(client.client for client in question.round.clients)
    shape, seed = tuple(question.inputs.x.shape[1:]), federation.setting.seed
    probes = Call((kaiming_noise(_NUMBERS, shape, count=_PROBES, seed=seed),))
    noise = Call((uniform_noise(_NUMBERS, shape, count=NOISE_INPUTS, seed=seed),))
    start = time.perf_counter()
    case = case_of(question.round, _RULE, network, probes, settings=_SETTINGS)
    votes = feddebug(case).votes.double()
    middle = time.perf_counter()
    batch = labelled(case, call, question.inputs.y.tolist())
    order = influence(batch.mispredicted(), noise).order
    end = time.perf_counter()
    places = torch.tensor([-order.index(k) for k in range(len(order))], dtype=torch.float64)
    return {
        "feddebug": Answer(clients, votes.expand(call.count, -1), None, middle - start),
        "influence": Answer(clients, places.expand(call.count, -1), None, end - middle),
    }


def _lineages(question: Question, network: nn.Module, call: Call) -> dict[str, Answer]:
    """Over all rounds: each client's sum, and its largest single round; and both against the true class."""
    history, start = question.history, time.perf_counter()
    clients = tuple(sorted({client.client for round_ in history for client in round_.clients}))
    found = _traced_lineage(question, network, call)
    named = tuple(one.responsible.client for one in found.inputs)
    matrix = torch.zeros(len(history), call.count, len(clients), dtype=torch.float64)
    for row, one in enumerate(found.inputs):
        for place, round_ in enumerate(one.rounds):
            for client in round_.clients:
                matrix[place, row, clients.index(client.client)] = client.score
    seconds, middle = time.perf_counter() - start, time.perf_counter()
    target = replace(_margin(question, network, call), against=question.inputs.y)
    truth = torch.zeros_like(matrix)
    for place, one_round in enumerate(history):
        columns = [clients.index(client.client) for client in one_round.clients]
        truth[place][:, columns] = _ledger(one_round, network, call, target)
    spent = time.perf_counter() - middle
    return {
        "lineage": Answer(clients, matrix.sum(0), named, seconds),
        "lineage: largest single round": Answer(clients, matrix.amax(0), None, seconds),
        "lineage (against the true class)": Answer(clients, truth.sum(0), None, spent),
        "lineage (against the true class): largest single round": Answer(clients, truth.amax(0), None, spent),
    }


def _traced_lineage(question: Question, network: nn.Module, call: Call) -> LineageAnswers:
    first = question.history[0]
    steps = [
        Step(first.number - 1, first.previous),
        *(Step(one.number, one.fused, one) for one in question.history),
    ]
    return trace_lineage(
        [Step(first.number - 1, first.previous), *steps],
        _RULE,
        network,
        [Questions(call, _subjects(call))],
        settings=_SETTINGS,
        labels=(),
        verdicts={one.number: Verdict.BIT_EXACT for one in question.history},
    )


def _subjects(call: Call) -> tuple[Subject, ...]:
    return tuple(Subject(f"input {n}", n, "", None) for n in range(call.count))


def _margin(question: Question, network: nn.Module, call: Call) -> ClassTarget:
    state = network_state(network, question.round.fused, settings=_SETTINGS)
    return class_target("margin", class_logits_of(network, state, call))


def _ledger(round_: Round, network: nn.Module, call: Call, target: ClassTarget) -> Tensor:
    """The scores [N, K] of one round for a given target."""
    assert round_.previous is not None
    new, previous = (network_state(network, one, settings=_SETTINGS) for one in (round_.fused, round_.previous))
    scene = surveyed(_RULE, round_)
    return ledger(Case(round_, _RULE, scene, network, new, previous, call, target, _SETTINGS, no_progress)).clients
