"""What is measured: networks as archives declare them, how many clients, how many inputs."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Subject:
    """A network: its [model] table and the shape of one input; for texts their length and the vocabulary.

    Where `lengths` are given, texts have so many tokens in turn, and padding behind them.
    """

    name: str
    table: dict[str, Any]
    shape: tuple[int, ...]
    vocabulary: int | None = None
    lengths: tuple[int, ...] = ()


@dataclass(frozen=True)
class Case:
    """A subject with a number of clients, of whose files `distinct` differ, and a number of inputs.

    `loop`: whether the paper's loop, which holds every client's model, is run beside ours; `tolerance`: whether
    the ledger is also run until it has converged. `memory` is what ours may take, in bytes: by default what the
    command takes where 16 GiB are free.
    """

    subject: Subject
    clients: int
    inputs: int
    distinct: int
    loop: bool = True
    tolerance: bool = True
    memory: int = 4 << 30

    @property
    def name(self) -> str:
        """For people, and for the one process that is told which case to measure."""
        limit = "" if self.memory == Case.memory else f", --memory {self.memory >> 30}GB"
        return f"{self.subject.name}, {self.clients:,} clients x {self.inputs:,} inputs{limit}"


def _torchvision(name: str) -> dict[str, Any]:
    return {"source": "torchvision", "name": name, "arguments": {"num_classes": 10}}


def _transformers(name: str, **arguments: Any) -> dict[str, Any]:
    return {"source": "transformers", "name": name, "arguments": {"num_labels": 10, **arguments}}


def _convolution(channels: int, out: int) -> list[dict[str, Any]]:
    layer = {"type": "Conv2d", "in_channels": channels, "out_channels": out, "kernel_size": 3}
    return [layer, {"type": "ReLU"}, {"type": "MaxPool2d", "kernel_size": 2}]


_CNN_LAYERS = [
    *_convolution(1, 32),
    *_convolution(32, 64),
    {"type": "Flatten"},
    {"type": "Linear", "in_features": 1600, "out_features": 128},
    {"type": "ReLU"},
    {"type": "Linear", "in_features": 128, "out_features": 10},
]
_BERT_4 = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
_TREC = (7, 10, 12, 15, 21)  # tokens of the questions in TREC: the 5 %, 25 %, 50 %, 75 % and 95 % quantiles
_BERT, _GPT = "BertForSequenceClassification", "OpenAIGPTForSequenceClassification"

CNN = Subject("small CNN", {"source": "layers", "layers": _CNN_LAYERS}, (1, 28, 28))
RESNET_32 = Subject("ResNet-18 at 32 pixels", _torchvision("resnet18"), (3, 32, 32))
RESNET_224 = Subject("ResNet-18 at 224 pixels", _torchvision("resnet18"), (3, 224, 224))
DENSENET = Subject("DenseNet-121 at 32 pixels", _torchvision("densenet121"), (3, 32, 32))
VIT = Subject("ViT-B/16 at 224 pixels", _torchvision("vit_b_16"), (3, 224, 224))
BERT_4 = Subject("4-layer BERT, 32 tokens", _transformers(_BERT, **_BERT_4), (32,), 30522)
BERT_QUESTIONS = Subject("4-layer BERT, questions padded to 32 tokens", BERT_4.table, (32,), 30522, _TREC)
BERT_BASE = Subject("BERT-base, 64 tokens", _transformers(_BERT), (64,), 30522)
GPT = Subject("GPT-117M, 64 tokens", _transformers(_GPT, pad_token_id=0), (64,), 40478)

_QUICK = (
    Case(CNN, 50, 200, 50),
    Case(RESNET_32, 50, 100, 20),
    Case(BERT_4, 50, 32, 20),
    Case(BERT_QUESTIONS, 50, 32, 20),
)
_DEFAULT = (
    *_QUICK,
    Case(RESNET_32, 10, 1, 10),
    Case(RESNET_32, 250, 32, 20, loop=False),
    Case(RESNET_32, 1000, 32, 20, loop=False),
    Case(RESNET_32, 50, 1000, 20, loop=False, tolerance=False, memory=2 << 30),
    Case(RESNET_224, 10, 10, 10),
    Case(DENSENET, 10, 10, 10),
    Case(BERT_BASE, 10, 10, 5),
    Case(GPT, 10, 10, 5),
    Case(VIT, 10, 1, 5),
)
_FULL = (
    *_DEFAULT,
    Case(CNN, 1000, 1000, 20, loop=False),
    Case(RESNET_32, 50, 1000, 20),
    Case(RESNET_224, 50, 100, 20),
    Case(DENSENET, 50, 100, 20),
    Case(BERT_BASE, 50, 100, 5, loop=False),
    Case(GPT, 50, 100, 5, loop=False),
)

SCALES: dict[str, tuple[Case, ...]] = {"quick": _QUICK, "default": _DEFAULT, "full": _FULL}
