"""Whoever runs the tasks, results come in order and errors as they are; processes leave nobody behind."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer

import pytest

from flforensics.errors import FLForensicsError, ProcessError
from flforensics.results import no_progress
from flforensics.scheduling import InProcess, Scheduler
from flforensics.scheduling.processes import Processes
from tests.scheduling.works import ERRORS, PATIENCE, Noting, Task, odd, unsendable, wait_for

SCHEDULERS = [InProcess(), Processes(2)]
everywhere = pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda one: type(one).__name__)
ROOT = Path(__file__).parents[2]


def began(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("began-*")}


@everywhere
def test_results_come_in_the_order_of_the_tasks(scheduler: Scheduler, tmp_path: Path) -> None:
    found = scheduler.run(Noting(tmp_path), [Task(number) for number in range(7)], no_progress)
    assert [value for value, _ in found] == [0, 1, 4, 9, 16, 25, 36]


def test_a_task_that_ends_early_waits_for_those_before_it(tmp_path: Path) -> None:
    tasks = [Task(0, after="ended-2"), Task(1), Task(2)]
    found = list(Processes(2).run(Noting(tmp_path), tasks, no_progress))
    assert [value for value, _ in found] == [0, 1, 4]
    pids = [pid for _, pid in found]
    assert pids[1] == pids[2] != pids[0]
    assert os.getpid() not in pids


def test_there_are_no_more_processes_than_jobs(tmp_path: Path) -> None:
    found = list(Processes(2).run(Noting(tmp_path), [Task(number) for number in range(6)], no_progress))
    assert len({pid for _, pid in found}) <= 2


def test_one_task_starts_no_process(tmp_path: Path) -> None:
    assert list(Processes(2).run(Noting(tmp_path), [Task(3)], no_progress)) == [(9, os.getpid())]


@everywhere
def test_no_task_has_no_result(scheduler: Scheduler, tmp_path: Path) -> None:
    assert list(scheduler.run(Noting(tmp_path), [], no_progress)) == []


@pytest.mark.parametrize("kind", ERRORS)
@everywhere
def test_an_error_arrives_as_it_is(scheduler: Scheduler, kind: str, tmp_path: Path) -> None:
    expected = ERRORS[kind]
    found = scheduler.run(Noting(tmp_path), [Task(0), Task(1, error=kind), Task(2)], no_progress)
    assert next(found)[0] == 0
    with pytest.raises(type(expected)) as caught:
        next(found)
    assert type(caught.value) is type(expected)
    assert (str(caught.value), vars(caught.value)) == (str(expected), vars(expected))


def test_an_error_says_where_in_the_other_process_it_was_raised(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a mistake") as caught:
        list(Processes(2).run(Noting(tmp_path), [Task(0, error="internal"), Task(1)], no_progress))
    assert "works.py" in str(caught.value.__cause__)


def test_after_an_error_no_task_is_started(tmp_path: Path) -> None:
    """Also while an earlier task still runs, for a second, beside an idle process."""
    Timer(1.0, (tmp_path / "go").touch).start()
    tasks = [Task(0, after="go"), Task(1, error="evidence"), *map(Task, range(2, 9))]
    with pytest.raises(FLForensicsError, match=r"a\.bin"):
        list(Processes(2).run(Noting(tmp_path), tasks, no_progress))
    assert began(tmp_path) == {"began-0", "began-1"}


def test_the_first_error_in_order_counts_not_the_first_in_time(tmp_path: Path) -> None:
    tasks = [Task(0, error="evidence", after="began-1"), Task(1, error="usage"), Task(2)]
    with pytest.raises(FLForensicsError) as caught:
        list(Processes(2).run(Noting(tmp_path), tasks, no_progress))
    assert str(caught.value) == str(ERRORS["evidence"])


@pytest.mark.parametrize(("work", "words"), [(odd, "OddError: this and that"), (unsendable, "pickle")])
def test_what_cannot_be_sent_is_an_error_with_words(work: object, words: str) -> None:
    with pytest.raises((RuntimeError, AttributeError), match=words):
        list(Processes(2).run(work, [0, 1], no_progress))  # type: ignore[arg-type]


def test_a_process_that_is_killed_is_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(ProcessError) as caught:
        list(Processes(2).run(Noting(tmp_path), [Task(0), Task(1, killed=True), Task(2)], no_progress))
    assert caught.value.message == "a process that did part of the work was killed (SIGKILL) before it was done"
    assert "--jobs" in caught.value.hint


def test_progress_follows_the_task_whose_result_is_next(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    tasks = [Task(0, after="ended-1"), Task(1), Task(2)]
    list(Processes(2).run(Noting(tmp_path), tasks, lambda *step: seen.append(step)))
    assert seen[:3] == [("task 0", done, 3) for done in (1, 2, 3)]
    assert not {step[0] for step in seen} & {"task 1"}


def test_whoever_stops_asking_leaves_no_process(tmp_path: Path) -> None:
    tasks = [Task(0), Task(1, after="never"), Task(2, after="never")]
    found = Processes(2).run(Noting(tmp_path), tasks, no_progress)
    _, pid = next(found)
    del found
    assert not alive(pid)


@pytest.mark.parametrize("kind", ERRORS)
def test_errors_survive_pickling(kind: str) -> None:
    again = pickle.loads(pickle.dumps(ERRORS[kind]))
    assert (type(again), vars(again)) == (type(ERRORS[kind]), vars(ERRORS[kind]))


# ---------------------------------------------------- when the parent is stopped

PARENT = """
import signal, sys
from functools import partial
from flforensics.results import no_progress
from flforensics.scheduling.processes import Processes
from tests.scheduling.works import sleep_in_a_folder
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have it ignored in the background
try:
    list(Processes(2).run(partial(sleep_in_a_folder, sys.argv[1]), [0, 1, 2], no_progress))
except KeyboardInterrupt:
    sys.exit(130)
"""


def alive(pid: int) -> bool:
    """Whether the process runs: not gone, and not only waiting for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_when_the_parent_is_stopped_its_processes_end_and_tidy_up(how: signal.Signals, tmp_path: Path) -> None:
    command, log = [sys.executable, "-c", PARENT, str(tmp_path)], tmp_path.with_suffix(".log")
    with log.open("wb") as stderr:
        parent = subprocess.Popen(command, cwd=ROOT, stderr=stderr, start_new_session=True)
    for task in (0, 1):
        wait_for(tmp_path / f"running-{task}")
    while len(pids := [int(path.name[4:]) for path in tmp_path.glob("pid-*")]) < 2:
        time.sleep(0.01)
    if how is signal.SIGINT:
        os.killpg(parent.pid, how)  # as a terminal does: to every process
    else:
        parent.send_signal(how)
    assert parent.wait(PATIENCE) == (130 if how is signal.SIGINT else -how)
    end = time.monotonic() + PATIENCE
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.01)
    assert not any(map(alive, pids))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"pid-{pid}" for pid in pids)
    assert log.read_text() == ""
