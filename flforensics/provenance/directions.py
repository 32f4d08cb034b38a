"""What a round consists of, as directions in θ that are read in blocks: its lines, or its clients' models.

A walk goes tensor by tensor, and within a tensor block by block of clients. While one block is used, the next is
read on another thread. What fits into a part of the memory is kept for the next walk; otherwise the files are
read again, and the profile counts how often.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor

from flforensics.errors import NotComputableError
from flforensics.gradients import Block
from flforensics.provenance.case import Case
from flforensics.provenance.profile import READING, WAITING
from flforensics.provenance.staging import Reader, Staging
from flforensics.rounds import RoundTensor

Item = TypeVar("Item")

_LARGEST_BLOCK = 1 << 27


@dataclass
class Walks(ABC):
    """Walks over the directions of one round. `kept` holds them once all have been read, where they fit."""

    case: Case
    kept: dict[str, list[Block]] = field(default_factory=dict)

    @property
    @abstractmethod
    def lines(self) -> int:
        """How many directions there are."""

    @abstractmethod
    def blocks(self, name: str, staging: Staging) -> Iterator[Block]:
        """The directions in one tensor."""

    def settled(self, blocks: Iterator[Block]) -> Iterator[Block]:
        """The blocks with what can only be known here, where they are used, and not where they are read."""
        return blocks

    def walk(self, names: Sequence[str], *, again: bool) -> Iterator[Block]:
        """All blocks of these tensors, the next one read ahead. `again`: another walk may follow.

        A block's values are overwritten when the one after the next is read.
        """
        if not all(name in self.kept for name in names):
            self.case.settings.profile.passes += 1
        return self._found(names, again=again)

    def _found(self, names: Sequence[str], *, again: bool) -> Iterator[Block]:
        """The blocks from memory, or else from the files."""
        if all(name in self.kept for name in names):
            yield from (block for name in names for block in self.kept[name])
            return
        keep = again and self._bytes <= self.case.settings.memory // 4
        staging, profile = Staging(self.case.settings, self._largest(names)), self.case.settings.profile
        read = profile.counted((block for name in names for block in self.blocks(name, staging)), READING)
        for block in self.settled(profile.counted(ahead(read), WAITING)):
            if keep:
                self.kept.setdefault(block.name, []).append(replace(block, values=block.values.clone()))
            yield block

    @property
    def _bytes(self) -> int:
        return self.lines * self.case.parameters * self.case.settings.dtype.itemsize

    def _some(self, values: int) -> list[slice]:
        """The clients in blocks: two of them take a quarter of the memory at most."""
        settings, count = self.case.settings, len(self.case.clients)
        room = min(settings.memory // 8, _LARGEST_BLOCK)
        step = max(1, room // max(1, values * settings.dtype.itemsize))
        return [slice(start, min(start + step, count)) for start in range(0, count, step)]

    def _largest(self, names: Sequence[str]) -> int:
        """The values of the largest block of these tensors."""
        sizes = [self.case.new[name].numel() for name in names]
        firsts = ((size, self._some(size)[0]) for size in sizes)
        largest: int = max(size * (first.stop - first.start) for size, first in firsts)
        return largest

    def _ones(self, count: int) -> Tensor:
        return torch.ones(count, dtype=self.case.settings.dtype, device=self.case.settings.device)


class Directions(Walks):
    """What (new − previous) consists of: the clients' shares, the server's, and the unexplained one."""

    @property
    def lines(self) -> int:
        """K + 2."""
        return len(self.case.clients) + 2

    @cached_property
    def _squares(self) -> dict[str, Tensor]:
        """‖s_k‖² of the clients in the tensors that were read."""
        return {}

    def blocks(self, name: str, staging: Staging) -> Iterator[Block]:
        """Updates and their factors, client by client; where a share needs all the clients, all in one block."""
        case = self.case
        terms = case.scene.read(name)
        factors = case.rule.factors(terms, case.scene)
        if factors is None:
            yield self._together(name, terms)
            return
        reader, some = Reader(terms, case.settings), self._some(terms.fused.numel())
        for lines in some:
            scale = torch.tensor(factors[lines], dtype=case.settings.dtype, device=case.settings.device)
            rows = staging.take(len(scale), terms.fused.numel())
            reader.updates(lines, rows, used=[factor != 0 for factor in factors[lines]])
            yield Block(name, lines, staging.sent(rows), scale, len(some) + 1)
        last = slice(terms.count + 1, terms.count + 2)
        yield Block(name, last, reader.movement[None], self._ones(1), len(some) + 1)

    def settled(self, blocks: Iterator[Block]) -> Iterator[Block]:
        """Clients' sizes are noted; of the last line, which is read as all that moved, what they leave remains."""
        for name, of_tensor in groupby(blocks, key=lambda block: block.name):
            taken: Tensor | float = 0.0
            squares = []
            for block in of_tensor:
                if block.lines.start == self.lines - 1:
                    yield replace(block, values=(block.values - taken).to(self.case.settings.dtype))
                    continue
                clients = slice(0, len(self.case.clients) - block.lines.start)
                lengths = block.factors[clients] * torch.linalg.vector_norm(block.values[clients], dim=1)
                squares.append(lengths.double().square())
                if block.blocks > 1:
                    taken = taken + (block.factors @ block.values).double()
                yield block
            self._squares[name] = torch.cat(squares)

    def _together(self, name: str, terms: RoundTensor) -> Block:
        shares = self.case.rule.shares(terms, self.case.scene)
        rows = [*shares.clients, shares.server, shares.unexplained]
        values = torch.stack([row.flatten().to(self.case.settings.dtype) for row in rows])
        values = values.to(self.case.settings.device)
        return Block(name, slice(0, len(rows)), values, self._ones(len(rows)), 1)

    def sizes(self) -> Tensor:
        """‖s_k‖ of every client over the whole of θ, [K] in float64; what no walk has met is read now."""
        for name in self.case.floating:
            if name not in self._squares:
                deque(self._found([name], again=False), maxlen=0)
        return torch.stack([self._squares[name] for name in self.case.floating]).sum(0).sqrt()

    @cached_property
    def _whole(self) -> dict[str, Tensor]:
        """The tensors whose lines are kept side by side."""
        return {}

    def __getitem__(self, name: str) -> Tensor:
        """All lines of one tensor, [K + 2, V]; kept, where those of all tensors fit in memory."""
        if name in self._whole:
            return self._whole[name]
        found = self._ones(1).new_zeros(self.lines, self.case.new[name].numel())
        for block in self._found([name], again=False):
            found[block.lines] = block.factors[:, None] * block.values
        if self._bytes <= self.case.settings.memory:
            self._whole[name] = found
        return found


class Models(Walks):
    """The clients' full models."""

    @property
    def lines(self) -> int:
        """K."""
        return len(self.case.clients)

    def blocks(self, name: str, staging: Staging) -> Iterator[Block]:
        """Models, each with the factor 1."""
        terms = self.case.scene.read(name)
        reader, some = Reader(terms, self.case.settings), self._some(terms.fused.numel())
        for lines in some:
            rows = staging.take(lines.stop - lines.start, terms.fused.numel())
            reader.models(lines, rows, factors=[1.0] * len(rows))
            yield Block(name, lines, staging.sent(rows), self._ones(len(rows)), len(some))

    def together(
        self, names: Sequence[str], staging: Staging, *, at_once: int, factors: Sequence[float]
    ) -> Iterator[tuple[slice, dict[str, Tensor]]]:
        """c_k θ_k in several tensors, each [k, *shape], of at most so many clients at a time, in `staging`."""
        read = [self.case.scene.read(name) for name in names]
        readers = [Reader(terms, self.case.settings) for terms in read]
        for start in range(0, self.lines, at_once):
            lines = slice(start, min(start + at_once, self.lines))
            count = lines.stop - lines.start
            widths = [count * terms.fused.numel() for terms in read]
            rows = staging.take(1, sum(widths))
            for reader, part in zip(readers, torch.split(rows[0], widths), strict=True):
                reader.models(lines, part.view(count, -1), factors=factors[lines])
            parts = torch.split(staging.sent(rows)[0], widths)
            yield (
                lines,
                {
                    terms.name: part.view(count, *terms.fused.shape)
                    for terms, part in zip(read, parts, strict=True)
                },
            )


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The items, each made on another thread while the one before it is used."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


def client_shares(case: Case, name: str, lines: slice) -> Tensor:
    """s_k of some clients in one tensor, [k, *shape] in the type of the computation."""
    terms = case.scene.read(name)
    factors = case.rule.factors(terms, case.scene)
    if factors is None:
        return case.rule.shares(terms, case.scene).clients[lines].to(case.settings.device, case.settings.dtype)
    scale = torch.tensor(factors[lines], dtype=case.settings.dtype, device=case.settings.device)
    used = [factor != 0 for factor in factors[lines]]
    staging = Staging(case.settings, len(used) * terms.fused.numel())
    rows = staging.take(len(used), terms.fused.numel())
    Reader(terms, case.settings).updates(lines, rows, used=used)
    return staging.sent(rows).mul_(scale[:, None]).reshape(-1, *terms.fused.shape)


def started_from(case: Case) -> Mapping[str, Tensor]:
    """The previous global's state. Raises NotComputableError (PREVIOUS) if the archive has none."""
    if case.previous is None:
        raise NotComputableError(
            f"round {case.round.number} has no previous global, so that no update is known",
            reason="PREVIOUS",
            hint="store the model that the round started from (set `previous` in [layout] if it has another"
            " name), trace a later round, or use --method tracefl",
        )
    return case.previous
