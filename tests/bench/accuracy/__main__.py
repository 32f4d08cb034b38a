"""Run the cells that are not yet finished, then write the table."""

import gzip
import json
import platform
import re
import time
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path

import click
import torch
from tqdm import tqdm

from flforensics.errors import FLForensicsError
from tests.bench.accuracy.cells import SCALES, Cell
from tests.bench.accuracy.data import Dataset, load
from tests.bench.accuracy.federations import Federation, State
from tests.bench.accuracy.methods import answers_to
from tests.bench.accuracy.records import Record, finished, record_of
from tests.bench.accuracy.scenarios import questions
from tests.bench.accuracy.table import LINES, README, TABLE, quoting, report

CACHE = Path("build/accuracy")


@click.command()
@click.option(
    "--data", type=click.Path(path_type=Path), help="Folder with mnist.zip, cifar10.zip, trec/, agnews/."
)
@click.option("--scale", type=click.Choice(list(SCALES)), default="default", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=CACHE / "results.jsonl", show_default=True)
@click.option("--publish", is_flag=True, help="Write table and lines beside this program and into README.md.")
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--only", default="", metavar="PATTERN", help="Only federations whose name matches this expression.")
@click.option("--reuse", is_flag=True, help=f"Keep trained models in {CACHE} (tens of GB) and use what is there.")
def main(
    data: Path | None, scale: str, out: Path, publish: bool, seed: int, threads: int, only: str, reuse: bool
) -> None:
    """How often each method is right, on federations whose culprits are known. Interrupted, it goes on."""
    torch.set_num_threads(threads)
    known = finished(out)
    done = {record["name"] for record in known if record["scale"] == scale}
    cells = [cell for cell in SCALES[scale](seed) if re.search(only, cell.setting.name)]
    missing = [cell for cell in cells if cell.setting.name not in done]
    if missing and data is None:
        raise click.UsageError("give --data (make bench-accuracy DATA=...) the folder with the data")
    out.parent.mkdir(parents=True, exist_ok=True)
    _write(out, known)
    starts: dict[str, State] = {}
    for cell in (bar := tqdm(missing)):
        bar.set_description(cell.setting.name)
        assert data is not None
        try:
            federation = Federation(
                cell.setting, _dataset(cell.setting.dataset, data), CACHE if reuse else None, starts
            )
            record = {"scale": scale, **run(cell, federation)}
        except FLForensicsError as error:
            raise click.ClickException(error.message) from error
        known.append(record)
        with out.open("a") as file:
            file.write(_line(record))
    names = {cell.setting.name for cell in cells}
    chosen = [record for record in known if record["scale"] == scale and record["name"] in names]
    out.with_suffix(".md").write_text(report(chosen))
    if publish:
        TABLE.write_text(report(chosen))
        README.write_text(quoting(README.read_text(), report(chosen)))
        LINES.write_bytes(gzip.compress("".join(map(_line, chosen)).encode(), mtime=0))


def run(cell: Cell, federation: Federation) -> Record:
    """One federation from its partition to every answer."""
    start = time.perf_counter()
    asked: list[Record] = []
    shapley = set(cell.effort.shapley)
    for question in questions(federation, cell.effort, cell.scenarios):
        predicted = federation.logits(question.round.fused, question.inputs.x).argmax(1)
        answers = answers_to(question, federation, shapley=question.scenario in shapley) if len(predicted) else {}
        if len(predicted):
            shapley.discard(question.scenario)
        asked.append(record_of(question, federation, predicted, answers))
    setting = cell.setting
    return {
        "name": setting.name,
        "dataset": setting.dataset,
        "model": setting.model,
        "alpha": setting.alpha,
        "clients": setting.clients,
        "seed": setting.seed,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "threads": torch.get_num_threads(),
        "seconds": round(time.perf_counter() - start, 1),
        "trainings": federation.trainings,
        "training_seconds": round(federation.training_seconds, 1),
        "questions": asked,
    }


_PACKAGES = ("torch", "torchvision", "transformers")


@cache
def _dataset(name: str, folder: Path) -> Dataset:
    return load(name, folder)


def _write(path: Path, records: Sequence[Record]) -> None:
    """The finished lines alone: what an interruption left half-written goes."""
    path.write_text("".join(map(_line, records)))


def _line(record: Record) -> str:
    return json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n"


if __name__ == "__main__":
    main()
