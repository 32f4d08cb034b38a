"""A checkpoint that reads one tensor at a time, into memory of its own.

A reader hands over, for every tensor, its type, its shape and how to load it. Nothing is mapped: a mapped
file that shrinks kills the process, and a shared page would let a loaded tensor change under its reader.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from types import MappingProxyType

import torch
from torch import Tensor

from flforensics.evidence import EvidenceFile
from flforensics.formats.checks import refused, shown


@dataclass(frozen=True)
class Extent:
    """Bytes of a file that are a tensor's values as they are, with nothing to unpack or to check them against."""

    file: EvidenceFile
    begin: int
    size: int

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.begin + self.size


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file, not read yet. One that has a `extent` can be read together with its neighbours."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    load: Callable[[], Tensor]
    extent: Extent | None = None


class StoredCheckpoint(Mapping[str, Tensor]):
    """The tensors of one file by name; `[name]` reads that tensor anew, on the CPU, in its stored type.

    Indexing raises KeyError for a name that the file does not have, and EvidenceError when the bytes of that
    tensor turn out to be damaged or the file has changed.
    """

    def __init__(self, tensors: Mapping[str, StoredTensor]) -> None:
        self._tensors = dict(tensors)
        self._shapes = {name: tensor.shape for name, tensor in tensors.items()}
        self._dtypes = {name: tensor.dtype for name, tensor in tensors.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name].load()

    def several(self, names: Iterable[str]) -> list[Tensor]:
        """These tensors, each flattened; what lies side by side in a file is read at once and shares memory.

        Raises as indexing does.
        """
        found: dict[str, Tensor] = {}
        placed: list[_Placed] = []
        for name in names:
            stored = self._tensors[name]
            if stored.extent is None:
                found[name] = stored.load().flatten()
            else:
                placed.append((stored.extent, name, stored.dtype))
        for file, runs in groupby(_runs(placed), key=lambda run: run[0][0].file):
            found |= _read_runs(file, list(runs))
        return [found[name] for name in names]

    def pieces(self, name: str, places: Sequence[slice]) -> Iterator[Tensor]:
        """A tensor's values, flattened, in pieces that follow one another from its first value on.

        A piece is the caller's to write on until the next is read. Raises as indexing does, at the last piece if
        the file has changed.
        """
        stored = self._tensors[name]
        if stored.extent is None:
            whole = self[name].flatten()
            yield from (whole[place] for place in places)
            return
        file, size = stored.extent.file, stored.dtype.itemsize
        longest = max((place.stop - place.start for place in places), default=0)
        raw = torch.empty(longest * size, dtype=torch.uint8)
        parts = [raw[: (place.stop - place.start) * size] for place in places]
        first = stored.extent.begin
        into = ((first + place.start * size, part.numpy().data) for place, part in zip(places, parts, strict=True))
        for part, _ in zip(parts, file.pieces(into), strict=True):
            yield typed(file, name, part, stored.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes by name, without reading any tensor."""
        return MappingProxyType(self._shapes)

    @property
    def dtypes(self) -> Mapping[str, torch.dtype]:
        """Types by name, without reading any tensor."""
        return MappingProxyType(self._dtypes)


_Placed = tuple[Extent, str, torch.dtype]


def _runs(placed: list[_Placed]) -> Iterator[list[_Placed]]:
    """Those of one type that follow one another in a file without a gap; each truth value is looked at alone."""
    run: list[_Placed] = []
    for one in sorted(placed, key=lambda one: (one[0].file.name, one[0].begin)):
        extent, _, dtype = one
        if run:
            last, _, before = run[-1]
            if (last.file, last.end, before) != (extent.file, extent.begin, dtype) or dtype is torch.bool:
                yield run
                run = []
        run.append(one)
    if run:
        yield run


def _read_runs(file: EvidenceFile, runs: list[list[_Placed]]) -> dict[str, Tensor]:
    """Tensors of one file, each flattened; those of a run share its memory, each its own part."""
    spans = [(run[0][0].begin, run[-1][0].end) for run in runs]
    raws = [_room(file, run[0][1], end - begin) for run, (begin, end) in zip(runs, spans, strict=True)]
    for _ in file.pieces((begin, raw.numpy().data) for raw, (begin, _) in zip(raws, spans, strict=True)):
        pass
    found: dict[str, Tensor] = {}
    for run, raw in zip(runs, raws, strict=True):
        dtype = run[0][2]
        parts = torch.split(typed(file, run[0][1], raw, dtype), [one.size // dtype.itemsize for one, _, _ in run])
        found.update(zip((name for _, name, _ in run), parts, strict=True))
    return found


def filled(file: EvidenceFile, name: str, size: int, fill: Callable[[memoryview], None]) -> Tensor:
    """`size` bytes that `fill` has written, as a uint8 tensor. Raises EvidenceError (MEMORY, and fill's own)."""
    raw = _room(file, name, size)
    fill(raw.numpy().data)
    return raw


def _room(file: EvidenceFile, name: str, size: int) -> Tensor:
    try:
        return torch.empty(size, dtype=torch.uint8)
    except RuntimeError:
        raise refused(
            file,
            f"holds tensor {shown(name)} of {size} bytes, more than there is memory for",
            reason="MEMORY",
            hint="use a machine with more memory",
        ) from None


def typed(file: EvidenceFile, name: str, raw: Tensor, dtype: torch.dtype) -> Tensor:
    """The bytes `raw` read as a flat tensor of `dtype`. Raises EvidenceError (VALUES) on a bool not 0 or 1."""
    if dtype is torch.bool and bool((raw > 1).any()):
        raise refused(file, f"has truth values in tensor {shown(name)} that are neither 0 nor 1", reason="VALUES")
    return raw.view(dtype)
