"""`flforensics.replay/1`, and the verdict that other reports quote."""

from dataclasses import asdict
from typing import Any

from flforensics.report import LIMITS
from flforensics.report.as_json.common import TOOL, problem_document
from flforensics.results import ClientWeight, Match, Replay, RoundReplay


def replay_document(result: Replay) -> dict[str, Any]:
    """`flforensics.replay/1`."""
    return {
        "schema": "flforensics.replay/1",
        "tool": TOOL,
        "archive": {"path": result.archive, "digest": result.digest},
        "rounds": [round_verdict(one) for one in result.rounds],
        "limits": LIMITS,
    }


def round_summary(one: RoundReplay) -> dict[str, Any]:
    """The verdict that other reports quote, without clients and tensors."""
    return {key: value for key, value in round_verdict(one).items() if key not in ("round", "clients", "tensors")}


def round_verdict(one: RoundReplay) -> dict[str, Any]:
    """One round of a replay."""
    document: dict[str, Any] = {
        "round": one.round,
        "rule": one.rule,
        "verdict": one.verdict.value,
        "form": one.form,
        "arithmetic": one.arithmetic,
        "worst_ratio": one.worst_ratio,
        "floor": one.floor,
        "clients": [_weight(client) for client in one.clients],
        "tensors": [
            {
                "name": tensor.name,
                "kind": tensor.kind,
                "elements": tensor.elements,
                "worst_ratio": tensor.worst_ratio,
                "outside": tensor.outside,
                **({"note": tensor.note} if tensor.note else {}),
            }
            for tensor in one.tensors
        ],
    }
    if one.exact is not None:
        exact = one.exact
        document["exact"] = {"recipe": exact.recipe, "frameworks": exact.frameworks, "order": list(exact.order)}
    if one.matches is not None:
        document["matches"] = [_match(match) for match in one.matches]
    document |= {"recovery": asdict(one.recovery)} if one.recovery is not None else {}
    document |= {"unexplained": asdict(one.unexplained)} if one.unexplained is not None else {}
    if one.reason:
        document["reason"] = one.reason
    if one.problems:
        document["problems"] = [problem_document(problem) for problem in one.problems]
    return document


def _weight(client: ClientWeight) -> dict[str, Any]:
    document: dict[str, Any] = {"client": client.client, "declared": client.declared}
    if client.recovered is not None:
        document |= {"recovered": client.recovered, "standard_error": client.standard_error}
    return document


def _match(match: Match) -> dict[str, Any]:
    return {
        "rule": match.rule,
        "parameters": dict(match.parameters),
        "buffers": match.buffers,
        "verdict": match.verdict.value,
        "form": match.form,
        "worst_ratio": match.worst_ratio,
    }
