"""What chance, or the choice of inputs, can give without anybody being at fault."""

from fractions import Fraction
from math import comb

import torch
from torch import Tensor

FEWEST = 3
"""With fewer inputs, resampling them says nothing."""

_RESAMPLES = 2000


def chance_of(votes: int, *, voting: int, clients: int) -> float:
    """The probability that some client gets at least `votes` of `voting` votes that fall on all clients alike.

    An upper bound: the binomial tail for one client with probability 1/K, times K (Bonferroni).
    """
    tail = sum(comb(voting, n) * (clients - 1) ** (voting - n) for n in range(votes, voting + 1))
    return min(1.0, float(Fraction(clients * tail, clients**voting)))


def resampled(values: Tensor, *, seed: int) -> Tensor:
    """Means of the rows of `values` [N, L] over random resamplings of them with replacement, [resamples, L]."""
    count = len(values)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(count, (_RESAMPLES, count), generator=generator)
    times = torch.zeros(_RESAMPLES, count, dtype=torch.float64)
    times.scatter_add_(1, drawn, torch.ones(_RESAMPLES, count, dtype=torch.float64))
    return times @ values.double().cpu() / count


def interval(means: Tensor) -> tuple[float, float]:
    """The middle 95 % of resampled values [resamples]."""
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return low, high


def lead_over(means: Tensor, column: int) -> Tensor:
    """How far one column is ahead of the largest other one, in every row, [rows]."""
    others = means.clone()
    others[:, column] = -torch.inf
    return means[:, column] - others.amax(1)
