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
from flforensics.provenance.localize.departure import Departures, departure, habits
from flforensics.provenance.localize.feddebug import feddebug
from flforensics.provenance.localize.influence import NOISE_INPUTS, influence
from flforensics.provenance.localize.localizing import case_of, labelled
from flforensics.provenance.logits import class_logits_of
from flforensics.provenance.targets import class_target
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
DEPARTURE, DISTANCE, LEFT = "departure", "departure: distance alone", "lineage: most suspect departure"
_RULE = rule_named("fedavg")
_NUMBERS, _PROBES = {"kind": "tensor"}, 10


def answers_to(question: Question, federation: Federation, *, shapley: bool) -> dict[str, Answer]:
    """The answers of every method that has one on this question."""
    asking = _Asking(question, federation)
    answers: dict[str, Answer] = {}
    for run in RUNS:
        if run.settings.method == "shapley" and not shapley:
            continue
        start = time.perf_counter()
        try:
            found = asking.traced(run.settings)
        except NotComputableError:
            continue
        seconds = time.perf_counter() - start
        for name, value in run.columns.items():
            answers[name] = _answer(found, question.round, value, seconds)
    if question.culprit is not None:
        answers[AGAINST_TRUTH] = asking.against_truth()
        answers |= asking.departures()
        answers |= asking.localizers()
    if question.scenario.startswith("absent"):
        answers |= asking.lineages()
    return answers


def _answer(found: Answers, round_: Round, value: Callable[[ClientScore], float], seconds: float) -> Answer:
    clients = tuple(client.client for client in round_.clients)
    rows = [{client.client: value(client) for client in one.clients} for one in found.inputs]
    scores = torch.tensor([[row[client] for client in clients] for row in rows], dtype=torch.float64)
    return Answer(clients, scores, tuple(one.responsible.client for one in found.inputs), seconds)


@dataclass(frozen=True)
class _Asking:
    """One question put to the package."""

    question: Question
    federation: Federation

    @property
    def network(self) -> nn.Module:
        return self.federation.network.eval().requires_grad_(False)

    @property
    def call(self) -> Call:
        return self.federation.model.call(self.question.inputs.x)

    @property
    def settings(self) -> Settings:
        return Settings(max_nodes=self.federation.model.max_nodes)

    @property
    def questions(self) -> Questions:
        return Questions(self.call, tuple(Subject(f"input {n}", n, "", None) for n in range(self.call.count)))

    def traced(self, settings: Settings) -> Answers:
        """What `trace` says."""
        return trace_round(
            self.question.round,
            _RULE,
            self.network,
            self.questions,
            settings=replace(settings, max_nodes=self.settings.max_nodes),
            labels=(),
            replays=True,
        )

    def against_truth(self) -> Answer:
        """The ledger of the margin between the predicted and the true class."""
        start = time.perf_counter()
        clients = tuple(client.client for client in self.question.round.clients)
        return Answer(clients, self._ledger(self.question.round), None, time.perf_counter() - start)

    def departures(self) -> dict[str, Answer]:
        """Their suspicion, over the true class; no answer where nobody has an earlier round.

        Beside it how far each update departs, whatever the input.
        """
        question, start = self.question, time.perf_counter()
        clients = tuple(client.client for client in question.round.clients)
        try:
            found = self._departures(len(question.history) - 1)
        except NotComputableError:
            return {}
        seconds = time.perf_counter() - start
        return {
            DEPARTURE: Answer(clients, found.suspicion, None, seconds),
            DISTANCE: Answer(clients, found.distances.expand_as(found.suspicion), None, seconds),
        }

    def localizers(self) -> dict[str, Answer]:
        """Those that name one client for a round, where inputs are pictures: the same answer for every input."""
        question, seed = self.question, self.federation.setting.seed
        if self.federation.model.text:
            return {}
        clients = tuple(client.client for client in question.round.clients)
        shape = tuple(question.inputs.x.shape[1:])
        probes = Call((kaiming_noise(_NUMBERS, shape, count=_PROBES, seed=seed),))
        noise = Call((uniform_noise(_NUMBERS, shape, count=NOISE_INPUTS, seed=seed),))
        start = time.perf_counter()
        case = case_of(question.round, _RULE, self.network, probes, settings=self.settings)
        votes = feddebug(case).votes.double()
        middle = time.perf_counter()
        batch = labelled(case, self.call, question.inputs.y.tolist())
        order = influence(batch.mispredicted(), noise).order
        end = time.perf_counter()
        places = torch.tensor([-order.index(k) for k in range(len(order))], dtype=torch.float64)
        return {
            "feddebug": Answer(clients, votes.expand(self.call.count, -1), None, middle - start),
            "influence": Answer(clients, places.expand(self.call.count, -1), None, end - middle),
        }

    def lineages(self) -> dict[str, Answer]:
        """Over all rounds: each client's sum, its largest round, both against the true class; its suspicion."""
        history, start = self.question.history, time.perf_counter()
        clients = tuple(sorted({client.client for round_ in history for client in round_.clients}))
        found = self._traced_lineage()
        named = tuple(one.responsible.client for one in found.inputs)
        matrix = torch.zeros(len(history), len(found.inputs), len(clients), dtype=torch.float64)
        for row, one in enumerate(found.inputs):
            for place, ledgers in enumerate(one.rounds):
                for client in ledgers.clients:
                    matrix[place, row, clients.index(client.client)] = client.score
        seconds, middle = time.perf_counter() - start, time.perf_counter()
        truth = torch.zeros_like(matrix)
        for place, round_ in enumerate(history):
            columns = [clients.index(member.client) for member in round_.clients]
            truth[place][:, columns] = self._ledger(round_)
        spent = time.perf_counter() - middle
        departed, middle = torch.zeros_like(matrix), time.perf_counter()
        for place, round_ in list(enumerate(history))[1:]:
            columns = [clients.index(member.client) for member in round_.clients]
            departed[place][:, columns] = self._departures(place).suspicion
        last = time.perf_counter() - middle
        return {
            "lineage": Answer(clients, matrix.sum(0), named, seconds),
            "lineage: largest single round": Answer(clients, matrix.amax(0), None, seconds),
            "lineage (against the true class)": Answer(clients, truth.sum(0), None, spent),
            "lineage (against the true class): largest single round": Answer(clients, truth.amax(0), None, spent),
            LEFT: Answer(clients, departed.amax(0), None, last),
        }

    def _traced_lineage(self) -> LineageAnswers:
        """What `lineage` says."""
        history = self.question.history
        steps = [Step(one.number, one.fused, one) for one in history]
        return trace_lineage(
            [Step(history[0].number - 1, history[0].previous), *steps],
            _RULE,
            self.network,
            [self.questions],
            settings=self.settings,
            labels=(),
            verdicts={one.number: Verdict.BIT_EXACT for one in history},
        )

    def _ledger(self, round_: Round) -> Tensor:
        """Scores [N, K] of one round for the margin of the finally predicted over the true class."""
        return ledger(self._case(round_)).clients

    def _departures(self, place: int) -> Departures:
        """The departures in one round of the history, for the same margin."""
        history = self.question.history
        case = self._case(history[place])
        return departure(case, habits(case, history[:place]))

    def _case(self, round_: Round) -> Case:
        """One round, and the margin of the finally predicted over the true class."""
        network, settings = self.network, self.settings
        assert round_.previous is not None
        last, new, previous = (
            network_state(network, model, settings=settings)
            for model in (self.question.round.fused, round_.fused, round_.previous)
        )
        logits = class_logits_of(network, last, self.call)
        target = replace(class_target("margin", logits), against=self.question.inputs.y)
        scene = surveyed(_RULE, round_)
        return Case(round_, _RULE, scene, network, new, previous, self.call, target, settings, no_progress)
