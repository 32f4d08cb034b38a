"""What is counted, with 95 % intervals: proportions (Wilson 1927), medians (bootstrap over federations), ranks."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

_NORMAL = 1.959963984540054
_RESAMPLES = 1000


@dataclass(frozen=True)
class Measure:
    """A figure between its 95 % limits, from n observations."""

    value: float
    low: float
    high: float
    n: int


def proportion(successes: int, n: int) -> Measure | None:
    """successes of n with Wilson's score interval; None of nothing."""
    if n == 0:
        return None
    share, square = successes / n, _NORMAL**2 / n
    centre = (share + square / 2) / (1 + square)
    half = _NORMAL / (1 + square) * math.sqrt(share * (1 - share) / n + square / (4 * n))
    return Measure(share, max(0.0, centre - half), min(1.0, centre + half), n)


def middle(groups: Sequence[Sequence[float]]) -> Measure | None:
    """The median of all values. The interval resamples whole groups: values of one federation hang together."""
    filled = [list(group) for group in groups if group]
    if not filled:
        return None
    chance = random.Random(0)
    drawn = sorted(
        median([value for group in chance.choices(filled, k=len(filled)) for value in group])
        for _ in range(_RESAMPLES)
    )
    values = [value for group in filled for value in group]
    return Measure(
        median(values), drawn[round(0.025 * _RESAMPLES)], drawn[round(0.975 * _RESAMPLES) - 1], len(values)
    )


def spearman(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Spearman's rank correlation, equal values sharing their mean rank; None where one side is all equal."""
    a, b = ranks(left), ranks(right)
    centre = (len(a) - 1) / 2
    products = sum((x - centre) * (y - centre) for x, y in zip(a, b, strict=True))
    squares = sum((x - centre) ** 2 for x in a) * sum((y - centre) ** 2 for y in b)
    return products / math.sqrt(squares) if squares > 0 else None


def ranks(values: Sequence[float]) -> list[float]:
    """The place of each value in ascending order, from 0; equal values share the mean of theirs."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    places = [0.0] * len(values)
    first = 0
    while first < len(order):
        last = first
        while last + 1 < len(order) and values[order[last + 1]] == values[order[first]]:
            last += 1
        for position in range(first, last + 1):
            places[order[position]] = (first + last) / 2
        first = last + 1
    return places
