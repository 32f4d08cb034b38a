"""Where in the network scores sit."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerPart:
    """What one layer adds to every client's score, in the order of the clients' ranks.

    `layer` is the module that owns the tensors, or the tensor itself where the network owns it. The layers' parts
    add up to the scores. `server` and `unexplained` exist for methods with a ledger.
    """

    layer: str
    clients: tuple[tuple[str, float], ...]
    server: float | None = None
    unexplained: float | None = None


@dataclass(frozen=True)
class UnitPart:
    """What one unit of the global model carries of a client's score; `share` is its part of that score.

    `kind` says what a unit is: a neuron, a channel, a feature, a row of a table, or with `unit` None a whole
    `tensor`. `share` is None where the score is 0.
    """

    layer: str
    kind: str
    unit: int | None
    tensor: str | None
    part: float
    share: float | None


@dataclass(frozen=True)
class Neurons:
    """The units that carry most of one client's score, largest first, and what `others` more carry in `rest`."""

    client: str
    score: float
    units: tuple[UnitPart, ...]
    others: int
    rest: float
