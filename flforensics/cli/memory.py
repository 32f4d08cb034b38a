"""Memory that was freed stays with the program, for whatever needs memory next.

glibc gives large pieces back to the system as soon as they are free, and what a thread other than the first had,
and the system must fill every page with zeros before it hands it out again. A ledger of fifty clients spent an
eighth of its time on that, and more. So all threads share one store, which does not shrink.
"""

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
"""The numbers of mallopt(3)'s parameters."""

_VERSION = "CS_GNU_LIBC_VERSION"


def keep_freed() -> None:
    """From now on, for this process. Without effect where malloc is not glibc's."""
    if _VERSION in getattr(os, "confstr_names", ()) and os.confstr(_VERSION):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_ARENA_MAX, 1)
        library.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
