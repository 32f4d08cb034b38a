"""Who is responsible for predictions, over all rounds that are stored."""

from dataclasses import dataclass

from flforensics.results.replay import RoundReplay
from flforensics.results.trace import Method, Prediction, Responsible, Run, Subject, Target, Untraced


@dataclass(frozen=True)
class InitialModel:
    """Where the lineage starts: the target and the prediction under the model that came out of round `round`."""

    round: int
    value: float
    prediction: Prediction


@dataclass(frozen=True)
class RoundScore:
    """How much of the target one client accounts for in one round. `weight` is p_k.

    `departure` is what it did there by departing from its earlier updates, `suspicion` how far it departed times
    how much that may have pushed (both None where that was not asked for, or there is nothing to compare with).
    """

    client: str
    weight: float
    score: float
    departure: float | None = None
    suspicion: float | None = None


@dataclass(frozen=True)
class RoundLedger:
    """What one round did to the target: Σ score + server + unexplained + residual = effect.

    `after` is what the model says after the round, `value` the target then. `converged` is None where the number
    of nodes was given.
    """

    round: int
    effect: float
    value: float
    after: Prediction
    clients: tuple[RoundScore, ...]
    server: float
    unexplained: float
    residual: float
    nodes: int
    converged: bool | None


@dataclass(frozen=True)
class Gap:
    """A movement of the target that no ledger divides, and why.

    It lies between the globals of rounds `start` and `end`; where both are the same round, between its global and
    the model that the next round started from.
    """

    start: int
    end: int
    movement: float
    reason: str


@dataclass(frozen=True)
class ClientTotal:
    """A client over all rounds: `score` sums its scores, `share` is relative to the whole movement.

    It took part in `rounds` rounds; `strongest` is the one with its largest score by amount.
    """

    client: str
    score: float
    share: float
    rank: int
    rounds: int
    strongest: tuple[int, float]


@dataclass(frozen=True)
class LargestStep:
    """One client in one round: the one with the largest score, or under most suspicion (`score`: its departure).

    `replays` is False where that can name nobody. Over many rounds every client's ordinary pushes add up and hide
    what a single one did; this does not sum.
    """

    round: int
    client: str
    score: float
    replays: bool


@dataclass(frozen=True)
class Totals:
    """The lines of no client, over all rounds; `gaps` sums the gaps' movements."""

    server: float
    unexplained: float
    residual: float
    gaps: float


@dataclass(frozen=True)
class InputLineage:
    """The answer for one input: initial value + Σ clients + totals = the target's value.

    `largest_step` is None where no client ever moved the target towards its class, `most_suspect` where no
    update was compared with earlier ones, or none departed further than is usual.
    """

    subject: Subject
    prediction: Prediction
    target: Target
    initial: InitialModel
    rounds: tuple[RoundLedger, ...]
    gaps: tuple[Gap, ...]
    clients: tuple[ClientTotal, ...]
    totals: Totals
    responsible: Responsible
    largest_step: LargestStep | None = None
    most_suspect: LargestStep | None = None


@dataclass(frozen=True)
class Lineage:
    """Who is responsible for the predictions of the global of round `round`, from the initial model on.

    `replays` are the verdicts on every round that made a global on the way, the initial one's among them where
    its round is stored.
    """

    run: Run
    archive: str
    digest: str
    round: int
    labels: tuple[str, ...]
    method: Method
    replays: tuple[RoundReplay, ...]
    inputs: tuple[InputLineage, ...]
    untraced: tuple[Untraced, ...]
    warnings: tuple[str, ...]
