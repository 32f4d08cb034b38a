"""The commands' whole outputs on the real archives, and their help."""

import pytest

from flforensics.cli import COMMANDS
from tests.cli import goldens

TRACE = ("trace", "--device", "cpu", "--round")
DIGITS, TEXT = (*TRACE, 12), (*TRACE, 6)
LOCALIZE = ("localize", "--device", "cpu", "--round", 12)
FEW = ("inputs/1/0397.png", "inputs/5/*.png", "inputs/9/1543.png")

REPORTS = {
    "digits-inspect.txt": ("digits", "inspect"),
    "digits-inspect.json": ("digits", "inspect", "--format", "json"),
    "digits-inspect.csv": ("digits", "inspect", "--format", "csv"),
    "digits-replay.txt": ("digits", "replay"),
    "digits-replay.json": ("digits", "replay", "--round", 12, "--format", "json"),
    "digits-replay.csv": ("digits", "replay", "--round", 12, "--format", "csv"),
    "digits-trace.txt": ("digits", *DIGITS, "input.png"),
    "digits-trace.json": ("digits", *DIGITS, "input.png", "--format", "json"),
    "digits-trace.csv": ("digits", *DIGITS, "input.png", "--format", "csv"),
    "digits-trace-top.txt": ("digits", *DIGITS, "input.png", "--top", 2),
    "digits-trace-class.txt": ("digits", *DIGITS, "input.png", "--class", 9, "--target", "logprob", "--precise"),
    "digits-trace-confirm.txt": ("digits", *DIGITS, "input.png", "--confirm"),
    "digits-trace-confirm.json": ("digits", *DIGITS, "input.png", "--confirm", "--format", "json"),
    "digits-trace-confirm-many.txt": ("digits", *DIGITS, "inputs/9", "--confirm", "--nodes", 4),
    "digits-trace-few.txt": ("digits", *DIGITS, *FEW),
    "digits-trace-few.json": ("digits", *DIGITS, *FEW, "--format", "json"),
    "digits-trace-many.txt": ("digits", *DIGITS, "inputs"),
    "digits-trace-many.csv": ("digits", *DIGITS, "inputs", "--format", "csv"),
    "digits-tracefl.txt": ("digits", *DIGITS, "input.png", "--method", "tracefl"),
    "digits-tracefl.json": ("digits", *DIGITS, "input.png", "--method", "tracefl", "--format", "json"),
    "digits-tracefl-many.txt": ("digits", *DIGITS, "inputs", "--method", "tracefl", "--no-scale-clients"),
    "digits-lineage.txt": ("digits", "lineage", "--device", "cpu", "input.png", "--nodes", 8),
    "digits-lineage.json": ("digits", "lineage", "--device", "cpu", "input.png", "--from", 10, "--format", "json"),
    "digits-lineage.csv": ("digits", "lineage", "--device", "cpu", "input.png", "--from", 10, "--format", "csv"),
    "digits-lineage-many.txt": ("digits", "lineage", "--device", "cpu", "inputs/9", "--from", 9),
    "text-lineage.txt": ("text", "lineage", "--device", "cpu", "input.txt", "--top", 2),
    "digits-localize.txt": ("digits", *LOCALIZE, "inputs"),
    "digits-localize.json": ("digits", *LOCALIZE, "inputs", "--format", "json"),
    "digits-localize.csv": ("digits", *LOCALIZE, "inputs", "--format", "csv"),
    "text-inspect.txt": ("text", "inspect"),
    "text-replay.txt": ("text", "replay"),
    "text-trace.txt": ("text", *TEXT, "input.txt"),
    "text-trace.json": ("text", *TEXT, "input.txt", "--format", "json"),
    "text-trace-many.txt": ("text", *TEXT, "inputs", "--labels", "inputs/labels.csv"),
    "text-trace-typed.txt": ("text", *TEXT, "--text", "the invoice is on the desk", "--nodes", 4),
    "text-tracefl.csv": ("text", *TEXT, "inputs/000*.txt", "--method", "tracefl", "--format", "csv"),
}


@pytest.mark.parametrize("name", REPORTS)
def test_report(name, run, golden, fixtures):
    folder, *arguments = REPORTS[name]
    outcome = run(*arguments, at=fixtures / folder)
    assert (outcome.status, outcome.stderr) == (0, "")
    golden(name, outcome.stdout)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(command, run, golden, tmp_path):
    outcome = run(*command.split(), "--help", at=tmp_path)
    assert (outcome.status, outcome.stderr) == (0, "")
    golden(f"help{command and '-'}{command}.txt", outcome.stdout, differences=_different_words)


def test_every_golden_is_compared():
    compared = {*REPORTS, "help.txt", *(f"help-{command}.txt" for command in COMMANDS)}
    assert {path.name for path in goldens.FOLDER.iterdir()} == compared


@pytest.mark.parametrize(
    ("expected", "found", "same"),
    [
        ("+4.04 over 9", "+4.05 over 9", True),
        ("+4.04 over 9", "+4.06 over 9", False),
        ("+4.04 over 9", "-4.04 over 9", False),
        ("12 inputs", "13 inputs", False),
        ('"score": 0.51234', '"score": 0.51279', True),
        ('"score": 0.51234', '"score": 0.51334', False),
        ('"residual": 3.1e-09', '"residual": -2.2e-08', True),
        ("one line", "one line\nanother", False),
        ("sha256:1e5a", "sha256:1e6a", False),
    ],
)
def test_what_counts_as_a_difference(expected, found, same):
    assert (goldens.differences(expected, found) == []) is same


def _different_words(expected, found):
    return [] if goldens.words(expected) == goldens.words(found) else [found]
