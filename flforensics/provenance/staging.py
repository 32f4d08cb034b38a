"""Clients' tensors from their files into rows of a matrix on the device, without a copy of them all in between."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from flforensics.gradients import Support
from flforensics.provenance.case import Settings
from flforensics.provenance.hands import HANDS, Hands
from flforensics.rounds import RoundTensor, together

_NARROW = (torch.float32, torch.float16, torch.bfloat16)
_PIECE = 1 << 19  # values that are gone through at a time: what lies near the processor, in not too many steps


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
    """One tensor client by client, flattened, in the type of the computation; of its values those of the support.

    Or several small tensors side by side, as if they were one. Differences and sums are rounded once: they are
    formed in float32 only where all that is stored is float32 or narrower and so is the computation. A client's
    values are gone through once, in pieces, for all that is asked of them. Several threads may read at once.
    """

    def __init__(self, tensors: Sequence[RoundTensor], settings: Settings, support: Support) -> None:
        self._tensors, self._support, self._relative = tensors, support, tensors[0].relative
        self._pieces, self._together = tuple(support.pieces(_PIECE)), together(tensors)
        previous = [terms.previous for terms in tensors if terms.previous is not None]
        stored = {one.dtype for one in (*previous, *(terms.fused for terms in tensors))}
        narrow = settings.dtype is torch.float32 and stored.issubset(_NARROW)
        self._wide = torch.float32 if narrow else torch.float64
        self._previous = side_by_side(previous, self._wide) if previous else None
        self._dtype = settings.dtype

    def update(self, client: int, row: Tensor, *, factor: float, total: Tensor | None = None) -> float:
        """Fill a row on the host with client − previous, and add `factor` times that to a `total` of its length.

        Returns its squared length over the whole tensor. Where the factor is 0 it is taken for 0, and not read.
        """
        if not factor:
            row.zero_()
            return 0.0
        squares = 0.0
        for (place, inside), stored in zip(self._pieces, self._stored(client), strict=True):
            change = row[inside] if self._support.everything else self._rewritten(stored)
            if not self._relative:
                assert self._previous is not None
                torch.sub(stored, self._previous[place], out=change)
            elif change is not stored:
                change.copy_(stored)
            squares += float(torch.linalg.vector_norm(change)) ** 2
            if not self._support.everything:
                self._support.copy(change, row[inside])
            if total is not None:
                total[inside].add_(row[inside], alpha=factor)
        return squares

    def _rewritten(self, stored: Tensor) -> Tensor:
        """Memory for what becomes of a piece in the type of the computation: its own where it has that type."""
        return stored if stored.dtype is self._dtype else torch.empty_like(stored, dtype=self._dtype)

    def model(self, client: int, row: Tensor, *, factor: float) -> None:
        """Fill a row on the host with the full model times a factor."""
        for (place, inside), stored in zip(self._pieces, self._stored(client), strict=True):
            model = stored
            if self._relative:
                assert self._previous is not None
                model = stored + self._previous[place]
            if self._support.everything:
                torch.mul(model, factor, out=row[inside])
            else:
                self._support.copy(model, row[inside])
                row[inside].mul_(factor)

    def models(self, lines: slice, rows: Tensor, hands: Hands, *, factors: Sequence[float]) -> None:
        """Fill rows on the host with the full models of some clients times their factors."""

        def read(_: int, portion: slice) -> None:
            for client in range(portion.start, portion.stop):
                self.model(client, rows[client - lines.start], factor=factors[client])

        hands.share(read, lines)

    def _stored(self, client: int) -> Iterator[Tensor]:
        """A client's values in pieces; only the latest can be relied on."""
        places = [place for place, _ in self._pieces]
        if len(self._tensors) == 1:
            for piece in self._tensors[0].pieces(client, places):
                yield piece.to(self._type_of([piece]))
        else:
            stored = self._together(client)
            flat = side_by_side(stored, self._type_of(stored))
            yield from (flat[place] for place in places)

    def _type_of(self, stored: Sequence[Tensor]) -> torch.dtype:
        narrow = self._wide is torch.float32 and all(one.dtype in _NARROW for one in stored)
        return self._wide if narrow else torch.float64


def side_by_side(tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Tensors flattened, one after the other."""
    flat = [one if one.dim() == 1 and one.dtype is dtype else one.flatten().to(dtype) for one in tensors]
    return flat[0] if len(flat) == 1 else torch.cat(flat)


class Updates:
    """What a rule that scales updates took of some tensors: read client by client, and what they leave.

    `squares` are ‖c_k Δ_k‖² of the clients that were read, over whole tensors. `rest` is new − previous less all
    that was read, on the support, in float64.
    """

    def __init__(
        self, tensors: Sequence[RoundTensor], factors: Sequence[float], settings: Settings, support: Support
    ) -> None:
        self.squares: list[float] = []
        moved = [
            one.fused.to(torch.float64, copy=True).sub_(one.previous)
            for one in tensors
            if one.previous is not None
        ]
        self.rest = support.of(side_by_side(moved, torch.float64)).flatten()
        self._factors, self._reader = factors, Reader(tensors, settings, support)
        self._totals = [torch.zeros(support.width, dtype=settings.dtype) for _ in range(HANDS)]

    def fill(self, lines: slice, rows: Tensor, hands: Hands) -> None:
        """The updates of some clients; only sums of a portion are formed in the type of the computation."""

        def read(hand: int, portion: slice) -> list[float]:
            return [
                self._factors[client] ** 2 * self._read(client, rows[client - lines.start], self._totals[hand])
                for client in range(portion.start, portion.stop)
            ]

        for squares, total in zip(hands.share(read, lines), self._totals, strict=False):
            self.squares += squares
            self.rest -= total
            total.zero_()

    def _read(self, client: int, row: Tensor, total: Tensor) -> float:
        return self._reader.update(client, row, factor=self._factors[client], total=total)
