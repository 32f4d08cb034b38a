"""What a kernel meets of its input; convolutions over the smallest maps as the matrix products that they are.

A kernel of 3 x 3 over a map of 1 x 1 multiplies eight ninths of its values by padding, and over one of 2 x 2 five
ninths; libraries for convolutions do so: a third of the time of a ResNet-18 at 32 pixels. What is left out here is
exactly that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
_MANY = 16  # samples from which on a matrix for all positions together is worth being put together


class SmallMaps(TorchFunctionMode):
    """While it is active, convolutions to a single position, or from wholly covered maps, are matrix products."""

    def __torch_function__(
        self, function: Callable[..., Any], _types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        """The function, or the product in its place."""
        if function in _CONVOLUTIONS and not keywords:
            found = as_product(*arguments)
            if found is not None:
                return found
        return function(*arguments, **(keywords or {}))


def as_product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """The convolution of x [n, C, *map] in one group, where it goes to one position or all maps are covered."""
    axes = weight.dim() - 2
    if groups != 1 or isinstance(padding, str) or x.dim() != weight.dim() or x.shape[1] != weight.shape[1]:
        return None
    sizes = (x.shape[2:], weight.shape[2:], _each(stride, axes), _each(padding, axes), _each(dilation, axes))
    along = tuple(_Axis(*one) for one in zip(*sizes, strict=True))
    if any(axis.stride < 1 or axis.dilation < 1 or axis.before < 0 for axis in along):
        return None
    if all(axis.positions == 1 for axis in along):
        return _single_position(x, weight, bias, along)
    if len(x) >= _MANY and all(axis.covered for axis in along):
        return _covered(x, weight, bias, along)
    return None


@dataclass(frozen=True)
class _Axis:
    """A convolution along one axis of the map."""

    size: int
    taps: int
    stride: int
    before: int
    dilation: int

    @property
    def positions(self) -> int:
        """How many outputs there are."""
        return (self.size + 2 * self.before - self.dilation * (self.taps - 1) - 1) // self.stride + 1

    @property
    def covered(self) -> bool:
        """Whether the kernel meets every input at every position."""
        return self.stride == self.dilation == 1 and 0 < self.positions <= self.before + 1


def _single_position(x: Tensor, weight: Tensor, bias: Tensor | None, along: tuple[_Axis, ...]) -> Tensor | None:
    """[n, O, 1, ...] from the taps that meet an input, and those inputs."""
    for index, axis in enumerate(along, start=2):
        met = taps_met(axis.size, 1, axis.before, axis.taps, axis.stride, axis.dilation)
        first, count = met.start * axis.dilation - axis.before, met.stop - met.start
        if first < 0:
            return None
        weight = weight.narrow(index, met.start, count)
        x = x.narrow(index, first, (count - 1) * axis.dilation + 1)
        x = x[(slice(None),) * index + (slice(None, None, axis.dilation),)]
    return F.linear(x.flatten(1), weight.flatten(1), bias).view(len(x), -1, *[1] * len(along))


def _covered(x: Tensor, weight: Tensor, bias: Tensor | None, along: tuple[_Axis, ...]) -> Tensor:
    """[n, O, *positions]: of the kernel each position meets a window, one tap further than the next position's."""
    axes, positions, order = len(along), [axis.positions for axis in along], _order(x, weight)
    for index, axis in enumerate(along, start=2):
        first = axis.before - (axis.positions - 1)
        weight = weight.narrow(index, first, axis.positions + axis.size - 1).unfold(index, axis.size, 1)
    windows = weight.permute(*range(2, 2 + axes), 0, *range(2 + axes, 2 + 2 * axes), 1)
    matrix = windows.reshape(prod(positions) * len(weight), -1)
    shifts = None if bias is None else bias.repeat(prod(positions))
    found = F.linear(x.movedim(1, -1).flatten(1), matrix, shifts).view(len(x), *positions, -1)
    return found.flip(*range(1, 1 + axes)).movedim(-1, 1).contiguous(memory_format=order)


def _order(x: Tensor, weight: Tensor) -> torch.memory_format:
    """How torch's own convolution leaves its output in memory: what comes next may count on it."""
    last = torch.channels_last
    found = any(
        one.dim() == 4 and one.is_contiguous(memory_format=last) and not one.is_contiguous() for one in (x, weight)
    )
    return last if found else torch.contiguous_format


def taps_met(size: int, positions: int, before: int, taps: int, stride: int, dilation: int) -> slice:
    """Along one axis, from the first to the last tap that meets an input at some position; all where none does."""
    met = [
        tap
        for tap in range(taps)
        if any(0 <= position * stride + tap * dilation - before < size for position in range(positions))
    ]
    return slice(met[0], met[-1] + 1) if met else slice(0, taps)


def _each(sizes: Any, axes: int) -> tuple[int, ...]:
    """One number for every axis."""
    return (sizes,) * axes if isinstance(sizes, int) else tuple(sizes) * (axes // len(sizes))
