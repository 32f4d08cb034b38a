"""What a round consists of, as directions in θ that are read in blocks: its lines, or its clients' models.

A walk goes tensor by tensor, and within a tensor block by block of clients; small tensors are read together. While
one block is used, the next is read on another thread. Of each tensor only what the gradients reach is handed on.
What fits into a part of the memory is kept for the next walk; otherwise the files are read again, and the profile
counts how often.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor

from flforensics.errors import NotComputableError
from flforensics.gradients import Block, Support, joined, whole
from flforensics.provenance.case import Case, Settings
from flforensics.provenance.chunks import in_steps
from flforensics.provenance.hands import Hands
from flforensics.provenance.profile import READING, WAITING
from flforensics.provenance.staging import Reader, Staging, Updates
from flforensics.rounds import RoundTensor

Supports = Mapping[str, Support]
"""What is asked of some tensors, by name."""

_LARGEST_BLOCK = 1 << 27  # bytes
_OTHERS = 2  # lines that are no client's: the server's and the unexplained one
_SMALL = 1 << 24  # bytes of small tensors that are worth one reading of every client
_FEW = 1 << 20  # values of a client's tensors that are read with one opening of its file
_PARTS = 16  # of all directions at most one in so many is read at once: the rest is read meanwhile


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
    def blocks(self, group: Supports, staging: Staging, hands: Hands) -> Iterator[list[Block]]:
        """The directions in some tensors, of which all but a single one are small; a list is read at once."""

    def walk(self, supports: Supports, *, again: bool) -> Iterator[Block]:
        """All blocks of these tensors, the next ones read ahead. `again`: another walk may follow.

        A block's values are overwritten when the ones after the next are read.
        """
        if not self._keeps(supports):
            self.case.settings.profile.passes += 1
        return self._found(supports, again=again)

    def _keeps(self, supports: Supports) -> bool:
        return all(name in self.kept and self.kept[name][0].support == one for name, one in supports.items())

    def _found(self, supports: Supports, *, again: bool) -> Iterator[Block]:
        """The blocks from memory, or else from the files."""
        if self._keeps(supports):
            yield from (block for name in supports for block in self.kept[name])
            return
        keep = again and self._bytes <= self.case.memory // 4
        for name in supports:
            self.kept.pop(name, None)
        groups = list(self._groups(supports))
        staging, profile = Staging(self.case.settings, max(map(self._staged, groups))), self.case.settings.profile
        with Hands() as hands:
            read = (blocks for group in groups for blocks in self.blocks(group, staging, hands))
            for blocks in profile.counted(hands.ahead(profile.counted(read, READING)), WAITING):
                for block in blocks:
                    if keep:
                        self.kept.setdefault(block.name, []).append(replace(block, values=block.values.clone()))
                    yield block

    @property
    def _bytes(self) -> int:
        return self.lines * self.case.parameters * self.case.settings.dtype.itemsize

    @property
    def _room(self) -> int:
        """The values of a block: two of them take a quarter of the memory at most."""
        largest: int = min(self.case.memory // 8, _LARGEST_BLOCK)
        return largest // self.case.settings.dtype.itemsize

    def _groups(self, supports: Supports) -> Iterator[Supports]:
        """Small tensors together, as many as fit in a block with all their clients; every other one alone."""
        clients, itemsize = max(1, len(self.case.clients)), self.case.settings.dtype.itemsize
        most = min(self._room // clients, max(_SMALL // itemsize // clients, _width(supports) // _PARTS))
        sizes = {name: one.width if one.everything else most + 1 for name, one in supports.items()}
        return ({name: supports[name] for name in names} for names in _few_at_once(sizes, most))

    def _some(self, group: Supports) -> list[slice]:
        """The clients in blocks."""
        return in_steps(len(self.case.clients), max(1, self._room // max(1, _width(group))))

    def _staged(self, group: Supports) -> int:
        """The values of the group's largest block."""
        first = self._some(group)[0]
        size: int = (first.stop - first.start + _OTHERS) * _width(group)
        return size

    def _ones(self, count: int) -> Tensor:
        return torch.ones(count, dtype=self.case.settings.dtype, device=self.case.settings.device)


class Directions(Walks):
    """What (new − previous) consists of: the clients' shares, the server's, and the unexplained one."""

    @property
    def lines(self) -> int:
        """K + 2."""
        return len(self.case.clients) + _OTHERS

    @cached_property
    def _squares(self) -> dict[tuple[str, ...], Tensor]:
        """‖s_k‖² of the clients, [K], in tensors that were read together."""
        return {}

    def blocks(self, group: Supports, staging: Staging, hands: Hands) -> Iterator[list[Block]]:
        """Updates and their factors, client by client; where a share needs all the clients, all in one block.

        The last block also has the server's line, which is 0 where updates are scaled, and the unexplained one:
        gradients that are written out for the clients are not written out again for them.
        """
        read = map(self.case.scene.read, group)
        for factors, alike in groupby(read, key=lambda terms: self.case.rule.factors(terms, self.case.scene)):
            if factors is None:
                yield from ([self._together(terms.name, group[terms.name])] for terms in alike)
            else:
                yield from self._scaled([(terms, group[terms.name]) for terms in alike], factors, staging, hands)

    def _scaled(
        self,
        group: Sequence[tuple[RoundTensor, Support]],
        factors: Sequence[float],
        staging: Staging,
        hands: Hands,
    ) -> Iterator[list[Block]]:
        """The updates of some clients after the others', and of each tensor at last what they leave."""
        settings, count = self.case.settings, len(self.case.clients)
        tensors, supports = zip(*group, strict=True)
        updates, widths = Updates(tensors, factors, settings, joined(supports)), [one.width for one in supports]
        some = self._some({terms.name: support for terms, support in group})
        for lines in some:
            last, length = lines.stop == count, lines.stop - lines.start
            rows = staging.take(length + last * _OTHERS, sum(widths))
            updates.fill(lines, rows, hands)
            scale = torch.ones(len(rows), dtype=settings.dtype)
            scale[:length] = torch.tensor(factors[lines], dtype=settings.dtype)
            if last:
                rows[length:] = 0
                rows[-1] = updates.rest
                self._note(tuple(terms.name for terms in tensors), updates.squares)
            values = torch.split(staging.sent(rows), widths, 1)
            where, scales = slice(lines.start, lines.start + len(rows)), scale.to(settings.device)
            yield [
                Block(terms.name, where, part, scales, len(some), support)
                for part, (terms, support) in zip(values, group, strict=True)
            ]

    def _note(self, names: tuple[str, ...], squares: Sequence[float]) -> None:
        """Remember ‖s_k‖² in these tensors together, where none of them is known yet."""
        if self._known.isdisjoint(names):
            self._squares[names] = torch.tensor(squares, dtype=torch.float64)

    @property
    def _known(self) -> set[str]:
        return {name for names in self._squares for name in names}

    def _together(self, name: str, support: Support) -> Block:
        shares = self.case.rule.shares(self.case.scene.read(name), self.case.scene)
        self._note((name,), shares.clients.flatten(1).square().sum(1).tolist())
        rows = [*shares.clients, shares.server, shares.unexplained]
        values = torch.stack([support.of(row.flatten()).flatten().to(self.case.settings.dtype) for row in rows])
        values = values.to(self.case.settings.device)
        return Block(name, slice(0, len(rows)), values, self._ones(len(rows)), 1, support)

    def sizes(self) -> Tensor:
        """‖s_k‖ of every client over the whole of θ, [K] in float64; what no walk has met is read now."""
        left = {name: self._all(name) for name in self.case.floating if name not in self._known}
        if left:
            deque(self._found(left, again=False), maxlen=0)
        return torch.stack(list(self._squares.values())).sum(0).sqrt()

    @cached_property
    def _whole(self) -> dict[str, Tensor]:
        """The tensors whose lines are kept side by side."""
        return {}

    def __getitem__(self, name: str) -> Tensor:
        """All lines of one tensor, [K + 2, V]; kept, where those of all tensors fit in memory."""
        if name in self._whole:
            return self._whole[name]
        found = self._ones(1).new_zeros(self.lines, self.case.new[name].numel())
        for block in self._found({name: self._all(name)}, again=False):
            found[block.lines] = block.factors[:, None] * block.values
        if self._bytes <= self.case.memory:
            self._whole[name] = found
        return found

    def _all(self, name: str) -> Support:
        return whole(self.case.new[name].numel())


class Models(Walks):
    """The clients' full models."""

    @property
    def lines(self) -> int:
        """K."""
        return len(self.case.clients)

    def blocks(self, group: Supports, staging: Staging, hands: Hands) -> Iterator[list[Block]]:
        """Models, each with the factor 1."""
        supports, some = list(group.values()), self._some(group)
        reader = Reader([self.case.scene.read(name) for name in group], self.case.settings, joined(supports))
        widths = [support.width for support in supports]
        for lines in some:
            rows = staging.take(lines.stop - lines.start, sum(widths))
            reader.models(lines, rows, hands, factors=[1.0] * self.lines)
            parts = torch.split(staging.sent(rows), widths, 1)
            yield [
                Block(name, lines, values, self._ones(len(rows)), len(some), support)
                for (name, support), values in zip(group.items(), parts, strict=True)
            ]

    def several(self, names: Sequence[str]) -> "Several":
        """Some tensors of them, whole."""
        sizes = {name: self.case.new[name].numel() for name in names}
        groups = [
            _Group.of([self.case.scene.read(name) for name in few], self.case.settings)
            for few in _few_at_once(sizes, _FEW)
        ]
        return Several(groups, self.case.settings)


@dataclass(frozen=True)
class Several:
    """Tensors of the clients' models; small ones are read with one opening of a client's file."""

    groups: Sequence["_Group"]
    settings: Settings

    def of(self, lines: slice, *, factors: Sequence[float]) -> dict[str, Tensor]:
        """c_k θ_k of some clients by tensors, each [k, *shape]; several threads may ask at once."""
        settings, count = self.settings, lines.stop - lines.start
        lengths = [count * sum(group.widths) for group in self.groups]
        pinned = torch.device(settings.device).type == "cuda"
        host = torch.empty(sum(lengths), dtype=settings.dtype, pin_memory=pinned)
        for group, part in zip(self.groups, torch.split(host, lengths), strict=True):
            for client, row in zip(range(lines.start, lines.stop), part.view(count, -1), strict=True):
                group.reader.model(client, row, factor=factors[client])
        # torch's allocator gives pinned memory to nobody else before it was copied
        sent = torch.split(host.to(settings.device, non_blocking=True), lengths)
        parts = zip(self.groups, sent, strict=True)
        return {name: rows for group, part in parts for name, rows in group.divided(part.view(count, -1))}


@dataclass(frozen=True)
class _Group:
    """Tensors that are read together."""

    tensors: Sequence[RoundTensor]
    widths: Sequence[int]
    reader: Reader

    @classmethod
    def of(cls, tensors: Sequence[RoundTensor], settings: Settings) -> "_Group":
        """Side by side."""
        widths = [terms.fused.numel() for terms in tensors]
        return cls(tensors, widths, Reader(tensors, settings, whole(sum(widths))))

    def divided(self, rows: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Rows [k, values] by tensors, each [k, *shape]."""
        for terms, part in zip(self.tensors, torch.split(rows, list(self.widths), 1), strict=True):
            yield terms.name, part.view(len(rows), *terms.fused.shape)


def _few_at_once(sizes: Mapping[str, int], most: int) -> Iterator[list[str]]:
    """The names of small tensors, as many together as come to `most` values, and of every larger one alone."""
    small: list[str] = []
    for name, size in sizes.items():
        if size > most:
            yield [name]
            continue
        if sum(sizes[one] for one in small) + size > most:
            yield small
            small = []
        small.append(name)
    if small:
        yield small


def client_shares(case: Case, name: str, lines: slice) -> Tensor:
    """s_k of some clients in one tensor, [k, *shape] in the type of the computation."""
    terms = case.scene.read(name)
    factors = case.rule.factors(terms, case.scene)
    if factors is None:
        return case.rule.shares(terms, case.scene).clients[lines].to(case.settings.device, case.settings.dtype)
    scale = torch.tensor(factors[lines], dtype=case.settings.dtype)
    rows = torch.empty(len(scale), terms.fused.numel(), dtype=case.settings.dtype)
    reader = Reader([terms], case.settings, whole(terms.fused.numel()))
    for client, row in zip(range(len(factors))[lines], rows, strict=True):
        reader.update(client, row, factor=factors[client])
    return rows.mul_(scale[:, None]).reshape(-1, *terms.fused.shape).to(case.settings.device)


def _width(group: Supports) -> int:
    """The values of the supports."""
    return sum(support.width for support in group.values())


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
