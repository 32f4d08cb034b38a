"""Who is on top, over many inputs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ClientSummary:
    """One client over some inputs: how often it has the best score, how often it is named, and its mean share."""

    client: str
    weight: float
    on_top: int
    named: int
    share: float


@dataclass(frozen=True)
class SummaryGroup:
    """The clients over the inputs that the model gets right, or wrong."""

    right: bool
    inputs: int
    clients: tuple[ClientSummary, ...]


@dataclass(frozen=True)
class Summary:
    """The clients over all inputs whose true class is known, in the order of their weights.

    By chance a client is on top in `chance` of the inputs. `largest` has more weight than any other; None where
    several have the most. What is `left_out` has no known class.
    """

    chance: float
    largest: str | None
    groups: tuple[SummaryGroup, ...]
    left_out: int
