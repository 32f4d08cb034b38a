"""Gradients of tensors that no rule covers: a module that uses them is run again, each sample with its own.

A module's recorded call and the gradient of its output are all that is needed to differentiate it alone, for all
samples at once (`torch.func.vmap` of a vector-Jacobian product), or one at a time where it cannot be batched.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten

from flforensics.gradients.forms import Dense, Gradients
from flforensics.gradients.record import State, Tap, called, output_of


@dataclass(frozen=True)
class Local:
    """One module (by dotted name, "" for the whole network) that is run again for some of its tensors.

    `tensors` are full names. `sampled` says of each of its arguments, flattened, whether axis 0 is the sample.
    """

    module: str
    tensors: tuple[str, ...]
    sampled: tuple[bool, ...]
    batched: bool


def arguments_of(tap: Tap) -> list[Any]:
    """All arguments of a call, those inside of tuples and tables too, in a fixed order."""
    return list(tree_flatten((tap.arguments, dict(tap.keywords)))[0])


def local_gradients(local: Local, taps: Iterable[Tap], state: State) -> Mapping[str, Gradients]:
    """The gradients of `local.tensors` from all calls of its module."""
    found: dict[str, Gradients] = {}
    for tap in taps:
        if tap.name == local.module:
            for name, gradient in _of_call(local, tap, state).items():
                found[name] = found[name].plus(gradient) if name in found else gradient
    return found


def _of_call(local: Local, tap: Tap, state: State) -> Mapping[str, Gradients]:
    prefix = f"{local.module}." if local.module else ""
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    leaves = {name.removeprefix(prefix): state[name] for name in local.tensors}
    leaves_of, structure = tree_flatten((tap.arguments, dict(tap.keywords)))
    varying = [one for one, sampled in zip(leaves_of, local.sampled, strict=True) if sampled]

    def pulled(samples: list[Tensor], gradient: Tensor) -> Mapping[str, Tensor]:
        """∂f_n/∂leaves of one sample, whose arguments have lost axis 0."""
        given = iter(samples)
        filled = [
            next(given).unsqueeze(0) if sampled else one
            for one, sampled in zip(leaves_of, local.sampled, strict=True)
        ]
        arguments, keywords = tree_unflatten(filled, structure)
        pull = vjp(lambda tensors: _run(tap.module, {**own, **tensors}, arguments, keywords), leaves)[1]
        return pull(gradient.unsqueeze(0))[0]  # type: ignore[no-any-return]

    with sdpa_kernel(SDPBackend.MATH):
        if local.batched:
            rows = vmap(pulled)(varying, tap.gradient)
        else:
            one_by_one = [pulled([one[n] for one in varying], g) for n, g in enumerate(tap.gradient)]
            rows = {name: torch.stack([row[name] for row in one_by_one]) for name in leaves}
    # what a module only adds comes back as the output gradient itself, which must not be added to in place
    return {prefix + name: Dense(row.reshape(len(row), -1).clone()) for name, row in rows.items()}


def _run(module: nn.Module, state: State, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Tensor:
    output = output_of(called(module, state, arguments, keywords))
    assert output is not None
    return output
