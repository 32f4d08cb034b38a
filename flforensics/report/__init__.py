"""From findings to text: one table of formats, each a pure function of the frozen records."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import cast

from flforensics.results import Inspection, Lineage, Localization, Replay, Trace

Result = Inspection | Lineage | Localization | Replay | Trace
"""What a command found out."""

_REPLAY = (
    "Replay shows that the stored client files can produce the stored global under the stated rule, within a"
    " proven rounding bound. It does not show that the named clients made the files, or when, or that the files"
    " divide responsibility as the truth did: infinitely many other client files replay to the same global. A"
    " report therefore speaks of the file labelled X."
)
LIMITS = (
    f"{_REPLAY} Scores say how this round's files moved this model on this"
    " input; they are not probabilities and no evidence of intent. What earlier rounds did stands in `previous`."
)
"""What no report of this tool establishes; printed with every one of them."""

LINEAGE_LIMITS = (
    f"{_REPLAY} Scores say how the files of each round moved the model of their time on this input; they are not"
    " probabilities and no evidence of intent. A client's part depends on where the others had brought the model."
    " The initial model, and a global that cannot be replayed, are taken as stored; what happened in gaps is"
    " nobody's in this report."
)
"""The same for reports over all rounds."""


@dataclass(frozen=True)
class ReportRow:
    """One format of reports: where its writer is, one line of help, and the suffix of its files."""

    where: str
    help: str
    suffix: str


REPORTS: dict[str, ReportRow] = {
    "table": ReportRow("flforensics.report.table:render", "words and tables for people", ".txt"),
    "json": ReportRow("flforensics.report.as_json:render", "everything, one object, for programs", ".json"),
    "csv": ReportRow("flforensics.report.as_csv:render", "one row for each input and client, or tensor", ".csv"),
}


def render(result: Result, form: str, *, top: int | None = None) -> str:
    """The report on `result` in the format `form`, a key of `REPORTS`; ends with a newline.

    `top` limits the clients that the table for people shows; the other formats are always complete.
    """
    module, _, attribute = REPORTS[form].where.partition(":")
    writer = cast("Callable[..., str]", getattr(import_module(module), attribute))
    return writer(result, top=top)
