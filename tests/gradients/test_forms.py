"""The forms of per-sample gradients: every way to a product or norm gives what the written-out gradient gives."""

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from flforensics.gradients import Block, Call, Gradients, gradients_at, meet, plan, supports
from flforensics.gradients.forms import Dense, Outer
from flforensics.gradients.layers import convolution
from flforensics.gradients.sparse import Inner, Rows
from flforensics.gradients.support import whole
from tests.gradients.test_layers import CASES, SLOW_COPY, Sum, shaken

pytestmark = pytest.mark.filterwarnings(SLOW_COPY)


MATRICES = (nn.Linear, Conv1D, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


def found(name: str, seed: int = 3) -> dict[str, Gradients]:
    """The forms of one layer's tensors."""
    torch.manual_seed(seed)
    make, data = CASES[name]
    module, call = nn.Sequential(shaken(make())), Call((data(),))
    state = module.state_dict()
    scheme = plan(module, state, call, target=Sum())
    return dict(gradients_at(module, state, call, target=Sum(), plan=scheme)[1])


@pytest.mark.parametrize("name", CASES)
def test_every_way_to_a_product_and_to_a_norm_is_the_same(name: str) -> None:
    for gradients in found(name).values():
        dense = gradients.dense().values
        directions = torch.randn(5, gradients.width, dtype=torch.float64)
        truth = dense @ directions.T
        close(gradients.products(directions), truth)
        close(gradients.squares(), dense.square().sum(1))
        for blocks in (1, 1000):
            close(gradients.prepared(5, blocks=blocks, room=1 << 20).products(directions), truth)
            close(gradients.prepared(5, blocks=blocks, room=0).squares(), dense.square().sum(1))
        if isinstance(gradients, Outer):
            close(gradients.evaluated(directions), truth)
            close(gradients.written_out(directions), truth)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("piece", [1, 1 << 22])
def test_products_and_norms_of_one_meeting(name: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flforensics.gradients.forms._WRITTEN", piece)
    for gradients in found(name).values():
        dense = gradients.dense().values
        for lines in (1, 3000):
            directions = torch.randn(lines, gradients.width, dtype=torch.float64)
            products, squares = gradients.met(directions)
            close(products, dense @ directions.T)
            close(squares, dense.square().sum(1))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [0, 7 << 20])
def test_sums_are_the_sums_of_what_is_written_out(name: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flforensics.gradients.forms._REUSED", size)
    one, two, three = (list(found(name).values()) for _ in range(3))
    for first, second, third in zip(one, two, three, strict=True):
        total = first.dense().values + second.dense().values + third.dense().values
        both = first.plus(second).plus(third)
        close(both.dense().values, total)
        close(both.squares(), total.square().sum(1))
        directions = torch.randn(5, both.width, dtype=torch.float64)
        close(both.products(directions), total @ directions.T)
        if isinstance(both, Outer):
            close(both.evaluated(directions), total @ directions.T)
            close(both.written_out(directions), total @ directions.T)


def test_calls_that_are_kept_together_are_their_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = {name for name, (make, _) in CASES.items() if isinstance(make(), MATRICES)}
    for name in matrices:
        calls = [kept(found(name, seed).get("0.weight")) for seed in (3, 4, 5)]
        together_are_their_sum([scattered(one) for one in calls if one is not None], monkeypatch)


def scattered(one: Outer) -> Outer:
    """With other values on both sides: of one layer alone the target's gradient is the same in every call."""
    calls = tuple((torch.randn_like(left), torch.randn_like(right)) for left, right in one.calls)
    return Outer(calls, one.factors, one.shape)


def test_calls_of_other_sizes_are_kept_together_too(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Conv2d(2, 3, 3, padding=1).double()
    calls = []
    for size in ((6, 5), (4, 7), (4, 7), (3, 3)):
        x, g = torch.randn(2, 2, *size, dtype=torch.float64), torch.randn(2, 3, *size, dtype=torch.float64)
        calls.append(kept(convolution(layer, {"weight": layer.weight.detach()}, x, g)["weight"]))
    together_are_their_sum([one for one in calls if one is not None], monkeypatch)
    assert len(calls) == 4


def together_are_their_sum(calls: list[Outer], monkeypatch: pytest.MonkeyPatch) -> None:
    """However large they are: stacked, stacked sample by sample, or one after the other."""
    together = Outer(tuple(call for one in calls for call in one.calls), calls[0].factors, calls[0].shape)
    total = torch.stack([one.dense().values for one in calls]).sum(0)
    for size in (0, together._side, 7 << 20):
        monkeypatch.setattr("flforensics.gradients.forms._REUSED", size)
        close(together.dense().values, total)
        close(together.prepared(2, blocks=1, room=0).dense().values, total)


def kept(gradients: Gradients | None) -> Outer | None:
    """Those that are kept as calls, of a kernel's boxes too."""
    inner = gradients.inner if isinstance(gradients, Inner) else gradients
    return inner if isinstance(inner, Outer) else None


@pytest.mark.parametrize("name", CASES)
def test_what_is_written_out_takes_in_every_form(name: str) -> None:
    """As where a layer is called again with inputs of another size, which meet other parts of its kernels."""
    for written, other in zip(found(name).values(), found(name).values(), strict=True):
        total = 2 * other.dense().values
        close(written.dense().plus(other).dense().values, total)


def test_pieces_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("linear on positions", "conv2d", "conv2d grouped", "conv2d on one pixel", "embedding"):
        gradients = found(name)["0.weight"]
        directions = torch.randn(5, gradients.width, dtype=torch.float64)
        for size in (1, 40, 1 << 20):
            monkeypatch.setattr("flforensics.gradients.forms.PIECE", size)
            monkeypatch.setattr("flforensics.gradients.sparse.PIECE", size)
            monkeypatch.setattr("flforensics.gradients.forms._REUSED", size)
            close(gradients.products(directions), gradients.dense().values @ directions.T)
            close(gradients.squares(), gradients.dense().values.square().sum(1))
            if isinstance(gradients, Outer):
                close(gradients.written_out(directions), gradients.evaluated(directions))


def outer(positions: int, *, rows: int = 300, columns: int = 300) -> Outer:
    left, right = torch.randn(2, 1, rows, positions), torch.randn(2, 1, columns, positions)
    return Outer(((left, right),), lambda a, b: (a[0], b[0]), (1, rows, columns))


def test_a_layer_is_evaluated_where_it_has_one_position_and_written_out_where_it_has_many() -> None:
    assert outer(1).evaluating_is_cheaper(50)
    assert outer(200).evaluating_is_cheaper(1)
    assert not outer(60).evaluating_is_cheaper(50)
    assert isinstance(outer(60).prepared(2000, blocks=40, room=1 << 20), Dense)
    assert isinstance(outer(60).prepared(2000, blocks=40, room=10), Outer)
    assert isinstance(outer(60).prepared(50, blocks=1, room=1 << 20), Outer)


def test_a_table_is_never_written_out_while_few_of_its_rows_are_chosen() -> None:
    values = torch.randn(6, 4, dtype=torch.float64)
    owners, rows = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([3, 3, 70_000, 5, 5, 5])
    gradients = Rows(2, (100_000, 4), owners, rows, values)
    twice = gradients.plus(gradients)
    assert isinstance(twice, Rows)
    assert twice.held == 48
    close(twice.squares()[1], 4 * values[3:].sum(0).square().sum())
    direction = torch.randn(1, 400_000, dtype=torch.float64)
    table = direction.reshape(100_000, 4)
    close(gradients.products(direction)[0, 0], (table[rows[:3]] * values[:3]).sum())


def test_calls_are_kept_while_they_are_smaller_than_the_matrix() -> None:
    one = outer(20, rows=30, columns=40)
    assert isinstance(one.plus(outer(1, rows=30, columns=40)), Dense)
    thin = outer(2, rows=30, columns=40)
    assert isinstance(thin.plus(outer(2, rows=30, columns=40)), Outer)


def test_calls_with_a_side_in_common_become_one() -> None:
    """As the first layer's at every node: what the network is given stays the same."""
    x, y = torch.randn(2, 1, 40, 20), torch.randn(2, 1, 40, 20)
    g, h = torch.randn(2, 1, 30, 20), torch.randn(2, 1, 30, 20)
    z = torch.randn(2, 1, 20, 20)
    cases = [
        (((g, x),), ((h, x),), 1),
        (((x, g),), ((x, h),), 1),
        (((g, x), (h, y)), ((h, x), (g, y)), 2),
        (((g, x),), ((h, y),), None),
        (((g, x), (h, y)), ((h, y), (g, x)), None),
        (((g, x),), ((h, x), (g, y)), None),
        (((g, z),), ((h, z.mT),), None),
    ]
    for one, other, kept in cases:
        shape = (1, one[0][0].shape[2], one[0][1].shape[2])
        left, right = (Outer(calls, lambda a, b: (a[0], b[0]), shape) for calls in (one, other))
        copies = [tuple(tensor.clone() for tensor in call) for call in (*one, *other)]
        truth = left.dense().values + right.dense().values
        both = left.plus(right)
        torch.testing.assert_close(both.dense().values, truth)
        assert kept == (len(both.calls) if isinstance(both, Outer) else None)
        for before, call in zip(copies, (*one, *other), strict=True):
            assert all(map(torch.equal, before, call))


def test_the_plan_knows_how_much_sums_over_nodes_keep() -> None:
    """Of the first layer what the network was given, of the others calls side by side or a matrix.

    A single node's calls are part of its pass.
    """
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Tanh(), nn.Conv2d(4, 40, 7))
    state, call = network.double().state_dict(), Call((torch.randn(2, 2, 12, 12, dtype=torch.float64),))
    scheme, total = plan(network, state, call, target=Sum()), dict[str, Gradients]()
    for node in range(3):
        for name, one in gradients_at(network, state, call, target=Sum(), plan=scheme)[1].items():
            total[name] = total[name].plus(one) if name in total else one
        kept = sum(one.held for one in total.values()) // call.count
        assert not node or scheme.bytes_held([node + 1], itemsize=8) == 8 * kept
    assert isinstance(total["0.weight"], Outer)
    assert isinstance(total["2.weight"], Dense)
    assert isinstance(total["4.weight"], Outer)


def test_of_a_direction_must_be_known_what_any_of_the_averages_reaches() -> None:
    average = found("conv2d on one pixel")
    name = "0.weight"
    assert supports([average, average])[name] == average[name].support
    assert supports([average, {**average, name: average[name].dense()}])[name] == whole(average[name].width)
    assert supports([average])[name].width < average[name].width


@pytest.mark.parametrize("known", ["support", "everything"])
@pytest.mark.parametrize("name", ["conv2d", "conv2d on one pixel"])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_directions_in_blocks_of_any_size_meet_the_same(size: int, name: str, known: str) -> None:
    average, scale = found(name), torch.linspace(1, 2, 7, dtype=torch.float64)
    directions = {name: torch.randn(7, one.width, dtype=torch.float64) for name, one in average.items()}
    blocks = [
        Block(name, slice(start, min(start + size, 7)), part, scale[start : start + size], -(-7 // size), support)
        for name, rows in directions.items()
        for support in (average[name].support if known == "support" else whole(average[name].width),)
        for start, part in zip(range(0, 7, size), support.of(rows).flatten(1).split(size), strict=True)
    ]
    ((products, squares),) = meet([average], blocks, like=torch.zeros(3), lines=7, room=1 << 20)
    dense = {name: one.dense().values for name, one in average.items()}
    close(products, sum(dense[name] @ (scale[:, None] * directions[name]).T for name in dense))
    close(squares, sum(one.square().sum(1) for one in dense.values()))
