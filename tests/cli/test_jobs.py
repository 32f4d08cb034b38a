"""--jobs: the same report whoever runs the tasks, the same digest, and errors that say what to do."""

import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch

from flforensics.scheduling.processes import Processes
from tests.cli import tampering
from tests.cli.test_reports import digest
from tests.scheduling.works import Noting, Task

LINEAGE = ("lineage", "inputs/9/0553.png", "inputs/9/0815.png", "inputs/7/0299.png", "--nodes", 2)
REPLAY = ("replay", "--recover")
FACTORY = """
from torch import nn

def network():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 10),
    )
"""


class Elsewhere:
    """A foreign engine: it has nothing but bytes, forgets the work after every task, and begins with the last."""

    def __init__(self, _jobs):
        pass

    def run(self, work, tasks, progress):
        sent = [pickle.dumps((work, task)) for task in tasks]
        return (pickle.loads(answer) for answer in [self.answered(one, progress) for one in sent[::-1]][::-1])

    def answered(self, sent, progress):
        work, task = pickle.loads(sent)
        return pickle.dumps(work(task, progress))


class Meddling(Elsewhere):
    """The same, while somebody writes into the archive between two tasks."""

    def answered(self, sent, progress):
        answer = super().answered(sent, progress)
        tampering.edit(Path("rounds/0011/global.safetensors"), "0.bias", lambda tensor: tensor + 1)
        return answer


@pytest.fixture(autouse=True)
def one_thread():
    """As many threads with two jobs as with one, so that not a digit may differ."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def engine(monkeypatch):
    """Puts a foreign scheduler in the place of processes."""
    return lambda scheduler: monkeypatch.setattr("flforensics.cli.dividing.Processes", scheduler)


def reports(run, *arguments, at):
    """The report with one job and with two: status, text and messages."""
    return [run(*arguments, "--format", "json", "--jobs", jobs, at=at) for jobs in (1, 2)]


# ------------------------------------------------------------ a foreign engine


@pytest.mark.parametrize(
    "command",
    [
        LINEAGE,
        (*LINEAGE, "--from", 9, "--precise"),
        (*LINEAGE, "--round", 5, "--against", "4", "--departures"),
        REPLAY,
    ],
    ids=lambda command: " ".join(map(str, command)),
)
def test_a_foreign_engine_gives_the_same_report(command, run, engine, fixtures):
    engine(Elsewhere)
    alone, divided = reports(run, *command, at=fixtures / "digits")
    assert alone.status == 0
    assert divided == alone


def lost(archive):
    tampering.fused(archive, 5).unlink()
    tampering.client(archive, number=8).unlink()


def unreadable(archive):
    path = tampering.client(archive, number=5)
    path.write_bytes(path.read_bytes()[:1000])


def inconsistent(archive):
    tampering.edit(tampering.fused(archive, 9), "0.bias", lambda tensor: tensor + 1)


def started_elsewhere(archive):
    """Round 9 started from another model than the global of round 8."""
    for number in range(1, 13):
        source = tampering.fused(archive, 3 if number == 9 else number - 1)
        shutil.copy(source, source.parents[1] / f"{number:04d}/previous.safetensors")
    layout = '[layout]\nprevious = "rounds/{round:04d}/previous.safetensors"'
    tampering.replace_in(archive / "archive.toml", "[layout]", layout)


@pytest.mark.parametrize(
    "damage", [lost, unreadable, inconsistent, started_elsewhere], ids=lambda damage: damage.__name__
)
@pytest.mark.parametrize("command", [LINEAGE, REPLAY], ids=["lineage", "replay"])
def test_what_is_wrong_is_told_alike(command, damage, run, engine, digits):
    engine(Elsewhere)
    damage(digits)
    alone, divided = reports(run, *command, at=digits)
    assert alone.status in ((0,) if (command, damage) == (REPLAY, started_elsewhere) else (1, 3))
    assert divided == alone


@pytest.mark.parametrize("command", [REPLAY, ("lineage", "input.png", "--nodes", 1)], ids=["replay", "lineage"])
def test_a_rule_with_memory_reads_the_rounds_before(command, run, engine, last_rounds):
    engine(Elsewhere)
    rule = 'rule = "fedavgm"\nmomentum = 0.9\nlearning_rate = 1.0'
    tampering.replace_in(last_rounds / "archive.toml", 'rule = "fedavg"', rule)
    alone, divided = reports(run, *command, at=last_rounds)
    assert alone.status == 1
    assert divided == alone


def test_a_file_that_changes_between_two_tasks_is_told(run, engine, last_rounds):
    engine(Meddling)
    outcome = run("lineage", "input.png", "--nodes", 1, "--jobs", 2, at=last_rounds)
    assert (outcome.status, outcome.stdout) == (3, "")
    assert "rounds/0011/global.safetensors was read twice, with different bytes" in outcome.stderr


# ---------------------------------------------------- processes of this machine


def test_two_processes_give_the_same_report_with_a_network_of_the_operators_own(
    run, last_rounds, tmp_path, monkeypatch
):
    manifest = last_rounds / "archive.toml"
    model, rest = re.split(r"(?=\[input\])", manifest.read_text())
    manifest.write_text(f'{model.partition("[model]")[0]}[model]\nsource = "python"\n\n{rest}')
    (tmp_path / "own_networks.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    command = ("lineage", "input.png", "--nodes", 1, "--factory", "own_networks:network")
    alone, divided = reports(run, *command, at=last_rounds)
    assert (alone.status, alone.stderr) == (0, "")
    assert divided == alone
    names = [path.relative_to(last_rounds) for path in last_rounds.rglob("*") if path.suffix != ".md"]
    files = [name for name in names if (last_rounds / name).is_file()]
    assert divided.json["archive"]["digest"] == digest(last_rounds, files)


def test_a_process_that_dies_is_one_sentence_and_70(run, engine, last_rounds, tmp_path):
    class Killed(Elsewhere):
        def run(self, _work, _tasks, progress):
            return Processes(2).run(Noting(tmp_path), [Task(0, killed=True), Task(1)], progress)

    engine(Killed)
    outcome = run("replay", "--jobs", 2, at=last_rounds)
    assert (outcome.status, outcome.stdout) == (70, "")
    message, hint = outcome.stderr.splitlines()
    assert message.endswith("a process that did part of the work was killed (SIGKILL) before it was done.")
    assert "--jobs" in hint


@pytest.mark.parametrize("jobs", [0, -1, "many"])
def test_jobs_that_mean_nothing(jobs, run, last_rounds):
    outcome = run("replay", "--jobs", jobs, at=last_rounds)
    assert (outcome.status, outcome.stdout) == (2, "")
    assert "--jobs" in outcome.stderr
