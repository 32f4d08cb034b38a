"""Who is responsible for predictions."""

from dataclasses import dataclass

from flforensics.results.anatomy import LayerPart, Neurons
from flforensics.results.confirmation import Confirmation
from flforensics.results.replay import RoundReplay
from flforensics.results.summary import Summary


@dataclass(frozen=True)
class Subject:
    """Which input is traced: the path or text as shown, its row in the file, its SHA-256, its true class."""

    source: str
    index: int
    sha256: str
    true: int | None


@dataclass(frozen=True)
class Prediction:
    """The most probable class under one model. `index` counts from 0."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True)
class Target:
    """The scalar f that is explained: `against` is the other class of a margin, else None."""

    function: str
    index: int
    against: int | None
    value: float


@dataclass(frozen=True)
class Parts:
    """The lines of a ledger that belong to no client: previous + Σ score + server + unexplained + residual = f."""

    previous: float
    server: float
    unexplained: float
    residual: float


@dataclass(frozen=True)
class Counterfactual:
    """What would be without a client: `change` is f(new) − f(without), and the class then predicted."""

    change: float
    index: int
    label: str
    flips: bool


@dataclass(frozen=True)
class ClientScore:
    """How much of f one client accounts for. `weight` is p_k; `share` is relative to the round's movement.

    `members` are the clients of a group that is judged as one; `interval` covers the score with 95 % probability
    where it was sampled; `drop` is without the client's share, `refuse` with the others fused again (None beside
    a `drop`: there is no such fusion).
    """

    client: str
    weight: float
    score: float
    share: float
    rank: int
    members: tuple[str, ...] | None = None
    interval: tuple[float, float] | None = None
    drop: Counterfactual | None = None
    refuse: Counterfactual | None = None


@dataclass(frozen=True)
class Responsible:
    """Who answers for the prediction. `kind`: client, server, unexplained, previous or none.

    `lead` is the distance to the next line as a share of the movement; `resolved` says whether it exceeds the
    numerical error. `reason` is given where nobody is named.
    """

    kind: str
    client: str | None
    lead: float | None
    resolved: bool
    reason: str = ""


@dataclass(frozen=True)
class InputTrace:
    """The answer for one input. The fields from `before` on exist for methods with a ledger.

    `permutations` were sampled; `tamper_margin` is the smallest edit of the updates, relative to them, that
    cancels in the fusion and moves another client to the top; `tamper_bound` is the size of such an edit that a
    search found, which need not be the smallest. `layers` and `neurons` say where in the network scores sit.
    `confirmation` is there where it was asked for.
    """

    subject: Subject
    prediction: Prediction
    target: Target
    clients: tuple[ClientScore, ...]
    responsible: Responsible
    before: Prediction | None = None
    parts: Parts | None = None
    round_effect: float | None = None
    nodes: int | None = None
    converged: bool | None = None
    change: float | None = None
    permutations: int | None = None
    tamper_margin: float | None = None
    tamper_bound: float | None = None
    layers: tuple[LayerPart, ...] | None = None
    neurons: Neurons | None = None
    confirmation: Confirmation | None = None


@dataclass(frozen=True)
class Untraced:
    """A tensor or layer that a method leaves out, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Run:
    """Where and how the numbers were computed.

    `same_ranking_in_float32` is known only where float64 was asked for; `passes` is how often the clients' files
    were read for gradients to meet them, where that was needed.
    """

    device: str
    dtype: str
    threads: int
    versions: tuple[tuple[str, str], ...]
    same_ranking_in_float32: bool | None = None
    passes: int | None = None


@dataclass(frozen=True)
class Method:
    """The method and every parameter that influences its numbers."""

    name: str
    parameters: tuple[tuple[str, str | int | float | bool | tuple[str, ...] | None], ...]


@dataclass(frozen=True)
class Trace:
    """Who is responsible for the predictions of one round's global on the given inputs."""

    run: Run
    archive: str
    digest: str
    round: int
    labels: tuple[str, ...]
    method: Method
    replay: RoundReplay
    inputs: tuple[InputTrace, ...]
    untraced: tuple[Untraced, ...]
    warnings: tuple[str, ...]
    summary: Summary | None = None
