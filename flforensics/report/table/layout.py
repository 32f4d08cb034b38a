"""What the tables for people share."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from flforensics.report.words import percent, shown
from flforensics.results import Method, Prediction, RoundReplay, Run, Subject, Target, Untraced, Verdict

WIDTH = 100
"""Columns of a terminal."""

MEANING = {
    Verdict.BIT_EXACT: "the stored global is reproduced bit for bit",
    Verdict.CONSISTENT: "the stored global cannot be told from an honest fusion of the stored clients",
    Verdict.CONSISTENT_FITTED: "the stored global is a fusion of the stored clients under fitted weights",
    Verdict.INCONSISTENT: "no honest evaluation of the rule on the stored clients gives the stored global",
    Verdict.INDETERMINATE: "the evidence does not decide",
}


def wrapped(text: str, width: int = WIDTH) -> str:
    """A paragraph at most 100 columns wide."""
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def source(subject: Subject) -> str:
    """An input's name, with its row where the file holds several."""
    return shown(subject.source) if subject.index == 0 else f"{shown(subject.source)}[{subject.index}]"


def label(index: int, labels: Sequence[str]) -> str:
    """A class's name, or its number."""
    return shown(labels[index]) if labels else str(index)


def said(prediction: Prediction) -> str:
    """A prediction, such as `7 (57 %)`."""
    return f"{shown(prediction.label)} ({percent(prediction.probability)})"


def explained(target: Target, prediction: Prediction, labels: Sequence[str]) -> str:
    """The target in words, such as `its margin over 9`."""
    name = label(target.index, labels)
    if target.against is None:
        return f"the {target.function} of {name}"
    owner = "its" if target.index == prediction.index else f"{name}'s"
    return f"{owner} margin over {label(target.against, labels)}"


def title(subject: Subject, prediction: Prediction, labels: Sequence[str]) -> str:
    """The input, what the model says of it, and whether that is right where it is known."""
    text = f"{source(subject)}: {said(prediction)}"
    if subject.true is None:
        return text
    right = subject.true == prediction.index
    return f"{text}, {'which is right' if right else f'but it is {label(subject.true, labels)}'}"


def nodes_used(counts: Iterable[int | None]) -> str:
    """How many nodes the ledgers took, to follow the method's parameters."""
    nodes = sorted({count for count in counts if count is not None})
    if len(nodes) > 1:
        return f"; {nodes[0]} to {nodes[-1]} nodes"
    return "".join(f"; {count} nodes" for count in nodes)


def method_line(method: Method, run: Run, used: str) -> str:
    """How the numbers were computed; `used` is what it took."""
    parameters = ", ".join(
        f"{key.replace('_', ' ')} {shown('; '.join(value)) if isinstance(value, tuple) else value}"
        for key, value in method.parameters
        if value is not None
    )
    return wrapped(f"Method: {method.name} ({parameters}){used}; {run.dtype} on {run.device}.")


def untraced_line(untraced: Sequence[Untraced]) -> str:
    """What the method leaves out, by reason."""
    reasons: dict[str, list[str]] = {}
    for one in untraced:
        reasons.setdefault(one.reason, []).append(one.name)
    texts = []
    for reason, names in reasons.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        texts.append(f"{', '.join(shown(name) for name in names[:3])}{more} ({reason})")
    return wrapped(f"Not traced: {'; '.join(texts)}.")


def closing_lines(untraced: Sequence[Untraced], warnings: Sequence[str], limits: str) -> Iterator[str]:
    """What the method left out, what a reader must know besides, and what the report cannot show."""
    if untraced:
        yield untraced_line(untraced)
    for warning in warnings:
        yield wrapped(f"Warning: {shown(warning)}.")
    yield wrapped(f"Limits: {limits}")


def replay_line(replay: RoundReplay) -> str:
    """The verdict on the round that a report is about, in a sentence or two."""
    text = f"Replay of round {replay.round}: {replay.verdict.value} ({MEANING[replay.verdict]}"
    if replay.reason:
        text += f": {shown(replay.reason)}"
    text += ")."
    if replay.exact is not None:
        text += f" The recipe is {replay.exact.recipe}: {replay.exact.frameworks}."
    elif replay.floor is not None:
        text += f" Changes below {replay.floor:.1e} of a value cannot be seen."
    return wrapped(text)
