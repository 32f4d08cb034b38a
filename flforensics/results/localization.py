"""Which client of a round is faulty: every method's ranking, and who stands out in it."""

from dataclasses import dataclass

from flforensics.results.replay import RoundReplay
from flforensics.results.trace import Method, Run


@dataclass(frozen=True)
class Differences:
    """FedDebug's figures for one client.

    `votes`: random inputs that accuse it; `silent`: mean number of neurons that it alone leaves inactive.
    """

    votes: int
    silent: float


@dataclass(frozen=True)
class TwoAxes:
    """The influence test's figures for one client, each axis divided by its range over the clients.

    `target`: influence on the mispredicted inputs; `noise`: on noise that carries the same classes; `flags`: the
    noise inputs under which it is on the suspects' side.
    """

    target: float
    noise: float
    flags: int


@dataclass(frozen=True)
class Misled:
    """One client's part in the mispredictions, and beside it in the control inputs (None where there are none).

    `share`: mean share of this round's movement towards the wrong class, with its 95 % `interval` over inputs;
    `top`: inputs on which no client's share is larger; `towards`: inputs that it moved towards the wrong class;
    `fixed`, `broken`: mispredictions that are right, and controls that are wrong, once the others are fused again
    without it (None: there is no such fusion). Too few inputs have no interval.
    """

    share: float
    interval: tuple[float, float] | None
    top: int
    towards: int
    control_share: float | None
    control_top: int | None
    fixed: int | None
    broken: int | None


@dataclass(frozen=True)
class Departed(Misled):
    """What one client's departure from its usual update did to the inputs, in the words of `Misled`.

    `suspicion`: its mean share of the suspicion on the mispredictions, which `interval`, `top` and `control_top`
    are of; `share`, `towards` and `control_share` are of the departure, `usual` is the mean share of the usual
    update. `fixed`, `broken`: with its usual update in place of the one that it sent. `distance`: how far the
    update departs relative to its size, 1 for the median client; `rounds`: with how many it is compared.
    """

    suspicion: float
    usual: float
    distance: float
    rounds: int


@dataclass(frozen=True)
class Suspect:
    """One client in a method's ranking."""

    client: str
    weight: float
    rank: int
    figures: Differences | TwoAxes | Misled


@dataclass(frozen=True)
class StandsOut:
    """The client whose lead exceeds what chance, or the choice of inputs, can give; None and a reason if nobody's.

    `lead` is over the next in the ranking, in the method's own measure, with a 95 % `interval` over inputs where
    it has one; `chance` is the probability that a round of clients that differ in nothing gives such votes.
    """

    client: str | None
    lead: float | None = None
    interval: tuple[float, float] | None = None
    chance: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Finding:
    """What one method says: the clients, the most suspect first.

    `inputs` is how many it looked at (random ones, or mispredictions), `controls` how many correctly predicted
    ones beside them, of all of which `rough` have a ledger that did not converge; `voting`, the random inputs that
    accuse somebody.
    """

    method: Method
    inputs: int
    suspects: tuple[Suspect, ...]
    stands_out: StandsOut
    controls: int | None = None
    rough: int = 0
    voting: int | None = None


@dataclass(frozen=True)
class Silent:
    """A method that has no answer on this round, and why."""

    method: str
    reason: str


@dataclass(frozen=True)
class Localization:
    """Which client of one round is faulty, by every method that was asked."""

    run: Run
    archive: str
    digest: str
    round: int
    replay: RoundReplay
    findings: tuple[Finding, ...]
    silent: tuple[Silent, ...]
    warnings: tuple[str, ...]
