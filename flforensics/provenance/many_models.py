"""One layer with the weights of many clients, all on the same input, met with the gradient of its output.

Any layer can be run so by `torch.func.vmap`. Hugging Face's BertLayer, which TraceFL observes as a whole, is
written out too: a few large matrix products, and only for the positions that have a gradient. In the last layer of
a classifier that is the first position alone, for which the others' keys and values are not needed, and in every
layer the padding behind a short text has none: most of the work falls away. What is written out is compared with
the layer itself, for one client and input, before it is used.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from threading import Lock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from flforensics.gradients.record import output_of
from flforensics.provenance.chunks import in_steps

Weights = Mapping[str, Tensor]
"""The layer's own floating-point tensors by name, each [k, *shape] for k clients."""

Products = Callable[[Weights], Tensor]
"""⟨g_n, layer(x_n; θ_k)⟩, [N, k], for k clients' weights, of one call of a layer."""

_BERT_LAYER = "transformers.models.bert.modeling_bert.BertLayer"
_NARROW = 3  # as long takes a multiplication in the narrow products of turned queries
_ALIKE = {torch.float64: 1e-9, torch.float32: 1e-4}
_IN_THE_LAYER = Lock()  # held while clients' weights stand in a layer instead of its own


def products_of(layer: nn.Module, weights: Weights, x: Tensor, gradient: Tensor, *, room: int) -> Products:
    """How a layer is run on x [N, ...], whose output has the gradient g [N, ...], with many clients' weights.

    Written out where that is right for these weights, with so many inputs at a time that an intermediate result of
    a client has no more values than there is `room` for; or by itself. Several threads may ask at once.
    """
    if written_out_is_right(layer, weights, x):
        return WrittenOut(layer, x, gradient, room=room)
    return partial(_run_by_itself, layer, x, gradient)


def _run_by_itself(layer: nn.Module, x: Tensor, gradient: Tensor, weights: Weights) -> Tensor:
    return torch.einsum("knf,nf->nk", _outputs(layer, weights, x).flatten(2), gradient.flatten(1))


class WrittenOut:
    """`Products` of a BertLayer."""

    def __init__(self, layer: nn.Module, x: Tensor, gradient: Tensor, *, room: int) -> None:
        self._layer, self._count = layer, len(x)
        widest = max(layer.intermediate.dense.out_features, x.shape[2])  # type: ignore[type-var, union-attr]
        inputs = max(1, room // (x.shape[1] * int(widest)))  # type: ignore[arg-type]
        reached = gradient.flatten(2).any(2)
        self._parts = [
            (rows, _Asked(x[rows], reached[rows]), gradient[rows][reached[rows]])
            for rows in in_steps(len(x), inputs)
            if reached[rows].any()
        ]

    def __call__(self, weights: Weights) -> Tensor:
        own = _Own(self._layer, weights)
        found = weights["output.dense.bias"].new_zeros(self._count, own.clients)
        for rows, asked, slopes in self._parts:
            met = torch.einsum("kmf,mf->mk", _bert_layer(own, asked), slopes)
            found[rows] = found[rows].index_add(0, asked.inputs, met)
        return found


def _outputs(layer: nn.Module, weights: Weights, x: Tensor) -> Tensor:
    """What the layer itself returns for many clients: [k, N, ...]."""
    return vmap(partial(_output, layer), in_dims=(0, None))(dict(weights), x)


def _output(layer: nn.Module, own: Weights, x: Tensor) -> Tensor:
    """What the layer itself returns for one client, without a mask, as published: [N, ...]."""
    with _IN_THE_LAYER:
        found = output_of(functional_call(layer, dict(own), (x,)))
    assert found is not None
    return found


def written_out_is_right(layer: nn.Module, weights: Weights, x: Tensor) -> bool:
    """Whether this is a BertLayer as it is written out here."""
    kind = type(layer)
    if f"{kind.__module__}.{kind.__qualname__}" != _BERT_LAYER or layer.is_decoder:
        return False
    one = _Own(layer, {name: tensor[:1] for name, tensor in weights.items()})
    truth = _output(layer, {name: tensor[0] for name, tensor in weights.items()}, x[:1])[0]
    positions = torch.arange(x.shape[1], device=x.device)[None]
    asked = [_bert_layer(one, _Asked(x[:1], wanted))[0] for wanted in (positions >= 0, positions == 0)]
    allowed = _ALIKE[x.dtype] * truth.abs().max()
    return all(bool((found - truth[: len(found)]).abs().max() <= allowed) for found in asked)


class _Asked:
    """Inputs x [n, P, features], and the positions whose output is wanted, from a mask [n, P] of those.

    There are m of them, input by input; of an input at most `most`. `own` are the inputs there, [m, features].
    """

    def __init__(self, x: Tensor, mask: Tensor) -> None:
        self.x, self.own = x, x[mask]
        self.inputs, _ = mask.nonzero(as_tuple=True)
        counts = mask.sum(1)
        self.most = int(counts.max())
        self._places = torch.arange(self.most, device=mask.device) < counts[:, None]
        self._alike = len(self.inputs) == self._places.numel()

    def spread(self, rows: Tensor) -> Tensor:
        """[k, m, features] as [k, n, the most of an input, features], with zeros where an input has fewer."""
        shape = (len(rows), *self._places.shape, rows.shape[2])
        if self._alike:
            return rows.view(shape)
        found = rows.new_zeros(shape)
        found[:, self._places] = rows
        return found

    def gathered(self, spread: Tensor) -> Tensor:
        """The reverse of `spread`."""
        return spread.flatten(1, 2) if self._alike else spread[:, self._places]


@dataclass(frozen=True)
class _Own:
    """A layer with some clients' weights."""

    layer: nn.Module
    weights: Weights

    @property
    def clients(self) -> int:
        """k."""
        return len(self.weights["output.dense.bias"])

    def linear(self, name: str, x: Tensor) -> Tensor:
        """Every client's Linear layer on x [k, P, in] or on the same x [P, in] for all: [k, P, out]."""
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return torch.baddbmm(bias[:, None], x.expand(len(weight), *x.shape[-2:]), weight.mT)

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Every client's LayerNorm on x [k, P, features]."""
        module = self.layer.get_submodule(name)
        weight, bias = (self.weights[f"{name}.{kind}"][:, None] for kind in ("weight", "bias"))
        normalised = F.layer_norm(x, x.shape[-1:], eps=module.eps)  # type: ignore[arg-type]
        return torch.addcmul(bias, normalised, weight, out=normalised)


def _bert_layer(own: _Own, asked: _Asked) -> Tensor:
    """Self-attention and feed-forward, each added to what went in and normalised: [k, m, features]."""
    seen = own.linear("attention.output.dense", _attention(own, asked))
    attended = own.norm("attention.output.LayerNorm", seen.add_(asked.own))
    active = own.layer.intermediate.intermediate_act_fn(own.linear("intermediate.dense", attended))  # type: ignore[operator, union-attr]
    return own.norm("output.LayerNorm", own.linear("output.dense", active).add_(attended))


def _attention(own: _Own, asked: _Asked) -> Tensor:
    """What the asked positions see of their inputs, head by head; [k, m, features]."""
    query = asked.spread(own.linear("attention.self.query", asked.own))
    (inputs, positions, features), width = asked.x.shape, query.shape[-1]
    heads = int(own.layer.attention.self.num_attention_heads)  # type: ignore[arg-type, union-attr]
    turned = _NARROW * asked.most * (width + heads * positions) * features
    way = _from_turned_queries if turned < positions * (features + asked.most) * width else _from_keys
    shape = (own.clients, inputs * asked.most, heads, width // heads)
    return asked.gathered(way(own, asked.x, query.view(shape)).reshape(query.shape))


def _from_keys(own: _Own, x: Tensor, asking: Tensor) -> Tensor:
    """What queries [k, n · most, heads, d] see, from keys and values of all positions of x [n, P, features]."""
    shape = (own.clients * len(x), -1, *asking.shape[2:])
    seen = [own.linear(f"attention.self.{name}", x.flatten(0, 1)) for name in ("key", "value")]
    query, key, value = (one.view(shape).transpose(1, 2) for one in (asking, *seen))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(asking.shape)


def _from_turned_queries(own: _Own, x: Tensor, query: Tensor) -> Tensor:
    """The same without keys and values: q · (W x + b) = (qW) · x + q · b, and Σ a (W x + b) = W Σ a x + b.

    What q · b adds to all that a query meets the softmax takes away again, unless it is so large that a
    computation with keys would lose the rest: then so does this one.
    """
    clients, rows, heads, size = query.shape
    weights, biases = (
        [own.weights[f"attention.self.{name}.{kind}"].view(clients, heads, size, -1) for name in ("key", "value")]
        for kind in ("weight", "bias")
    )
    query = query.transpose(1, 2)
    by_input = (clients * heads, len(x), rows // len(x), -1)
    asking, shift = (
        (query @ of_keys).view(by_input).transpose(0, 1).flatten(1, 2) for of_keys in (weights[0], biases[0])
    )
    weighed = torch.softmax((asking @ x.mT + shift) / size**0.5, -1) @ x
    back = weighed.view(len(x), clients * heads, rows // len(x), -1).transpose(0, 1)
    found = back.reshape(clients, heads, rows, -1) @ weights[1].mT + biases[1].mT
    return found.transpose(1, 2)
