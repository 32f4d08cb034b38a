"""Options that travel together, and what they resolve to."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from flforensics.archive import MANIFEST
from flforensics.errors import UsageError
from flforensics.report import REPORTS

Command = TypeVar("Command", bound=Callable[..., Any])

_PREFIXES = ("", "K", "M", "G", "T")
_LEAST = 10_000_000


def archive_option(command: Command) -> Command:
    """--archive, or FLFORENSICS_ARCHIVE, or the nearest folder above."""
    return click.option(
        "--archive",
        "archive_path",
        envvar="FLFORENSICS_ARCHIVE",
        show_envvar=True,
        type=click.Path(path_type=Path),
        metavar="PATH",
        help=f"The archive [default: the nearest folder at or above this one with an {MANIFEST}].",
    )(command)


def report_options(command: Command) -> Command:
    """--format and --output."""
    formats = "; ".join(f"{name}: {row.help}" for name, row in REPORTS.items())
    suffixes = ", ".join(row.suffix for row in REPORTS.values())
    command = click.option(
        "--output",
        "outputs",
        multiple=True,
        type=click.Path(path_type=Path),
        metavar="FILE",
        help=f"Write the report to FILE, whole or not at all; may be repeated [default: standard output]. Without"
        f" --format, its suffix says the format ({suffixes}).",
    )(command)
    return click.option("--format", "form", type=click.Choice(list(REPORTS)), help=f"[default: table] {formats}.")(
        command
    )


def input_options(command: Command) -> Command:
    """INPUT..., --text and --labels."""
    command = click.option(
        "--labels",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="True classes: a CSV with the columns path and label [default: folders named like classes].",
    )(command)
    command = click.option(
        "--text", "texts", multiple=True, metavar="TEXT", help="A text as an input; may be repeated."
    )(command)
    return click.argument("inputs", nargs=-1, metavar="INPUT...")(command)


def target_options(command: Command) -> Command:
    """--class, --target and --against."""
    command = click.option(
        "--against",
        metavar="CLASS",
        help="Explain the margin over this class, or with `true` over the true one of inputs that are wrong"
        " [default: the best other one].",
    )(command)
    command = click.option(
        "--target",
        type=click.Choice(["margin", "logit", "logprob"]),
        default="margin",
        show_default=True,
        help="What is explained: the class's logit over the best other one, the logit alone, or the"
        " log-probability.",
    )(command)
    return click.option(
        "--class", "chosen", metavar="CLASS", help="Explain this class [default: the predicted one]."
    )(command)


def path_options(command: Command) -> Command:
    """--nodes, --tolerance and --max-nodes."""
    command = click.option(
        "--max-nodes", type=click.IntRange(min=1), default=128, show_default=True, help="Stop doubling here."
    )(command)
    command = click.option(
        "--tolerance",
        type=click.FloatRange(min=0, min_open=True),
        default=0.01,
        show_default=True,
        help="Error allowed, as a part of the round's movement (sampled Shapley values: of the 95 % interval's"
        " half).",
    )(command)
    return click.option(
        "--nodes", type=click.IntRange(min=1), metavar="N", help="Exactly N nodes [default: doubled as needed]."
    )(command)


def computing_options(command: Command) -> Command:
    """--precise, --memory, --device and --factory."""
    command = click.option(
        "--factory", metavar="MODULE:FUNCTION", help='For `source = "python"`: what builds the network.'
    )(command)
    command = click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="auto",
        show_default=True,
        help="Where to compute.",
    )(command)
    command = click.option(
        "--memory",
        type=_Bytes(),
        default=_affordable,
        metavar="SIZE",
        help="How much memory to work in, such as 2GB or 500MB; with less, inputs are taken in smaller groups and"
        " the clients' files are read more often [default: a quarter of what is free].",
    )(command)
    return click.option(
        "--precise", is_flag=True, help="Compute in float64, and say whether float32 ranks the same."
    )(command)


def jobs_option(command: Command) -> Command:
    """--jobs."""
    return click.option(
        "--jobs",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        metavar="N",
        help="Divide the rounds among N processes of this machine, with their part of the threads and the memory"
        " each. Each takes about three seconds to start.",
    )(command)


class _Bytes(click.ParamType[int]):
    """A number of bytes: 2GB, 500MB, 1.5 GiB or 4000000."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The bytes."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"([0-9]+\.?[0-9]*)\s*([KMGT]?)(I?)B?", str(value).strip().upper())
        size = 0
        if found is not None:
            size = int(float(found[1]) * (1024 if found[3] else 1000) ** _PREFIXES.index(found[2]))
        if size < _LEAST:
            self.fail(f"{value} is no size of at least 10 MB, such as 2GB or 500MB", param, ctx)
        return size


def _affordable() -> int:
    """A quarter of the memory that is free; of 4 GB, where the system does not say."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        free = 4_000_000_000
    return max(_LEAST, free // 4)


def archive_folder(given: Path | None) -> Path:
    """The folder of the archive. Raises UsageError if there is none."""
    if given is not None:
        folder = given.parent if given.name == MANIFEST else given
        if not folder.is_dir():
            raise UsageError(f"{given} is not a folder", hint=f"give the folder that holds {MANIFEST}")
        return folder
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / MANIFEST).is_file():
            return folder
    raise UsageError(
        f"no {MANIFEST} here or in any folder above",
        hint="give --archive, or describe your archive (README, 'Describe your archive')",
    )


def relative(path: Path) -> str:
    """The path as reports show it: relative to the working folder, with `/`."""
    return Path(os.path.relpath(path)).as_posix()


def class_index(chosen: str | None, labels: tuple[str, ...], *, option: str = "--class") -> int | None:
    """The class as an index: a label's, or the number itself. Raises UsageError if it is neither."""
    if chosen is None:
        return None
    if chosen in labels:
        return labels.index(chosen)
    if chosen.isascii() and chosen.isdigit():
        return int(chosen)
    raise UsageError(
        f"{option} {chosen} is no class of this model", hint=f"classes are {', '.join(labels) or 'numbers'}"
    )


def on_device(memory: int, device: str) -> int:
    """No more of the memory than half of what is free on the device."""
    import torch

    return min(memory, torch.cuda.mem_get_info()[0] // 2) if device == "cuda" else memory


def device_name(device: str) -> str:
    """`cpu` or `cuda`. Raises UsageError where there is no CUDA device."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: no CUDA device is available", hint="use --device cpu")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device
