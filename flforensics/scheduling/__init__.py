"""Who runs independent tasks, and where.

A command that asks the same of many rounds is one `work` and a list of tasks: `work(task, progress)` gives the
task's result. All three are plain data and can be pickled: a work says which archive and which settings, a task
which round, and nothing in either is open. So whoever can send bytes and call a function can be a scheduler; none
has to know what the work is.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, TypeVar

from flforensics.results import Progress

Task = TypeVar("Task")
Result = TypeVar("Result")
Work = Callable[[Task, Progress], Result]


class Scheduler(Protocol):
    """Runs tasks that do not depend on each other."""

    def run(self, work: Work[Task, Result], tasks: Sequence[Task], progress: Progress) -> Iterator[Result]:
        """The results in the order of the tasks, each as soon as it and all before it are there.

        The first error in that order is raised as it is, and no further task is started. A task may run more than
        once, anywhere; a work that is sent to several places is opened in each. `progress` follows the task whose
        result is next.
        """


@dataclass(frozen=True)
class InProcess:
    """One task after the other, here."""

    def run(self, work: Work[Task, Result], tasks: Sequence[Task], progress: Progress) -> Iterator[Result]:
        """As the protocol says."""
        return (work(task, progress) for task in tasks)


HERE = InProcess()


class Sendable:
    """A frozen dataclass that is sent as its fields alone: what was worked out from them stays behind."""

    def __reduce__(self) -> tuple[Any, ...]:
        """The call that makes it again."""
        return type(self), tuple(getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]
