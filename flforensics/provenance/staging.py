"""Clients' tensors from their files into rows of a matrix on the device, without a copy of them all in between."""

from collections.abc import Sequence

import torch
from torch import Tensor

from flforensics.provenance.case import Settings
from flforensics.rounds import RoundTensor

_NARROW = (torch.float32, torch.float16, torch.bfloat16)


class Staging:
    """Two pieces of memory for so many `values` each that take turns: one is filled while the other is used.

    For a GPU they are pinned, and each is filled again only after it was copied.
    """

    def __init__(self, settings: Settings, values: int) -> None:
        self._device, self._dtype = torch.device(settings.device), settings.dtype
        self._rows = [self._new(values), self._new(values)]
        pinned = self._device.type == "cuda"
        self._copied = [torch.Event(self._device), torch.Event(self._device)] if pinned else []
        self._turn = 0

    def take(self, rows: int, width: int) -> Tensor:
        """[rows, width] on the host, to be filled; it is overwritten at the second call after this one."""
        self._turn = 1 - self._turn
        if self._copied:
            self._copied[self._turn].synchronize()
        return self._rows[self._turn][: rows * width].view(rows, width)

    def sent(self, rows: Tensor) -> Tensor:
        """The rows that were taken last, on the device."""
        if not self._copied:
            return rows
        found = rows.to(self._device, non_blocking=True)
        self._copied[self._turn].record()
        return found

    def _new(self, values: int) -> Tensor:
        return torch.empty(values, dtype=self._dtype, pin_memory=self._device.type == "cuda")


class Reader:
    """One tensor of some clients, flattened, in the type of the computation.

    Differences and sums are rounded once: they are formed in float32 only where all that is stored is float32 or
    narrower and so is the computation.
    """

    def __init__(self, terms: RoundTensor, settings: Settings) -> None:
        self._terms, self._device = terms, settings.device
        globals_ = [one for one in (terms.fused, terms.previous) if one is not None]
        narrow = settings.dtype is torch.float32 and all(one.dtype in _NARROW for one in globals_)
        self._wide = torch.float32 if narrow else torch.float64
        self._previous = None if terms.previous is None else terms.previous.flatten().to(self._wide)

    @property
    def movement(self) -> Tensor:
        """new − previous, [V] in float64."""
        assert self._terms.previous is not None
        difference = self._terms.fused.double() - self._terms.previous.double()
        return difference.flatten().to(self._device)

    def updates(self, lines: slice, rows: Tensor, *, used: Sequence[bool]) -> None:
        """Fill rows [k, V] on the host with client − previous; what is not used is 0, and not read."""
        for row, client, needed in zip(rows, range(lines.start, lines.stop), used, strict=True):
            if not needed:
                row.zero_()
            elif self._terms.relative:
                row.copy_(self._stored(client))
            else:
                assert self._previous is not None
                torch.sub(self._stored(client), self._previous, out=row)

    def models(self, lines: slice, rows: Tensor, *, factors: Sequence[float]) -> None:
        """Fill rows [k, V] on the host with full models times their factors."""
        for row, client, factor in zip(rows, range(lines.start, lines.stop), factors, strict=True):
            if self._terms.relative:
                assert self._previous is not None
                torch.add(self._stored(client), self._previous, out=row).mul_(factor)
            else:
                torch.mul(self._stored(client), factor, out=row)

    def _stored(self, client: int) -> Tensor:
        stored = self._terms.client(client).flatten()
        narrow = self._wide is torch.float32 and stored.dtype in _NARROW
        return stored.to(self._wide if narrow else torch.float64)
