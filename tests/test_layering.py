"""The module map, enforced: imports go down only, and help starts without torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "flforensics"
FLOORS = (
    ("errors", "results"),
    ("rounds", "evidence", "scheduling"),
    ("formats", "fusion", "gradients", "models", "inputs"),
    ("archive", "replay", "provenance", "report"),
    ("cli",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MUST_NOT = {
    "errors": ("torch", "click"),
    "results": ("torch", "click"),
    "report": ("torch", "click"),
    "scheduling": ("torch", "click", "pathlib"),
    "replay": ("click",),
    "archive": ("click",),
    "provenance": ("click", "pathlib"),
    "fusion": ("click", "pathlib"),
    "gradients": ("click", "pathlib"),
    "formats": ("click",),
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    """The top-level room that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """The absolute dotted names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: absolute imports only"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def trespasses(path: Path) -> list[str]:
    """The imports of a file that its floor does not allow."""
    room = room_of(path)
    found = []
    for name in imported(path):
        top, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        if top == "flforensics" and other in FLOOR and other != room and FLOOR[other] >= FLOOR[room]:
            found.append(name)
        if top in MUST_NOT.get(room, ()):
            found.append(name)
    return found


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(path) for path in FILES} - {"__init__", "__main__"}
    assert rooms == set(FLOOR)


@pytest.mark.parametrize(
    "path", [p for p in FILES if room_of(p) in FLOOR], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_go_down_only(path: Path) -> None:
    assert trespasses(path) == []


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("results", "import torch"),
        ("rounds", "from flforensics import formats"),
        ("scheduling", "import torch"),
        ("scheduling", "from flforensics.rounds import Round"),
        ("rounds", "from flforensics.formats.safetensors import contents"),
        ("replay", "import flforensics.provenance.ledger"),
        ("archive", "from flforensics.fusion import FUSIONS"),
        ("fusion", "from flforensics.gradients import plan"),
    ],
)
def test_a_trespass_is_seen(room: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    allowed = room == "archive"  # fusion lies below archive's floor: going down is no trespass
    path = tmp_path / f"{room}.py"
    path.write_text(line)
    assert bool(trespasses(path)) is not allowed


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_file_grows_past_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize(
    "module",
    [
        "flforensics.report.table",
        "flforensics.report.as_json",
        "flforensics.report.as_csv",
        "flforensics.cli",
        "flforensics.cli.trace",
        "flforensics.cli.replay",
        "flforensics.cli.inspect",
        "flforensics.archive",
        "flforensics.formats",
        "flforensics.fusion",
        "flforensics.provenance",
        "flforensics.scheduling.processes",
    ],
)
def test_starts_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
