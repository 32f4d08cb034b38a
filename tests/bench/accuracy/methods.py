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
from flforensics.provenance.case import Case, Settings, network_state
from flforensics.provenance.ledger import ledger
from flforensics.provenance.logits import class_logits_of
from flforensics.provenance.targets import ClassTarget, class_target
from flforensics.provenance.trace import Answers, Questions, trace_round
from flforensics.results import ClientScore, Subject, no_progress
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
    if question.scenario.startswith("absent"):
        answers["lineage"] = _lineage(question, network, call)
    return answers


def _traced(round_: Round, network: nn.Module, call: Call, settings: Settings) -> Answers:
    subjects = tuple(Subject(f"input {n}", n, "", None) for n in range(call.count))
    return trace_round(
        round_,
        _RULE,
        network,
        Questions(call, subjects),
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


def _lineage(question: Question, network: nn.Module, call: Call) -> Answer:
    """The ledgers of all rounds, summed: the target is fixed under the last round's global."""
    start, target = time.perf_counter(), _margin(question, network, call)
    clients = tuple(sorted({client.client for round_ in question.history for client in round_.clients}))
    total = torch.zeros(call.count, len(clients), dtype=torch.float64)
    for round_ in question.history:
        columns = [clients.index(client.client) for client in round_.clients]
        total[:, columns] += _ledger(round_, network, call, target)
    return Answer(clients, total, None, time.perf_counter() - start)


def _margin(question: Question, network: nn.Module, call: Call) -> ClassTarget:
    state = network_state(network, question.round.fused, settings=_SETTINGS)
    return class_target("margin", class_logits_of(network, state, call))


def _ledger(round_: Round, network: nn.Module, call: Call, target: ClassTarget) -> Tensor:
    """The scores [N, K] of one round for a given target."""
    assert round_.previous is not None
    new, previous = (network_state(network, one, settings=_SETTINGS) for one in (round_.fused, round_.previous))
    scene = surveyed(_RULE, round_)
    return ledger(Case(round_, _RULE, scene, network, new, previous, call, target, _SETTINGS, no_progress)).clients
