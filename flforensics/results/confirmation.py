"""How strong the evidence for one answer is, and what it rests on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Agreement:
    """Whom each method puts first, and how alike their orders of the clients are.

    `agreeing` of `of` rankings put the client first that the ledger does. If the others pointed at random, as many
    or more would with probability `at_random`; they share their data, so that this is no p-value of the finding.
    `spearman` is (method, method, rank correlation), None where a ranking is all ties.
    """

    first: tuple[tuple[str, str], ...]
    agreeing: int
    of: int
    at_random: float
    spearman: tuple[tuple[str, str, float | None], ...]


@dataclass(frozen=True)
class Stability:
    """The first client under each type of numbers and each target (ledger), and each layer decay (TraceFL)."""

    dtype: tuple[tuple[str, str], ...]
    target: tuple[tuple[str, str], ...]
    layer_decay: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Rate:
    """On top `on_top` times in `of` tries."""

    on_top: int
    of: int


@dataclass(frozen=True)
class Controls:
    """How often the ledger puts the client first for other questions.

    `neighbours` are the input, slightly changed, and the same class; `other_classes` the same input and every
    other class (or a sample of them); `noise` inputs of the same shape that show nothing, each for the class that
    it gets. `p_value` is Fisher's exact probability of neighbours so far above noise, were there no difference.
    """

    seed: int
    neighbours: Rate
    other_classes: Rate
    noise: Rate
    p_value: float


@dataclass(frozen=True)
class Others:
    """What becomes of the other inputs: the first four where the true class is known, the last two elsewhere."""

    stays_right: int = 0
    becomes_right: int = 0
    becomes_wrong: int = 0
    stays_wrong: int = 0
    keeps: int = 0
    changes: int = 0


@dataclass(frozen=True)
class Repair:
    """The prediction of a fusion without the client.

    `fixes` says whether it is right then (where the true class is not known: whether it changes); None: it was
    right already. `removed` is the part of the margin that goes, None where the target is no positive margin of
    the predicted class.
    """

    index: int
    label: str
    changes: bool
    fixes: bool | None
    removed: float | None
    others: Others


@dataclass(frozen=True)
class Confirmation:
    """The grade of the evidence against `client`, A to D, its reason, and all that it rests on.

    `repair` is None where the rule has no value without the client.
    """

    client: str
    grade: str
    reason: str
    agreement: Agreement
    stability: Stability
    controls: Controls
    repair: Repair | None
