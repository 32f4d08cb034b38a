"""Where results and progress go: results to stdout or whole into a file, progress to a terminal's stderr."""

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from flforensics.errors import UsageError
from flforensics.report import REPORTS, Result, render
from flforensics.results import Progress

if TYPE_CHECKING:
    from flforensics.provenance.profile import Profile


def require_forms(form: str | None, outputs: Sequence[Path]) -> None:
    """Raise UsageError, before any work, if a report would have no format or no folder to go to."""
    for path in outputs:
        if form is None:
            _form(path)
        if not path.parent.is_dir():
            raise UsageError(f"cannot write {path} (its folder does not exist)", hint="give another --output")


def deliver(result: Result, *, form: str | None, outputs: Sequence[Path], top: int | None = None) -> None:
    """Print the report, or put it into each of `outputs`, replacing a file only once it is complete."""
    if not outputs:
        click.echo(render(result, form or "table", top=top), nl=False)
    texts = [render(result, form or _form(path), top=top) for path in outputs]
    for path, text in zip(outputs, texts, strict=True):
        try:
            _replace(path, text)
        except OSError as error:
            raise UsageError(f"cannot write {path} ({error.strerror})", hint="give another --output") from None
        click.echo(f"flforensics: wrote {path}", err=True)


def _form(path: Path) -> str:
    """The format that a file's suffix stands for."""
    for name, row in REPORTS.items():
        if path.suffix == row.suffix:
            return name
    known = ", ".join(row.suffix for row in REPORTS.values())
    raise UsageError(f"the suffix of {path} stands for no format", hint=f"use --format, or one of {known}")


def profile_lines(profile: "Profile") -> str:
    """Where the time went, for people."""
    from flforensics.provenance.profile import IN_TURN, READING

    rows = [f"  {name:<22} {profile.seconds[name]:8.2f} s" for name in IN_TURN]
    times = "once" if profile.passes == 1 else f"{profile.passes} times"
    beside = f"  {READING + ', beside these':<22} {profile.seconds[READING]:8.2f} s"
    limit = f"{profile.limit:.0%} of the limit: the longer of reading and computing, if they overlapped altogether"
    return "\n".join(["time by stage:", *rows, beside, f"the clients were read {times}; {limit}"])


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar for each stage in turn; silent where stderr is no terminal."""
    bars: list[tqdm[Any]] = []

    def advance(stage: str, done: int, total: int) -> None:
        if not bars or bars[-1].desc != stage:
            _close(bars)
            bars.append(tqdm(total=total, desc=stage, leave=False, disable=not sys.stderr.isatty()))
        bars[-1].desc = stage
        bars[-1].update(done - bars[-1].n)

    try:
        yield advance
    finally:
        _close(bars)


def _close(bars: "list[tqdm[Any]]") -> None:
    while bars:
        bars.pop().close()


def _replace(path: Path, text: str) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
