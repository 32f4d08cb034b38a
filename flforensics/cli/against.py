"""`--against`: the class that a margin is over."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from flforensics.cli.options import class_index
from flforensics.errors import UsageError

if TYPE_CHECKING:
    from flforensics.provenance.case import Settings
    from flforensics.results import InputLineage, InputTrace

TRUE: Literal["true"] = "true"
"""In place of a class: every input's own true one. A label of that name comes first."""


def opponent(against: str | None, labels: tuple[str, ...]) -> int | Literal["true"] | None:
    """What `--against` names. Raises UsageError if it is no class."""
    if against == TRUE and TRUE not in labels:
        return TRUE
    return class_index(against, labels, option="--against")


def require_margin(settings: "Settings", *, explains_logit: bool = False) -> None:
    """Raises UsageError where no margin is explained, or one over the explained class itself."""
    if settings.versus is None:
        return
    if explains_logit:
        raise UsageError(
            f"--method {settings.method} explains the logit, which is over no class", hint="leave out --against"
        )
    if settings.target != "margin":
        raise UsageError(
            f"--against needs a margin, and --target is {settings.target}", hint="use --target margin"
        )
    if settings.versus == settings.chosen:
        raise UsageError("--class and --against are the same class", hint="give two different classes")


def require_another_class(settings: "Settings", inputs: "Sequence[InputTrace | InputLineage]") -> None:
    """Raises UsageError where every input is explained for the very class that its margin was to be over."""
    if settings.versus is None or not inputs:
        return
    if settings.versus == TRUE and all(one.subject.true in (None, one.target.index) for one in inputs):
        raise UsageError(
            "--against true: no input has a true class other than the one that is explained",
            hint="give --labels, or mispredicted inputs",
        )
    if all(one.target.index == settings.versus for one in inputs):
        raise UsageError(
            f"--against {inputs[0].prediction.label} is what the model says of every input itself",
            hint="give the class that you expected, or say with --class what to explain",
        )
