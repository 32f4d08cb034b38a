"""Who answers for a prediction: the largest line, and a client only where the evidence carries it."""

from collections.abc import Mapping
from dataclasses import dataclass

from flforensics.results import Responsible


@dataclass(frozen=True)
class Evidence:
    """What the decision rests on: the lines, by name, the numerical error of a line, and the replay.

    `total` is what a lead is measured against; `others` are the lines of no client, None for methods without a
    ledger. `doubts` are the clients that may not be named, each with the reason; `stood` says that the prediction
    was there before.
    """

    clients: tuple[tuple[str, float], ...]
    others: tuple[tuple[str, float], ...] | None
    total: float
    error: float
    doubts: Mapping[str, str]
    stood: bool


@dataclass(frozen=True)
class Reasons:
    """Why nobody is named, in the words of a report."""

    stood: str
    unmoved: str
    against: str
    unresolved: str


ROUND = Reasons(
    stood="the prediction stood before this round, and the round's largest effect is against it",
    unmoved="this round did not move the target",
    against="the round's largest effect is against this class",
    unresolved="the two largest effects are closer together than the numerical error",
)
"""Of one round."""


def responsible(evidence: Evidence, reasons: Reasons) -> Responsible:
    """The kind, the client if one is named, its lead, and whether the lead exceeds the error."""
    lines = _lines(evidence)
    if not lines or evidence.total == 0:
        return Responsible("previous" if evidence.stood else "none", None, None, False, reasons.unmoved)
    kind, client, value = lines[0]
    runner_up = abs(lines[1][2]) if len(lines) > 1 else 0.0
    distance = abs(value) - runner_up
    lead, resolved = distance / evidence.total, distance > evidence.error
    if client is None:
        return Responsible(kind, None, lead, resolved, "" if resolved else reasons.unresolved)
    if client in evidence.doubts:
        return Responsible("none", None, lead, False, evidence.doubts[client])
    if value <= 0:
        kind, reason = ("previous", reasons.stood) if evidence.stood else ("none", reasons.against)
        return Responsible(kind, None, lead, resolved, reason)
    if not resolved:
        return Responsible("none", None, lead, False, reasons.unresolved)
    return Responsible("client", client, lead, True)


def _lines(evidence: Evidence) -> list[tuple[str, str | None, float]]:
    """(kind, client, value), the largest |value| first. Scores without a ledger are compared as they are."""
    lines: list[tuple[str, str | None, float]] = [("client", name, score) for name, score in evidence.clients]
    if evidence.others is None:
        return sorted(lines, key=lambda line: -line[2])
    lines += [(name, None, value) for name, value in evidence.others]
    return sorted(lines, key=lambda line: -abs(line[2]))
