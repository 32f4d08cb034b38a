"""`make bench-speed`: ratios, fractions of the limit and memory, as JSON and as a table."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import click
import torch

from flforensics.cli.memory import keep_freed
from tests.bench.speed.archives import write_case
from tests.bench.speed.cases import SCALES, Case
from tests.bench.speed.comparison import Measurement, compared, machine, measure_peak
from tests.bench.speed.methods import METHODS
from tests.bench.speed.table import markdown, quoting

_FOLDER = Path("build/bench-speed")
_RESULTS = Path(__file__).with_name("results.json")
_README = Path("README.md")
_CASES = {case.name: case for cases in SCALES.values() for case in cases}
_device = click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)


@click.group()
def main() -> None:
    """Our methods beside the paper's loop, all with memory as the command line has it."""
    keep_freed()


@main.command()
@click.option("--scale", type=click.Choice(list(SCALES)), default="default", show_default=True)
@click.option(
    "--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="At most, for each case."
)
@click.option("--seconds", default=60.0, show_default=True, help="No further repeat of a case after this long.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=_RESULTS, help="JSON; the table lies beside it."
)
@click.option(
    "--only", default="", metavar="PATTERN", help="Measure only cases whose name matches; keep the others."
)
@_device
def compare(scale: str, repeats: int, seconds: float, output: Path, only: str, device: str) -> None:
    """Write each case's archive, measure, and delete it again; results are written after every case.

    Cases that were measured before, on the same machine, stay as they are where they are not measured again. The
    README is made to quote what lies at the default output.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    known = _known(output, scale, machine(device)) if only else {}
    for case in SCALES[scale]:
        if not re.search(only, case.name):
            continue
        known[case.name] = _measured(case, Measurement(repeats, seconds, device))
        cases = [known[one.name] for one in SCALES[scale] if one.name in known]
        results = {"scale": scale, "machine": machine(device), "cases": cases}
        output.write_text(json.dumps(results, indent=1) + "\n")
        output.with_suffix(".md").write_text(markdown(results))
    table = output.with_suffix(".md").read_text()
    if output == _RESULTS:
        _README.write_text(quoting(_README.read_text(), table))
    click.echo(table)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("case", type=click.Choice(list(_CASES)))
@click.argument("method", type=click.Choice(list(METHODS)))
@_device
def peak(folder: Path, case: str, method: str, device: str) -> None:
    """Print the bytes of anonymous memory that one method needs on one archive."""
    click.echo(measure_peak(folder, _CASES[case], method, device))


def _measured(case: Case, how: Measurement) -> dict[str, object]:
    _say(f"{case.name}: writing the archive")
    shutil.rmtree(_FOLDER, ignore_errors=True)
    try:
        return compared(write_case(_FOLDER, case), case, how, _say)
    finally:
        shutil.rmtree(_FOLDER, ignore_errors=True)


def _known(output: Path, scale: str, here: dict[str, Any]) -> dict[str, dict[str, object]]:
    """The cases of this scale that were measured here before, by name."""
    before = json.loads(output.read_text()) if output.exists() else {}
    same = before.get("scale") == scale and before.get("machine") == here
    return {case["case"]: case for case in before["cases"]} if same else {}


def _say(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    main()
