"""How fast this machine could be at best: bytes read once, passes, and multiply-adds, each at its measured rate.

The files hold the type that is computed in, so that nothing has to be converted. Where files are hashed too, that
takes one core's time beside the rest: all cores together then have that much more to do.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from flforensics.gradients import Call
from flforensics.models import class_logits
from tests.bench.archives import files_of

_BLOCK = 1 << 22
_SIDE = 2048
_AT_ONCE = 100
_REPEATED = 3


@dataclass(frozen=True)
class Rates:
    """What was measured: bytes/s read, seconds for a forward and backward pass of all inputs, multiply-adds/s.

    `hashing` is bytes/s of SHA-256 on one core; `copying` is bytes/s from pinned memory to the device, None where
    there is none.
    """

    reading: float
    passing: float
    multiplying: float
    hashing: float
    copying: float | None


@dataclass(frozen=True)
class Work:
    """What has to be done at least: bytes of the files, and inputs x clients x parameters multiply-adds."""

    bytes: int
    products: int


def seconds_at_best(work: Work, rates: Rates, *, passes: int, hashing_on: int | None = None) -> float:
    """The sum of the parts; a copy to the device runs beside the reading, so that the slower of them counts.

    `hashing_on` so many cores, the hashing of every byte is divided among them too.
    """
    transfer = max(work.bytes / rates.reading, work.bytes / (rates.copying or float("inf")))
    hashing = 0.0 if hashing_on is None else work.bytes / rates.hashing / hashing_on
    return transfer + passes * rates.passing + work.products / rates.multiplying + hashing


def work_of(folder: Path, network: nn.Module, *, inputs: int, clients: int) -> Work:
    """The work for this archive and this many inputs."""
    values = sum(tensor.numel() for tensor in network.state_dict().values() if tensor.is_floating_point())
    return Work(sum(path.stat().st_size for path in files_of(folder)), inputs * clients * values)


def measured_rates(folder: Path, network: nn.Module, call: Call, *, device: str) -> Rates:
    """Measure them here and now, each as the best of a few tries."""
    read = sum(path.stat().st_size for path in files_of(folder))
    reading = _best(lambda: _read(folder), device)
    passing = min(_best(partial(_pass, one, call, device), device) for one in _orders(network))
    square, block = torch.randn(_SIDE, _SIDE, device=device), bytes(16 * _BLOCK)
    multiplying = _best(lambda: square @ square, device)
    hashing = _best(lambda: hashlib.sha256(block).digest(), device)
    return Rates(read / reading, passing, _SIDE**3 / multiplying, len(block) / hashing, _copying(device))


def _orders(network: nn.Module) -> Iterator[nn.Module]:
    """The network, and with the channels of its images last, which is often faster."""
    yield network
    if any(tensor.dim() == 4 for tensor in network.parameters()):
        yield network.to(memory_format=torch.channels_last)


def _read(folder: Path) -> None:
    """Every file once, into one buffer that stays in the cache."""
    buffer = bytearray(_BLOCK)
    for path in files_of(folder):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def _pass(network: nn.Module, call: Call, device: str) -> None:
    """The gradient of the summed logits with respect to every parameter."""
    network = network.to(device).eval().requires_grad_(True)
    for start in range(0, call.count, _AT_ONCE):
        part = call[start : start + _AT_ONCE].to(torch.device(device), torch.float32)
        output = network(*part.arguments, **part.keywords)
        torch.autograd.grad(class_logits(output).amax(1).sum(), list(network.parameters()), allow_unused=True)


def _copying(device: str) -> float | None:
    if device == "cpu":
        return None
    block = torch.empty(64 * _BLOCK, dtype=torch.uint8, pin_memory=True)
    return block.numel() / _best(lambda: block.to(device, non_blocking=True), device)


def _best(work: Callable[[], object], device: str) -> float:
    times = []
    for _ in range(_REPEATED):
        start = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)
