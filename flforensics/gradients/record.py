"""One forward and one backward pass that remember what went into chosen layers and what came back.

The network runs on a given state through `torch.func.functional_call`: its own tensors are never written.
Each chosen layer hands on a clone of its output, because an in-place ReLU behind it would otherwise overwrite
what was recorded. Hooks come off in every case.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map_only

from flforensics.gradients.kernels import SmallMaps

State = Mapping[str, Tensor]
"""Tensors by the names of the network's state dict: parameters and buffers."""


class Target(Protocol):
    """The scalar that is explained, for the samples of one batch."""

    def __call__(self, output: object) -> Tensor:
        """From what the network returns to one value per sample, [N]."""

    def __getitem__(self, samples: slice | Tensor) -> "Target":
        """The same target for some of the samples."""


@dataclass(frozen=True)
class Call:
    """How to call the network on one batch; axis 0 of every tensor is the sample."""

    arguments: tuple[Tensor, ...]
    keywords: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """N, the number of samples."""
        return len(self.tensors[0])

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them."""
        return (*self.arguments, *self.keywords.values())

    def __getitem__(self, samples: slice | Tensor) -> "Call":
        """The same call on some of the samples."""
        return self.map(lambda tensor: tensor[samples])

    def map(self, change: Callable[[Tensor], Tensor]) -> "Call":
        """The same call with every tensor changed."""
        return Call(
            tuple(change(tensor) for tensor in self.arguments),
            {name: change(tensor) for name, tensor in self.keywords.items()},
        )

    def to(self, device: torch.device, dtype: torch.dtype) -> "Call":
        """The same call on `device`, floating-point tensors in `dtype`."""
        return self.map(lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype))


@dataclass(frozen=True)
class Tap:
    """One call of one layer: its arguments, and ∂f_n/∂output for each sample n."""

    name: str
    module: nn.Module
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    gradient: Tensor

    @property
    def input(self) -> Tensor | None:
        """The first positional argument, where it is a tensor."""
        first = self.arguments[0] if self.arguments else None
        return first if isinstance(first, Tensor) else None


@dataclass(frozen=True)
class _Seen:
    name: str
    module: nn.Module
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    output: Tensor


def forward(network: nn.Module, state: State, call: Call) -> object:
    """What the network returns on the batch when its tensors are those of `state`."""
    with SmallMaps():
        return called(network, state, call.arguments, call.keywords)


def called(module: nn.Module, state: State, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> object:
    """What the module returns when its tensors are those of `state`.

    A tensor with two names in the module has the one that is given, or each its own where both are stored.
    """
    tied = any(name not in state for name, _ in module.named_parameters(remove_duplicate=False))
    return functional_call(module, dict(state), arguments, dict(keywords), tie_weights=tied)


def record(
    network: nn.Module, state: State, call: Call, *, target: Target, layers: Mapping[str, nn.Module]
) -> tuple[Tensor, list[Tap]]:
    """The target's values [N], and a tap for every call of `layers` (by dotted name), in the order of calls.

    A layer that does not influence the target has a zero gradient.
    """
    seen: list[_Seen] = []
    with torch.enable_grad(), _watching(layers, seen):
        values = target(forward(network, state, call))
    if not seen or not values.requires_grad:
        return values.detach(), []
    gradients = torch.autograd.grad(
        values.sum(), [one.output for one in seen], allow_unused=True, materialize_grads=True
    )
    taps = [
        Tap(one.name, one.module, one.arguments, one.keywords, gradient)
        for one, gradient in zip(seen, gradients, strict=True)
    ]
    return values.detach(), taps


@contextmanager
def _watching(layers: Mapping[str, nn.Module], seen: list[_Seen]) -> Iterator[None]:
    handles = [
        module.register_forward_hook(_hook(name, seen), with_kwargs=True) for name, module in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(name: str, seen: list[_Seen]) -> Callable[..., Any]:
    def hook(module: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any], output: Any) -> Any:
        first = output_of(output)
        if first is None:
            return output
        watched = first if first.requires_grad else first.detach().requires_grad_()
        seen.append(_Seen(name, module, _detached(arguments), _detached(keywords), watched))
        return _with_output(output, watched.clone())

    return hook


def output_of(output: Any) -> Tensor | None:
    """What a module returned, or the first of what it returned, where that is a floating-point tensor."""
    first: Any = output
    if isinstance(output, tuple):
        first = output[0] if output else None
    elif isinstance(output, dict):
        first = next(iter(output.values()), None)
    return first if isinstance(first, Tensor) and first.is_floating_point() else None


def _with_output(output: Any, tensor: Tensor) -> Any:
    """`output` with another tensor in its first place."""
    if isinstance(output, tuple):
        return (tensor, *output[1:])
    if isinstance(output, dict):
        changed = copy(output)
        changed[next(iter(output))] = tensor
        return changed
    return tensor


def _detached(arguments: Any) -> Any:
    return tree_map_only(Tensor, Tensor.detach, arguments) if arguments else arguments
