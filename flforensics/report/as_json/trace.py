"""`flforensics.trace/1`."""

from typing import Any

from flforensics.report import LIMITS
from flforensics.report.as_json.anatomy import anatomy_document
from flforensics.report.as_json.common import TOOL, run_document
from flforensics.report.as_json.confirmation import confirmation_document
from flforensics.report.as_json.replay import round_summary
from flforensics.report.as_json.summary import summary_document
from flforensics.results import ClientScore, Counterfactual, InputTrace, Prediction, Responsible, Target, Trace


def trace_document(result: Trace) -> dict[str, Any]:
    """`flforensics.trace/1`."""
    summary = {} if result.summary is None else {"summary": summary_document(result.summary)}
    return {
        "schema": "flforensics.trace/1",
        "tool": TOOL,
        "run": run_document(result.run),
        "archive": {"path": result.archive, "digest": result.digest},
        "round": result.round,
        "method": {"name": result.method.name, **dict(result.method.parameters)},
        "replay": round_summary(result.replay),
        "inputs": [_input(one, result.labels) for one in result.inputs],
        **summary,
        "untraced": [{"name": one.name, "reason": one.reason} for one in result.untraced],
        "warnings": list(result.warnings),
        "limits": LIMITS,
    }


def _input(one: InputTrace, labels: tuple[str, ...]) -> dict[str, Any]:
    document: dict[str, Any] = {
        "source": one.subject.source,
        "index": one.subject.index,
        "sha256": one.subject.sha256,
        "true": one.subject.true,
        "prediction": prediction_document(one.prediction),
    }
    if one.before is not None:
        document["before"] = prediction_document(one.before)
    document["target"] = target_document(one.target)
    if one.parts is not None:
        parts = one.parts
        document["parts"] = {
            "previous": parts.previous,
            "server": parts.server,
            "unexplained": parts.unexplained,
            "residual": parts.residual,
        }
        document |= {"round_effect": one.round_effect}
        document |= {} if one.nodes is None else {"nodes": one.nodes}
        document |= {} if one.permutations is None else {"permutations": one.permutations}
        document |= {} if one.converged is None else {"converged": one.converged}
        document |= {} if one.change is None else {"change": one.change}
    document["clients"] = [_client(client) for client in one.clients]
    document["responsible"] = responsible_document(one.responsible)
    if one.tamper_margin is not None:
        document["tamper_margin"] = {"value": one.tamper_margin, "kind": "smallest"}
    elif one.tamper_bound is not None:
        document["tamper_margin"] = {"value": one.tamper_bound, "kind": "upper bound"}
    if one.confirmation is not None:
        document["confirmation"] = confirmation_document(one.confirmation)
    return document | anatomy_document(one)


def target_document(target: Target) -> dict[str, Any]:
    """What is explained; only a margin is against another class."""
    against = {"against": target.against} if target.function == "margin" else {}
    return {"function": target.function, "class": target.index, **against, "value": target.value}


def prediction_document(prediction: Prediction) -> dict[str, Any]:
    """The most probable class."""
    return {"class": prediction.index, "label": prediction.label, "probability": prediction.probability}


def _client(client: ClientScore) -> dict[str, Any]:
    document: dict[str, Any] = {
        "client": client.client,
        "weight": client.weight,
        "score": client.score,
        "share": client.share,
        "rank": client.rank,
    }
    document |= {} if client.members is None else {"members": list(client.members)}
    document |= {} if client.interval is None else {"interval": list(client.interval)}
    if client.drop is not None:
        document |= {"drop": _counterfactual(client.drop), "refuse": _counterfactual(client.refuse)}
    return document


def _counterfactual(one: Counterfactual | None) -> dict[str, Any] | None:
    """None where there is no such thing."""
    if one is None:
        return None
    return {"change": one.change, "class": one.index, "label": one.label, "flips": one.flips}


def responsible_document(one: Responsible) -> dict[str, Any]:
    """Who is named, or why nobody is."""
    document: dict[str, Any] = {"kind": one.kind}
    if one.kind == "client":
        document["client"] = one.client
    document |= {"lead": one.lead, "resolved": one.resolved}
    return document | ({"reason": one.reason} if one.reason else {})
