"""Rules that order the clients coordinate by coordinate: the median and the trimmed mean (Yin et al., ICML 2018).

direct, difference   the mean of the kept values, of full models or of updates; one kept value is exact
subtracting          (Σ all − Σ largest − Σ smallest) / kept, as FederatedScope computes it: the bound grows with
                     the magnitudes of what is subtracted
Clients that tie at the first or last kept value share it equally.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flforensics.errors import UsageError
from flforensics.fusion.mean import UniformMean
from flforensics.fusion.rounding import Arithmetic, arithmetics
from flforensics.fusion.rule import Coefficients, Comparison, Scene, Shares
from flforensics.fusion.stacked import Block, Stack, View, comparison, mean_roundings, stacked
from flforensics.rounds import RoundTensor

SUBTRACTING = {"direct": "subtracting", "difference": "difference, subtracting"}


@dataclass(frozen=True)
class CoordinateMedian:
    """The middle value, or the mean of the middle two, whatever weights are declared."""

    needs_weights = False
    needs_history = False

    def cut(self, count: int) -> int:
        """How many of `count` values are left out at either end."""
        return (count - 1) // 2

    def coefficients(self, declared: Sequence[float], *, uncertainty: Sequence[float]) -> Coefficients:
        """p_k = 1/K: before the values are seen, no client counts more than another."""
        return UniformMean().coefficients(declared, uncertainty=uncertainty)

    def survey(self, scene: Scene) -> None:
        """Coordinates are ordered on their own."""

    def compare(self, terms: RoundTensor, scene: Scene) -> Iterator[Comparison]:
        """Every form in every arithmetic; subtracting only where something is cut."""
        stack, cut = stacked(terms), self.cut(terms.count)
        for arithmetic in arithmetics(stack.dtypes):
            for form in stack.forms:
                yield _kept_mean(stack, cut, form, arithmetic)
            if self._may_subtract and cut:
                for form in stack.forms:
                    yield _subtracted(stack, cut, form, arithmetic)

    def shares(self, terms: RoundTensor, scene: Scene) -> Shares:
        """s_k = mask_k Δ_k / kept, where Σ mask_k = kept at every coordinate."""
        cut = self.cut(terms.count)
        return gathered(terms, (_part(block, cut) for block in stacked(terms).blocks()))

    def factors(self, terms: RoundTensor, scene: Scene) -> None:
        """A share is a mask of its client's update."""

    @property
    def _may_subtract(self) -> bool:
        return False


@dataclass(frozen=True)
class TrimmedMean(CoordinateMedian):
    """The plain mean of what is left after cutting int(β K) values at either end."""

    beta: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 0.5:
            raise UsageError(
                f"archive.toml: [fusion] key 'beta' must be at least 0 and less than 0.5, not {self.beta:g}",
                hint="it is the fraction that is cut at either end",
            )

    def cut(self, count: int) -> int:
        """How many of `count` values are left out at either end."""
        return int(self.beta * count)

    @property
    def _may_subtract(self) -> bool:
        return True


def shared_mask(values: Tensor, kept: Tensor) -> Tensor:
    """[K, m]: how much of `kept` [n, m], a run of the ordered values, each client holds; ties share equally."""
    low, high = kept[0], kept[-1]
    mask = ((values > low) & (values < high)).double()
    for edge in (low, torch.where(high > low, high, torch.nan)):
        tied = values == edge
        mask += tied * ((kept == edge).sum(0).double() / tied.sum(0).clamp(min=1))
    return mask


def gathered(terms: RoundTensor, parts: Iterator[tuple[Block, Tensor]]) -> Shares:
    """Clients' shares [K, m] of consecutive blocks as shares of the whole tensor; the rest is unexplained."""
    clients, unexplained = [], []
    for block, shares in parts:
        assert block.previous is not None
        clients.append(shares)
        unexplained.append(block.fused - block.previous - shares.sum(0))
    shape = terms.fused.shape
    rest = torch.cat(unexplained).reshape(shape)
    return Shares(torch.cat(clients, 1).reshape(terms.count, *shape), torch.zeros_like(rest), rest)


def _part(block: Block, cut: int) -> tuple[Block, Tensor]:
    kept = block.ordered[cut : len(block.stored) - cut]
    return block, shared_mask(block.stored, kept) / len(kept) * block.updates


def _ordered_views(stack: Stack, form: str) -> Iterator[View]:
    """Ordering commutes with adding the same number to every client, also where sums are rounded."""
    for block in stack.blocks():
        yield replace(block, stored=block.ordered).view(form)


def _kept_mean(stack: Stack, cut: int, form: str, arithmetic: Arithmetic) -> Comparison:
    count = len(stack.clients) - 2 * cut
    roundings = mean_roundings(count)

    def judged() -> Iterator[tuple[Tensor, Tensor]]:
        for view in _ordered_views(stack, form):
            kept = view.values[cut : cut + count]
            yield view.target - kept.mean(0), view.bound(kept.abs().mean(0), roundings, arithmetic)

    return comparison(form, arithmetic, judged(), roundings=roundings)


def _subtracted(stack: Stack, cut: int, form: str, arithmetic: Arithmetic) -> Comparison:
    count = len(stack.clients) - 2 * cut
    roundings = len(stack.clients) + 2 * cut + 1

    def judged() -> Iterator[tuple[Tensor, Tensor]]:
        for view in _ordered_views(stack, form):
            sizes, kept = view.values.abs(), slice(cut, cut + count)
            magnitude = (2 * sizes.sum(0) - sizes[kept].sum(0)) / count
            yield view.target - view.values[kept].mean(0), view.bound(magnitude, roundings, arithmetic)

    return comparison(SUBTRACTING[form], arithmetic, judged(), roundings=roundings)
