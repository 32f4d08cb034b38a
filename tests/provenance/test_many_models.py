"""One layer with many clients' weights: against the layer itself, one client at a time."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from flforensics.provenance import many_models
from flforensics.provenance.hands import Hands
from flforensics.provenance.many_models import WrittenOut, products_of, written_out_is_right
from flforensics.provenance.tracefl import _Layer

CLIENTS, INPUTS, LENGTH, WIDTH = 3, 4, 5, 12
ROOM = 1 << 20


class Half(BertLayer):
    """Looks like a BertLayer and is none."""

    def forward(self, hidden_states: Tensor) -> Tensor:  # type: ignore[override]
        found: Tensor = super().forward(hidden_states)
        return found / 2


def layer(kind: type[BertLayer] = BertLayer, **changes: object) -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(hidden_size=WIDTH, num_attention_heads=3, intermediate_size=20, **changes)
    config._attn_implementation = "eager"
    return kind(config).double().eval().requires_grad_(False)


def with_tanh() -> nn.Module:
    """A BertLayer, by its class, that a part was put into."""
    found = layer()
    found.output.dropout = nn.Tanh()  # type: ignore[union-attr]
    return found


def inputs_of(module: nn.Module) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Three clients' weights, inputs, and a gradient at two positions of most inputs, at one, or none."""
    weights = {
        name: torch.stack([tensor + 0.3 * torch.randn_like(tensor) for _ in range(CLIENTS)])
        for name, tensor in module.state_dict().items()
    }
    x = torch.randn(INPUTS, LENGTH, WIDTH, dtype=torch.float64)
    gradient = torch.zeros_like(x)
    gradient[:, [0, 3]] = torch.randn(INPUTS, 2, WIDTH, dtype=torch.float64)
    gradient[2] = 0
    gradient[3, 0] = 0
    return weights, x, gradient


def truth(module: nn.Module, weights: dict[str, Tensor], x: Tensor, gradient: Tensor) -> Tensor:
    columns = []
    for k in range(CLIENTS):
        own = {name: tensor[k] for name, tensor in weights.items()}
        output = functional_call(module, own, (x,))
        output = output[0] if isinstance(output, tuple) else output
        columns.append((output * gradient).sum((1, 2)))
    return torch.stack(columns, 1)


@pytest.mark.parametrize("narrow", [0, 1000])
@pytest.mark.parametrize("room", [1, 150, 1 << 22])
@pytest.mark.parametrize("act", ["gelu", "relu", "gelu_new"])
def test_a_bert_layer_written_out_is_the_layer(
    act: str, room: int, narrow: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With keys and values of all positions, and from turned queries."""
    monkeypatch.setattr("flforensics.provenance.many_models._NARROW", narrow)
    module = layer(hidden_act=act, layer_norm_eps=1e-3)
    weights, x, gradient = inputs_of(module)
    assert written_out_is_right(module, weights, x)
    found = products_of(module, weights, x, gradient, room=room)(weights)
    torch.testing.assert_close(found, truth(module, weights, x, gradient), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", [lambda: layer(Half), with_tanh, lambda: layer(is_decoder=True)])
def test_what_is_no_plain_bert_layer_is_run_itself(make: Callable[[], nn.Module]) -> None:
    module = make()
    weights, x, gradient = inputs_of(module)
    assert not written_out_is_right(module, weights, x)
    found = products_of(module, weights, x, gradient, room=ROOM)(weights)
    torch.testing.assert_close(found, truth(module, weights, x, gradient), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", [BertLayer, Half])
def test_threads_that_run_one_layer_do_not_disturb_each_other(kind: type[BertLayer]) -> None:
    module = layer(kind)
    weights, x, gradient = inputs_of(module)
    expected, products = truth(module, weights, x, gradient), products_of(module, weights, x, gradient, room=ROOM)

    def run(client: int) -> None:
        found = products({name: rows[client : client + 1] for name, rows in weights.items()})
        torch.testing.assert_close(found, expected[:, client : client + 1], rtol=1e-10, atol=1e-10)

    with Hands(8) as hands:
        hands.each(run, list(range(CLIENTS)) * 40)


def test_few_positions_that_ask_need_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of many, as in the last layer of a classifier; where all of them ask, keys are less work."""
    ways: list[str] = []
    for name in ("_from_keys", "_from_turned_queries"):
        way = getattr(many_models, name)
        monkeypatch.setattr(many_models, name, partial(noted, name, way, ways))
    module = layer()
    weights, _, _ = inputs_of(module)
    x = torch.randn(2, 60, WIDTH, dtype=torch.float64)
    first, everywhere = torch.zeros_like(x), torch.randn_like(x)
    first[:, 0] = 1
    for gradient in (first, everywhere):
        found = WrittenOut(module, x, gradient, room=ROOM)(weights)
        torch.testing.assert_close(found, truth(module, weights, x, gradient), rtol=1e-10, atol=1e-10)
    assert ways == ["_from_turned_queries", "_from_keys"]


@pytest.mark.parametrize("narrow", [0, 1000])
@pytest.mark.parametrize("which", ["query", "key", "value"])
def test_a_client_whose_layer_breaks_down_has_no_product(
    which: str, narrow: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key's bias has no effect in exact arithmetic; a client that sent an infinite one has broken its layer."""
    monkeypatch.setattr("flforensics.provenance.many_models._NARROW", narrow)
    module = layer()
    weights, x, gradient = inputs_of(module)
    weights[f"attention.self.{which}.bias"][1, 2] = torch.inf
    expected = truth(module, weights, x, gradient)
    assert expected.isnan().any(0).tolist() == [False, True, False]
    asked = gradient.flatten(1).any(1)
    found = products_of(module, weights, x, gradient, room=ROOM)(weights)
    torch.testing.assert_close(found[asked], expected[asked], rtol=1e-10, atol=1e-10, equal_nan=True)


def noted(name: str, way: Callable[..., Tensor], ways: list[str], *arguments: object) -> Tensor:
    """What a way gives, after its name was put down."""
    ways.append(name)
    return way(*arguments)


def test_every_call_of_a_layer_counts_for_the_clients_that_were_asked_for() -> None:
    module = layer()
    weights, x, gradient = inputs_of(module)
    calls = [x, torch.randn_like(x)]
    ways = [products_of(module, weights, one, gradient, room=ROOM) for one in calls]
    found = _Layer("layer", 0, lambda lines: {name: rows[lines] for name, rows in weights.items()}, ways)
    expected = torch.stack([truth(module, weights, one, gradient) for one in calls]).sum(0)
    torch.testing.assert_close(found.products(slice(1, 3)), expected[:, 1:3], rtol=1e-10, atol=1e-10)


def test_no_gradient_at_all_is_zero() -> None:
    module = layer()
    weights, x, gradient = inputs_of(module)
    assert torch.equal(
        products_of(module, weights, x, 0 * gradient, room=ROOM)(weights),
        torch.zeros(INPUTS, CLIENTS, dtype=torch.float64),
    )
