"""The networks of the benchmark as [model] tables of a manifest, and how a client trains each."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flforensics.gradients import Call
from flforensics.models import build_network
from tests.bench.accuracy.data import VOCABULARY


@dataclass(frozen=True)
class Training:
    """What all clients together learn from, batch size, Adam's rate, and passes over all of it before round 1."""

    examples: int
    batch: int
    rate: float
    warm: int


@dataclass(frozen=True)
class Model:
    """A network by its manifest table, whether it takes token ids, and the most nodes of its ledgers."""

    table: dict[str, Any]
    text: bool
    training: Training
    max_nodes: int = 128

    def network(self, seed: int) -> nn.Module:
        """The network with seeded initial weights."""
        torch.manual_seed(seed)
        return build_network(self.table)

    def call(self, x: Tensor) -> Call:
        """How to call the network on these inputs."""
        return Call((), {"input_ids": x}) if self.text else Call((x,))


def _conv(inputs: int, outputs: int, **more: Any) -> dict[str, Any]:
    return {
        "type": "Conv2d",
        "in_channels": inputs,
        "out_channels": outputs,
        "kernel_size": 3,
        "padding": 1,
        **more,
    }


def _cnn(channels: int, side: int, classes: int) -> dict[str, Any]:
    return {
        "source": "layers",
        "layers": [
            _conv(channels, 16),
            {"type": "ReLU"},
            {"type": "MaxPool2d", "kernel_size": 2},
            _conv(16, 32),
            {"type": "ReLU"},
            {"type": "MaxPool2d", "kernel_size": 2},
            {"type": "Flatten"},
            {"type": "Linear", "in_features": 32 * (side // 4) ** 2, "out_features": 64},
            {"type": "ReLU"},
            {"type": "Linear", "in_features": 64, "out_features": classes},
        ],
    }


def _resnet(channels: int, classes: int) -> dict[str, Any]:
    """torchvision's ResNet-18 with its own stem (7x7, stride 2), for one channel where there is one."""
    stem = _conv(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return {
        "source": "torchvision",
        "name": "resnet18",
        "arguments": {"num_classes": classes},
        "replace": {"conv1": stem} if channels != 3 else {},
    }


def _bert(classes: int) -> dict[str, Any]:
    return {
        "source": "transformers",
        "name": "BertForSequenceClassification",
        "arguments": {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 128,
            "max_position_embeddings": 48,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "num_labels": classes,
        },
    }


def _gpt(classes: int) -> dict[str, Any]:
    return {
        "source": "transformers",
        "name": "OpenAIGPTForSequenceClassification",
        "arguments": {
            "vocab_size": VOCABULARY,
            "n_positions": 48,
            "n_embd": 64,
            "n_layer": 2,
            "n_head": 2,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "pad_token_id": 0,
            "num_labels": classes,
        },
    }


_CNN = Training(5000, 32, 1e-3, 5)
_RESNET = Training(2000, 64, 1e-3, 6)
_TEXT = Training(4000, 32, 1e-3, 8)

MODELS: dict[tuple[str, str], Model] = {
    ("mnist", "cnn"): Model(_cnn(1, 28, 10), False, _CNN),
    ("mnist", "resnet18"): Model(_resnet(1, 10), False, _RESNET, 8),
    ("cifar10", "cnn"): Model(_cnn(3, 32, 10), False, _CNN),
    ("cifar10", "resnet18"): Model(_resnet(3, 10), False, _RESNET, 8),
    ("trec", "bert"): Model(_bert(6), True, _TEXT),
    ("trec", "gpt"): Model(_gpt(6), True, _TEXT),
    ("agnews", "bert"): Model(_bert(4), True, _TEXT),
    ("agnews", "gpt"): Model(_gpt(4), True, _TEXT),
}
"""By dataset and network."""
