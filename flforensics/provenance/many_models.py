"""One layer with the weights of many clients, all on the same input, met with the gradient of its output.

Any layer can be run so by `torch.func.vmap`. Hugging Face's BertLayer, which TraceFL observes as a whole, is
written out too: a few large matrix products for several clients at a time, and only for the positions that have a
gradient. In the last layer of a classifier that is the first position alone, and in every layer the padding behind
a short text has none: most of the work falls away. What is written out is compared with the layer itself, for one
client and input, before it is used.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from flforensics.gradients.record import output_of

Weights = Mapping[str, Tensor]
"""The layer's own floating-point tensors by name, each [k, *shape] for k clients."""

Products = Callable[[nn.Module, Weights, Tensor, Tensor], Tensor]
"""⟨g_n, layer(x_n; θ_k)⟩, [N, k], of a layer, k clients' weights, inputs x [N, ...] and gradients g [N, ...]."""

_BERT_LAYER = "transformers.models.bert.modeling_bert.BertLayer"
_CACHED = 1 << 22  # values of an intermediate result that stays near the processor
_ALIKE = {torch.float64: 1e-9, torch.float32: 1e-4}


def products_of(layer: nn.Module, weights: Weights, x: Tensor) -> Products:
    """How a layer is run with many clients' weights: written out where that is right for these, or by itself."""
    return written_out if written_out_is_right(layer, weights, x) else run_by_itself


def run_by_itself(layer: nn.Module, weights: Weights, x: Tensor, gradient: Tensor) -> Tensor:
    """`Products` of any layer."""
    return torch.einsum("knf,nf->nk", _outputs(layer, weights, x).flatten(2), gradient.flatten(1))


def written_out(layer: nn.Module, weights: Weights, x: Tensor, gradient: Tensor) -> Tensor:
    """`Products` of a BertLayer."""
    reached = gradient.flatten(2).any(2)
    found = gradient.new_zeros(len(x), len(next(iter(weights.values()))))
    for rows, lines in _blocks(weights, x):
        asked = _Asked(reached[rows])
        if asked.count:
            outputs = _bert_layer(_Own(layer, weights, lines), x[rows], asked)
            met = torch.einsum("kmf,mf->mk", outputs, asked.of(gradient[rows]))
            found[rows, lines] = found[rows, lines].index_add(0, asked.inputs, met)
    return found


def _outputs(layer: nn.Module, weights: Weights, x: Tensor) -> Tensor:
    """What the layer itself returns for many clients: [k, N, ...]."""
    return vmap(partial(_output, layer), in_dims=(0, None))(dict(weights), x)


def _output(layer: nn.Module, own: Weights, x: Tensor) -> Tensor:
    """What the layer itself returns for one client, without a mask, as published: [N, ...]."""
    found = output_of(functional_call(layer, dict(own), (x,)))
    assert found is not None
    return found


def written_out_is_right(layer: nn.Module, weights: Weights, x: Tensor) -> bool:
    """Whether this is a BertLayer as it is written out here."""
    kind = type(layer)
    if f"{kind.__module__}.{kind.__qualname__}" != _BERT_LAYER or layer.is_decoder:
        return False
    everything = _Asked(torch.ones(1, x.shape[1], dtype=torch.bool, device=x.device))
    found = _bert_layer(_Own(layer, weights, slice(0, 1)), x[:1], everything)
    truth = _output(layer, {name: tensor[0] for name, tensor in weights.items()}, x[:1])
    return bool((found - truth).abs().max() <= _ALIKE[x.dtype] * truth.abs().max())


def _blocks(weights: Weights, x: Tensor) -> Iterator[tuple[slice, slice]]:
    """Inputs and clients whose intermediate results stay near the processor."""
    widest = max(weights["intermediate.dense.bias"].shape[1], x.shape[2])
    inputs, clients = len(x), len(weights["intermediate.dense.bias"])
    rows = min(inputs, max(1, _CACHED // (x.shape[1] * widest)))
    lines = max(1, _CACHED // (rows * x.shape[1] * widest))
    for start in range(0, inputs, rows):
        for first in range(0, clients, lines):
            yield slice(start, min(start + rows, inputs)), slice(first, min(first + lines, clients))


class _Asked:
    """The positions whose output is wanted, from a mask [n, P] of those: m of them, input by input."""

    def __init__(self, mask: Tensor) -> None:
        self._mask = mask
        self.inputs, _ = mask.nonzero(as_tuple=True)
        counts = mask.sum(1)
        self.count = len(self.inputs)
        self._places = torch.arange(int(counts.max()), device=mask.device) < counts[:, None]
        self._alike = self.count == self._places.numel()

    def of(self, x: Tensor) -> Tensor:
        """Theirs of x [n, P, features], [m, features]."""
        return x[self._mask]

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
    """A layer with the weights of some of the clients."""

    layer: nn.Module
    weights: Weights
    lines: slice

    def __getitem__(self, name: str) -> Tensor:
        """One tensor of these clients, [k, *shape]."""
        return self.weights[name][self.lines]

    @property
    def clients(self) -> int:
        """k."""
        return len(self["output.dense.bias"])

    def linear(self, name: str, x: Tensor) -> Tensor:
        """Every client's Linear layer on x [k, P, in] or on the same x [P, in] for all: [k, P, out]."""
        weight, bias = self[f"{name}.weight"], self[f"{name}.bias"]
        return torch.baddbmm(bias[:, None], x.expand(len(weight), *x.shape[-2:]), weight.mT)

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Every client's LayerNorm on x [k, P, features]."""
        module = self.layer.get_submodule(name)
        weight, bias = self[f"{name}.weight"][:, None], self[f"{name}.bias"][:, None]
        normalised = F.layer_norm(x, x.shape[-1:], eps=module.eps)  # type: ignore[arg-type]
        return torch.addcmul(bias, normalised, weight, out=normalised)


def _bert_layer(own: _Own, x: Tensor, asked: _Asked) -> Tensor:
    """Self-attention and feed-forward, each added to what went in and normalised: [k, m, features]."""
    seen = own.linear("attention.output.dense", _attention(own, x, asked))
    attended = own.norm("attention.output.LayerNorm", seen.add_(asked.of(x)))
    active = own.layer.intermediate.intermediate_act_fn(own.linear("intermediate.dense", attended))  # type: ignore[operator, union-attr]
    return own.norm("output.LayerNorm", own.linear("output.dense", active).add_(attended))


def _attention(own: _Own, x: Tensor, asked: _Asked) -> Tensor:
    """What the asked positions see of x [n, P, features], head by head; [k, m, features]."""
    heads = int(own.layer.attention.self.num_attention_heads)  # type: ignore[arg-type, union-attr]
    seen = [own.linear(f"attention.self.{name}", x.flatten(0, 1)) for name in ("key", "value")]
    asking = asked.spread(own.linear("attention.self.query", asked.of(x)))
    shape = (own.clients * len(x), -1, heads, asking.shape[-1] // heads)
    query, key, value = (one.view(shape).transpose(1, 2) for one in (asking, *seen))
    found = F.scaled_dot_product_attention(query, key, value)
    return asked.gathered(found.transpose(1, 2).reshape(asking.shape))
