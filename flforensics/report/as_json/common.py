"""What several of the JSON reports share."""

from typing import Any

from flforensics import __version__
from flforensics.results import Problem, Run

TOOL = {"name": "flforensics", "version": __version__}
"""Who says so."""


def run_document(run: Run) -> dict[str, Any]:
    """Where and how the numbers were computed."""
    document: dict[str, Any] = {"device": run.device, "dtype": run.dtype, "threads": run.threads}
    if run.same_ranking_in_float32 is not None:
        document["same_ranking_in_float32"] = run.same_ranking_in_float32
    if run.passes is not None:
        document["passes"] = run.passes
    return document | {"versions": dict(run.versions)}


def problem_document(problem: Problem) -> dict[str, Any]:
    """What a reader must know about the evidence."""
    return {
        "file": problem.file,
        "reason": problem.reason,
        "message": problem.message,
        "finding": problem.finding,
    }
