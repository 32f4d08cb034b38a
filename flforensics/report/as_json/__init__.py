"""Reports for programs. Keys may be added; `null` means "does not exist"; what does not apply is left out."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from flforensics.report import Result
from flforensics.report.as_json.inspection import inspection_document
from flforensics.report.as_json.lineage import lineage_document
from flforensics.report.as_json.localization import localization_document
from flforensics.report.as_json.replay import replay_document
from flforensics.report.as_json.trace import trace_document
from flforensics.report.words import hidden
from flforensics.results import Inspection, Lineage, Localization, Replay, Trace

_DOCUMENTS: Mapping[type, Callable[[Any], dict[str, Any]]] = {
    Inspection: inspection_document,
    Replay: replay_document,
    Trace: trace_document,
    Lineage: lineage_document,
    Localization: localization_document,
}


def render(result: Result, *, top: int | None = None) -> str:
    """The report as one JSON object with sorted meaning: schema first, limits last."""
    document = _DOCUMENTS[type(result)](result)
    text = json.dumps(_finite(document), indent=2, ensure_ascii=False, allow_nan=False)
    return "".join(_escaped(letter) for letter in text) + "\n"


def _escaped(letter: str) -> str:
    """What a terminal would obey, or UTF-8 cannot hold, as JSON's own escape."""
    return json.dumps(letter)[1:-1] if letter != "\n" and hidden(letter) else letter


def _finite(value: Any) -> Any:
    """Numbers that JSON cannot hold do not exist in it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value
