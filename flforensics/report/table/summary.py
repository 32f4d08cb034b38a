"""Who is on top over many inputs, for people."""

from collections.abc import Iterator
from typing import Any

from tabulate import tabulate

from flforensics.report.table.layout import wrapped
from flforensics.report.words import percent, plural, shown
from flforensics.results import Summary, SummaryGroup


def summary_lines(summary: Summary, top: int | None) -> Iterator[str]:
    """A row for each of the `top` clients by weight, then what chance and size alone would give."""
    counts = " and ".join(f"{group.inputs:,} {_word(group)}" for group in summary.groups)
    yield wrapped(
        f"Over the inputs with a known class ({counts}): how often each file is on top, that is, first by"
        " score; how often it is named; its mean share."
    )
    yield ""
    first = summary.groups[0].clients
    rows: list[tuple[Any, ...]] = [
        (shown(first[row].client), f"{first[row].weight:.3f}", *_cells(summary, row))
        for row in range(len(first))[:top]
    ]
    headers = ["file labelled", "weight"]
    for group in summary.groups:
        headers += [f"{_word(group)}: on top", "named", "share"]
    yield tabulate(
        rows,
        headers=headers,
        colalign=("left", *["right"] * (len(headers) - 1)),
        disable_numparse=True,
    )
    if len(rows) < len(first):
        yield f"and {plural(len(first) - len(rows), 'file')} with less weight"
    yield wrapped(_baselines(summary))


def _cells(summary: Summary, row: int) -> Iterator[str]:
    for group in summary.groups:
        client = group.clients[row]
        yield from (
            f"{client.on_top} ({percent(client.on_top / group.inputs)})",
            f"{client.named}",
            percent(client.share),
        )


def _baselines(summary: Summary) -> str:
    text = f"By chance a file is on top of {percent(summary.chance)} of them."
    if summary.largest is None:
        return f"{text} No file has more weight than every other."
    rates = [
        f"{percent(client.on_top / group.inputs)} of those that are {_word(group)}"
        for group in summary.groups
        for client in group.clients
        if client.client == summary.largest
    ]
    return f"{text} The one with most weight, {shown(summary.largest)}, is on top of {' and '.join(rates)}."


def _word(group: SummaryGroup) -> str:
    return "right" if group.right else "wrong"
