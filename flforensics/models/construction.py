"""Calling other people's constructors with other people's arguments.

They raise whatever they like, warn about initial weights that nobody wants, draw random numbers, and allocate
what they are told: `hidden_size = 10000000` would end in the kernel killing the process.
"""

import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from flforensics.errors import FLForensicsError, UsageError
from flforensics.models.specification import refused

_BYTES = 4
# What a small tensor and the module around it take; counting it bounds the number of layers too.
_LEAST = 1024
_DRAWS = (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default)


class _Construction(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, refuses to allocate more than this machine's memory, before it is touched.

    Unless `drawing`, parameters keep whatever lies in their memory: every one of them will be given a model's.
    """

    def __init__(self, *, drawing: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._left = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self._drawing = drawing

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch would load its compiler, which takes two seconds, only to keep it from this class."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if args and isinstance(args[0], list | tuple) and all(isinstance(size, int) for size in args[0]):
            self._left -= max(math.prod(args[0]) * _BYTES, _LEAST)
            if self._left < 0:
                raise refused(
                    "model",
                    "describes a network that does not fit in this machine's memory",
                    hint="correct the sizes, or use a machine with more memory",
                )
        if func in _DRAWS and isinstance(args[0], nn.Parameter) and not self._drawing:
            return args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def quiet_and_bounded(*, drawing: bool) -> Iterator[None]:
    """While active: no warnings, the random numbers of the caller stay as they are, and memory is bounded.

    `drawing`: whether initial weights are drawn, which takes a second for 100 million of them.
    """
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), _Construction(drawing=drawing):
        warnings.simplefilter("ignore")
        yield


def construct(
    constructor: Callable[..., object], arguments: Mapping[str, object], *, where: str, name: str
) -> object:
    """`constructor(**arguments)`; the table `where` and `name` are what an error calls it. Raises UsageError."""
    try:
        return constructor(**arguments)
    except FLForensicsError:
        raise
    except Exception as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UsageError(
            f"archive.toml: [{where}] {name} cannot be built ({cause})", hint="correct its arguments"
        ) from error


def construct_network(
    constructor: Callable[..., object], arguments: Mapping[str, object], *, where: str, name: str
) -> nn.Module:
    """As `construct`, for what must come out as a network. Raises UsageError."""
    network = construct(constructor, arguments, where=where, name=name)
    if not isinstance(network, nn.Module):
        raise refused(
            where, f"{name} gives a {type(network).__name__}", hint="name something that gives a torch.nn.Module"
        )
    return network


def require_classes(stated: object, key: str, *, labels: int | None) -> None:
    """Nothing, if a network of `stated` outputs has one per label, or one sigmoid logit for two."""
    if labels is None or stated == labels or (stated == 1 and labels == 2):
        return
    raise refused(
        "model.arguments",
        f"{key} = {stated} does not go with the {labels} names under [labels]",
        hint=f"set {key} = {labels}, or correct the names",
    )
