"""Bulyan (El Mhamdi et al., ICML 2018): a selection by Krum, then the mean of the values nearest to the median.

θ = K − 2f clients are selected, all at once by their scores (Flower's Message API) or one by one, each the best of
those that are left (legacy). Then every coordinate is the mean of the β = θ − 2f values nearest to the median of
the θ. Ordered by size they are a window of β neighbours; where rounding can change which values are nearest, every
window that it can give is honest, and the one that the stored global is nearest to is taken.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from flforensics.errors import EvidenceError
from flforensics.fusion.distances import Metric, lowest, scores, survey, within
from flforensics.fusion.krum import Choices, Selection, any_other, labelled, read_all, require_count, selected
from flforensics.fusion.mean import UniformMean
from flforensics.fusion.order import gathered, shared_mask
from flforensics.fusion.rounding import Arithmetic, arithmetics, half_subnormal, unit_roundoff
from flforensics.fusion.rule import Coefficients, Comparison, Scene, Shares
from flforensics.fusion.stacked import Block, Stack, View, comparison, mean_roundings, stacked
from flforensics.rounds import RoundTensor

_MOST = 8
_RANKED = 64
_SETS = 256
_SAMPLE = 2048


@dataclass(frozen=True)
class Bulyan:
    """The mean, coordinate by coordinate, of the values nearest to the median of the selected clients."""

    needs_weights = False
    needs_history = False
    malicious: float = 0

    def __post_init__(self) -> None:
        require_count("malicious", self.malicious, least=0)

    def coefficients(self, declared: Sequence[float], *, uncertainty: Sequence[float]) -> Coefficients:
        """p_k = 1/K: declared weights do not matter."""
        return UniformMean().coefficients(declared, uncertainty=uncertainty)

    def survey(self, scene: Scene) -> Choices:
        """Who may have been selected, those whose values are nearest to a sample of the new global first.

        Raises EvidenceError (CLIENTS) where there are fewer than 4f + 3 of them, and those of reading tensors.
        """
        count, malicious = len(scene.positions), int(self.malicious)
        if count < 4 * malicious + 3:
            raise EvidenceError(
                f"Bulyan with malicious = {malicious} needs at least {4 * malicious + 3} clients, not {count}",
                reason="CLIENTS",
                hint="correct `malicious` in [fusion]",
            )
        found = survey(scene)
        metrics = [metric for metric in found.metrics if metric.note != "norms per tensor"]
        possible, complete = _possible(metrics, malicious)
        finite = found.total.finite
        if len(possible) > 1 and finite:
            sample = _sample(scene)
            possible = sorted(possible[:_RANKED], key=lambda one: _distance(sample, one, malicious))
        return Choices(tuple(possible[:_MOST]), complete and len(possible) <= _MOST and finite, finite)

    def compare(self, terms: RoundTensor, scene: Scene) -> Iterator[Comparison]:
        """For each honest selection, every form in every arithmetic."""
        choices = cast(Choices, scene.facts)
        if not choices.finite:
            read_all(terms)
        for selection in choices.selections:
            stack = stacked(selected(terms, selection.members))
            for arithmetic in arithmetics(stack.dtypes):
                for form in stack.forms:
                    found = _compared(stack, int(self.malicious), form, arithmetic)
                    yield replace(found, form=labelled(form, selection, scene))
        if not choices.complete:
            yield any_other()

    def factors(self, terms: RoundTensor, scene: Scene) -> None:
        """A share is a mask of its client's update."""

    def shares(self, terms: RoundTensor, scene: Scene) -> Shares:
        """s_k = mask_k Δ_k / β: the window that the new global is nearest to, ties within it shared equally."""
        members = list(cast(Choices, scene.facts).selections[0].members)
        parts = (_part(block, members, int(self.malicious)) for block in stacked(terms).blocks())
        return gathered(terms, parts)


def _possible(metrics: Sequence[Metric], malicious: int) -> tuple[list[Selection], bool]:
    """Every selection by every metric, all at once and one by one, each under the first that gives it."""
    possible: dict[tuple[int, ...], Selection] = {}
    complete = True
    for metric in metrics:
        keep = len(metric.low) - 2 * malicious
        for note, (members, all_of_them) in (
            ("at once", lowest(*scores(metric, malicious), keep)),
            ("one by one", _one_by_one(metric, malicious, keep)),
        ):
            complete = complete and all_of_them
            for one in members:
                possible.setdefault(one, Selection(one, f"{note}, {metric.note}" if metric.note else note))
    return list(possible.values()), complete


def _one_by_one(metric: Metric, malicious: int, keep: int) -> tuple[list[tuple[int, ...]], bool]:
    """Every set of `keep` members that taking the best of the rest, again and again, may give."""
    count = len(metric.low)
    if keep == count:
        return [tuple(range(count))], True
    sets: set[frozenset[int]] = {frozenset()}
    for _ in range(keep):
        following: set[frozenset[int]] = set()
        for taken in sets:
            following |= {taken | {one} for one in _best_of_rest(metric, malicious, taken)}
        if len(following) > _SETS:
            return [], False
        sets = following
    return sorted(tuple(sorted(one)) for one in sets), True


def _best_of_rest(metric: Metric, malicious: int, taken: frozenset[int]) -> list[int]:
    """Those of the others that may have the lowest score among themselves."""
    rest = [k for k in range(len(metric.low)) if k not in taken]
    low, high = scores(within(metric, rest), malicious)
    return [k for k, possible in zip(rest, low <= high.min(), strict=True) if possible]


def _sample(scene: Scene) -> list[Block]:
    """The smallest floating tensors, until there are enough coordinates to tell selections apart."""
    sizes = {name: scene.read(name).fused.numel() for name in scene.names}
    blocks: list[Block] = []
    for name in sorted(sizes, key=lambda one: sizes[one]):
        stack = stacked(scene.read(name))
        if stack.clients[0].is_floating_point():
            blocks.append(next(stack.blocks()))
        if sum(len(block.fused) for block in blocks) >= _SAMPLE:
            break
    return blocks


def _distance(sample: Sequence[Block], selection: Selection, malicious: int) -> float:
    """Σ (new − the rule's value under this selection)² over the sample."""
    total = 0.0
    for block in sample:
        chosen = replace(block, stored=block.stored[list(selection.members)])
        view = replace(chosen, stored=chosen.ordered).view("direct")
        total += float(_nearest(view, malicious, Arithmetic(torch.float32)).difference.square().sum())
    return total


@dataclass(frozen=True)
class _Window:
    """At every coordinate, the honest window that the new global is nearest to: its start, how near, the bound."""

    start: Tensor
    difference: Tensor
    bound: Tensor


def _compared(stack: Stack, malicious: int, form: str, arithmetic: Arithmetic) -> Comparison:
    def judged() -> Iterator[tuple[Tensor, Tensor]]:
        for block in stack.blocks():
            view = replace(block, stored=block.ordered).view(form)
            window = _nearest(view, malicious, arithmetic)
            yield window.difference, window.bound

    roundings = mean_roundings(len(stack.clients) - 2 * malicious)
    return comparison(form, arithmetic, judged(), roundings=roundings)


def _nearest(view: View, malicious: int, arithmetic: Arithmetic) -> _Window:
    """Of the 2f + 1 windows of an ordered view, honest if their values may be the nearest to the median."""
    values = view.values
    keep = len(values) - 2 * malicious
    median = (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
    away = (values - median).abs()
    give, rounding = _give(view, median, arithmetic), 4 * unit_roundoff(arithmetic.dtype)
    best = _Window(torch.zeros_like(median), *(torch.full_like(median, torch.inf) for _ in range(2)))
    closest = torch.full_like(median, torch.inf)
    for start in range(2 * malicious + 1):
        window, inside = slice(start, start + keep), torch.maximum(away[start], away[start + keep - 1])
        outside = torch.full_like(median, torch.inf)
        for k in (start - 1, start + keep):
            outside = torch.minimum(outside, away[k]) if 0 <= k < len(values) else outside
        slack = give + rounding * inside
        bound = view.bound(values[window].abs().mean(0), mean_roundings(keep), arithmetic)
        bound = bound + 2 * slack if malicious else bound
        difference = view.target - values[window].mean(0)
        ratios = torch.where(difference == 0, 0.0, difference.abs() / bound)
        better = (inside - slack <= outside * (1 + rounding) + give) & (ratios < closest)
        closest = torch.where(better, ratios, closest)
        best = _Window(
            torch.where(better, start, best.start),
            torch.where(better, difference, best.difference),
            torch.where(better, bound, best.bound),
        )
    return best


def _give(view: View, median: Tensor, arithmetic: Arithmetic) -> Tensor:
    """How far a server's distance to its median may be off, besides the rounding of that distance itself."""
    values = view.uncertainty(view.values.abs().amax(0), arithmetic)
    halved = unit_roundoff(arithmetic.dtype) * median.abs() if len(view.values) % 2 == 0 else 0 * median
    return 2 * values + 2 * halved + 2 * half_subnormal(arithmetic.dtype)


def _part(block: Block, members: list[int], malicious: int) -> tuple[Block, Tensor]:
    """Shares of all clients [K, m]; those that were not selected have none."""
    chosen = replace(block, stored=block.stored[members])
    ordered = chosen.ordered
    keep = len(members) - 2 * malicious
    start = _nearest(replace(block, stored=ordered).view("direct"), malicious, Arithmetic(torch.float32)).start
    rows = start.long() + torch.arange(keep)[:, None]
    shares = torch.zeros_like(block.stored)
    shares[members] = shared_mask(chosen.stored, ordered.gather(0, rows)) / keep * chosen.updates
    return block, shares
