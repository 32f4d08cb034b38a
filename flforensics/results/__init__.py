"""Findings as plain frozen records: everything left of them may know torch, everything right may not.

Field names are the keys of the JSON reports. A field that does not apply is `None` and is left out of the
report unless its comment says that `None` is an answer ("does not exist").
"""

from flforensics.results.common import Anomaly, Problem, Progress, Verdict, no_progress
from flforensics.results.inspection import CheckOutcome, Inspection, RoundContents
from flforensics.results.localization import (
    Differences,
    Finding,
    Localization,
    Misled,
    Silent,
    StandsOut,
    Suspect,
    TwoAxes,
)
from flforensics.results.replay import (
    ClientWeight,
    Exact,
    ImpliedUpdate,
    Match,
    RecoveredGroup,
    Recovery,
    Replay,
    RoundReplay,
    TensorReplay,
    Unexplained,
    UnexplainedTensor,
    WeightSum,
)
from flforensics.results.trace import (
    ClientScore,
    Counterfactual,
    InputTrace,
    Method,
    Parts,
    Prediction,
    Responsible,
    Run,
    Subject,
    Target,
    Trace,
    Untraced,
)

__all__ = [
    "Anomaly",
    "CheckOutcome",
    "ClientScore",
    "ClientWeight",
    "Counterfactual",
    "Differences",
    "Exact",
    "Finding",
    "ImpliedUpdate",
    "InputTrace",
    "Inspection",
    "Localization",
    "Match",
    "Method",
    "Misled",
    "Parts",
    "Prediction",
    "Problem",
    "Progress",
    "RecoveredGroup",
    "Recovery",
    "Replay",
    "Responsible",
    "RoundContents",
    "RoundReplay",
    "Run",
    "Silent",
    "StandsOut",
    "Subject",
    "Suspect",
    "Target",
    "TensorReplay",
    "Trace",
    "TwoAxes",
    "Unexplained",
    "UnexplainedTensor",
    "Untraced",
    "Verdict",
    "WeightSum",
    "no_progress",
]
