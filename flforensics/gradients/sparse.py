"""Per-sample gradients of tensors of which they reach a part.

Inner   one of the other forms for a box in every kernel, whose rim meets nothing but padding
Rows    the rows of a table that each sample chose, and what came back for them
"""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from flforensics.gradients.forms import PIECE, Dense, Gradients
from flforensics.gradients.support import Support


@dataclass(frozen=True)
class Inner(Gradients):
    """Kernels whose rim only ever met padding, so that its gradient is 0: `inner` is that of the boxes inside."""

    inner: Gradients
    boxes: Support

    @property
    def count(self) -> int:  # type: ignore[override]
        """n."""
        return self.inner.count

    @property
    def width(self) -> int:  # type: ignore[override]
        """V, rims included."""
        return prod(self.boxes.shape)

    @property
    def held(self) -> int:
        """Those of the boxes."""
        return self.inner.held

    @property
    def support(self) -> Support:
        """The boxes."""
        return self.boxes

    def on(self, support: Support) -> Gradients:
        """The boxes alone, or with zeros around them."""
        return self.inner if support == self.support else self.dense()

    def dense(self) -> Dense:
        """With zeros around the boxes."""
        inner = self.inner.dense().values
        values = inner.new_zeros(self.count, self.width)
        inside = self.boxes.of(values)
        inside.copy_(inner.view(inside.shape))
        return Dense(values)

    def add_to(self, total: Tensor) -> None:
        """Added to the boxes."""
        inside = self.boxes.of(total)
        inside.add_(self.inner.dense().values.view(inside.shape))

    def products(self, directions: Tensor) -> Tensor:
        """Only the boxes of the directions are looked at."""
        return self.inner.products(self.boxes.of(directions).flatten(1))

    def squares(self) -> Tensor:
        """The rims add nothing."""
        return self.inner.squares()

    def plus(self, other: Gradients) -> Gradients:
        """Boxes to boxes; a layer called again with inputs of another size has other boxes."""
        if not isinstance(other, Inner) or other.boxes != self.boxes:
            return self.dense().plus(other)
        return Inner(self.inner.plus(other.inner), self.boxes)

    def prepared(self, directions: int, *, blocks: int, room: int) -> Gradients:
        """The boxes' gradients in the form that suits them."""
        return Inner(self.inner.prepared(directions, blocks=blocks, room=room), self.boxes)


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
        total = self.values.new_zeros(self.count, self.width)
        self.add_to(total)
        return Dense(total)

    def add_to(self, total: Tensor) -> None:
        """Added to the rows that were chosen."""
        total.view(-1, self.shape[1]).index_add_(0, self.owners * self.shape[0] + self.rows, self.values)

    def products(self, directions: Tensor) -> Tensor:
        """The directions' rows are gathered where samples chose them."""
        tables = directions.reshape(len(directions), *self.shape)
        found = self.values.new_zeros(self.count, len(directions))
        step = max(1, PIECE // max(1, len(directions) * self.shape[1]))
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
        if not isinstance(other, Rows) or self.held + other.held > self.count * self.width:
            return self.dense().plus(other)
        owners, rows, values = (
            torch.cat([getattr(self, part), getattr(other, part)]) for part in ("owners", "rows", "values")
        )
        return Rows(self.count, self.shape, owners, rows, values)
