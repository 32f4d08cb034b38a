"""Small networks of every kind that is traced, with a round of clients around each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flforensics.gradients import Call
from flforensics.models import build_network
from flforensics.rounds import ClientModel, Round, StoredModel

_IMAGE = (1, 12, 12)
_TEXT = (30, 9)


@dataclass(frozen=True)
class Architecture:
    """A manifest's [model] table, the shape of its inputs, and what TraceFL traces in it (in order of calls)."""

    table: dict[str, Any]
    text: bool
    traced: tuple[str, ...]

    def network(self) -> nn.Module:
        """A fresh network, in eval mode."""
        return build_network(self.table)

    def call(self, count: int = 4) -> Call:
        """Random inputs."""
        generator = torch.Generator().manual_seed(5)
        if self.text:
            vocabulary, length = _TEXT
            return Call((), {"input_ids": torch.randint(0, vocabulary, (count, length), generator=generator)})
        return Call((torch.randn(count, *_IMAGE, generator=generator),))


def _conv(i: int, o: int, **more: Any) -> dict[str, Any]:
    return {"type": "Conv2d", "in_channels": i, "out_channels": o, "kernel_size": 3, **more}


ARCHITECTURES: dict[str, Architecture] = {
    "cnn": Architecture(
        {
            "source": "layers",
            "layers": [
                _conv(1, 4, padding=1),
                {"type": "ReLU", "inplace": True},
                {"type": "MaxPool2d", "kernel_size": 2},
                _conv(4, 8, groups=2),
                {"type": "GELU"},
                {"type": "Flatten"},
                {"type": "Linear", "in_features": 128, "out_features": 12},
                {"type": "LayerNorm", "normalized_shape": 12},
                {"type": "Linear", "in_features": 12, "out_features": 3},
            ],
        },
        False,
        ("0", "3", "6", "7", "8"),
    ),
    "batch norm": Architecture(
        {
            "source": "layers",
            "layers": [
                _conv(1, 4, bias=False),
                {"type": "BatchNorm2d", "num_features": 4},
                {"type": "ReLU", "inplace": True},
                {"type": "AdaptiveAvgPool2d", "output_size": 3},
                {"type": "Flatten"},
                {"type": "Linear", "in_features": 36, "out_features": 3},
            ],
        },
        False,
        ("0", "5"),
    ),
    "small maps": Architecture(
        {
            "source": "layers",
            "layers": [
                _conv(1, 4, padding=1),
                {"type": "AdaptiveAvgPool2d", "output_size": 2},
                _conv(4, 6, padding=1, stride=2),
                {"type": "Tanh"},
                _conv(6, 6, padding=1, groups=2),
                {"type": "Flatten"},
                {"type": "Linear", "in_features": 6, "out_features": 3},
            ],
        },
        False,
        ("0", "2", "4", "6"),
    ),
    "one logit": Architecture(
        {
            "source": "layers",
            "layers": [{"type": "Flatten"}, {"type": "Linear", "in_features": 144, "out_features": 1}],
        },
        False,
        ("1",),
    ),
    "bert": Architecture(
        {
            "source": "transformers",
            "name": "BertForSequenceClassification",
            "arguments": {
                "vocab_size": 30,
                "hidden_size": 8,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 12,
                "max_position_embeddings": 10,
                "num_labels": 3,
            },
        },
        True,
        (
            "bert.embeddings.LayerNorm",
            "bert.encoder.layer.0",
            "bert.encoder.layer.1",
            "bert.pooler.dense",
            "classifier",
        ),
    ),
    "gpt": Architecture(
        {
            "source": "transformers",
            "name": "OpenAIGPTForSequenceClassification",
            "arguments": {
                "vocab_size": 30,
                "n_positions": 10,
                "n_embd": 8,
                "n_layer": 1,
                "n_head": 2,
                "num_labels": 3,
                "pad_token_id": 0,
            },
        },
        True,
        (
            "transformer.h.0.attn.c_attn",
            "transformer.h.0.attn.c_proj",
            "transformer.h.0.ln_1",
            "transformer.h.0.mlp.c_fc",
            "transformer.h.0.mlp.c_proj",
            "transformer.h.0.ln_2",
            "score",
        ),
    ),
}


def random_state(network: nn.Module, *, seed: int, near: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """A random state of the network, or one near another; variances stay positive, counters count."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in network.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if not tensor.is_floating_point():
            state[name] = torch.full_like(tensor, seed)
        elif name.endswith("running_var"):
            state[name] = (tensor if near is None else near[name]) * (1 + 0.2 * noise.tanh())
        else:
            state[name] = 0.4 * noise if near is None else near[name] + 0.1 * noise
    return state


def mean_state(states: list[dict[str, Tensor]], weights: list[float]) -> dict[str, Tensor]:
    """The weighted mean, as a server computes it in float32."""
    total = sum(weights)
    return {
        name: sum((state[name] * (w / total) for state, w in zip(states, weights, strict=True)), torch.zeros(()))
        for name in states[0]
    }


def make_round(
    network: nn.Module,
    *,
    weights: tuple[float, ...] = (400, 250, 90),
    change: Callable[[list[dict[str, Tensor]], dict[str, Tensor]], None] | None = None,
) -> Round:
    """A round of random clients around a random previous global, honestly fused after `change`."""
    previous = random_state(network, seed=1)
    clients = [random_state(network, seed=10 + k, near=previous) for k in range(len(weights))]
    if change is not None:
        change(clients, previous)
    return round_from(previous, clients, list(weights))


def round_from(previous: dict[str, Tensor], clients: list[dict[str, Tensor]], weights: list[float]) -> Round:
    """The round in which these clients are fused."""
    models = tuple(
        ClientModel(f"client-{k}", weight, StoredModel(state, f"client-{k}.pt"))
        for k, (state, weight) in enumerate(zip(clients, weights, strict=True))
    )
    return Round(
        3, StoredModel(previous, "previous.pt"), models, StoredModel(mean_state(clients, weights), "global.pt")
    )
