"""Convolutions over small maps: the same values and gradients as torch's, and nothing else is touched."""

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from flforensics.gradients.kernels import SmallMaps, as_product

MANY = 16
CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)


def shapes(axes: int) -> list[tuple[int, int, int, int, int]]:
    """Map, taps, stride, padding and dilation with at least one position, alike along every axis."""
    found = []
    for size, taps, stride, padding, dilation in product((1, 2, 3, 4), (1, 2, 3), (1, 2, 4), (0, 1, 2), (1, 2)):
        if axes < 3 and size + 2 * padding >= dilation * (taps - 1) + 1:
            found.append((size, taps, stride, padding, dilation))
    return found or [(1, 3, 1, 1, 1), (2, 3, 2, 1, 1), (3, 2, 2, 1, 2), (2, 3, 1, 1, 1), (2, 2, 1, 1, 1)]


def both(axes: int, arguments: tuple[object, ...], x: Tensor, weight: Tensor) -> list[tuple[Tensor, ...]]:
    """Output and input gradient by torch, and with matrix products."""
    found = []
    for active in (False, True):
        leaf = x.clone().requires_grad_()
        bias = torch.arange(len(weight), dtype=torch.float64)
        if active:
            with SmallMaps():
                output = CONVOLUTIONS[axes - 1](leaf, weight, bias, *arguments)
        else:
            output = CONVOLUTIONS[axes - 1](leaf, weight, bias, *arguments)
        weights = torch.linspace(1, 2, output.numel(), dtype=torch.float64).view(output.shape)
        found.append((output, *torch.autograd.grad((output * weights).sum(), leaf)))
    return found


def covers(size: int, taps: int, stride: int, padding: int, dilation: int) -> bool:
    """Whether at each of several positions the kernel, one tap next to the other, meets every input."""
    positions = (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
    met = [{p * stride + tap * dilation - padding for tap in range(taps)} for p in range(positions)]
    return stride == dilation == 1 and positions > 1 and all(set(range(size)) <= one for one in met)


@pytest.mark.parametrize("samples", [3, MANY])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_values_and_gradients_are_the_convolutions(axes: int, samples: int) -> None:
    torch.manual_seed(0)
    single = covered = 0
    for size, taps, stride, padding, dilation in shapes(axes):
        x = torch.randn(samples, 4, *[size] * axes, dtype=torch.float64)
        weight = torch.randn(5, 4, *[taps] * axes, dtype=torch.float64)
        truth, found = both(axes, (stride, padding, dilation, 1), x, weight)
        for one, other in zip(truth, found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        positions = (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
        taken = as_product(x, weight, None, stride, padding, dilation, 1) is not None
        if positions == 1:
            single += taken
        else:
            assert taken == (samples == MANY and covers(size, taps, stride, padding, dilation))
            covered += taken
    assert single
    assert bool(covered) == (samples == MANY)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weights", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("inputs", [torch.contiguous_format, torch.channels_last])
def test_the_output_lies_in_memory_as_torch_leaves_it(
    weights: torch.memory_format, inputs: torch.memory_format, dtype: torch.dtype
) -> None:
    x = torch.randn(MANY, 4, 2, 2, dtype=dtype).contiguous(memory_format=inputs)
    weight = torch.randn(5, 4, 3, 3, dtype=dtype).contiguous(memory_format=weights)
    found = as_product(x, weight, None, 1, 1, 1, 1)
    assert found is not None
    assert found.stride() == torch.conv2d(x, weight, None, 1, 1).stride()


@pytest.mark.parametrize("kind", ["a part of the channels", "turned"])
def test_a_network_may_view_what_it_may_view_of_torchs_output(kind: str) -> None:
    """Only what lies channels last as a whole goes on so."""
    x, weight = torch.randn(MANY, 8, 2, 2)[:, ::2], torch.randn(5, 4, 3, 3)
    if kind == "turned":
        x = torch.randn(MANY, 4, 2, 2).transpose(2, 3)
    found = as_product(x, weight, None, 1, 1, 1, 1)
    assert found is not None
    assert found.stride() == torch.conv2d(x, weight, None, 1, 1).stride()
    assert found.view(MANY, -1).shape == (MANY, 20)


def test_axes_may_differ() -> None:
    single = ((1, 4), (3, 2), ((1, 3), (1, 0), (1, 2), 1))
    covered = ((3, 2), (5, 4), (1, (2, 1), 1, 1))
    for size, taps, arguments in (single, covered):
        x, weight = torch.randn(MANY, 3, *size, dtype=torch.float64), torch.randn(5, 3, *taps, dtype=torch.float64)
        truth, found = both(2, arguments, x, weight)
        assert as_product(x, weight, None, *arguments) is not None
        for one, other in zip(truth, found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 2, padding="valid", dilation=1),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
    ],
)
def test_what_else_a_convolution_can_be_is_left_as_it_is(module: nn.Module) -> None:
    x = torch.randn(MANY, 4, 2, 2)
    truth = module(x)
    with SmallMaps():
        torch.testing.assert_close(module(x), truth)


def test_a_sample_without_a_batch_is_left_as_it_is() -> None:
    x, weight = torch.randn(4, 1, 1), torch.randn(5, 4, 3, 3)
    truth = torch.conv2d(x, weight, padding=1)
    with SmallMaps():
        torch.testing.assert_close(torch.conv2d(x, weight, padding=1), truth)
        torch.testing.assert_close(torch.conv2d(x, weight, None, 1, 1), truth)


def test_what_does_not_fit_is_torchs_to_refuse() -> None:
    with SmallMaps(), pytest.raises(RuntimeError, match="channels"):
        torch.conv2d(torch.randn(1, 3, 1, 1), torch.randn(5, 4, 1, 1))


@pytest.mark.parametrize(("stride", "padding", "dilation"), [(0, 0, 1), (1, 0, 0), (1, -1, 1), (1, 0, -1)])
def test_what_is_no_convolution_is_torchs_to_refuse(stride: int, padding: int, dilation: int) -> None:
    x, weight = torch.randn(MANY, 4, 3, 3), torch.randn(5, 4, 1, 1)
    with pytest.raises(RuntimeError):
        torch.conv2d(x, weight, None, stride, padding, dilation)
    with SmallMaps(), pytest.raises(RuntimeError):
        torch.conv2d(x, weight, None, stride, padding, dilation)
