"""Per-sample parameter gradients of single layers, in closed form.

A rule gets the layer, its own tensors, its input x [N, ...] and the gradient g [N, ...] of its output, and
returns for each of its tensors the gradient of each sample, in the form that is smallest (`forms`). Layers are
found by the exact class that defines their forward: a subclass may compute something else and has no rule until
it is given one.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flforensics.gradients.forms import Dense, Gradients, Outer
from flforensics.gradients.kernels import taps_met
from flforensics.gradients.sparse import Inner, Rows
from flforensics.gradients.support import Support

Own = Mapping[str, Tensor]
Found = Mapping[str, Gradients]
Rule = Callable[[nn.Module, Own, Tensor, Tensor], Found]


def linear(_layer: nn.Module, _own: Own, x: Tensor, g: Tensor) -> Found:
    """y = W x + b: ∂W = Σ_p g_po x_pi, ∂b = Σ_p g_po."""
    x, g = _positions(x), _positions(g)
    shape = (1, g.shape[-1], x.shape[-1])
    return {"weight": Outer(((g, x),), _features, shape), "bias": Dense(g.sum(1))}


def transposed_linear(_layer: nn.Module, _own: Own, x: Tensor, g: Tensor) -> Found:
    """y = x W + b, as Hugging Face's Conv1D computes it: the weight is [in, out]."""
    x, g = _positions(x), _positions(g)
    shape = (1, x.shape[-1], g.shape[-1])
    return {"weight": Outer(((x, g),), _features, shape), "bias": Dense(g.sum(1))}


def convolution(layer: nn.Module, own: Own, x: Tensor, g: Tensor) -> Found:
    """A convolution is a Linear layer on its unfolded input, group by group."""
    groups, size = int(layer.groups), own["weight"].shape  # type: ignore[arg-type]
    box = _box(layer, x, g)
    shape = (groups, size[0] // groups, size[1] * prod(side.stop - side.start for side in box))
    inner = Outer(((g, x),), partial(_unfolded, layer, box), shape)
    support = Support((size[0] * size[1], *size[2:]), box)
    weight = inner if support.everything else Inner(inner, support)
    return {"weight": weight, "bias": Dense(_channels(g).sum(2))}


def transposed_convolution(layer: nn.Module, own: Own, x: Tensor, g: Tensor) -> Found:
    """One group per sample: the samples become channels of a single image."""
    samples, groups = len(x), int(layer.groups)  # type: ignore[arg-type]
    gradient = torch.ops.aten.convolution_backward(
        g.reshape(1, -1, *g.shape[2:]),
        x.reshape(1, -1, *x.shape[2:]),
        own["weight"].repeat(samples, *[1] * (x.dim() - 1)),
        None,
        layer.stride,
        layer.padding,
        layer.dilation,
        True,
        layer.output_padding,
        groups * samples,
        [False, True, False],
    )[1]
    return {"weight": Dense(gradient.reshape(samples, -1)), "bias": Dense(_channels(g).sum(2))}


def layer_norm(layer: nn.Module, _own: Own, x: Tensor, g: Tensor) -> Found:
    """y = w·x̂ + b over the last axes."""
    shape = tuple(layer.normalized_shape)  # type: ignore[arg-type]
    return _affine(F.layer_norm(x, shape, None, None, layer.eps), g, len(shape))  # type: ignore[arg-type]


def rms_norm(layer: nn.Module, _own: Own, x: Tensor, g: Tensor) -> Found:
    """y = w·x̂ over the last axes, without a mean."""
    shape = tuple(layer.normalized_shape)  # type: ignore[arg-type]
    return _affine(F.rms_norm(x, shape, None, layer.eps), g, len(shape))  # type: ignore[arg-type]


def group_norm(layer: nn.Module, _own: Own, x: Tensor, g: Tensor) -> Found:
    """y = w·x̂ + b per channel."""
    normalised = F.group_norm(x, layer.num_groups, None, None, layer.eps)  # type: ignore[arg-type]
    return _dense(*_per_channel(normalised, g))


def stored_norm(layer: nn.Module, own: Own, x: Tensor, g: Tensor) -> Found:
    """y = w·(x − m)·r + b with r = (v + ε)^−½ and stored statistics m, v, which the clients sent too.

    `torch.nn.functional.batch_norm` has no derivative for m and v, so it is written out here:
    ∂m = −Σ g·w·r, ∂v = −½ Σ g·w·(x − m)·r³.
    """
    mean, variance, eps = own["running_mean"], own["running_var"], float(layer.eps)  # type: ignore[arg-type]
    root = torch.rsqrt(variance + eps)
    weight = own.get("weight", torch.ones_like(mean))
    maps, slopes = _channels(x), _channels(g)
    scale, shift = (maps - mean[:, None]).mul_(slopes).sum(2) * root, slopes.sum(2)
    statistics = {"running_mean": -shift * weight * root, "running_var": -0.5 * scale * weight * root**2}
    return {**_dense(scale, shift), **{name: Dense(values) for name, values in statistics.items()}}


def instance_norm(layer: nn.Module, own: Own, x: Tensor, g: Tensor) -> Found:
    """Like BatchNorm where statistics are stored, else over each sample's own positions."""
    if "running_mean" in own:
        return stored_norm(layer, own, x, g)
    return _dense(*_per_channel(F.instance_norm(x, eps=layer.eps), g))  # type: ignore[arg-type]


def embedding(_layer: nn.Module, own: Own, x: Tensor, g: Tensor) -> Found:
    """Row x_p of the table is the output: its gradient is the sum of g over the positions that chose it."""
    rows, width = own["weight"].shape
    owners = torch.arange(len(x), device=x.device).repeat_interleave(x[0].numel())
    return {"weight": Rows(len(x), (rows, width), owners, x.flatten(), g.reshape(-1, width))}


LAYERS: dict[str, Rule] = {
    "torch.nn.modules.linear.Linear": linear,
    "torch.nn.modules.conv.Conv1d": convolution,
    "torch.nn.modules.conv.Conv2d": convolution,
    "torch.nn.modules.conv.Conv3d": convolution,
    "torch.nn.modules.conv.ConvTranspose1d": transposed_convolution,
    "torch.nn.modules.conv.ConvTranspose2d": transposed_convolution,
    "torch.nn.modules.conv.ConvTranspose3d": transposed_convolution,
    "torch.nn.modules.normalization.LayerNorm": layer_norm,
    "torch.nn.modules.normalization.RMSNorm": rms_norm,
    "torch.nn.modules.normalization.GroupNorm": group_norm,
    "torch.nn.modules.batchnorm.BatchNorm1d": stored_norm,
    "torch.nn.modules.batchnorm.BatchNorm2d": stored_norm,
    "torch.nn.modules.batchnorm.BatchNorm3d": stored_norm,
    "torch.nn.modules.instancenorm.InstanceNorm1d": instance_norm,
    "torch.nn.modules.instancenorm.InstanceNorm2d": instance_norm,
    "torch.nn.modules.instancenorm.InstanceNorm3d": instance_norm,
    "torch.nn.modules.sparse.Embedding": embedding,
    "transformers.pytorch_utils.Conv1D": transposed_linear,
}


def rule_of(layer: nn.Module) -> Rule | None:
    """The rule of the layer's exact class, if there is one."""
    kind = type(layer)
    return LAYERS.get(f"{kind.__module__}.{kind.__qualname__}")


def _features(left: Sequence[Tensor], right: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """[n, P, features] of both, as the one group of a matrix."""
    return torch.cat(list(left), 1).mT.unsqueeze(1), torch.cat(list(right), 1).mT.unsqueeze(1)


def _box(layer: nn.Module, x: Tensor, g: Tensor) -> tuple[slice, ...]:
    """Along each axis of a kernel, the taps that meet anything but zeros of the padding at some position.

    On a map of 1 x 1 that is the middle of a 3 x 3 kernel; where padding is not zeros, it is all of them.
    """
    if layer.padding_mode != "zeros":
        return tuple(slice(0, taps) for taps in layer.kernel_size)  # type: ignore[union-attr]
    axes = zip(x.shape[2:], g.shape[2:], _padding_before(layer), *_geometry(layer), strict=True)
    return tuple(taps_met(*axis) for axis in axes)


def _unfolded(
    layer: nn.Module, box: tuple[slice, ...], g: Sequence[Tensor], x: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """What the taps of the box saw of the inputs [n, C, *map] at each output position, group by group.

    Copied in the order that has the longer runs: position by position, or tap by tap. The calls come last: what a
    tap saw of one row of the map is one run for all of them.
    """
    groups, places, calls = int(layer.groups), g[0].shape[2:], len(x)  # type: ignore[arg-type]
    maps, slopes = _padded(layer, x), _calls_last(g)
    _, stride, dilation = _geometry(layer)
    (samples, channels), (by_sample, by_channel, *along, by_call) = maps.shape[:2], maps.stride()
    axes = list(zip(along, box, stride, dilation, strict=True))
    taps, between = tuple(side.stop - side.start for side in box), tuple(one * apart for one, _, _, apart in axes)
    steps = tuple(one * step for one, _, step, _ in axes)
    begin = maps.storage_offset() + sum(one * side.start * apart for one, side, _, apart in axes)
    positions = calls * prod(places)
    left = slopes.reshape(samples, groups, -1, positions)
    if calls * places[-1] >= taps[-1]:
        sizes, strides = (channels, *taps, *places, calls), (by_channel, *between, *steps, by_call)
        windows = maps.as_strided((samples, *sizes), (by_sample, *strides), begin)
        return left, windows.reshape(samples, groups, -1, positions)
    sizes, strides = (*places, calls, channels, *taps), (*steps, by_call, by_channel, *between)
    windows = maps.as_strided((samples, *sizes), (by_sample, *strides), begin)
    return left, windows.reshape(samples, positions, groups, -1).permute(0, 2, 3, 1)


def _calls_last(calls: Sequence[Tensor]) -> Tensor:
    """[n, ...] of each call as [n, ..., calls]; a view of one."""
    return calls[0].unsqueeze(-1) if len(calls) == 1 else torch.stack(list(calls), -1)


def _geometry(layer: nn.Module) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Taps, stride and dilation along each axis."""
    return layer.kernel_size, layer.stride, layer.dilation  # type: ignore[return-value]


def _padding_before(layer: nn.Module) -> list[int]:
    """How much is put before the input along each axis."""
    return layer._reversed_padding_repeated_twice[::2][::-1]  # type: ignore[index, return-value]


def _positions(tensor: Tensor) -> Tensor:
    """[N, ..., features] as [N, positions, features]."""
    return tensor.reshape(len(tensor), -1, tensor.shape[-1])


def _channels(tensor: Tensor) -> Tensor:
    """[N, C, ...] as [N, C, positions]."""
    return tensor.reshape(*tensor.shape[:2], -1)


def _per_channel(normalised: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients [N, C] of a scale and a shift per channel; x̂ and g are [N, C, ...]."""
    return _channels(g * normalised).sum(2), _channels(g).sum(2)


def _dense(scale: Tensor, shift: Tensor) -> Found:
    """Gradients [N, ...] of a layer's `weight` and `bias`."""
    return {"weight": Dense(scale.flatten(1)), "bias": Dense(shift.flatten(1))}


def _affine(normalised: Tensor, g: Tensor, axes: int) -> Found:
    """Gradients of a scale and a shift over the last axes."""
    between = tuple(range(1, g.dim() - axes))
    if not between:
        return _dense(g * normalised, g.clone())
    return _dense((g * normalised).sum(between), g.sum(between))


def _padded(layer: nn.Module, calls: Sequence[Tensor]) -> Tensor:
    """[n, C, *map, calls], with the layer's own padding applied ('same' and reflecting paddings too)."""
    around, mode = layer._reversed_padding_repeated_twice, str(layer.padding_mode)
    if mode == "zeros":
        return F.pad(_calls_last(calls), (0, 0, *around))  # type: ignore[misc]
    return _calls_last([F.pad(one, around, mode) for one in calls])  # type: ignore[arg-type]
