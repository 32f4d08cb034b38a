"""Where the time of a trace goes."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch

Item = TypeVar("Item")

READING, PASSES, PRODUCTS, WAITING = "reading", "forward and backward", "products", "waiting for files"
REPLAY, HASHING, OTHER = "replay", "hashing that was left", "everything else"
IN_TURN = (REPLAY, PASSES, PRODUCTS, WAITING, HASHING, OTHER)
"""The stages that follow one another; reading goes on beside them."""


class Profile:
    """Seconds by stage, if asked for; a stage inside of another one counts for itself alone.

    `passes` counts how often the clients' files were read from the first to the last; it is always known. The
    `seconds` of reading pass on another thread, beside those of the computation. Measuring waits for the device
    after each stage.
    """

    def __init__(self, *, measuring: bool = False) -> None:
        self.measuring = measuring
        self.passes = 0
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inside = threading.local()

    def __reduce__(self) -> "tuple[Callable[[], Profile], tuple[()]]":
        """Another process, to which it is sent, has its own time."""
        return partial(Profile, measuring=self.measuring), ()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the block's time for this stage."""
        if not self.measuring:
            yield
            return
        inside: list[float] = self._inside.__dict__.setdefault("stack", [])
        inside.append(0.0)
        start = time.perf_counter()
        try:
            yield
        finally:
            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                torch.cuda.synchronize()
            spent = time.perf_counter() - start
            self.seconds[name] += spent - inside.pop()
            if inside:
                inside[-1] += spent

    def counted(self, items: Iterator[Item], name: str) -> Iterator[Item]:
        """The items; the time that making them takes counts for this stage."""
        while True:
            with self.stage(name):
                item = next(items, None)
            if item is None:
                return
            yield item

    @property
    def limit(self) -> float:
        """What walks would take if reading and computing overlapped altogether, as a part of what they took."""
        computing = self.seconds[PASSES] + self.seconds[PRODUCTS]
        taken = computing + self.seconds[WAITING]
        return max(self.seconds[READING], computing) / taken if taken else 1.0
