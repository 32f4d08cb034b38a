"""Per-sample gradients of one tensor, in the form that is smallest, and what they give against many directions.

    Dense   written out, [n, V]
    Outer   Σ_p l_p ⊗ r_p: what a matrix product leaves behind, positions p times two vectors instead of a matrix

and those that are 0 in most places (`sparse`).

All answer the same questions: the products ⟨∂f_n/∂θ, d_k⟩ with directions d [k, V], the squared norms, and
the gradient itself. For `Outer` there are two ways to a product. (a) Write the gradient out and multiply:
2nV(P + k) operations, and nV values that travel to memory and back. (b) Run the layer with the direction for its
weights on the recorded input and meet what comes out with l: 2nVPk operations. Which is cheaper is counted, not
told by the kind of layer: (b) where there is one position, (a) where there are many.
Numbers that are written out are used up in pieces that stay in the cache.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod

import torch
from torch import Tensor

from flforensics.gradients.support import Support, whole

OPERATIONS_PER_BYTE = 10
"""Multiply-adds, counted as two, in the time in which one byte goes to or from memory.

A core at 65 GFLOP/s shares 12 GB/s with another; an H200 has 60 TFLOP/s (without TF32) at 4.8 TB/s.
"""

PIECE = 1 << 20
"""Values of an intermediate result that stays in the cache."""

_REUSED = 1 << 24  # values of calls side by side: beyond it fewer samples at a time, or one call after the other
_FETCHED = 100  # operations in the time in which the system provides memory for a value
_WRITTEN = 1 << 23  # values of a gradient that are written out at a time: each time the calls are read again

Factors = Callable[[Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, Tensor]]
"""From what is kept of either side of calls that are alike, [n, ...] each, to l [n, G, O, P] and r [n, G, I, P].

G are groups, P the positions of all these calls in any order that is the same on both sides.
"""


def _as_they_are(left: Sequence[Tensor], right: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    return _side_by_side(list(zip(left, right, strict=True)))


class Gradients(ABC):
    """∂f_n/∂θ of one tensor with `width` values for `count` samples."""

    count: int
    width: int

    @property
    @abstractmethod
    def held(self) -> int:
        """How many values are kept."""

    @abstractmethod
    def dense(self) -> "Dense":
        """Written out."""

    @abstractmethod
    def add_to(self, total: Tensor) -> None:
        """Written out and added to `total` [n, V], without a copy in between where that can be."""

    @abstractmethod
    def products(self, directions: Tensor) -> Tensor:
        """⟨∂f_n/∂θ, d_k⟩, [n, k], for directions [k, V]."""

    @abstractmethod
    def squares(self) -> Tensor:
        """‖∂f_n/∂θ‖², [n] in float64."""

    def met(self, directions: Tensor) -> tuple[Tensor, Tensor]:
        """`products` and `squares`, both from the same writing out where there is one."""
        return self.products(directions), self.squares()

    @abstractmethod
    def plus(self, other: "Gradients") -> "Gradients":
        """The sum with other gradients of the same tensor and samples."""

    def prepared(self, directions: int, *, blocks: int, room: int) -> "Gradients":
        """The form that soonest meets so many directions in so many blocks, with at most `room` values more."""
        return self

    @property
    def support(self) -> Support:
        """Outside of it every gradient is 0."""
        return whole(self.width)

    def on(self, _support: Support) -> "Gradients":
        """What meets directions that are known on this support only, which is `support` or everything."""
        return self


@dataclass(frozen=True)
class Dense(Gradients):
    """Written out, [n, V]."""

    values: Tensor

    @property
    def count(self) -> int:  # type: ignore[override]
        """n."""
        return len(self.values)

    @property
    def width(self) -> int:  # type: ignore[override]
        """V."""
        return self.values.shape[1]

    @property
    def held(self) -> int:
        """All of them."""
        return self.values.numel()

    def dense(self) -> "Dense":
        """As it is."""
        return self

    def add_to(self, total: Tensor) -> None:
        """Value by value."""
        total.add_(self.values)

    def products(self, directions: Tensor) -> Tensor:
        """One matrix product, the smaller side first: that is up to 1.7 times as fast."""
        if len(directions) < self.count:
            return torch.mm(directions, self.values.T).T
        return torch.mm(self.values, directions.T)

    def squares(self) -> Tensor:
        """Row by row."""
        norms: Tensor = torch.linalg.vector_norm(self.values, dim=1)
        return norms.double().square()

    def plus(self, other: Gradients) -> Gradients:
        """Added in place: a sum over nodes holds one copy."""
        other.add_to(self.values)
        return self


@dataclass(frozen=True)
class Outer(Gradients):
    """Σ_p l_p ⊗ r_p of one or more calls (a layer called again, or at other nodes), which are kept as recorded.

    `shape` is (G, O, I): the tensor holds G matrices of O rows and I columns.
    """

    calls: tuple[tuple[Tensor, Tensor], ...]
    factors: Factors
    shape: tuple[int, int, int]

    @property
    def count(self) -> int:  # type: ignore[override]
        """n."""
        return len(self.calls[0][0])

    @property
    def width(self) -> int:  # type: ignore[override]
        """V."""
        return prod(self.shape)

    @property
    def held(self) -> int:
        """Both sides of all calls."""
        return sum(one.numel() for call in self.calls for one in call)

    @property
    def positions(self) -> int:
        """P, of all calls together."""
        return sum(left.numel() for left, _ in self.calls) // (self.count * self.shape[0] * self.shape[1])

    def dense(self) -> Dense:
        """One matrix product for each sample and group, over the positions of all calls."""
        total = self.calls[0][0].new_empty(self.count, self.width)
        for samples, part in self._parts():
            matrices, factors = total[samples].view(-1, *self.shape[1:]), part._factors()
            left, right = next(factors)
            torch.bmm(left.flatten(0, 1), right.flatten(0, 1).mT, out=matrices)
            _add_products(matrices, factors)
        return Dense(total)

    def add_to(self, total: Tensor) -> None:
        """The same products, added where they belong."""
        for samples, part in self._parts():
            _add_products(total[samples].view(-1, *self.shape[1:]), part._factors())

    def products(self, directions: Tensor) -> Tensor:
        """The cheaper way for this many directions."""
        if self.evaluating_is_cheaper(len(directions)):
            return self.evaluated(directions)
        return self.written_out(directions)

    def squares(self) -> Tensor:
        """Σ_pq (l_p·l_q)(r_p·r_q) where that is less work than writing the matrix out."""
        if self._crossing_is_cheaper:
            left, right = _side_by_side(list(self._factors()))
            gram = (left.mT @ left) * (right.mT @ right)
            return gram.double().sum((1, 2, 3)).clamp(min=0)
        return torch.stack([Dense(part).squares() for _, part in self._pieces()]).sum(0)

    def met(self, directions: Tensor) -> tuple[Tensor, Tensor]:
        """The norms of what is written out for the products."""
        if self._crossing_is_cheaper or self.evaluating_is_cheaper(len(directions)):
            return super().met(directions)
        squares = torch.zeros(self.count, dtype=torch.float64, device=directions.device)
        return self.written_out(directions, squares), squares

    def plus(self, other: Gradients) -> Gradients:
        """Calls side by side while that is smaller than the matrix; then written out.

        What the network was given is the same at every node: there one side of the calls can be added up instead.
        """
        if not isinstance(other, Outer):
            return self.dense().plus(other)
        merged = _merged(self.calls, other.calls)
        if merged:
            return Outer(merged, self.factors, self.shape)
        both = Outer(self.calls + other.calls, self.factors, self.shape)
        return both if both.held <= self.count * self.width else self.dense().plus(other)

    def prepared(self, directions: int, *, blocks: int, room: int) -> Gradients:
        """Written out once, where every block would else repeat more work than reading it again is."""
        byte = OPERATIONS_PER_BYTE * self.calls[0][0].itemsize
        kept = 2 * self.positions + byte * (2 + blocks) + _FETCHED
        again = blocks * (2 * self.positions + byte * self.positions / self._rows)
        fits = self.count * self.width <= room
        if fits and kept < again and not self.evaluating_is_cheaper(directions):
            return self.dense()
        return Outer(tuple(self._factors()), _as_they_are, self.shape)

    def evaluating_is_cheaper(self, directions: int) -> bool:
        """Whether (b) costs less than (a), for one sample, in operations."""
        moved = OPERATIONS_PER_BYTE * 2 * self.calls[0][0].itemsize
        outputs = self.positions * directions * self.shape[0] * self.shape[1]
        written = 2 * self.width * (self.positions + directions) + moved * self.width
        return 2 * self.width * self.positions * directions + moved * outputs < written

    def written_out(self, directions: Tensor, squares: Tensor | None = None) -> Tensor:
        """(a), some rows of the matrix after the other; `squares` [n] gets their squared norms added."""
        found = directions.new_zeros(len(directions), self.count)
        for columns, part in self._pieces():
            found.addmm_(directions[:, columns], part.T)
            if squares is not None:
                squares += Dense(part).squares()
        products: Tensor = found.T
        return products

    def evaluated(self, directions: Tensor) -> Tensor:
        """(b): r goes through the directions' matrices, and what comes out meets l."""
        groups, rows, columns = self.shape
        total = directions.new_zeros(self.count, len(directions))
        for left, right in self._factors():
            positions = left.shape[-1]
            inputs = right.permute(1, 0, 3, 2).reshape(groups, self.count * positions, columns)
            step = max(1, PIECE // max(1, self.count * positions * groups * rows))
            for start in range(0, len(directions), step):
                matrices = directions[start : start + step].reshape(-1, groups, rows, columns).transpose(0, 1)
                some = matrices.shape[1]
                outputs = inputs @ matrices.reshape(groups, some * rows, columns).mT
                met = torch.einsum("gnpko,ngop->nk", outputs.view(groups, -1, positions, some, rows), left)
                total[:, start : start + some] += met
        return total

    def _parts(self) -> Iterator[tuple[slice, "Outer"]]:
        """Some samples after the others, so few that the positions of their calls can come side by side."""
        step = max(1, _REUSED // max(1, self._side))
        for start in range(0, self.count, step):
            samples = slice(start, min(start + step, self.count))
            calls = tuple((left[samples], right[samples]) for left, right in self.calls)
            yield samples, Outer(calls, self.factors, self.shape)

    @property
    def _side(self) -> int:
        """The values of the longer side of one sample, of all calls."""
        return self.shape[0] * max(self.shape[1:]) * self.positions

    @property
    def _crossing_is_cheaper(self) -> bool:
        """Whether a norm takes less work position by position than row by row."""
        groups, rows, columns = self.shape
        return groups == 1 and self.positions * (rows + columns) < rows * columns

    @property
    def _rows(self) -> int:
        """The rows of a matrix, or of as many groups, that are one piece of all samples."""
        groups, rows, columns = self.shape
        return max(1, _WRITTEN // (self.count * columns)) if groups == 1 else rows

    def _pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """The gradient by columns of [n, V]: some rows of the one matrix, or some whole groups.

        A piece is overwritten by the next: providing memory for each would take as long as the products.
        """
        factors = list(self._factors())
        groups, rows, columns = self.shape
        along, size = (2, columns) if groups == 1 else (1, rows * columns)
        whole = rows if groups == 1 else groups
        step = max(1, min(whole, self._rows if groups == 1 else _WRITTEN // (self.count * size)))
        memory = factors[0][0].new_empty(self.count * step * size)
        for start in range(0, whole, step):
            some = [_some(pair, along, start, min(step, whole - start)) for pair in factors]
            (left, right), *others = [(left.flatten(0, 1), right.flatten(0, 1).mT) for left, right in some]
            part = memory[: len(left) * left.shape[1] * columns].view(len(left), -1, columns)
            torch.bmm(left, right, out=part)
            for left, right in others:
                part.baddbmm_(left, right)
            values = part.view(self.count, -1)
            yield slice(start * size, start * size + values.shape[1]), values

    def _factors(self) -> Iterator[tuple[Tensor, Tensor]]:
        """l [n, G, O, P] and r [n, G, I, P] of one call after the other, of which only one need be in memory.

        Where all are small, their positions come side by side.
        """
        if self.count * self._side <= _REUSED:
            alike = groupby(self.calls, key=lambda call: (call[0].shape, call[1].shape))
            yield _side_by_side([self.factors(*zip(*calls, strict=True)) for _, calls in alike])
        else:
            yield from (self.factors([left], [right]) for left, right in self.calls)


def _add_products(matrices: Tensor, factors: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Add Σ_p l_p ⊗ r_p to `matrices` [nG, O, I] in place."""
    for left, right in factors:
        matrices.baddbmm_(left.flatten(0, 1), right.flatten(0, 1).mT)


def _merged(
    calls: Sequence[tuple[Tensor, Tensor]], others: Sequence[tuple[Tensor, Tensor]]
) -> tuple[tuple[Tensor, Tensor], ...]:
    """The sum as one call for each two that have a side in common; empty where not all have."""
    pairs = list(zip(calls, others, strict=False))
    if len(calls) != len(others):
        return ()
    if all(_same(one[1], other[1]) for one, other in pairs):
        return tuple((one[0] + other[0], one[1]) for one, other in pairs)
    if all(_same(one[0], other[0]) for one, other in pairs):
        return tuple((one[0], one[1] + other[1]) for one, other in pairs)
    return ()


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether both are the same values in memory."""
    return (one.data_ptr(), one.shape, one.stride()) == (other.data_ptr(), other.shape, other.stride())


def _side_by_side(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The positions of all pairs as those of one; each r_p of several lies together."""
    if len(pairs) == 1:
        return pairs[0]
    return torch.cat([left for left, _ in pairs], -1), torch.cat([right.mT for _, right in pairs], -2).mT


def _some(pair: tuple[Tensor, Tensor], axis: int, start: int, length: int) -> tuple[Tensor, Tensor]:
    """Some rows of the matrix (axis 2: only l has them), or some groups (axis 1: both sides have them)."""
    left, right = pair
    return left.narrow(axis, start, length), right.narrow(axis, start, length) if axis == 1 else right
