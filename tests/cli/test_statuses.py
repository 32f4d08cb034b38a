"""Each exit status, and what goes with it: where messages and results go, and what is written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from flforensics import report
from flforensics.cli import COMMANDS
from tests.cli import tampering

TRACE = ("trace", "--round", 12, "input.png", "--nodes", 1)
LINEAGE = ("lineage", "input.png", "--nodes", 1)


@pytest.mark.parametrize("command", [("inspect",), ("replay",), TRACE, LINEAGE])
def test_0_when_all_is_well(command, run, last_rounds):
    outcome = run(*command, at=last_rounds)
    assert outcome.status == 0
    assert outcome.stdout
    assert outcome.stderr == ""


@pytest.mark.parametrize("command", [("inspect",), ("replay",), TRACE, LINEAGE])
def test_1_for_a_finding(command, run, last_rounds):
    tampering.edit(tampering.client(last_rounds), "0.bias", tampering.at(0, lambda value: value * float("inf")))
    outcome = run(*command, at=last_rounds)
    assert outcome.status == 1
    assert outcome.stdout
    assert outcome.stderr == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("--nonsense",),
        ("replay", "--round", "twelve"),
        ("trace", "input.png"),
        ("trace", "--round", 12, "input.png", "--method", "guess"),
        ("trace", "--round", 12, "input.png", "--nodes", 0),
        ("trace", "--round", 12, "input.png", "--tolerance", 0),
        ("inspect", "--format", "xml"),
        ("lineage", "input.png", "--round", "last"),
    ],
)
def test_2_for_arguments_that_mean_nothing(arguments, run, last_rounds):
    outcome = run(*arguments, at=last_rounds)
    assert (outcome.status, outcome.stdout) == (2, "")
    assert "Error: " in outcome.stderr
    assert "--help" in outcome.stderr
    assert "Traceback" not in outcome.stderr


@pytest.mark.parametrize("command", [("inspect",), ("replay",), TRACE, LINEAGE])
def test_3_when_evidence_is_missing(command, run, last_rounds):
    tampering.client(last_rounds).unlink()
    assert run(*command, at=last_rounds).status == 3


def test_a_finding_weighs_more_than_a_missing_decision(run, last_rounds):
    tampering.client(last_rounds, number=11).unlink()
    tampering.edit(tampering.client(last_rounds), "0.bias", lambda tensor: tensor + 1)
    verdicts = [one["verdict"] for one in run("replay", "--format", "json", at=last_rounds).json["rounds"]]
    assert verdicts == ["indeterminate", "inconsistent"]
    assert run("replay", at=last_rounds).status == 1


def test_70_keeps_the_traceback_in_a_file(run, last_rounds, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("flforensics.archive.open_archive", _raising(RuntimeError("a secret of the program")))
    outcome = run("inspect", "--output", "report.json", at=last_rounds)
    assert (outcome.status, outcome.stdout) == (70, "")
    assert "Traceback" not in outcome.stderr
    assert "a secret of the program" not in outcome.stderr
    first, hint = outcome.stderr.splitlines()
    assert first.startswith("flforensics: internal error (RuntimeError); the traceback is in ")
    assert "report" in hint
    kept = Path(first.rpartition(" in ")[2].rstrip("."))
    assert kept.parent == tmp_path
    assert "a secret of the program" in kept.read_text()
    assert not (last_rounds / "report.json").exists()


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, click.Abort])
def test_130_when_interrupted(interruption, run, last_rounds, monkeypatch):
    monkeypatch.setattr("flforensics.archive.open_archive", _raising(interruption()))
    outcome = run("replay", "--output", "report.json", at=last_rounds)
    assert (outcome.status, outcome.stdout) == (130, "")
    assert outcome.stderr == "flforensics: interrupted; nothing was written.\n"
    assert sorted(path.name for path in last_rounds.iterdir()) == [
        "README.md",
        "archive.toml",
        "input.png",
        "rounds",
    ]


@pytest.mark.parametrize("error", [SystemExit(0), SystemExit(1), MemoryError(), RecursionError()])
def test_70_whatever_else_goes_wrong(error, run, last_rounds, monkeypatch, tmp_path):
    """An exit out of the operator's own factory is no answer either."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("flforensics.archive.open_archive", _raising(error))
    outcome = run("replay", at=last_rounds)
    assert (outcome.status, outcome.stdout) == (70, "")
    assert f"internal error ({type(error).__name__})" in outcome.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["inspect", "--help"], ["replay", "--archive", "digits"]])
def test_a_reader_that_leaves_early_is_no_error(arguments, fixtures):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "flforensics", *arguments]
    finished = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, cwd=fixtures, check=False)
    os.close(write)
    assert (finished.returncode, finished.stderr) == (0, b"")


# ------------------------------------------------------------------ output


def test_output_is_written_in_the_format_of_its_suffix(run, last_rounds):
    names = ["a.json", "b.csv", "c.txt"]
    outcome = run(*TRACE, *(part for name in names for part in ("--output", name)), at=last_rounds)
    assert (outcome.status, outcome.stdout) == (0, "")
    assert outcome.stderr.splitlines() == [f"flforensics: wrote {name}" for name in names]
    for name, form in zip(names, ("json", "csv", "table"), strict=True):
        assert (last_rounds / name).read_text() == run(*TRACE, "--format", form, at=last_rounds).stdout


def test_format_overrules_the_suffix(run, last_rounds):
    run("replay", "--format", "json", "--output", "report.txt", at=last_rounds)
    assert json.loads((last_rounds / "report.txt").read_text())["schema"] == "flforensics.replay/1"


def test_output_replaces_an_older_report(run, last_rounds):
    (last_rounds / "report.json").write_text("an older report")
    assert run("replay", "--output", "report.json", at=last_rounds).status == 0
    assert json.loads((last_rounds / "report.json").read_text())["rounds"]


def test_an_older_report_survives_a_failure_while_writing(run, last_rounds, monkeypatch):
    (last_rounds / "report.json").write_text("an older report")
    monkeypatch.setattr(Path, "replace", _raising(OSError(28, "No space left on device")))
    outcome = run("replay", "--output", "report.json", at=last_rounds)
    assert outcome.status == 2
    assert "report.json" in outcome.stderr
    assert "No space left on device" in outcome.stderr
    assert (last_rounds / "report.json").read_text() == "an older report"
    assert [path.name for path in last_rounds.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("name", "said"), [("report.xyz", "the suffix of report.xyz"), ("no/such/report.json", "cannot write no/such")]
)
def test_an_output_that_cannot_be(name, said, run, last_rounds):
    outcome = run("replay", "--output", name, at=last_rounds)
    assert (outcome.status, outcome.stdout) == (2, "")
    assert said in outcome.stderr
    assert "--output" in outcome.stderr or "--format" in outcome.stderr


# ---------------------------------------------------------------- archives


def test_the_archive_is_found_from_a_folder_inside_it(run, last_rounds):
    inside = last_rounds / "rounds/0012"
    document = run("trace", "--round", 12, "../../input.png", "--format", "json", at=inside).json
    assert document["archive"]["path"] == "../.."
    assert document["inputs"][0]["source"] == "../../input.png"


def test_the_archive_can_be_named(run, last_rounds, monkeypatch, tmp_path):
    for value in ("digits", "digits/archive.toml"):
        assert (
            run("replay", "--archive", value, "--format", "json", at=tmp_path).json["archive"]["path"] == "digits"
        )
    assert run("replay", at=tmp_path).status == 2
    monkeypatch.setenv("FLFORENSICS_ARCHIVE", "digits")
    assert run("replay", "--format", "json", at=tmp_path).json["archive"]["path"] == "digits"


# ------------------------------------------------------------------- start


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *[[name, "--help"] for name in COMMANDS]])
def test_help_answers_without_torch(arguments):
    code = (
        f"import sys; from flforensics.cli import main; status = main({arguments!r});"
        " sys.exit(status or 'torch' in sys.modules)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout


@pytest.mark.parametrize("form", report.REPORTS)
def test_reports_are_written_without_torch(form):
    code = (
        "import sys; from flforensics.report import render; from flforensics.results import Replay;"
        f" render(Replay('.', 'sha256:0', ()), {form!r}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _raising(error):
    def raises(*_arguments, **_keywords):
        raise error

    return raises
