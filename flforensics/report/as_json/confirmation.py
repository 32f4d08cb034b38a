"""How strong the evidence for one input is: a part of `flforensics.trace/1`."""

from dataclasses import asdict
from typing import Any

from flforensics.results import Confirmation, Repair


def confirmation_document(one: Confirmation) -> dict[str, Any]:
    """The grade and its reason, then everything that they rest on."""
    agreement, controls = one.agreement, one.controls
    return {
        "grade": one.grade,
        "reason": one.reason,
        "client": one.client,
        "methods": dict(agreement.first),
        "agreement": {
            "agreeing": agreement.agreeing,
            "of": agreement.of,
            "at_random": agreement.at_random,
            "spearman": {f"{a}-{b}": value for a, b, value in agreement.spearman},
        },
        "stability": {
            "dtype": dict(one.stability.dtype),
            "target": dict(one.stability.target),
            "layer_decay": dict(one.stability.layer_decay),
        },
        "controls": asdict(controls),
        "repair": None if one.repair is None else _repair(one.repair),
    }


def _repair(repair: Repair) -> dict[str, Any]:
    document: dict[str, Any] = {"class": repair.index, "label": repair.label, "changes": repair.changes}
    document |= {} if repair.fixes is None else {"fixes": repair.fixes}
    document |= {} if repair.removed is None else {"removed": repair.removed}
    return document | {"others": asdict(repair.others)}
