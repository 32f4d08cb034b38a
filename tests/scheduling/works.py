"""Works that other processes can import; none needs torch."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from flforensics.errors import EvidenceError, NotComputableError, UsageError
from flforensics.results import Progress

ERRORS = {
    "usage": UsageError("the command means nothing", hint="say it otherwise"),
    "evidence": EvidenceError("a.bin is cut", reason="TRUNCATED", file="a.bin", hint="restore it"),
    "not computable": NotComputableError("there is no answer", reason="NON_FINITE"),
    "internal": ValueError("a mistake of the program"),
    "exit": SystemExit(3),
}
PATIENCE = 120.0


@dataclass(frozen=True)
class Task:
    """What to do in the folder that the work names; `after` is a file of it to wait for."""

    number: int
    after: str = ""
    error: str = ""
    killed: bool = False


@dataclass(frozen=True)
class Noting:
    """Leaves a file when a task begins and one when it ends; gives the number squared, and by which process."""

    folder: Path

    def __call__(self, task: Task, progress: Progress) -> tuple[int, int]:
        """As the task says."""
        (self.folder / f"began-{task.number}").touch()
        for step in range(3):
            progress(f"task {task.number}", step + 1, 3)
        if task.after:
            wait_for(self.folder / task.after)
        if task.killed:
            os.kill(os.getpid(), signal.SIGKILL)
        if task.error:
            raise ERRORS[task.error]
        (self.folder / f"ended-{task.number}").touch()
        return task.number**2, os.getpid()


class OddError(Exception):
    """An error that can be pickled and not be made again."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


def odd(_task: int, _progress: Progress) -> int:
    """Raises it."""
    raise OddError("this", "that")


def unsendable(_task: int, _progress: Progress) -> object:
    """Gives what cannot be pickled."""
    return lambda: None


def sleep_in_a_folder(folder: str, task: int, _progress: Progress) -> int:
    """Makes a temporary folder, as reading HDF5 does, says so, and sleeps."""
    with named(folder, task), TemporaryDirectory(dir=folder):
        (Path(folder) / f"pid-{os.getpid()}").touch()
        time.sleep(2 * PATIENCE)
    return task


@contextmanager
def named(folder: str, task: int) -> Iterator[None]:
    """A file while the block runs."""
    path = Path(folder) / f"running-{task}"
    path.touch()
    try:
        yield
    finally:
        path.unlink()


def wait_for(path: Path) -> None:
    """Until the file exists."""
    end = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.01)
