"""safetensors, by its specification and not by what its library lets pass.

The library accepts duplicate names (the last one wins) and a header that starts with a space, so the same
file could show different weights to different readers. Here every byte of the file has exactly one meaning.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from flforensics.evidence import EvidenceFile
from flforensics.formats.checks import Siblings, check_count, check_name, check_shape, refused, shown
from flforensics.formats.strict_json import strict_json
from flforensics.formats.tensors import Extent, StoredTensor, filled, typed

_HEADER_LIMIT = 100_000_000
_FIELDS = {"dtype", "shape", "data_offsets"}
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}

Span = tuple[int, int, str]


@dataclass(frozen=True)
class _Header:
    """A header as it is stored, before `size` bytes of tensors. Which file it is from is for errors alone."""

    raw: bytes
    size: int
    file: EvidenceFile = field(compare=False)


@dataclass(frozen=True)
class _Place:
    """What a header says of one tensor; `begin` counts from the header's end."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int


def contents(file: EvidenceFile, siblings: Siblings | None = None) -> Mapping[str, StoredTensor]:
    """The tensors of one safetensors file, not read yet.

    Raises EvidenceError: TRUNCATED, HEADER, JSON, DUPLICATE, METADATA, NAME, DTYPE, SHAPE, LIMIT, SIZE,
    OVERLAP, HOLE, TRAILING.
    """
    header = _header(file)
    start = file.size - header.size
    return {
        one.name: StoredTensor(
            one.dtype,
            one.shape,
            partial(_load, file, one.name, one.dtype, one.shape, start + one.begin),
            Extent(file, start + one.begin, math.prod(one.shape) * one.dtype.itemsize),
        )
        for one in _places(header)
    }


def _header(file: EvidenceFile) -> _Header:
    length = int.from_bytes(file.read(0, 8), "little")
    if length > _HEADER_LIMIT:
        raise refused(file, f"declares a header of {length} bytes", reason="LIMIT")
    raw = file.read(8, length)
    if not raw.startswith(b"{") or not raw.rstrip(b" ").endswith(b"}"):
        raise refused(file, "has a header that is not one JSON object padded with spaces", reason="HEADER")
    return _Header(raw, file.size - 8 - length, file)


@lru_cache(maxsize=2)  # the clients of a round have the same header, byte for byte
def _places(header: _Header) -> tuple[_Place, ...]:
    """Where the tensors lie, every byte accounted for."""
    file, entries = header.file, strict_json(header.file, header.raw)
    _check_metadata(file, entries.pop("__metadata__", {}))
    check_count(file, len(entries))
    places, spans = [], []
    for name, entry in entries.items():
        dtype, shape, (begin, end) = _entry(file, check_name(file, name), entry)
        places.append(_Place(name, dtype, shape, begin))
        spans.append((begin, end, name))
    _check_cover(file, spans, header.size)
    return tuple(places)


def _check_metadata(file: EvidenceFile, metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise refused(file, "has metadata other than text", reason="METADATA")


def _entry(file: EvidenceFile, name: str, entry: Any) -> tuple[torch.dtype, tuple[int, ...], tuple[int, int]]:
    if not isinstance(entry, dict) or set(entry) != _FIELDS or not _is_span(entry["data_offsets"]):
        raise refused(
            file, f"describes tensor {shown(name)} with other than type, shape and place", reason="HEADER"
        )
    dtype = _DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise refused(
            file,
            f"stores tensor {shown(name)} as {shown(entry['dtype'])}, which is not supported",
            reason="DTYPE",
            hint=f"convert it to one of {', '.join(_DTYPES)}",
        )
    shape = check_shape(file, name, entry["shape"])
    begin, end = entry["data_offsets"]
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise refused(file, f"gives tensor {shown(name)} other bytes than its shape needs", reason="SIZE")
    return dtype, shape, (begin, end)


def _is_span(offsets: Any) -> bool:
    return (
        isinstance(offsets, list)
        and len(offsets) == 2
        and all(type(offset) is int for offset in offsets)
        and 0 <= offsets[0] <= offsets[1]
    )


def _check_cover(file: EvidenceFile, spans: list[Span], size: int) -> None:
    """Every byte after the header belongs to exactly one tensor."""
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            reason, what = ("OVERLAP", "overlaps another") if begin < position else ("HOLE", "follows a hole")
            raise refused(file, f"has a tensor {shown(name)} that {what}", reason=reason)
        position = end
    if position > size:
        raise refused(file, f"ends {position - size} bytes before its last tensor", reason="TRUNCATED")
    if position < size:
        raise refused(file, f"has {size - position} bytes after its last tensor", reason="TRAILING")


def _load(file: EvidenceFile, name: str, dtype: torch.dtype, shape: tuple[int, ...], offset: int) -> Tensor:
    raw = filled(file, name, math.prod(shape) * dtype.itemsize, partial(file.read_into, offset))
    return typed(file, name, raw, dtype).reshape(shape)
