"""How a command's work is divided: which scheduler, whose threads, and what was read for the archive's digest."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Generic

import torch

from flforensics.archive.declared import Archive
from flforensics.cli.memory import keep_freed
from flforensics.results import Progress
from flforensics.scheduling import InProcess, Result, Scheduler, Task, Work
from flforensics.scheduling.processes import Processes


@dataclass(frozen=True)
class _Witnessed(Generic[Result]):
    """A result, and the SHA-256 of every file that was opened so far where it was computed."""

    result: Result
    sums: dict[str, str]


@contextmanager
def divided(jobs: int) -> Iterator[Scheduler]:
    """The scheduler for so many processes; in this block, one process's part of the threads is used here, too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // jobs))
    try:
        yield InProcess() if jobs == 1 else Processes(jobs)
    finally:
        torch.set_num_threads(threads)


def answers(
    scheduler: Scheduler, archive: Archive, work: Work[Task, Result], tasks: Sequence[Task], progress: Progress
) -> Iterator[Result]:
    """The results of `work` in the tasks' order; what it reads of `archive`, wherever, counts for the digest.

    Raises EvidenceError (CHANGED) where two processes read different bytes under one path.
    """
    witnessed = partial(_witnessed, archive, work, torch.get_num_threads())
    for one in scheduler.run(witnessed, tasks, progress):
        archive.admit(one.sums)
        yield one.result


def _witnessed(
    archive: Archive, work: Work[Task, Result], threads: int, task: Task, progress: Progress
) -> _Witnessed[Result]:
    keep_freed()
    torch.set_num_threads(threads)
    with archive.hashing():
        result = work(task, progress)
        return _Witnessed(result, archive.sums())
