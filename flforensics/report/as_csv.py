"""Reports for spreadsheets: the JSON's names, flat. Text that a spreadsheet would run as a formula is disarmed.

A row is a line: what a terminal would obey is made visible, line breaks in foreign text among it.
"""

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flforensics.report import Result
from flforensics.report.as_json.inspection import inspection_document
from flforensics.report.as_json.lineage import lineage_document
from flforensics.report.as_json.localization import localization_document
from flforensics.report.as_json.replay import replay_document
from flforensics.report.as_json.trace import trace_document
from flforensics.report.words import shown
from flforensics.results import Inspection, Lineage, Localization, Replay, Trace

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def render(result: Result, *, top: int | None = None) -> str:
    """A header, then a row for each client (trace, inspect), line (lineage), tensor (replay) or suspect."""
    rows = list(_ROWS[type(result)](result))
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _trace(result: Trace) -> Iterator[dict[str, Any]]:
    document = trace_document(result)
    for one in document["inputs"]:
        about = {
            "round": document["round"],
            "method": document["method"]["name"],
            "verdict": document["replay"]["verdict"],
            **_flat({key: value for key, value in one.items() if key not in ("clients", "layers", "neurons")}),
        }
        for row in _parts(one):
            yield about | row


def _parts(one: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each client; by layer, for each layer and client; by neuron, for each neuron of the one client."""
    clients = {client["client"]: _client(client) for client in one["clients"]}
    if "layers" in one:
        for layer in one["layers"]:
            lines = {f"layer.{key}": value for key, value in layer.items() if key in ("server", "unexplained")}
            for part in layer["clients"]:
                yield clients[part["client"]] | {"layer": layer["layer"], "layer.score": part["score"], **lines}
    elif "neurons" in one:
        for unit in one["neurons"]["units"]:
            yield clients[one["neurons"]["client"]] | {f"unit.{key}": value for key, value in unit.items()}
    else:
        yield from clients.values()


def _client(document: Mapping[str, Any]) -> dict[str, Any]:
    """Lists as cells: both ends of an interval, and a group's members with `;` between them."""
    row = _flat({key: value for key, value in document.items() if value is not None})
    if "interval" in row:
        row["interval.low"], row["interval.high"] = row.pop("interval")
    if "members" in row:
        row["members"] = "; ".join(row["members"])
    return row


def _lineage(result: Lineage) -> Iterator[dict[str, Any]]:
    """A row for each line: the scores of an input's rows add up to `target.value`."""
    document = lineage_document(result)
    verdicts = {one["round"]: one["verdict"] for one in document["rounds"]}
    for one in document["inputs"]:
        nested = ("initial", "rounds", "gaps", "clients", "totals")
        about = _flat({key: value for key, value in one.items() if key not in nested})
        initial = one["initial"]
        yield about | {"line": "initial", "round": initial["round"], "score": initial["value"]}
        for round_ in one["rounds"]:
            when = {"round": round_["round"], "verdict": verdicts.get(round_["round"], "")}
            for client in round_["clients"]:
                yield about | {"line": "client"} | when | client
            for line, score in round_["parts"].items():
                yield about | {"line": line} | when | {"score": score}
        for gap in one["gaps"]:
            yield about | {"line": "gap", "round": gap["to"], "score": gap["movement"], "reason": gap["reason"]}


def _replay(result: Replay) -> Iterator[dict[str, Any]]:
    for one in replay_document(result)["rounds"]:
        about = {key: one[key] for key in ("round", "rule", "verdict", "form", "arithmetic", "floor")}
        about["reason"] = one.get("reason", "")
        for tensor in one["tensors"] or [{}]:
            yield about | tensor


def _inspection(result: Inspection) -> Iterator[dict[str, Any]]:
    for one in inspection_document(result)["rounds"]:
        about = {key: value for key, value in one.items() if key != "clients"}
        for client in one["clients"] or [{}]:
            yield about | client


def _localization(result: Localization) -> Iterator[dict[str, Any]]:
    document = localization_document(result)
    for one in document["findings"]:
        about = {
            "round": document["round"],
            "method": one["method"]["name"],
            "verdict": document["replay"]["verdict"],
            "stands_out": one["stands_out"]["client"] or "",
            "reason": one["stands_out"].get("reason", ""),
        }
        for client in one["clients"]:
            yield about | _client(client)


_ROWS: Mapping[type, Callable[[Any], Iterator[dict[str, Any]]]] = {
    Trace: _trace,
    Lineage: _lineage,
    Replay: _replay,
    Inspection: _inspection,
    Localization: _localization,
}


def _flat(document: Mapping[str, Any]) -> dict[str, Any]:
    """Nested objects as columns: {"target": {"class": 3}} is `target.class`."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": deep for inner, deep in _flat(value).items()}
        else:
            flat[key] = value
    return flat


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        text = shown(value)
        return f"'{text}" if text.startswith(_FORMULA) else text
    if isinstance(value, bool):
        return "true" if value else "false"
    return value
