"""How strong evidence is, from A to D: the first row of a table whose conditions all hold.

    named      the round replays, the ledger names a client, and float32 and float64 put it first
    agree      at least three of the four rankings put it first: ledger, TraceFL, drop, re-fusion
    decisive   the others fused again predict something else, or more than half of the margin is gone
    specific   the ledger puts it first for most neighbours, and more often than for noise: Fisher's exact test,
               one side, at most 5 %

The four rankings are no four witnesses: ledger and drop divide the same shares, so that their agreement is needed
and proves little. What carries an A is the intervention, and that the client is not on top of everything: one that
is says nothing about this prediction, whatever its size. That the draws of `controls` are the sample goes with the
p-value: it is about these inputs, not about all that could be given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb

from flforensics.results import Rate

LEAST_AGREEING = 3
LEVEL = 0.05


@dataclass(frozen=True)
class Grade:
    """A row: the grade, the conditions that it needs, and what it says."""

    grade: str
    needs: tuple[str, ...]
    says: str


GRADES = (
    Grade(
        "A",
        ("named", "agree", "decisive", "specific"),
        "the methods agree, and re-fusion without the file takes the prediction away",
    ),
    Grade(
        "B",
        ("named", "agree", "decisive"),
        "re-fusion without the file takes the prediction away, but the file is on top for noise as well: it drives"
        " this model, and nothing shows that it does so for this prediction in particular",
    ),
    Grade(
        "B", ("named", "agree", "specific"), "the methods agree and beat chance; the prediction survives re-fusion"
    ),
    Grade(
        "D",
        ("named", "agree"),
        "the methods agree, but the file is on top for noise as well and the prediction survives without it: not"
        " distinguishable from chance",
    ),
    Grade("C", ("named",), "the methods disagree"),
    Grade("D", (), "not distinguishable"),
)


def graded(conditions: Mapping[str, bool]) -> Grade:
    """The first row of `GRADES` whose needs are all met."""
    return next(row for row in GRADES if all(conditions[need] for need in row.needs))


def at_least(count: int, tries: int, chance: float) -> float:
    """The probability of `count` or more successes in `tries` independent tries."""
    return sum(comb(tries, k) * chance**k * (1 - chance) ** (tries - k) for k in range(count, tries + 1))


def exceeds(first: Rate, second: Rate) -> float:
    """Fisher's exact test: the probability that `first` has as many successes or more, were the rates the same.

    All successes are dealt to both sides at random (hypergeometric).
    """
    successes, tries = first.on_top + second.on_top, first.of + second.of
    most = min(first.of, successes)
    ways = sum(comb(first.of, k) * comb(second.of, successes - k) for k in range(first.on_top, most + 1))
    return ways / comb(tries, successes)


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """The rank correlation of two scores of the same clients; ties share their rank. None where all are tied."""
    ranks = [_centred_ranks(scores) for scores in (first, second)]
    sizes = [sum(rank * rank for rank in side) for side in ranks]
    if not all(sizes):
        return None
    product: float = sum(a * b for a, b in zip(*ranks, strict=True)) / (sizes[0] * sizes[1]) ** 0.5
    return max(-1.0, min(1.0, product))


def _centred_ranks(scores: Sequence[float]) -> list[float]:
    """Twice each score's rank, less the mean: those below it minus those above it."""
    return [float(sum(other < one for other in scores) - sum(other > one for other in scores)) for one in scores]
