"""What a kernel meets of its input; convolutions to a single position as the matrix products that they are.

A kernel of 3 x 3 over a map of 1 x 1 multiplies eight ninths of its values by padding, and libraries for
convolutions do so: a third of the time of a ResNet-18 at 32 pixels. What is left out here is exactly that.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)


class SinglePositions(TorchFunctionMode):
    """While it is active, convolutions to a single position are matrix products."""

    def __torch_function__(
        self, function: Callable[..., Any], _types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        """The function, or the product in its place."""
        if function in _CONVOLUTIONS and not keywords:
            found = single_position(*arguments)
            if found is not None:
                return found
        return function(*arguments, **(keywords or {}))


def single_position(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """The convolution of x [n, C, *map], where its output is [n, O, 1, ...] and it has one group."""
    axes = weight.dim() - 2
    if groups != 1 or isinstance(padding, str) or x.dim() != weight.dim() or x.shape[1] != weight.shape[1]:
        return None
    for axis, step, before, apart in zip(
        range(2, 2 + axes), _each(stride, axes), _each(padding, axes), _each(dilation, axes), strict=True
    ):
        size, taps = x.shape[axis], weight.shape[axis]
        beyond = size + 2 * before - apart * (taps - 1) - 1
        met = taps_met(size, 1, before, taps, step, apart)
        first, count = met.start * apart - before, met.stop - met.start
        if not 0 <= beyond < step or first < 0:
            return None
        weight = weight.narrow(axis, met.start, count)
        x = x.narrow(axis, first, (count - 1) * apart + 1)
        x = x[(slice(None),) * axis + (slice(None, None, apart),)]
    return F.linear(x.flatten(1), weight.flatten(1), bias).view(len(x), -1, *[1] * axes)


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
