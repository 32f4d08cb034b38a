"""`flforensics.localize/1`."""

from dataclasses import asdict
from typing import Any

from flforensics.report import LIMITS
from flforensics.report.as_json.common import TOOL, run_document
from flforensics.report.as_json.replay import round_verdict
from flforensics.results import Finding, Localization, StandsOut, Suspect


def localization_document(result: Localization) -> dict[str, Any]:
    """`flforensics.localize/1`."""
    verdict = round_verdict(result.replay)
    return {
        "schema": "flforensics.localize/1",
        "tool": TOOL,
        "run": run_document(result.run),
        "archive": {"path": result.archive, "digest": result.digest},
        "round": result.round,
        "replay": {key: value for key, value in verdict.items() if key not in ("round", "clients", "tensors")},
        "findings": [_finding(one) for one in result.findings],
        "silent": [asdict(one) for one in result.silent],
        "warnings": list(result.warnings),
        "limits": LIMITS,
    }


def _finding(one: Finding) -> dict[str, Any]:
    document: dict[str, Any] = {
        "method": {"name": one.method.name, **dict(one.method.parameters)},
        "inputs": one.inputs,
    }
    document |= {} if one.controls is None else {"controls": one.controls, "rough": one.rough}
    document |= {} if one.voting is None else {"voting": one.voting}
    return document | {
        "clients": [_suspect(suspect) for suspect in one.suspects],
        "stands_out": _stands_out(one.stands_out),
    }


def _suspect(one: Suspect) -> dict[str, Any]:
    return {"client": one.client, "weight": one.weight, "rank": one.rank, **asdict(one.figures)}


def _stands_out(one: StandsOut) -> dict[str, Any]:
    """`client` is null where nobody stands out, with the reason."""
    document = {key: value for key, value in asdict(one).items() if value not in (None, "")}
    return {"client": one.client} | document
