"""What can go wrong, as facts; `cli` alone turns them into prose and an exit status.

    FLForensicsError
    ├── UsageError         the command cannot mean anything as it was given
    ├── ProcessError       a process that did part of the work was lost
    └── EvidenceError      a file is missing, rejected, or does not decide the question
        └── NotComputableError  the evidence was read, but the method has no answer on it

A message is one sentence that names the file; `hint` says the way out. Errors can be pickled, so that one that was
raised in another process arrives as it is.
"""

import copyreg
from typing import Any


class FLForensicsError(Exception):
    """The base of every error that this package raises on purpose."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by its fields: its class's arguments are not those that `Exception` keeps."""
        return copyreg.__newobj__, (type(self), self.message), vars(self)  # type: ignore[attr-defined]


class UsageError(FLForensicsError):
    """The command or the configuration that the operator wrote makes no sense."""


class ProcessError(FLForensicsError):
    """A process that did part of the work ended before it was done: killed, or out of memory."""


class EvidenceError(FLForensicsError):
    """Evidence is missing, was rejected, or does not decide the question.

    `reason` is a stable upper-case code (`MISSING`, `TRUNCATED`, `PICKLE_GLOBAL`, ...) and `file` the path
    relative to the archive or the working folder, so that a report can list both without parsing prose.
    """

    def __init__(self, message: str, *, reason: str, file: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason
        self.file = file


class NotComputableError(EvidenceError):
    """The method is not defined on this evidence: a non-finite target, a variance that is not positive."""
