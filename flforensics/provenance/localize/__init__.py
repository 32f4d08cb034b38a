"""Which client of a round is faulty: the localizers, one file each, looked up here.

Each is a function of a `Case` (one round, one network, one batch of inputs) that gives tensors; `findings` makes a
ranking of them. A ranking always has a first; whether that client stands out is a question of its own.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class LocalizerRow:
    """One localizer: where its finding is made, one line of help, its source, and what it looks at.

    `mispredictions` says whether it needs inputs that the global gets wrong, `noise` whether it makes inputs of
    its own, which must be numbers, `earlier` whether it compares with earlier rounds.
    """

    where: str
    help: str
    paper: str
    mispredictions: bool
    noise: bool
    earlier: bool = False


LOCALIZERS: dict[str, LocalizerRow] = {
    "feddebug": LocalizerRow(
        "flforensics.provenance.localize.findings:votes",
        "differential testing: whose neurons stay silent on random inputs where everybody else's are active",
        "Gill, Anwar and Gulzar, ICSE 2023",
        False,
        True,
    ),
    "influence": LocalizerRow(
        "flforensics.provenance.localize.findings:axes",
        "after FLForensics: whose update raises the wrong class on the mispredicted inputs but not on noise",
        "Jia, Fang, Liu, Zhang and Gong, NeurIPS 2025",
        True,
        True,
    ),
    "mispredictions": LocalizerRow(
        "flforensics.provenance.localize.findings:shares",
        "the ledger's shares of the movement towards the wrong classes, beside control inputs and re-fusion",
        "the ledger; percentile bootstrap: Efron 1979",
        True,
        False,
    ),
    "departure": LocalizerRow(
        "flforensics.provenance.localize.findings:departures",
        "whose update departs from that client's usual one, and what the departure did towards the wrong classes",
        "the ledger; odds of new against usual: after James and Stein 1961",
        True,
        False,
        earlier=True,
    ),
}
