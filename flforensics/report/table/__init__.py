"""Reports for people: first the answer in words, then the numbers, then what they cannot show."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flforensics.report import Result
from flforensics.report.table.inspection import inspection_lines
from flforensics.report.table.lineage import lineage_lines
from flforensics.report.table.localization import localization_lines
from flforensics.report.table.replay import replay_lines
from flforensics.report.table.trace import trace_lines
from flforensics.results import Inspection, Lineage, Localization, Replay, Trace

_LINES: Mapping[type, Callable[[Any, int | None], Iterator[str]]] = {
    Trace: trace_lines,
    Lineage: lineage_lines,
    Localization: localization_lines,
    Replay: lambda result, _top: replay_lines(result),
    Inspection: lambda result, _top: inspection_lines(result),
}


def render(result: Result, *, top: int | None = None) -> str:
    """The report as text for a terminal, at most about 100 columns wide."""
    return "\n".join(_LINES[type(result)](result, top)).rstrip("\n") + "\n"
