"""The results as Markdown tables, from the JSON alone."""

from collections.abc import Mapping
from typing import Any

from tests.bench.speed.methods import HASHING

_HEADER = (
    "| case | method | seconds | paper's loop / it | the same, 50 inputs at once / it | it / `tracefl` |"
    " of the limit | peak MB |\n|---|---|---|---|---|---|---|---|"
)


def markdown(results: Mapping[str, Any]) -> str:
    """One line saying where, and a table with a row for each case and method."""
    machine = results["machine"]
    where = (
        f"Measured on {machine['device']} with {machine['threads']} threads, torch {machine['torch']},"
        f" `--scale {results['scale']}`."
    )
    rows = [_row(case, name) for case in results["cases"] for name in case["methods"]]
    return "\n".join([where, "", _HEADER, *rows, ""])


def _row(case: Mapping[str, Any], name: str) -> str:
    found = case["methods"][name]
    ratios = [found.get("loop to it"), found.get("batched loop to it"), found["to tracefl"]]
    cells = [
        case["case"],
        name,
        f"{found['seconds']:.2f}",
        *("" if ratio is None or name == HASHING else f"{ratio:.2f}" for ratio in ratios),
        f"{found['of the limit']:.0%}" if "of the limit" in found else "",
        f"{found['peak'] / 1e6:,.0f}" if "peak" in found else "",
    ]
    return f"| {' | '.join(cells)} |"
