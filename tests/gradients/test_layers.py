"""Every rule against automatic differentiation, one sample at a time."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from flforensics.gradients import Call, plan, sample_gradients
from flforensics.gradients.layers import LAYERS, convolution
from flforensics.gradients.sparse import Inner
from tests.oracle import written_out

Make = Callable[[], nn.Module]

SLOW_COPY = "ignore:Using padding='same' with even kernel lengths"
pytestmark = pytest.mark.filterwarnings(SLOW_COPY)


class Sum:
    """f_n: a fixed random projection of the n-th output, so that every output matters."""

    def __call__(self, output: object) -> Tensor:
        assert isinstance(output, Tensor)
        flat = output.flatten(1)
        return flat @ torch.linspace(-1, 1, flat.shape[1], dtype=flat.dtype)

    def __getitem__(self, samples: slice | Tensor) -> "Sum":
        return self


def images(*shape: int) -> Tensor:
    return torch.randn(3, *shape, dtype=torch.float64)


CASES: dict[str, tuple[Make, Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Linear(5, 4), lambda: images(5)),
    "linear without bias": (lambda: nn.Linear(5, 4, bias=False), lambda: images(5)),
    "linear on positions": (lambda: nn.Linear(5, 4), lambda: images(7, 2, 5)),
    "hugging face conv1d": (lambda: Conv1D(4, 5), lambda: images(6, 5)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), lambda: images(4, 11)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3, padding=1), lambda: images(3, 6, 5)),
    "conv2d strided": (lambda: nn.Conv2d(3, 4, (3, 2), stride=(2, 3), bias=False), lambda: images(3, 8, 9)),
    "conv2d grouped": (lambda: nn.Conv2d(4, 8, 3, groups=4, dilation=2, padding=2), lambda: images(4, 7, 7)),
    "conv2d over the whole width": (lambda: nn.Conv2d(2, 3, (4, 5)), lambda: images(2, 6, 5)),
    "conv2d same": (lambda: nn.Conv2d(2, 3, (3, 5), padding="same"), lambda: images(2, 6, 6)),
    "conv2d reflect": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), lambda: images(2, 6, 6)),
    "conv2d on one pixel": (lambda: nn.Conv2d(3, 4, 3, padding=1), lambda: images(3, 1, 1)),
    "conv2d strided to one pixel": (
        lambda: nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2),
        lambda: images(4, 2, 2),
    ),
    "conv2d same on a line": (
        lambda: nn.Conv2d(2, 3, (4, 6), padding="same", dilation=(1, 2)),
        lambda: images(2, 1, 3),
    ),
    "conv1d on two points": (lambda: nn.Conv1d(2, 3, 7, padding=3), lambda: images(2, 2)),
    "conv3d": (lambda: nn.Conv3d(2, 4, 3, padding=1, stride=2, groups=2), lambda: images(2, 5, 4, 6)),
    "conv3d same": (
        lambda: nn.Conv3d(2, 3, (2, 3, 1), padding="same", dilation=(2, 1, 1)),
        lambda: images(2, 3, 4, 2),
    ),
    "conv3d on a plane": (lambda: nn.Conv3d(1, 2, 3, padding=1), lambda: images(1, 1, 3, 2)),
    "conv2d on a part of turned pictures": (
        lambda: nn.Conv2d(3, 4, (2, 3), stride=(1, 2)),
        lambda: images(3, 7, 8)[:, :, 2:, 1:].transpose(2, 3),
    ),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2), lambda: images(4, 5)),
    "transposed 2d": (
        lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1),
        lambda: images(3, 4, 4),
    ),
    "transposed 3d": (lambda: nn.ConvTranspose3d(2, 2, 2), lambda: images(2, 3, 3, 3)),
    "layer norm": (lambda: nn.LayerNorm(6), lambda: images(4, 6)),
    "layer norm on vectors": (lambda: nn.LayerNorm(6), lambda: images(6)),
    "layer norm over two axes": (lambda: nn.LayerNorm((4, 6)), lambda: images(3, 4, 6)),
    "rms norm": (lambda: nn.RMSNorm(6), lambda: images(4, 6)),
    "group norm": (lambda: nn.GroupNorm(2, 4), lambda: images(4, 5, 5)),
    "batch norm 1d": (lambda: nn.BatchNorm1d(4), lambda: images(4)),
    "batch norm 1d on signals": (lambda: nn.BatchNorm1d(4), lambda: images(4, 9)),
    "batch norm 2d": (lambda: nn.BatchNorm2d(4), lambda: images(4, 5, 5)),
    "batch norm 2d without scale": (lambda: nn.BatchNorm2d(4, affine=False), lambda: images(4, 5, 5)),
    "batch norm 3d": (lambda: nn.BatchNorm3d(4), lambda: images(4, 3, 3, 3)),
    "instance norm": (lambda: nn.InstanceNorm2d(4, affine=True), lambda: images(4, 5, 5)),
    "instance norm 1d": (lambda: nn.InstanceNorm1d(4, affine=True), lambda: images(4, 5)),
    "instance norm 3d": (lambda: nn.InstanceNorm3d(4, affine=True), lambda: images(4, 3, 3, 3)),
    "embedding": (lambda: nn.Embedding(7, 4, padding_idx=0), lambda: torch.tensor([[0, 3], [3, 3], [0, 6]])),
}


def shaken(module: nn.Module) -> nn.Module:
    """The module in float64 with every tensor off its initial value; variances stay positive."""
    module = module.double().eval()
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data + 0.3 * torch.rand_like(tensor)
    return module


def truth(module: nn.Module, inputs: Tensor) -> list[dict[str, Tensor]]:
    """Per-sample gradients by automatic differentiation of BatchNorm written out, one sample a time."""
    written = written_out(module)
    state = {name: tensor.detach() for name, tensor in written.state_dict().items()}
    rows = []
    for row in inputs:
        leaves = {k: v.clone().requires_grad_() for k, v in state.items() if v.is_floating_point()}
        value = Sum()(functional_call(written, {**state, **leaves}, (row[None],))).sum()
        gradients = torch.autograd.grad(value, list(leaves.values()))
        rows.append(dict(zip(leaves, gradients, strict=True)))
    return rows


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(3)


@pytest.mark.parametrize("name", CASES)
def test_a_rule_equals_automatic_differentiation(name: str) -> None:
    make, data = CASES[name]
    module, inputs = nn.Sequential(shaken(make())), data()
    state, call = module.state_dict(), Call((inputs,))
    scheme = plan(module, state, call, target=Sum())
    assert not scheme.local, "the rule was found to be wrong"
    assert not scheme.unused
    found = sample_gradients(module, state, call, target=Sum(), plan=scheme)
    for index, row in enumerate(truth(module, inputs)):
        assert set(row) == set(found.tensors)
        for tensor, gradient in row.items():
            torch.testing.assert_close(found.tensors[tensor][index], gradient, rtol=1e-9, atol=1e-9)


def test_the_inner_of_a_kernel_holds_exactly_the_taps_that_meet_an_input() -> None:
    random = torch.Generator().manual_seed(0)

    def some(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=random))

    smaller = 0
    for _ in range(200):
        size, taps, stride, dilation = some(1, 5), some(1, 6), some(1, 4), some(1, 3)
        padding = some(0, (taps - 1) * dilation + 1)
        if size + 2 * padding < (taps - 1) * dilation + 1:
            continue
        layer = nn.Conv1d(1, 1, taps, stride=stride, padding=padding, dilation=dilation, bias=False)
        x = torch.ones(2, 1, size)
        y = layer(x)
        gradient = torch.autograd.grad(y.sum(), layer.weight)[0].flatten()
        found = convolution(layer, layer.state_dict(), x, torch.ones_like(y))["weight"]
        met = gradient.nonzero().flatten().tolist()
        box = found.boxes.box[0] if isinstance(found, Inner) else slice(0, taps)
        assert box == (slice(met[0], met[-1] + 1) if met else slice(0, taps))
        torch.testing.assert_close(found.dense().values, gradient.expand(2, -1) / 2)
        smaller += isinstance(found, Inner)
    assert smaller > 20


def test_every_rule_has_a_case() -> None:
    kinds = {type(make()) for make, _ in CASES.values()}
    assert {f"{kind.__module__}.{kind.__qualname__}" for kind in kinds} == set(LAYERS)


class Odd(nn.Module):
    """What no rule covers: a class token, a weight used twice in two ways, a layer called twice, no batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.scale = nn.Parameter(torch.randn(4))
        self.shift: Tensor
        self.register_buffer("shift", torch.randn(4))
        self.twice = nn.Linear(4, 4)
        self.borrowed = nn.Linear(4, 4)
        self.flattened = nn.Linear(4, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.silent = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = self.twice(torch.relu(self.twice(x))) * self.scale + self.shift
        x = self.borrowed(x) + x @ self.borrowed.weight
        x = self.flattened(x.reshape(-1, 4)).reshape(x.shape)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(x[:, 0])


def test_what_no_rule_covers_is_found_by_running_modules_again() -> None:
    network = Odd().double().eval()
    inputs = torch.randn(3, 5, 4, dtype=torch.float64)
    state, call = network.state_dict(), Call((inputs,))
    scheme = plan(network, state, call, target=Sum())
    modules = {one.module: set(one.tensors) for one in scheme.local}
    assert {"token", "scale", "shift", "borrowed.weight", "flattened.weight"} <= modules[""]
    attention = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    assert {f"attention.{name}" for name in attention} == modules["attention"]
    assert all(one.batched for one in scheme.local)
    assert {"twice.weight", "head.weight", "borrowed.bias"} <= scheme.ruled
    assert set(scheme.unused) == {"silent.weight", "silent.bias"}
    found = sample_gradients(network, state, call, target=Sum(), plan=scheme)
    for index, row in enumerate(truth_of(network, inputs)):
        for name, gradient in row.items():
            if name not in scheme.unused:
                torch.testing.assert_close(found.tensors[name][index], gradient, rtol=1e-9, atol=1e-9)


def truth_of(network: nn.Module, inputs: Tensor) -> list[dict[str, Tensor]]:
    state = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    rows = []
    for row in inputs:
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in state.items()}
        value = Sum()(functional_call(network, leaves, (row[None],), tie_weights=False)).sum()
        gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
        rows.append(dict(zip(leaves, gradients, strict=True)))
    return rows


def test_an_in_place_layer_behind_does_not_change_what_was_recorded() -> None:
    plain = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2)
    )
    plain = plain.double().eval()
    inplace = nn.Sequential(*[nn.ReLU(inplace=True) if isinstance(m, nn.ReLU) else m for m in plain])
    call = Call((torch.randn(3, 1, 6, 6, dtype=torch.float64),))
    found = []
    for network in (plain, inplace):
        state = network.state_dict()
        scheme = plan(network, state, call, target=Sum())
        found.append(sample_gradients(network, state, call, target=Sum(), plan=scheme).tensors)
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=0, atol=0)


def test_hooks_come_off_and_the_network_is_not_written_to() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Linear(3, 2)).double().eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = {name: tensor + 1 for name, tensor in before.items()}
    call = Call((torch.randn(4, 3, dtype=torch.float64),))
    sample_gradients(network, state, call, target=Sum(), plan=plan(network, state, call, target=Sum()))
    assert all(not module._forward_hooks for module in network.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_a_norm_over_the_batch_is_refused() -> None:
    from flforensics.errors import EvidenceError

    network = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)).double().eval()
    call = Call((torch.randn(4, 3, dtype=torch.float64),))
    with pytest.raises(EvidenceError, match="normalises over the batch"):
        plan(network, network.state_dict(), call, target=Sum())
