"""What the README shows is what the commands print; a new command or status that it does not mention fails."""

import re
import shlex
from pathlib import Path

import pytest

from flforensics import cli
from flforensics.fusion import FUSIONS
from flforensics.provenance import METHODS
from flforensics.provenance.localize import LOCALIZERS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```console\n(.*?)\n```", README, re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]\d+)?")
ROUNDING = 5e-3


def executed(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What a `flforensics ...` line prints when typed in `folder`, its long last sentence shortened."""
    monkeypatch.chdir(folder)
    name, *arguments = shlex.split(line)
    assert name == "flforensics"
    cli.main(arguments)
    printed = capsys.readouterr().out.rstrip("\n")
    return re.sub(r"\nLimits: .*", "\nLimits: ...", printed, flags=re.DOTALL)


def alike(shown: str, printed: str) -> None:
    """The same text, numbers up to what another processor may round differently."""
    assert re.sub(r"\s+|-+", " ", NUMBER.sub("#", shown)) == re.sub(r"\s+|-+", " ", NUMBER.sub("#", printed))
    for left, right in zip(NUMBER.findall(shown), NUMBER.findall(printed), strict=True):
        assert float(left) == pytest.approx(float(right), rel=0.05, abs=ROUNDING)


@pytest.mark.parametrize(
    "block", BLOCKS, ids=lambda block: block.splitlines()[-1 if "\n" not in block else 1][:60]
)
def test_an_example_prints_what_the_readme_shows(
    block: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, shown = ROOT, block.split("\n$ ")
    for part in [shown[0].removeprefix("$ "), *shown[1:]]:
        command, _, output = part.partition("\n")
        if command.startswith("cd "):
            folder = ROOT / command[3:]
            continue
        alike(output, executed(command, folder, monkeypatch, capsys))


def test_there_are_examples() -> None:
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize("word", [*cli.COMMANDS, *METHODS, *LOCALIZERS, *FUSIONS])
def test_every_command_method_and_rule_is_explained(word: str) -> None:
    assert f"`{word}`" in README or f"`flforensics {word}" in README


@pytest.mark.parametrize(
    "status", [cli.WELL, cli.FINDING, cli.USAGE, cli.UNDECIDED, cli.INTERNAL, cli.INTERRUPTED]
)
def test_every_exit_status_is_explained(status: int) -> None:
    assert re.search(rf"^\| {status} \| \w", README, re.MULTILINE)


def test_links_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_shown_manifest_is_the_fixture_shortened() -> None:
    shown = re.search(r"```toml\n(.*?)\n```", README, re.DOTALL)
    assert shown is not None
    real = (ROOT / "fixtures/digits/archive.toml").read_text()
    lines = [line for line in shown.group(1).splitlines() if line.strip() and "... " not in line]
    assert [line for line in lines if line not in real] == []
