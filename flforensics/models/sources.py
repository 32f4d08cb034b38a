"""The ways to describe a network, as one table, and the function that follows the description."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from flforensics.errors import UsageError
from flforensics.evidence import EvidenceFile
from flforensics.models import from_layers, from_python, from_torchvision, from_transformers
from flforensics.models.construction import quiet_and_bounded
from flforensics.models.specification import Request, listed, require_keys, text_of


@dataclass(frozen=True)
class Source:
    """A way to describe a network: its name under `source`, a line of help, its keys, and its builder.

    `draws`: its initial weights are always drawn, as somebody else's code may build on them.
    """

    name: str
    help: str
    keys: tuple[str, ...]
    build: Callable[[Request], nn.Module]
    draws: bool = False


SOURCES: Mapping[str, Source] = {
    source.name: source
    for source in (
        Source(
            "torchvision",
            "a classification model of torchvision.models, by function or class name",
            ("name", "arguments", "replace"),
            from_torchvision.build,
        ),
        Source(
            "transformers",
            "a sequence or image classifier of transformers, with its configuration",
            ("name", "arguments", "config", "replace"),
            from_transformers.build,
        ),
        Source(
            "layers",
            "a list of torch.nn layers, one after the other",
            ("layers",),
            from_layers.build,
        ),
        Source(
            "python",
            "a factory `package.module:function` that the operator names",
            ("name", "arguments"),
            from_python.build,
            draws=True,
        ),
    )
}


def build_network(
    table: Mapping[str, object],
    *,
    labels: int | None = None,
    folder: Callable[[str], EvidenceFile] | None = None,
    factory: str | None = None,
    drawn: bool = True,
) -> nn.Module:
    """The network that the [model] `table` describes: eval mode, float32, on the CPU, with arbitrary weights.

    Without `drawn` they are not even that, but what lies in memory: for networks that run on stored states.

    `labels` is the number of class names, which the network must have outputs for; `folder` opens a file of the
    archive by its relative name; `factory` is the operator's `package.module:function`, without which nothing
    is ever imported. Raises UsageError; EvidenceError where `config` cannot be read.
    """
    source = SOURCES.get(text_of(table, "model", key="source", example="torchvision"))
    if source is None:
        raise UsageError(f"archive.toml: [model] source = {table['source']!r} is unknown", hint=listed(SOURCES))
    require_keys(table, "model", allowed=("source", *source.keys))
    with quiet_and_bounded(drawing=drawn or source.draws):
        network = source.build(Request(table, labels=labels, folder=folder, factory=factory))
    _require_independent_inputs(network)
    return network.cpu().float().eval()


def _require_independent_inputs(network: nn.Module) -> None:
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise UsageError(
                f"archive.toml: [model] layer {name} normalises by the batch at hand,"
                " so that an answer would depend on the other inputs",
                hint="use a BatchNorm with track_running_stats, or another normalisation",
            )
