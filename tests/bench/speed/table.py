"""The results as one Markdown table, from the JSON alone, and the README that quotes it."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from tests.bench.speed.cases import SCALES
from tests.bench.speed.methods import BATCHED, HASHED, LEDGER, LEDGER_8, TRACEFL

START, END = "<!-- speed -->", "<!-- end of speed -->"
"""The README quotes the whole table between these."""

Found = Mapping[str, Mapping[str, Any]]
_COLUMNS: dict[str, Callable[[Found], str]] = {
    "`tracefl`, s": lambda found: f"{found[TRACEFL]['seconds']:.2f}",
    "loop / `tracefl`": lambda found: _times(found[TRACEFL].get("loop to it")),
    "loop / `tracefl` with hashing": lambda found: _times(found[HASHED].get("loop to it")),
    "published order / `tracefl`": lambda found: _times(found[TRACEFL].get("coded loop to it")),
    "published order / `tracefl` with hashing": lambda found: _times(found[HASHED].get("coded loop to it")),
    "loop, 50 inputs at once / `tracefl`": lambda found: _times(found[TRACEFL].get("batched loop to it")),
    "`ledger --nodes 8` / `tracefl`": lambda found: _times(found[LEDGER_8]["to tracefl"]),
    "`ledger` / `tracefl`": lambda found: _times(found.get(LEDGER, {}).get("to tracefl")),
    "of the limit: `tracefl`, with hashing, `ledger --nodes 8`": lambda found: ", ".join(
        f"{found[name]['of the limit']:.0%}" for name in (TRACEFL, HASHED, LEDGER_8)
    ),
    "peak MB: loop, `tracefl`, `ledger --nodes 8`, `ledger`": lambda found: ", ".join(
        f"{found[name]['peak'] / 1e6:,.0f}" if name in found else "-"
        for name in (BATCHED, TRACEFL, LEDGER_8, LEDGER)
    ),
}


def markdown(results: Mapping[str, Any]) -> str:
    """One line saying where it was measured, and a row for each case."""
    machine = results["machine"]
    where = (
        f"`make bench-speed SCALE={results['scale']}` on {machine['device']}, {machine['threads']} threads, torch"
        f" {machine['torch']}; medians; {len(results['cases'])} of {len(SCALES[results['scale']])} cases."
    )
    header = f"| {' | '.join(['case', *_COLUMNS])} |\n{'|---' * (len(_COLUMNS) + 1)}|"
    rows = [
        f"| {' | '.join([case['case'], *(cell(case['methods']) for cell in _COLUMNS.values())])} |"
        for case in results["cases"]
    ]
    return "\n".join([where, "", header, *rows, ""])


def quoting(readme: str, table: str) -> str:
    """The README with this table between the markers."""
    return re.sub(f"{START}.*{END}", lambda _: f"{START}\n{table}{END}", readme, flags=re.DOTALL)


def _times(ratio: float | None) -> str:
    """A ratio; no number where what it compares was not run."""
    return "-" if ratio is None else f"{ratio:.1f}"
