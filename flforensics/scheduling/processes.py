"""Tasks on several processes of this machine.

They are spawned, not forked: a fork copies locks that other threads hold, and torch has such threads. Messages are
pickled by plain `pickle`, so that nothing is shared that another machine could not be given as well.
"""

import os
import pickle
import signal
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from threading import Thread
from types import FrameType
from typing import Any

from flforensics.errors import ProcessError
from flforensics.results import Progress
from flforensics.scheduling import InProcess, Result, Task, Work

_PATIENCE = 5.0


@dataclass(frozen=True)
class Processes:
    """At most `jobs` processes, each with one task at a time; they end with the last result or the first error.

    Raises ProcessError where a process ends without an answer.
    """

    jobs: int

    def run(self, work: Work[Task, Result], tasks: Sequence[Task], progress: Progress) -> Iterator[Result]:
        """As the protocol says; a single task runs here, as starting a process takes seconds."""
        if len(tasks) < 2:
            return InProcess().run(work, tasks, progress)
        return self._divided(work, tasks, progress)

    def _divided(self, work: Work[Task, Result], tasks: Sequence[Task], progress: Progress) -> Iterator[Result]:
        with _started(min(self.jobs, len(tasks))) as workers:
            for worker in workers:
                worker.give(work)
            round_ = _Round(tasks, workers)
            for place in range(len(tasks)):
                yield round_.answer(place, progress).result()


@dataclass(frozen=True)
class _Advance:
    """How far a task is."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class _Answer:
    """A task's result or its error, with the traceback of the process where it was raised."""

    value: Any = None
    error: BaseException | None = None
    traceback: str = ""

    def result(self) -> Any:
        """The value. Raises the error."""
        if self.error is not None:
            raise self.error from _TracebackError(self.traceback)
        return self.value


class _TracebackError(Exception):
    """Where another process raised an error, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


@dataclass
class _Worker:
    """A process and the line to it; `place` is the task that it has in hand."""

    process: SpawnProcess
    line: Connection
    place: int | None = None

    def give(self, message: object) -> None:
        """Send a work or a task. If the process has gone, that shows when its answer is waited for."""
        with suppress(OSError):
            self.line.send_bytes(pickle.dumps(message))

    def receive(self) -> _Advance | _Answer:
        """What it says next. Raises ProcessError if it has gone."""
        try:
            message: _Advance | _Answer = pickle.loads(self.line.recv_bytes())
        except (EOFError, OSError):
            self.process.join(_PATIENCE)
            raise ProcessError(
                f"a process that did part of the work {_ending(self.process.exitcode)} before it was done",
                hint="if memory ran out, use fewer --jobs or less --memory; with --jobs 1, nothing is divided",
            ) from None
        return message

    def end(self) -> None:
        """Wait for the process; one that does not end by itself is killed."""
        self.process.join(_PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


@dataclass
class _Round:
    """The tasks of one run: handed out in order, collected in any."""

    tasks: Sequence[Any]
    workers: Sequence[_Worker]
    answers: dict[int, _Answer] = field(default_factory=dict)
    _places: Iterator[int] = field(init=False)

    def __post_init__(self) -> None:
        self._places = iter(range(len(self.tasks)))
        for worker in self.workers:
            self._hand(worker)

    def answer(self, place: int, progress: Progress) -> _Answer:
        """The answer to one task. Raises ProcessError."""
        while place not in self.answers:
            lines = {worker.line: worker for worker in self.workers if worker.place is not None}
            for line in wait(list(lines)):
                self._listen(lines[line], place, progress)  # type: ignore[index]
        return self.answers.pop(place)

    def _listen(self, worker: _Worker, place: int, progress: Progress) -> None:
        message = worker.receive()
        if isinstance(message, _Advance):
            if worker.place == place:
                progress(message.stage, message.done, message.total)
            return
        assert worker.place is not None
        self.answers[worker.place] = message
        if message.error is not None:
            self._places = iter(())
        self._hand(worker)

    def _hand(self, worker: _Worker) -> None:
        """Its next task, if any is left."""
        worker.place = next(self._places, None)
        if worker.place is not None:
            worker.give(self.tasks[worker.place])


@contextmanager
def _started(count: int) -> Iterator[list[_Worker]]:
    """So many processes; however the block ends, none outlives it."""
    workers: list[_Worker] = []
    try:
        with _without_interrupts():
            while len(workers) < count:
                workers.append(_start())
        yield workers
    except BaseException:
        for worker in workers:
            worker.process.terminate()
        raise
    finally:
        for worker in workers:
            worker.line.close()
        for worker in workers:
            worker.end()


def _start() -> _Worker:
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ctrl-C reaches every process of a terminal: those that are started in this block leave it to their parent.

    They inherit the mask; the parent gets a Ctrl-C of these moments when the block ends.
    """
    resource_tracker.ensure_running()  # starting it would lift the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ending(status: int | None) -> str:
    """How a process ended, for people."""
    if status is None or status >= 0:
        return f"ended with status {status}"
    return f"was killed ({signal.Signals(-status).name})"


# ----------------------------------------------------- what runs in the child


class _StoppedError(BaseException):
    """The parent wants no more; not to be caught by what catches errors."""


def _serve(line: Connection) -> None:
    """Answer tasks until nobody asks. Ends as any program does, so that temporary files are removed."""
    signal.signal(signal.SIGTERM, _stop)
    Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, OSError, _StoppedError):
        work, opened = line.recv_bytes(), None
        while True:
            task = line.recv_bytes()
            try:
                if opened is None:
                    opened = pickle.loads(work)
                value = opened(pickle.loads(task), lambda *step: line.send_bytes(pickle.dumps(_Advance(*step))))
                answer = pickle.dumps(_Answer(value))
            except _StoppedError:
                raise
            except BaseException as error:  # noqa: BLE001  whatever it is, the parent raises it
                answer = pickle.dumps(_Answer(None, _sendable(error), traceback.format_exc()))
            line.send_bytes(answer)


def _sendable(error: BaseException) -> BaseException:
    """The error, or its words where it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  an error's class may do anything here
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise _StoppedError


def _end_with_parent() -> None:
    """A parent that was killed cannot say that it wants no more."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
