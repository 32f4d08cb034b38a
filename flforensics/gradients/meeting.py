"""Gradients of many samples, and of several averages over a path, met with many directions in one walk.

The walk goes tensor by tensor, and within a tensor block by block of directions, so that neither all gradients
nor all directions are ever in memory.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from flforensics.gradients.forms import Gradients
from flforensics.gradients.support import Support, whole


@dataclass(frozen=True)
class Block:
    """Some directions in one tensor: `factors` [k] times `values` [k, V]. There are `blocks` of them in all.

    `lines` are their places among all directions. Of the tensor `values` are those of the `support` alone.
    """

    name: str
    lines: slice
    values: Tensor
    factors: Tensor
    blocks: int
    support: Support


@dataclass(frozen=True)
class Met:
    """⟨∂f_n/∂θ, d_k⟩ in one tensor, [n, lines], and where they were asked for ‖∂f_n/∂θ‖², [n]; both in float64."""

    products: Tensor
    squares: Tensor | None


def supports(averages: Sequence[Mapping[str, Gradients]]) -> dict[str, Support]:
    """Of each tensor what must be known of a direction, to meet all of the averages."""
    found = {}
    for name, first in averages[0].items():
        alike = all(one[name].support == first.support for one in averages)
        found[name] = first.support if alike else whole(first.width)
    return found


def tensors_met(
    averages: Sequence[Mapping[str, Gradients]],
    blocks: Iterable[Block],
    *,
    like: Tensor,
    lines: int,
    room: int,
    norms: bool = False,
) -> Iterator[tuple[str, list[Met]]]:
    """What each of the averages gives in one tensor after the other, on the device of `like` [n].

    Gradients that are written out for several blocks hold at most `room` values.
    """
    for name, of_tensor in groupby(blocks, key=lambda block: block.name):
        meetings: list[_Meeting] = []
        for block in of_tensor:
            if not meetings:
                meetings = [
                    _Meeting(one[name].on(block.support), block.blocks, like, lines, room // len(averages), norms)
                    for one in averages
                ]
            for meeting in meetings:
                meeting.meet(block)
        yield name, [Met(meeting.products, meeting.squares) for meeting in meetings]


class _Meeting:
    """Gradients of one tensor with one block of directions after the other."""

    def __init__(
        self, gradients: Gradients, blocks: int, like: Tensor, lines: int, room: int, norms: bool
    ) -> None:
        self.products = like.new_zeros(len(like), lines, dtype=torch.float64)
        self.squares: Tensor | None = None
        self._gradients, self._norms = gradients.prepared(lines, blocks=blocks, room=room), norms

    def meet(self, block: Block) -> None:
        """Add what they give; the first time their norms are found as well."""
        if self._norms and self.squares is None:
            found, self.squares = self._gradients.met(block.values)
        else:
            found = self._gradients.products(block.values)
        self.products[:, block.lines] += (found * block.factors).double()


def meet(
    averages: Sequence[Mapping[str, Gradients]], blocks: Iterable[Block], *, like: Tensor, lines: int, room: int
) -> list[tuple[Tensor, Tensor]]:
    """⟨∂f_n/∂θ, d_k⟩ [n, lines] and ‖∂f_n/∂θ‖² [n] over all tensors, for each of the averages; both float64."""
    found = [
        (like.new_zeros(len(like), lines, dtype=torch.float64), like.new_zeros(len(like), dtype=torch.float64))
        for _ in averages
    ]
    for _, of_tensor in tensors_met(averages, blocks, like=like, lines=lines, room=room, norms=True):
        for (products, squares), met in zip(found, of_tensor, strict=True):
            products += met.products
            if met.squares is not None:
                squares += met.squares
    return found
