"""`flforensics.lineage/1`."""

from dataclasses import asdict
from typing import Any

from flforensics.report import LINEAGE_LIMITS
from flforensics.report.as_json.common import TOOL, run_document
from flforensics.report.as_json.replay import round_summary
from flforensics.report.as_json.trace import prediction_document, responsible_document, target_document
from flforensics.results import ClientTotal, InputLineage, Lineage, RoundLedger


def lineage_document(result: Lineage) -> dict[str, Any]:
    """`flforensics.lineage/1`."""
    return {
        "schema": "flforensics.lineage/1",
        "tool": TOOL,
        "run": run_document(result.run),
        "archive": {"path": result.archive, "digest": result.digest},
        "round": result.round,
        "method": {"name": result.method.name, **dict(result.method.parameters)},
        "rounds": [{"round": one.round, **round_summary(one)} for one in result.replays],
        "inputs": [_input(one) for one in result.inputs],
        "untraced": [{"name": one.name, "reason": one.reason} for one in result.untraced],
        "warnings": list(result.warnings),
        "limits": LINEAGE_LIMITS,
    }


def _input(one: InputLineage) -> dict[str, Any]:
    initial, totals = one.initial, one.totals
    return {
        "source": one.subject.source,
        "index": one.subject.index,
        "sha256": one.subject.sha256,
        "true": one.subject.true,
        "prediction": prediction_document(one.prediction),
        "target": target_document(one.target),
        "initial": {
            "round": initial.round,
            "value": initial.value,
            "prediction": prediction_document(initial.prediction),
        },
        "rounds": [_round(round_) for round_ in one.rounds],
        "gaps": [
            {"from": gap.start, "to": gap.end, "movement": gap.movement, "reason": gap.reason} for gap in one.gaps
        ],
        "clients": [_client(client) for client in one.clients],
        "totals": {
            "server": totals.server,
            "unexplained": totals.unexplained,
            "residual": totals.residual,
            "gaps": totals.gaps,
        },
        "responsible": responsible_document(one.responsible),
        **{
            name: asdict(step)
            for name, step in (
                ("largest_step", one.largest_step),
                ("most_suspect", one.most_suspect),
            )
            if step is not None
        },
    }


def _round(one: RoundLedger) -> dict[str, Any]:
    return {
        "round": one.round,
        "parts": {"server": one.server, "unexplained": one.unexplained, "residual": one.residual},
        "effect": one.effect,
        "value": one.value,
        "prediction": prediction_document(one.after),
        "nodes": one.nodes,
        **({} if one.converged is None else {"converged": one.converged}),
        "clients": [
            {key: value for key, value in asdict(client).items() if value is not None} for client in one.clients
        ],
    }


def _client(client: ClientTotal) -> dict[str, Any]:
    number, score = client.strongest
    return {
        "client": client.client,
        "score": client.score,
        "share": client.share,
        "rank": client.rank,
        "rounds": client.rounds,
        "strongest": {"round": number, "score": score},
    }
