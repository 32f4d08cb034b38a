"""What the units of a layer are: which numbers of its tensors belong to one output neuron or channel.

A table by class name, as for gradients. Of a layer that is not in it, each tensor is one unit.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

_OWN = ("weight", "bias", "running_mean", "running_var")


def _rows(_layer: nn.Module, tensor: Tensor) -> Tensor:
    """The output is axis 0."""
    return tensor.reshape(len(tensor), tensor.shape[1], -1)


def _columns(_layer: nn.Module, tensor: Tensor) -> Tensor:
    """A weight [in, out], as Hugging Face's Conv1D has it; the bias is [out]."""
    return tensor.transpose(1, -1) if tensor.dim() > 2 else tensor[..., None]


def _transposed(layer: nn.Module, tensor: Tensor) -> Tensor:
    """A weight [in, out / groups, ...]: each group of inputs has outputs of its own; the bias is [out]."""
    if tensor.dim() == 2:
        return tensor[..., None]
    samples, groups, outputs = len(tensor), int(layer.groups), tensor.shape[2]  # type: ignore[arg-type]
    grouped = tensor.reshape(samples, groups, tensor.shape[1] // groups, outputs, -1)
    return grouped.transpose(2, 3).reshape(samples, groups * outputs, -1)


@dataclass(frozen=True)
class UnitRow:
    """What a unit is called, and how a tensor [n, *shape] becomes [n, units, values of each]."""

    kind: str
    arranged: Callable[[nn.Module, Tensor], Tensor]


UNITS: dict[str, UnitRow] = {
    "torch.nn.modules.linear.Linear": UnitRow("neuron", _rows),
    "torch.nn.modules.conv.Conv1d": UnitRow("channel", _rows),
    "torch.nn.modules.conv.Conv2d": UnitRow("channel", _rows),
    "torch.nn.modules.conv.Conv3d": UnitRow("channel", _rows),
    "torch.nn.modules.conv.ConvTranspose1d": UnitRow("channel", _transposed),
    "torch.nn.modules.conv.ConvTranspose2d": UnitRow("channel", _transposed),
    "torch.nn.modules.conv.ConvTranspose3d": UnitRow("channel", _transposed),
    "torch.nn.modules.normalization.LayerNorm": UnitRow("feature", _rows),
    "torch.nn.modules.normalization.RMSNorm": UnitRow("feature", _rows),
    "torch.nn.modules.normalization.GroupNorm": UnitRow("channel", _rows),
    "torch.nn.modules.batchnorm._BatchNorm": UnitRow("channel", _rows),
    "torch.nn.modules.instancenorm._InstanceNorm": UnitRow("channel", _rows),
    "torch.nn.modules.sparse.Embedding": UnitRow("row", _rows),
    "transformers.pytorch_utils.Conv1D": UnitRow("neuron", _columns),
}
"""By the class that defines how the tensors are laid out; subclasses keep the layout."""


@dataclass(frozen=True)
class Units:
    """Some units of one layer: all of them, or (`tensor`) one tensor that has no units."""

    layer: str
    kind: str
    tensor: str | None = None


def layer_of(name: str) -> str:
    """The module that owns a tensor; a tensor that the network itself owns is a layer of its own."""
    return name.rpartition(".")[0] or name


def unit_sums(network: nn.Module, name: str, products: Tensor) -> tuple[Units, Tensor]:
    """`products` [n, *shape] of the tensor `name`, summed over the numbers of each unit: whose, and [n, units]."""
    layer, _, short = name.rpartition(".")
    module = network.get_submodule(layer)
    row = _row(module) if short in _OWN else None
    if row is None:
        return Units(layer_of(name), "tensor", name), products.reshape(len(products), -1).sum(1, keepdim=True)
    return Units(layer_of(name), row.kind), row.arranged(module, products).sum(2)


def _row(layer: nn.Module) -> UnitRow | None:
    names = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(layer).__mro__)
    return next((UNITS[name] for name in names if name in UNITS), None)
