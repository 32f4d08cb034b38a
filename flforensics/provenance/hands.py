"""Threads that read while others compute, or that do both, each for itself.

A block of clients is read in as many portions as there are hands by default, one thread each. How it is divided
depends on nothing else, so that sums over a portion are the same on every machine.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import TracebackType
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

HANDS = 2


class Hands:
    """To be used in a `with` statement, at whose end the threads do.

    torch divides what a thread does among others of its own. The steps of a hand are too short for that, or there
    are hands enough, and they do without.
    """

    def __init__(self, count: int = HANDS) -> None:
        self._count = count
        self._ahead, self._hands = ThreadPoolExecutor(1), ThreadPoolExecutor(count)

    def __enter__(self) -> "Hands":
        threads, ready = torch.get_num_threads(), Barrier(1 + self._count)
        for _ in range(self._count):
            self._hands.submit(_alone, ready)
        ready.wait()
        torch.set_num_threads(threads)  # the last number that a thread asks for is also that of all new threads
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for threads in (self._ahead, self._hands):
            threads.shutdown(cancel_futures=True)

    def ahead(self, items: Iterator[Item]) -> Iterator[Item]:
        """The items, each made on another thread while the one before it is used."""
        coming = self._ahead.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = self._ahead.submit(next, items, None)
            yield item

    def share(self, work: Callable[[int, slice], Result], lines: slice) -> list[Result]:
        """What `work` gives for every hand and its portion of the lines, in their order."""
        portions = _portions(lines)
        return list(self._hands.map(work, range(len(portions)), portions))

    def each(self, work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """What `work` gives for every item, done by whichever hand is free; after an error no other is begun."""
        return list(self._hands.map(work, items))


def _alone(ready: Barrier) -> None:
    """Torch keeps a number for each thread, from the first time on that it needs one there."""
    torch.set_num_threads(1)
    torch.get_num_threads()
    ready.wait()


def _portions(lines: slice) -> Sequence[slice]:
    """The lines in one portion for each hand; the first are the longer ones."""
    step = max(1, -(-(lines.stop - lines.start) // HANDS))
    return [slice(start, min(start + step, lines.stop)) for start in range(lines.start, lines.stop, step)]
