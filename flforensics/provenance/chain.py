"""From what every round did to an input to its lineage: lines that add up, gaps, totals, and who is named."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from flforensics.errors import NotComputableError
from flforensics.provenance.responsible import Evidence, Reasons, responsible
from flforensics.results import (
    ClientTotal,
    Gap,
    InitialModel,
    InputLineage,
    LargestStep,
    Prediction,
    RoundLedger,
    RoundScore,
    Subject,
    Target,
    Totals,
)
from flforensics.rounds import spans

REASONS = Reasons(
    stood="the initial model already said so, and the largest effect since then is against it",
    unmoved="no round moved the target",
    against="the largest effect of all rounds is against this class",
    unresolved="the two largest effects are closer together than the numerical error",
)
_UNRESOLVED = "the two largest effects are closer together than what moved in rounds that do not replay"


@dataclass(frozen=True)
class Standing:
    """What one model says about every input: the target's value and the prediction."""

    values: tuple[float, ...]
    predictions: tuple[Prediction, ...]

    def finite(self, index: int) -> bool:
        """Whether the target exists for this input."""
        return math.isfinite(self.values[index])


@dataclass(frozen=True)
class Effect:
    """One round's ledger for one input: scores and the other lines; `error` is how far one of them can be off.

    `departures` are parts of the scores, where they were asked for, each with its suspicion.
    """

    scores: tuple[float, ...]
    server: float
    unexplained: float
    nodes: int
    converged: bool | None
    error: float
    departures: tuple[tuple[float, float] | None, ...] | None = None


@dataclass(frozen=True)
class Link:
    """One round: what the models say where it starts and ends, and everybody's part for each input.

    `start` is None where no ledger divides the round, `end` where its global cannot be read; `reason` says why.
    An effect that is a text is the reason for one input. `continues` is False where the round started from
    another model than the global before; `clients` are (label, p_k) in the order of the scores.
    """

    number: int
    start: Standing | None
    end: Standing | None
    continues: bool = True
    clients: tuple[tuple[str, float], ...] = ()
    effects: tuple[Effect | str, ...] = ()
    reason: str = ""


@dataclass
class Chain:
    """The links of one input, one after the other. What no ledger divides becomes a gap as soon as it ends.

    `before` says why what came before the initial model is not in the chain; `errors` are of each round's lines.
    """

    index: int
    initial: InitialModel | None = None
    before: str = ""
    rounds: list[RoundLedger] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    errors: dict[int, float] = field(default_factory=dict)
    _at: int = 0
    _value: float = 0.0
    _pending: list[str] = field(default_factory=list)

    def add(self, link: Link) -> None:
        """Go on by one round."""
        effect = link.effects[self.index] if link.effects else link.reason
        if isinstance(effect, Effect) and link.start is not None and link.end is not None:
            self._stand(link.number - 1, link.start, self._why_elsewhere(link))
            self._divide(link, effect, link.end)
            return
        if isinstance(effect, str) and effect and effect not in self._pending:
            self._pending.append(effect)
        if link.end is not None and link.end.finite(self.index):
            self._stand(link.number, link.end, "; ".join(self._pending))

    def _why_elsewhere(self, link: Link) -> str:
        """Why a round does not start where the chain stands, or an empty text if it does."""
        reasons = list(self._pending)
        if self.initial is not None and not reasons and not link.continues:
            reasons.append(
                f"the model that round {link.number} started from is not the global of round {self._at}"
            )
        return "; ".join(reasons)

    def _stand(self, number: int, standing: Standing, reason: str) -> None:
        """Be at the global of round `number`: at the start, or across a gap where there is a reason for one."""
        value = standing.values[self.index]
        if self.initial is None:
            self.initial = InitialModel(number, value, standing.predictions[self.index])
            self.before = reason
        elif reason:
            self.gaps.append(Gap(self._at, number, value - self._value, reason))
        self._at, self._value = number, value
        self._pending.clear()

    def _divide(self, link: Link, effect: Effect, end: Standing) -> None:
        """The round's ledger; the residual is what is left of its movement, so that printed lines add up."""
        value = end.values[self.index]
        movement = value - self._value
        departures = effect.departures or (None,) * len(effect.scores)
        scores = tuple(
            RoundScore(client, weight, score, *(departure or ()))
            for (client, weight), score, departure in zip(link.clients, effect.scores, departures, strict=True)
        )
        residual = movement - (sum(effect.scores) + effect.server + effect.unexplained)
        said = end.predictions[self.index]
        self.rounds.append(
            RoundLedger(
                link.number, movement, value, said, scores,
                effect.server, effect.unexplained, residual, effect.nodes, effect.converged,
            )
        )  # fmt: skip
        self.errors[link.number] = effect.error
        self._at, self._value = link.number, value


@dataclass(frozen=True)
class Reading:
    """One input's chain as its record; `doubtful` rounds are those that nobody may be named from."""

    chain: Chain
    subject: Subject
    prediction: Prediction
    target: Target
    doubtful: Sequence[int]

    def answer(self) -> InputLineage:
        """The record. Raises NotComputableError (PREVIOUS) where no model is known from before the last one."""
        chain = self.chain
        if chain.initial is None or not (chain.rounds or chain.gaps):
            raise NotComputableError(
                "no model from before that round is stored, so that nothing is known of how it came about",
                reason="PREVIOUS",
                hint="choose a later --round, an earlier --from, or store the initial model",
            )
        clients = self._clients
        others = (
            ("server", self.totals.server),
            ("unexplained", self.totals.unexplained),
            ("gaps", self._missing),
        )
        evidence = Evidence(
            clients=tuple((one.client, one.score) for one in clients),
            others=others,
            total=self._movement,
            error=sum(chain.errors.values()) + self._doubtful_movement,
            doubts=self._doubts,
            stood=chain.initial.prediction.index == self.target.index,
        )
        return InputLineage(
            self.subject,
            self.prediction,
            self.target,
            chain.initial,
            tuple(chain.rounds),
            tuple(chain.gaps),
            clients,
            self.totals,
            responsible(
                evidence, replace(REASONS, unresolved=_UNRESOLVED) if self._doubtful_movement else REASONS
            ),
            self._largest_step,
            self._most_suspect,
        )

    @property
    def _largest_step(self) -> LargestStep | None:
        """The cell of the matrix that moved the target most towards its class."""
        steps = [
            LargestStep(one.round, client.client, client.score, one.round not in self.doubtful)
            for one in self.chain.rounds
            for client in one.clients
            if client.score > 0
        ]
        return max(steps, key=lambda step: step.score, default=None)

    @property
    def _most_suspect(self) -> LargestStep | None:
        """The departure under most suspicion; it also rests on the rounds before."""
        cells = [(one.round, client) for one in self.chain.rounds for client in one.clients if client.suspicion]
        if not cells:
            return None
        number, client = max(cells, key=lambda cell: cell[1].suspicion or 0.0)
        return LargestStep(
            number, client.client, client.departure or 0.0, all(number < bad for bad in self.doubtful)
        )

    @cached_property
    def totals(self) -> Totals:
        """The lines of no client, summed."""
        rounds = self.chain.rounds
        return Totals(
            sum(one.server for one in rounds),
            sum(one.unexplained for one in rounds),
            sum(one.residual for one in rounds),
            sum(gap.movement for gap in self.chain.gaps),
        )

    @cached_property
    def _scores(self) -> Mapping[str, list[tuple[int, float]]]:
        """Every client's (round, score), oldest first."""
        found: dict[str, list[tuple[int, float]]] = {}
        for one in self.chain.rounds:
            for client in one.clients:
                found.setdefault(client.client, []).append((one.round, client.score))
        return found

    @cached_property
    def _clients(self) -> tuple[ClientTotal, ...]:
        """Best first."""
        sums = {client: sum(score for _, score in scores) for client, scores in self._scores.items()}
        return tuple(
            ClientTotal(
                client,
                sums[client],
                sums[client] / self._movement if self._movement else 0.0,
                rank + 1,
                len(self._scores[client]),
                max(self._scores[client], key=lambda one: abs(one[1])),
            )
            for rank, client in enumerate(sorted(sums, key=lambda one: -sums[one]))
        )

    @property
    def _missing(self) -> float:
        """Σ|movement| of the gaps: movements in them may have cancelled."""
        return sum(abs(gap.movement) for gap in self.chain.gaps)

    @cached_property
    def _movement(self) -> float:
        """Σ|line| over all rounds, gaps included."""
        sums = (sum(score for _, score in scores) for scores in self._scores.values())
        return sum(map(abs, sums)) + abs(self.totals.server) + abs(self.totals.unexplained) + self._missing

    @property
    def _doubtful_movement(self) -> float:
        """Σ|line| in doubtful rounds: it may have been anybody's."""
        return sum(
            sum(abs(client.score) for client in one.clients) + abs(one.server) + abs(one.unexplained)
            for one in self.chain.rounds
            if one.round in self.doubtful
        )

    @property
    def _doubts(self) -> dict[str, str]:
        """The clients whose total rests on doubtful rounds."""
        found = {}
        for client, scores in self._scores.items():
            rounds = tuple(number for number, _ in scores if number in self.doubtful)
            if rounds:
                found[client] = (
                    f"the largest total rests on {spans(rounds)}, and that does not replay or began from a global"
                    " that is inconsistent"
                )
        return found


def chained(links: Sequence[Link], index: int) -> Chain:
    """The whole chain of one input."""
    chain = Chain(index)
    for link in links:
        chain.add(link)
    return chain
