"""Boxes of kernels against loops over every value."""

from itertools import product

import pytest
import torch

from flforensics.gradients import Support, joined, whole

CASES = [
    Support((6, 3, 3), (slice(1, 2), slice(1, 2))),
    Support((5, 3, 3), (slice(0, 2), slice(1, 3))),
    Support((4, 2, 3), (slice(0, 2), slice(0, 3))),
    Support((7, 4), (slice(1, 3),)),
    Support((3, 2, 2, 3), (slice(1, 2), slice(0, 2), slice(2, 3))),
    whole(11),
    whole(1),
    whole(0),
]


def places(support: Support) -> list[int]:
    """Where the values inside the boxes lie in the flat tensor, by counting."""
    kernel, *sides = support.shape[0], *map(range, support.shape[1:])
    inside = []
    for at, (_, *tap) in enumerate(product(range(kernel), *sides)):
        if all(side.start <= where < side.stop for side, where in zip(support.box, tap, strict=True)):
            inside.append(at)
    return inside


@pytest.mark.parametrize("support", CASES, ids=str)
def test_the_boxes_are_the_values_inside(support: Support) -> None:
    values = support.shape[0] * support.kernel
    flat = torch.arange(2.0 * values).view(2, values)
    assert support.of(flat).flatten(1).tolist() == flat[:, places(support)].tolist()
    assert support.width == len(places(support))
    assert support.everything == (len(places(support)) == values or not values)
    assert joined([support]) == support


@pytest.mark.parametrize("support", CASES, ids=str)
@pytest.mark.parametrize("size", [1, 4, 20, 1 << 20])
def test_pieces_cover_a_tensor_once_and_in_order(support: Support, size: int) -> None:
    flat = torch.randn(support.shape[0] * support.kernel)
    found, read = torch.full((support.width,), torch.nan), []
    for place, inside in support.pieces(size):
        support.copy(flat[place], found[inside])
        read.append(flat[place])
    assert torch.equal(torch.cat(read) if read else flat[:0], flat)
    assert found.tolist() == flat[places(support)].tolist()
    assert all(len(one) <= 1.5 * size + support.kernel for one in read)
    assert len(read) <= max(1, len(flat) / size + 0.5)


def test_whole_tensors_side_by_side_are_one() -> None:
    assert joined([whole(3), whole(4)]) == whole(7)
