"""The one door to the bytes of evidence.

Every loader at hand waits forever on a FIFO, follows symbolic links out of an archive, and dies when a
memory-mapped file shrinks under it. So a file is opened once without blocking, must be a regular file below
its root, is read by position into memory that we own, and must be the same file at every later read.
"""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from flforensics.errors import EvidenceError

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Identity:
    """What must not change about a file between two reads."""

    device: int
    inode: int
    size: int
    modified_ns: int


@dataclass(frozen=True)
class EvidenceFile:
    """A regular file that was checked when it was first seen.

    `name` is the path to show: relative to the archive or the working folder, with `/`.
    """

    path: Path
    name: str
    identity: Identity

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.identity.size

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`. Raises EvidenceError (TRUNCATED, CHANGED, UNREADABLE)."""
        buffer = bytearray(length) if self._holds(offset, length) else bytearray()
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the contiguous `buffer` from `offset`. Raises EvidenceError (TRUNCATED, CHANGED, UNREADABLE)."""
        for _ in self.pieces([(offset, buffer)]):
            pass

    def pieces(self, places: Iterable[tuple[int, memoryview]]) -> Iterator[memoryview]:
        """Fill contiguous buffers, each from its offset on, one after the other; each is handed out when full.

        That the file is still the same is known when the last one was. Raises EvidenceError as `read_into`.
        """
        descriptor = self._open()
        try:
            for offset, buffer in places:
                self._holds(offset, buffer.nbytes)
                self._fill(descriptor, offset, buffer)
                yield buffer
            self._require_unchanged(descriptor)
        finally:
            os.close(descriptor)

    def _fill(self, descriptor: int, offset: int, buffer: memoryview) -> None:
        view, done = buffer.cast("B") if buffer.nbytes else buffer, 0
        while done < buffer.nbytes:
            try:
                count = os.preadv(descriptor, [view[done:]], offset + done)
            except OSError as error:
                raise _unreadable(self.name, error) from None
            if count == 0:
                raise self._changed()
            done += count

    @cached_property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 of the whole file, computed once."""
        digest, buffer, offset = hashlib.sha256(), bytearray(min(_CHUNK, max(self.size, 1))), 0
        while offset < self.size:
            part = memoryview(buffer)[: min(len(buffer), self.size - offset)]
            self.read_into(offset, part)
            digest.update(part)
            offset += part.nbytes
        return digest.hexdigest()

    def _holds(self, offset: int, length: int) -> bool:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise EvidenceError(
                f"{self.name} ends before byte {offset + length} (it has {self.size})",
                reason="TRUNCATED",
                file=self.name,
                hint="restore the complete file",
            )
        return True

    def _open(self) -> int:
        try:
            descriptor = os.open(self.path, _FLAGS)
        except OSError as error:
            raise _unreadable(self.name, error) from None
        try:
            self._require_unchanged(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _require_unchanged(self, descriptor: int) -> None:
        try:
            status = os.fstat(descriptor)
        except OSError as error:
            raise _unreadable(self.name, error) from None
        if _identity(status) != self.identity:
            raise self._changed()

    def _changed(self) -> EvidenceError:
        return EvidenceError(
            f"{self.name} changed while it was being read",
            reason="CHANGED",
            file=self.name,
            hint="work on a copy that nobody writes to",
        )


def open_evidence(path: Path, name: str, *, root: Path | None = None) -> EvidenceFile:
    """The regular file at `path`, to be called `name` in messages.

    With `root`, the file must lie below it after all symbolic links are resolved.
    Raises EvidenceError: MISSING, OUTSIDE, NOT_REGULAR, UNREADABLE.
    """
    try:
        resolved = path.resolve(strict=True)
    except FileNotFoundError:
        raise EvidenceError(
            f"{name} does not exist", reason="MISSING", file=name, hint="restore the file or correct the path"
        ) from None
    except (OSError, RuntimeError, ValueError) as error:
        raise _unreadable(name, error) from None
    if root is not None and not resolved.is_relative_to(root.resolve()):
        raise EvidenceError(
            f"{name} leads out of the archive to another folder",
            reason="OUTSIDE",
            file=name,
            hint="copy the file into the archive",
        )
    try:
        descriptor = os.open(resolved, _FLAGS)
    except OSError as error:
        raise _unreadable(name, error) from None
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise EvidenceError(
            f"{name} is not a regular file",
            reason="NOT_REGULAR",
            file=name,
            hint="replace it by the file itself",
        )
    return EvidenceFile(resolved, name, _identity(status))


def _identity(status: os.stat_result) -> Identity:
    return Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _unreadable(name: str, error: Exception) -> EvidenceError:
    cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return EvidenceError(
        f"{name} cannot be read ({cause})", reason="UNREADABLE", file=name, hint="check its permissions"
    )
