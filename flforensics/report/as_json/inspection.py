"""`flforensics.inspect/1`."""

from typing import Any

from flforensics.report import LIMITS
from flforensics.report.as_json.common import TOOL, problem_document
from flforensics.results import Anomaly, Inspection


def inspection_document(result: Inspection) -> dict[str, Any]:
    """`flforensics.inspect/1`."""
    return {
        "schema": "flforensics.inspect/1",
        "tool": TOOL,
        "archive": {"path": result.archive, "digest": result.digest},
        "model": result.model,
        "input": result.input,
        "labels": list(result.labels),
        "fusion": {"rule": result.rule, "weights_kind": result.weights_kind},
        "rounds": [
            {
                "round": one.round,
                "has_previous": one.has_previous,
                "tensors": one.tensors,
                "parameters": one.parameters,
                "bytes": one.bytes,
                "clients": [{"client": client, "weight": weight} for client, weight in one.clients],
            }
            for one in result.rounds
        ],
        "check": None
        if result.check is None
        else {
            "round": result.check.round,
            "input": result.check.input,
            "difference": result.check.difference,
            "tolerance": result.check.tolerance,
            "passed": result.check.passed,
        },
        "problems": [problem_document(problem) for problem in result.problems],
        "anomalies": [_anomaly(anomaly) for anomaly in result.anomalies],
        "swap_power": result.swap_power,
        "limits": LIMITS,
    }


def _anomaly(anomaly: Anomaly) -> dict[str, Any]:
    return {
        "indicator": anomaly.indicator,
        "rounds": list(anomaly.rounds),
        "clients": list(anomaly.clients),
        "value": anomaly.value,
        "text": anomaly.text,
        "false_alarms": {"alarms": anomaly.alarms, "tries": anomaly.tries},
    }
