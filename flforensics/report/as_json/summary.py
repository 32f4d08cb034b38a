"""Who is on top over many inputs: a part of `flforensics.trace/1`."""

from dataclasses import asdict
from typing import Any

from flforensics.results import Summary


def summary_document(summary: Summary) -> dict[str, Any]:
    """The chance level and the largest client, then the clients over right and wrong predictions."""
    return {
        "chance": summary.chance,
        "largest": summary.largest,
        "left_out": summary.left_out,
        "groups": [asdict(group) for group in summary.groups],
    }
