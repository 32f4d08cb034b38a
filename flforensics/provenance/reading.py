"""What every answer reads alike from tensors: predictions, class names, who took part, how exact a line is."""

from collections.abc import Sequence

import torch
from torch import Tensor

from flforensics.errors import NotComputableError, UsageError
from flforensics.fusion.rule import Rule, Scene, surveyed
from flforensics.provenance.case import Lines, Settings
from flforensics.provenance.targets import ClassTarget
from flforensics.results import Prediction, Target
from flforensics.rounds import Round


def took_part(rule: Rule, round_: Round, *, earlier: Sequence[Round]) -> Scene:
    """The round as its rule sees it. Raises NotComputableError (CLIENTS) if nobody has a file and a weight."""
    scene = surveyed(rule, round_, earlier=earlier)
    if not scene.positions:
        raise NotComputableError(
            f"round {round_.number} has no client with both a file and a weight",
            reason="CLIENTS",
            hint="restore the files and weights of this round; `replay` recovers weights from the files",
        )
    return scene


def require_classes(true: Sequence[int | None], classes: int) -> None:
    """Raises UsageError where an input's true class is none of the model's."""
    largest = max((one for one in true if one is not None), default=0)
    if largest >= classes:
        raise UsageError(
            f"an input has the true class {largest} and the model has {classes} classes",
            hint="correct the labels, or [model] in archive.toml",
        )


def class_names(labels: Sequence[str], classes: int, settings: Settings) -> Sequence[str]:
    """A name for each class. Raises UsageError if the labels, or the classes asked for, do not fit the network."""
    if labels and len(labels) != classes:
        raise UsageError(
            f"archive.toml names {len(labels)} labels and the model has {classes} classes",
            hint="correct [labels] or [model]",
        )
    for option, given in (("--class", settings.chosen), ("--against", settings.versus)):
        if isinstance(given, int) and not 0 <= given < classes:
            raise UsageError(f"{option} {given} does not exist", hint=f"give a class from 0 to {classes - 1}")
    return labels or [str(index) for index in range(classes)]


def prediction(logits: Tensor, names: Sequence[str]) -> Prediction:
    """The most probable class for one input's logits, [C]."""
    probabilities = logits.double().softmax(0)
    index = int(probabilities.argmax())
    return Prediction(index, names[index], float(probabilities[index]))


def target_of(target: ClassTarget, index: int, *, value: float) -> Target:
    """What is explained for one input, and its value."""
    against = int(target.against[index]) if target.function == "margin" else None
    return Target(target.function, int(target.classes[index]), against, value)


def line_error(lines: Lines, index: int) -> float:
    """How far a line of a ledger can be off: the last change and the residual, doubled if it has not converged."""
    change = lines.change[index].nan_to_num(nan=0.0)
    worst = float(torch.maximum(change, lines.residual[index].abs()))
    return worst if lines.converged is None or bool(lines.converged[index]) else 2 * worst
