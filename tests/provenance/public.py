"""Public architectures as archives declare them, with an honest round of small updates around each."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flforensics.gradients import Call
from flforensics.models import build_network
from flforensics.rounds import Round
from tests.provenance.architectures import round_from

COUNT = 3
_VOCABULARY = 40


@dataclass(frozen=True)
class PublicArchitecture:
    """A manifest's [model] table; one image [channels, height, width], or the number of tokens of one text."""

    table: dict[str, Any]
    shape: tuple[int, ...]

    def network(self) -> nn.Module:
        """A fresh network in eval mode, always the same."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            return build_network(self.table)

    def call(self) -> Call:
        """Random images; or random tokens, of which each text but the first is padded at its end."""
        generator = torch.Generator().manual_seed(5)
        if len(self.shape) > 1:
            return Call((torch.randn(COUNT, *self.shape, generator=generator),))
        (length,) = self.shape
        tokens = torch.randint(2, _VOCABULARY, (COUNT, length), generator=generator)
        mask = torch.arange(length) < length - torch.arange(COUNT)[:, None]
        padding = self.table["arguments"].get("pad_token_id", 0)
        return Call((), {"input_ids": torch.where(mask, tokens, padding), "attention_mask": mask.long()})

    def round_of(self, network: nn.Module) -> Round:
        """Two clients around a previous global, in which no tensor is constant or near zero.

        Initial layer scales of 1e-6, or a head of zeros, would hide what lies before them.
        """
        previous = _moved(network.state_dict(), by=0.1, seed=1)
        clients = [_moved(previous, by=0.03, seed=10 + k) for k in range(2)]
        return round_from(previous, clients, [400, 250])


def _moved(state: dict[str, Tensor], *, by: float, seed: int) -> dict[str, Tensor]:
    """Matrices and kernels moved by a part of their spread, vectors and zeros by a part of 1; counters stay."""
    generator = torch.Generator().manual_seed(seed)
    moved = {}
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            moved[name] = tensor.clone()
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        vector = max(tensor.shape, default=1) == tensor.numel()
        scale = 1.0 if vector or not tensor.any() else float(tensor.std())
        moved[name] = tensor + by * scale * noise.clamp(-3, 3)
    return moved


def _torchvision(name: str, **arguments: Any) -> dict[str, Any]:
    return {"source": "torchvision", "name": name, "arguments": {"num_classes": 5, **arguments}}


def _transformers(name: str, **arguments: Any) -> dict[str, Any]:
    return {"source": "transformers", "name": name, "arguments": {"num_labels": 4, **arguments}}


_WIDTHS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
_WORDS = {"vocab_size": _VOCABULARY, "max_position_embeddings": 16, "pad_token_id": 0}
_GPT = {"vocab_size": _VOCABULARY, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 4, "pad_token_id": 0}
_VIT = {"image_size": 16, "patch_size": 8, "num_layers": 2, "num_heads": 4, "hidden_dim": 16, "mlp_dim": 24}
# 28 million values are more than a test should move: of each stage of ConvNeXt-Tiny the first block stays.
_STAGES = {1: 3, 3: 3, 5: 9, 7: 3}
_FIRST_BLOCKS = {
    f"features.{stage}.{block}": {"type": "Identity"}
    for stage, blocks in _STAGES.items()
    for block in range(1, blocks)
}

PUBLIC: dict[str, PublicArchitecture] = {
    "ViT (torchvision)": PublicArchitecture(_torchvision("VisionTransformer", **_VIT), (3, 16, 16)),
    "ConvNeXt-Tiny": PublicArchitecture({**_torchvision("convnext_tiny"), "replace": _FIRST_BLOCKS}, (3, 32, 32)),
    "ConvNeXt (transformers)": PublicArchitecture(
        _transformers(
            "ConvNextForImageClassification", num_stages=2, hidden_sizes=[8, 12], depths=[2, 1], image_size=32
        ),
        (3, 32, 32),
    ),
    "EfficientNet-B0": PublicArchitecture(_torchvision("efficientnet_b0"), (3, 32, 32)),
    "MobileNetV3-Small": PublicArchitecture(_torchvision("mobilenet_v3_small"), (3, 32, 32)),
    "MobileNetV3-Large": PublicArchitecture(_torchvision("mobilenet_v3_large"), (3, 32, 32)),
    "BERT": PublicArchitecture(_transformers("BertForSequenceClassification", **_WIDTHS, **_WORDS), (9,)),
    "DistilBERT": PublicArchitecture(
        _transformers(
            "DistilBertForSequenceClassification", dim=16, n_heads=4, n_layers=2, hidden_dim=24, **_WORDS
        ),
        (9,),
    ),
    "RoBERTa": PublicArchitecture(
        _transformers("RobertaForSequenceClassification", **_WIDTHS, **{**_WORDS, "pad_token_id": 1}), (9,)
    ),
    "GPT-2": PublicArchitecture(_transformers("GPT2ForSequenceClassification", **_GPT), (9,)),
    "OpenAI GPT": PublicArchitecture(_transformers("OpenAIGPTForSequenceClassification", **_GPT), (9,)),
    "Llama": PublicArchitecture(
        _transformers("LlamaForSequenceClassification", num_key_value_heads=2, **_WIDTHS, **_WORDS), (9,)
    ),
    "ViT (transformers)": PublicArchitecture(
        _transformers("ViTForImageClassification", image_size=16, patch_size=8, **_WIDTHS), (3, 16, 16)
    ),
}
