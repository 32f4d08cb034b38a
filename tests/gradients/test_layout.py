"""Channels last where the network gives the same with it, and torch's own order everywhere else."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from flforensics.gradients import Call, channels_last, laid_out
from tests.provenance.architectures import ARCHITECTURES


class Then(nn.Module):
    """A convolution and what a network may do with its map."""

    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.then = nn.Conv2d(2, 3, 3, padding=1), then

    def forward(self, x: Tensor) -> Tensor:
        """[n, values]."""
        return self.then(self.first(x)).flatten(1)


def rectified_through_another_shape(maps: Tensor) -> Tensor:
    """In torch's own order `flatten` is the same memory."""
    maps.flatten(1).relu_()
    return maps


WORKS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "reshape": lambda maps: maps.reshape(len(maps), -1) ** 2,
    "not finite": lambda maps: torch.where(maps > 0.1, torch.inf, torch.where(maps < -0.1, torch.nan, maps)),
    "nothing finite": lambda maps: torch.full_like(maps, torch.nan),
}
DOES_NOT: dict[str, Callable[[Tensor], Tensor]] = {
    "view": lambda maps: maps.view(len(maps), -1),
    "shared memory": rectified_through_another_shape,
}


def names(network: nn.Module, *, dtype: torch.dtype = torch.float32) -> frozenset[str]:
    torch.manual_seed(0)
    network = network.to(dtype).eval()
    return channels_last(network, network.state_dict(), Call((torch.randn(5, 2, 6, 6, dtype=dtype),)))


@pytest.mark.parametrize("then", WORKS)
def test_a_network_that_takes_it_gets_it(then: str) -> None:
    assert names(Then(WORKS[then])) == {"first.weight"}


@pytest.mark.parametrize("then", DOES_NOT)
def test_a_network_that_counts_on_torchs_own_order_keeps_it(then: str) -> None:
    assert not names(Then(DOES_NOT[then]))


def test_where_it_is_no_gain_nothing_is_tried() -> None:
    calls = []

    def counted(maps: Tensor) -> Tensor:
        calls.append(len(maps))
        return maps

    assert not names(Then(counted), dtype=torch.float64)
    assert not calls
    assert names(Then(counted))
    assert calls == [2, 2]
    assert not names(nn.Sequential(nn.Flatten(), nn.Linear(72, 2)))


@pytest.mark.parametrize("name", ["cnn", "batch norm", "small maps"])
def test_only_weights_of_convolutions_move_and_no_value_changes(name: str) -> None:
    architecture = ARCHITECTURES[name]
    network = architecture.network().eval()
    state = network.state_dict()
    moved = channels_last(network, state, architecture.call(5))
    assert moved == {f"{path}.weight" for path, one in network.named_modules() if isinstance(one, nn.Conv2d)}
    for tensor, laid in laid_out(state, moved).items():
        assert torch.equal(laid, state[tensor])
        order = torch.channels_last if tensor in moved else torch.contiguous_format
        assert laid.is_contiguous(memory_format=order)
