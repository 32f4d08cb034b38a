"""Random inputs: their range, their shape, the same for the same seed."""

import math

import pytest
import torch

from flforensics.inputs import kaiming_noise, noise_shape, uniform_noise

IMAGE = {"kind": "image", "mode": "L", "size": [8, 6], "mean": [0.25], "std": [0.5]}
TENSOR = {"kind": "tensor"}


def test_kaiming_noise_fills_its_range():
    bound = math.sqrt(6 / 48)
    pixels = kaiming_noise(IMAGE, (1, 8, 6), count=200, seed=1) * 0.5 + 0.25
    assert pixels.shape == (200, 1, 8, 6)
    assert pixels.abs().max() <= bound
    assert pixels.min() < -0.99 * bound
    assert pixels.max() > 0.99 * bound
    assert float(pixels.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    own = torch.empty(1, 48)
    torch.nn.init.kaiming_uniform_(own)
    assert own.abs().max() <= bound


def test_uniform_noise_is_pixels_between_0_and_1_prepared_like_pictures():
    pixels = uniform_noise(IMAGE, (1, 8, 6), count=100, seed=1) * 0.5 + 0.25
    assert 0 <= pixels.min() < 0.01
    assert 0.99 < pixels.max() <= 1
    colours = uniform_noise({**IMAGE, "mode": "RGB", "mean": [0.0, 0.5, 1.0]}, (3, 8, 6), count=100, seed=1)
    assert colours.mean((0, 2, 3)).tolist() == pytest.approx([1.0, 0.0, -1.0], abs=0.05)


def test_numbers_are_left_as_drawn():
    values = uniform_noise(TENSOR, (5,), count=50, seed=1)
    assert values.shape == (50, 5)
    assert 0 <= values.min() <= values.max() <= 1


@pytest.mark.parametrize("make", [kaiming_noise, uniform_noise])
def test_a_seed_decides(make):
    first = make(TENSOR, (4, 3), count=6, seed=1)
    assert torch.equal(first, make(TENSOR, (4, 3), count=6, seed=1))
    assert torch.equal(first[:2], make(TENSOR, (4, 3), count=2, seed=1))
    assert not torch.equal(first, make(TENSOR, (4, 3), count=6, seed=2))


@pytest.mark.parametrize(
    ("table", "shape"),
    [
        (IMAGE, (1, 8, 6)),
        ({**IMAGE, "mode": "RGB", "crop": [4, 4]}, (3, 4, 4)),
        ({"kind": "image", "mode": "L"}, None),
        ({"kind": "image", "mode": "L", "resize": 8}, None),
        (TENSOR, None),
        ({"kind": "text"}, None),
    ],
)
def test_what_the_table_says_about_the_shape(table, shape):
    assert noise_shape(table) == shape
