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
    """⟨∂f_n/∂θ, d_k⟩ in one tensor, [n, lines] in float64, and the gradients behind them."""

    products: Tensor
    gradients: Gradients


def supports(averages: Sequence[Mapping[str, Gradients]]) -> dict[str, Support]:
    """Of each tensor what must be known of a direction, to meet all of the averages."""
    found = {}
    for name, first in averages[0].items():
        alike = all(one[name].support == first.support for one in averages)
        found[name] = first.support if alike else whole(first.width)
    return found


def tensors_met(
    averages: Sequence[Mapping[str, Gradients]], blocks: Iterable[Block], *, like: Tensor, lines: int, room: int
) -> Iterator[tuple[str, list[Met]]]:
    """What each of the averages gives in one tensor after the other, on the device of `like` [n].

    Gradients that are written out for several blocks hold at most `room` values.
    """
    for name, of_tensor in groupby(blocks, key=lambda block: block.name):
        products = [like.new_zeros(len(like), lines, dtype=torch.float64) for _ in averages]
        prepared: list[Gradients] = []
        for block in of_tensor:
            if not prepared:
                share = room // len(averages)
                prepared = [
                    one[name].on(block.support).prepared(lines, blocks=block.blocks, room=share)
                    for one in averages
                ]
            for total, gradients in zip(products, prepared, strict=True):
                total[:, block.lines] += (gradients.products(block.values) * block.factors).double()
        yield name, [Met(total, gradients) for total, gradients in zip(products, prepared, strict=True)]


def meet(
    averages: Sequence[Mapping[str, Gradients]], blocks: Iterable[Block], *, like: Tensor, lines: int, room: int
) -> list[tuple[Tensor, Tensor]]:
    """⟨∂f_n/∂θ, d_k⟩ [n, lines] and ‖∂f_n/∂θ‖² [n] over all tensors, for each of the averages; both float64."""
    found = [
        (like.new_zeros(len(like), lines, dtype=torch.float64), like.new_zeros(len(like), dtype=torch.float64))
        for _ in averages
    ]
    for _, of_tensor in tensors_met(averages, blocks, like=like, lines=lines, room=room):
        for (products, squares), met in zip(found, of_tensor, strict=True):
            products += met.products
            squares += met.gradients.squares()
    return found
