"""Per-sample gradients of one tensor, in the form that is smallest, and what they give against many directions.

    Dense   written out, [n, V]
    Outer   Σ_p l_p ⊗ r_p: what a matrix product leaves behind, positions p times two vectors instead of a matrix
    Rows    the rows of a table that each sample chose, and what came back for them

All three answer the same questions: the products ⟨∂f_n/∂θ, d_k⟩ with directions d [k, V], the squared norms, and
the gradient itself. For `Outer` there are two ways to a product. (a) Write the gradient out and multiply:
2nV(P + k) operations, and nV values that travel to memory and back. (b) Run the layer with the direction for its
weights on the recorded input and meet what comes out with l: 2nVPk operations. Which is cheaper is counted, not
told by the kind of layer: (b) where there is one position, (a) where there are many.
Numbers that are written out are used up in pieces that stay in the cache.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

OPERATIONS_PER_BYTE = 10
"""Multiply-adds, counted as two, in the time in which one byte goes to or from memory.

A core at 65 GFLOP/s shares 12 GB/s with another; an H200 has 60 TFLOP/s (without TF32) at 4.8 TB/s.
"""

_PIECE = 1 << 20  # values of an intermediate result: one that is larger is fetched from the system each time

Factors = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From what is kept of a call for either side to l [n, G, O, P] and r [n, G, I, P], for G groups."""


def _as_they_are(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    return left, right


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
    def products(self, directions: Tensor) -> Tensor:
        """⟨∂f_n/∂θ, d_k⟩, [n, k], for directions [k, V]."""

    @abstractmethod
    def squares(self) -> Tensor:
        """‖∂f_n/∂θ‖², [n] in float64."""

    @abstractmethod
    def plus(self, other: "Gradients") -> "Gradients":
        """The sum with other gradients of the same tensor and samples."""

    def prepared(self, directions: int, *, blocks: int, room: int) -> "Gradients":
        """The form that soonest meets so many directions in so many blocks, with at most `room` values more."""
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

    def products(self, directions: Tensor) -> Tensor:
        """One matrix product."""
        products: Tensor = self.values @ directions.T
        return products

    def squares(self) -> Tensor:
        """Row by row."""
        norms: Tensor = torch.linalg.vector_norm(self.values, dim=1)
        return norms.double().square()

    def plus(self, other: Gradients) -> Gradients:
        """Added in place: a sum over nodes holds one copy."""
        return Dense(self.values.add_(other.dense().values))


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
        """One matrix product for each sample and group, over all positions of all calls."""
        left, right = self._factors()
        return Dense((left @ right.mT).flatten(1))

    def products(self, directions: Tensor) -> Tensor:
        """The cheaper way for this many directions."""
        if self.evaluating_is_cheaper(len(directions)):
            return self.evaluated(directions)
        return self.written_out(directions)

    def squares(self) -> Tensor:
        """Σ_pq (l_p·l_q)(r_p·r_q) where that is less work than writing the matrix out."""
        left, right = self._factors()
        groups, rows, columns = self.shape
        if groups == 1 and self.positions * (rows + columns) < rows * columns:
            gram = (left.mT @ left) * (right.mT @ right)
            return gram.double().sum((1, 2, 3)).clamp(min=0)
        return torch.stack([Dense(part).squares() for _, part in self._pieces()]).sum(0)

    def plus(self, other: Gradients) -> Gradients:
        """Calls side by side while that is smaller than the matrix; then written out."""
        if not isinstance(other, Outer):
            return self.dense().plus(other)
        both = Outer(self.calls + other.calls, self.factors, self.shape)
        return both if both.held <= self.count * self.width else self.dense().plus(other)

    def prepared(self, directions: int, *, blocks: int, room: int) -> Gradients:
        """Written out once, where every block would else repeat more work than reading it again is."""
        again = blocks * 2 * self.positions
        kept = 2 * self.positions + OPERATIONS_PER_BYTE * self.calls[0][0].itemsize * (2 + blocks)
        fits = self.count * self.width <= room
        if fits and kept < again and not self.evaluating_is_cheaper(directions):
            return self.dense()
        return Outer((self._factors(),), _as_they_are, self.shape)

    def evaluating_is_cheaper(self, directions: int) -> bool:
        """Whether (b) costs less than (a), for one sample, in operations."""
        moved = OPERATIONS_PER_BYTE * 2 * self.calls[0][0].itemsize
        outputs = self.positions * directions * self.shape[0] * self.shape[1]
        written = 2 * self.width * (self.positions + directions) + moved * self.width
        return 2 * self.width * self.positions * directions + moved * outputs < written

    def written_out(self, directions: Tensor) -> Tensor:
        """(a), some rows of the matrix after the other."""
        found = directions.new_zeros(len(directions), self.count)
        for columns, part in self._pieces():
            found.addmm_(directions[:, columns], part.T)
        products: Tensor = found.T
        return products

    def evaluated(self, directions: Tensor) -> Tensor:
        """(b): r goes through the directions' matrices, and what comes out meets l."""
        left, right = self._factors()
        groups, rows, columns = self.shape
        count, positions = self.count, left.shape[-1]
        inputs = right.permute(1, 0, 3, 2).reshape(groups, count * positions, columns)
        step = max(1, _PIECE // max(1, count * positions * groups * rows))
        parts = []
        for some in torch.split(directions, step):
            matrices = some.reshape(-1, groups, rows, columns).transpose(0, 1).reshape(groups, -1, columns)
            outputs = (inputs @ matrices.mT).reshape(groups, count, positions, len(some), rows)
            parts.append(torch.einsum("gnpko,ngop->nk", outputs, left))
        return torch.cat(parts, 1)

    def _pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """The gradient by columns of [n, V]: some rows of the one matrix, or some whole groups."""
        left, right = self._factors()
        groups, rows, columns = self.shape
        if groups == 1:
            step = max(1, _PIECE // (self.count * columns))
            for start in range(0, rows, step):
                part = left[:, 0, start : start + step] @ right[:, 0].mT
                yield slice(start * columns, (start + part.shape[1]) * columns), part.flatten(1)
            return
        size = rows * columns
        step = max(1, _PIECE // (self.count * size))
        for start in range(0, groups, step):
            part = left[:, start : start + step] @ right[:, start : start + step].mT
            yield slice(start * size, (start + part.shape[1]) * size), part.flatten(1)

    def _factors(self) -> tuple[Tensor, Tensor]:
        """l [n, G, O, P] and r [n, G, I, P] of all calls, positions side by side; each r_p lies together."""
        pairs = [self.factors(*call) for call in self.calls]
        left = pairs[0][0] if len(pairs) == 1 else torch.cat([left for left, _ in pairs], -1)
        return left, torch.cat([right.mT for _, right in pairs], -2).mT


@dataclass(frozen=True)
class Rows(Gradients):
    """The rows that were chosen of a table of that shape: entry j adds `values[j]` to row `rows[j]` of one sample.

    Entries may repeat.
    """

    count: int
    shape: tuple[int, int]
    owners: Tensor
    rows: Tensor
    values: Tensor

    @property
    def width(self) -> int:  # type: ignore[override]
        """V."""
        return prod(self.shape)

    @property
    def held(self) -> int:
        """The chosen rows only."""
        return self.values.numel()

    def dense(self) -> Dense:
        """The whole table for every sample."""
        table = self.values.new_zeros(self.count * self.shape[0], self.shape[1])
        table.index_add_(0, self.owners * self.shape[0] + self.rows, self.values)
        return Dense(table.reshape(self.count, -1))

    def products(self, directions: Tensor) -> Tensor:
        """The directions' rows are gathered where samples chose them."""
        tables = directions.reshape(len(directions), *self.shape)
        found = self.values.new_zeros(self.count, len(directions))
        step = max(1, _PIECE // max(1, len(directions) * self.shape[1]))
        for owners, rows, values in zip(
            *(torch.split(one, step) for one in (self.owners, self.rows, self.values)), strict=True
        ):
            found.index_add_(0, owners, torch.einsum("kmw,mw->mk", tables[:, rows], values))
        return found

    def squares(self) -> Tensor:
        """What one sample sent to one row is added before it is squared."""
        places, entries = torch.unique(self.owners * self.shape[0] + self.rows, return_inverse=True)
        merged = self.values.new_zeros(len(places), self.shape[1]).index_add_(0, entries, self.values)
        squares = torch.zeros(self.count, dtype=torch.float64, device=self.values.device)
        owners = places.div(self.shape[0], rounding_mode="floor")
        return squares.index_add_(0, owners, torch.linalg.vector_norm(merged, dim=1).double().square())

    def plus(self, other: Gradients) -> Gradients:
        """Entries of both, while that is smaller than the table."""
        if not isinstance(other, Rows):
            return self.dense().plus(other)
        if self.held + other.held > self.count * self.width:
            return self.dense().plus(other)
        owners, rows, values = (
            torch.cat([getattr(self, part), getattr(other, part)]) for part in ("owners", "rows", "values")
        )
        return Rows(self.count, self.shape, owners, rows, values)
