"""Which values of a tensor its gradients can reach at all.

A kernel of 3 x 3 that slides over a map of 1 x 1 with padding sees the map with its middle alone: eight ninths of
the tensor never meet anything but zeros. What others send there changes nothing, so it need not be carried along.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod

from torch import Tensor


@dataclass(frozen=True)
class Support:
    """In each of a tensor's kernels the values inside `box`; `shape` is (kernels, *axes of one kernel)."""

    shape: tuple[int, ...]
    box: tuple[slice, ...]

    @cached_property
    def kernel(self) -> int:
        """The values of one kernel."""
        return prod(self.shape[1:])

    @cached_property
    def reached(self) -> int:
        """The values of one kernel inside the box."""
        return prod(side.stop - side.start for side in self.box)

    @property
    def width(self) -> int:
        """All values inside boxes."""
        return self.shape[0] * self.reached

    @property
    def everything(self) -> bool:
        """Whether the boxes are the kernels."""
        return self.reached == self.kernel

    def pieces(self, values: int) -> Iterator[tuple[slice, slice]]:
        """The flat tensor in equal pieces of whole kernels, about so many values each: their places, and boxes."""
        step = max(1, -(-self.shape[0] // max(1, round(prod(self.shape) / values))))
        for start in range(0, self.shape[0], step):
            stop = min(start + step, self.shape[0])
            yield (
                slice(start * self.kernel, stop * self.kernel),
                slice(start * self.reached, stop * self.reached),
            )

    def of(self, flat: Tensor) -> Tensor:
        """The boxes of flat tensors [..., V], or of a piece of them, as a view [..., kernels, *box]."""
        whole = flat.reshape(*flat.shape[:-1], flat.shape[-1] // self.kernel, *self.shape[1:])
        for axis, side in enumerate(self.box, start=flat.dim()):
            whole = whole.narrow(axis, side.start, side.stop - side.start)
        return whole

    def copy(self, flat: Tensor, out: Tensor) -> None:
        """The values inside the boxes of a piece of the flat tensor [v] into `out`, in long rows, tap by tap."""
        boxes = self.of(flat)
        found = out.view(boxes.shape)
        for tap in product(*(range(taps) for taps in boxes.shape[1:])):
            place: tuple[slice | int, ...] = (slice(None), *tap)
            found[place].copy_(boxes[place])


def whole(values: int) -> Support:
    """Every value of a tensor."""
    return Support((values,), ())


def joined(supports: Sequence[Support]) -> Support:
    """Of several whole tensors side by side, or of a single one."""
    return supports[0] if len(supports) == 1 else whole(sum(support.width for support in supports))
