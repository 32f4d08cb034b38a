"""What every reader refuses alike: how a refusal reads, and the limits on names, shapes and sizes."""

import math
from collections.abc import Callable
from typing import Any

from flforensics.errors import EvidenceError
from flforensics.evidence import EvidenceFile

Siblings = Callable[[str], EvidenceFile]

MAX_TENSORS = 200_000
MAX_NAME = 4096
MAX_RANK = 64
MAX_ELEMENTS = 1 << 50
BLOCK = 1 << 22

_UNPACKED_FLOOR = 1 << 28
_UNPACKED_RATIO = 200
_UNPACKED_CEILING = 1 << 36


def refused(file: EvidenceFile, problem: str, *, reason: str, hint: str = "") -> EvidenceError:
    """The error that `file` was refused: `problem` continues the sentence that its name begins."""
    return EvidenceError(
        f"{file.name} {problem}", reason=reason, file=file.name, hint=hint or "ask its sender for an intact file"
    )


def shown(name: object) -> str:
    """A name out of a file, safe to print: quoted, ASCII only, never long."""
    text = ascii(name[:MAX_NAME] if isinstance(name, str) else name)
    return text if len(text) <= 80 else f"{text[:60]}...{text[-17:]}"


def check_name(file: EvidenceFile, name: Any) -> str:
    """`name` if a tensor may be called so. Raises EvidenceError (KEYS, NAME)."""
    if not isinstance(name, str):
        raise refused(
            file,
            f"has an entry whose name is of type {type(name).__name__}, not text",
            reason="KEYS",
            hint="save a dictionary from tensor names to tensors",
        )
    if not 0 < len(name) <= MAX_NAME or not (name.isascii() or _is_unicode(name)):
        raise refused(
            file,
            f"has an entry with the unusable name {shown(name)}",
            reason="NAME",
            hint=f"names are 1 to {MAX_NAME} characters of valid Unicode",
        )
    return name


def _is_unicode(name: str) -> bool:
    """Whether no half of a surrogate pair stands alone in it."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def check_shape(file: EvidenceFile, name: str, dimensions: Any) -> tuple[int, ...]:
    """`dimensions` as a shape. Raises EvidenceError (SHAPE, LIMIT)."""
    if not isinstance(dimensions, list | tuple) or not all(type(d) is int and d >= 0 for d in dimensions):
        raise refused(file, f"gives tensor {shown(name)} a shape that is none", reason="SHAPE")
    if len(dimensions) > MAX_RANK or math.prod(max(d, 1) for d in dimensions) > MAX_ELEMENTS:
        raise refused(file, f"gives tensor {shown(name)} a shape beyond every limit", reason="LIMIT")
    return tuple(dimensions)


def check_count(file: EvidenceFile, count: int) -> None:
    """Raises EvidenceError (LIMIT) when a file says that it holds more entries than any model has."""
    if count > MAX_TENSORS:
        raise refused(file, f"holds {count} entries, more than {MAX_TENSORS}", reason="LIMIT")


def unpacked_budget(size: int) -> int:
    """How many bytes a file of `size` bytes may unpack to: 256 MiB, or 200 times its size up to 64 GiB."""
    return min(_UNPACKED_CEILING, max(_UNPACKED_FLOOR, _UNPACKED_RATIO * size))
