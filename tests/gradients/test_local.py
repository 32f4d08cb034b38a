"""What no rule covers, against automatic differentiation of one sample at a time."""

import pytest
import torch
from torch import Tensor, nn

from flforensics.errors import EvidenceError
from flforensics.gradients import Call, plan, sample_gradients
from tests.gradients.test_layers import Sum, truth_of


class Positions(nn.Module):
    """A class token and position embeddings of its own, as in a vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.places = nn.Parameter(torch.randn(1, 4, 4))
        self.table = nn.Embedding(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        return x + self.table(torch.arange(4)[None])


class Tied(nn.Module):
    """The head multiplies with the weight of the first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.head = nn.Linear(4, 4, bias=False)
        self.head.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.first(x)))


class Twice(nn.Module):
    """A layer called a second time on an input of another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.relu(self.layer(x)).mean(1))


class Stubborn(nn.Module):
    """Its flow depends on its data, which no batching of derivatives can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale if float(x.sum()) != 0.1234 else x


class Mixing(nn.Module):
    """Every sample sees the others."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) * self.scale


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=6, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


NETWORKS = {
    "tokens and positions": lambda: nn.Sequential(Positions(), nn.Linear(4, 3)),
    "attention": encoder,
    "tied weights": Tied,
    "another shape": Twice,
    "not to be batched": lambda: nn.Sequential(Stubborn(), nn.Linear(4, 2)),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(4)
    return NETWORKS[name]().double().eval().requires_grad_(False)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_tensor_has_its_gradient(name: str, count: int) -> None:
    """Whatever the number of samples: with as many as there are positions, shapes alone would mislead."""
    network = made(name)
    inputs = torch.randn(count, 3, 4, dtype=torch.float64)
    state, call = dict(network.state_dict()), Call((inputs,))
    scheme = plan(network, state, call, target=Sum())
    found = sample_gradients(network, state, call, target=Sum(), plan=scheme).tensors
    assert not scheme.unused
    for index, row in enumerate(truth_of(network, inputs)):
        assert set(found) == set(row)
        for tensor, gradient in row.items():
            torch.testing.assert_close(found[tensor][index], gradient, rtol=1e-9, atol=1e-9)


def test_a_tensor_with_two_names_of_which_one_is_stored() -> None:
    network = made("tied weights")
    inputs = torch.randn(3, 3, 4, dtype=torch.float64)
    state = {name: tensor for name, tensor in network.state_dict().items() if name != "head.weight"}
    scheme = plan(network, state, Call((inputs,)), target=Sum())
    found = sample_gradients(network, state, Call((inputs,)), target=Sum(), plan=scheme).tensors
    for index, row in enumerate(inputs):
        leaf = network.first.weight.clone().requires_grad_()  # type: ignore[union-attr]
        value = Sum()(torch.relu(row @ leaf.T + network.first.bias)[None] @ leaf.T)  # type: ignore[union-attr]
        (gradient,) = torch.autograd.grad(value.sum(), [leaf])
        torch.testing.assert_close(found["first.weight"][index], gradient, rtol=1e-9, atol=1e-9)


def test_what_cannot_be_batched_is_run_one_sample_at_a_time() -> None:
    network = made("not to be batched")
    call = Call((torch.randn(3, 3, 4, dtype=torch.float64),))
    (local,) = plan(network, network.state_dict(), call, target=Sum()).local
    assert (local.module, local.batched) == ("0", False)


def test_the_smallest_module_is_run_again() -> None:
    network = made("tokens and positions")
    call = Call((torch.randn(3, 3, 4, dtype=torch.float64),))
    (local,) = plan(network, network.state_dict(), call, target=Sum()).local
    assert local.module == "0"
    assert set(local.tensors) == {"0.token", "0.places", "0.table.weight"}


def test_samples_that_influence_each_other_are_refused() -> None:
    network = nn.Sequential(Mixing()).double().eval()
    call = Call((torch.randn(3, 4, dtype=torch.float64),))
    with pytest.raises(EvidenceError, match="which inputs are traced together"):
        plan(network, network.state_dict(), call, target=Sum())
