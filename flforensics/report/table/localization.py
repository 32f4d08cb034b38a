"""Which client of a round is faulty, for people."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from flforensics.report import LIMITS
from flforensics.report.table.layout import closing_lines, replay_line, wrapped
from flforensics.report.words import percent, plural, shown, signed
from flforensics.results import Departed, Differences, Finding, Localization, Misled, TwoAxes


@dataclass(frozen=True)
class _Words:
    """How one method is told: its columns, a client's cells, who stands out, and what the columns are."""

    headers: tuple[str, ...]
    cells: Callable[[Any, Finding], tuple[str, ...]]
    answer: Callable[[Finding], str]
    note: str


def localization_lines(result: Localization, top: int | None) -> Iterator[str]:
    """A block for each method: the answer in words, then the ranking; then the replay and the limits."""
    for finding in result.findings:
        yield from _block(finding, top)
    for silent in result.silent:
        yield wrapped(f"{silent.method} has no answer: {shown(silent.reason)}.")
    yield replay_line(result.replay)
    for finding in result.findings:
        parameters = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in finding.method.parameters)
        yield wrapped(f"Method: {finding.method.name} ({parameters}); {result.run.dtype} on {result.run.device}.")
    for finding in result.findings:
        if finding.rough:
            inputs = plural(finding.rough, "input")
            yield wrapped(f"Warning: for {inputs}, {finding.method.name} rests on a ledger that did not converge.")
    yield from closing_lines((), result.warnings, LIMITS)


def _block(finding: Finding, top: int | None) -> Iterator[str]:
    words = _WORDS[finding.method.name]
    yield wrapped(f"{finding.method.name}: {words.answer(finding)}")
    yield ""
    rows: list[tuple[Any, ...]] = [
        (one.rank, shown(one.client), f"{one.weight:.3f}", *words.cells(one.figures, finding))
        for one in finding.suspects[:top]
    ]
    rest = finding.suspects[len(rows) :]
    if rest:
        rows.append(
            ("", f"{len(rest)} more", f"{sum(one.weight for one in rest):.3f}", *[""] * len(words.headers))
        )
    yield tabulate(
        rows,
        headers=["", "file labelled", "weight", *words.headers],
        colalign=("right", "left", *["right"] * (len(words.headers) + 1)),
        disable_numparse=True,
    )
    yield wrapped(words.note)
    yield ""


def _nobody(finding: Finding) -> str:
    return f"nobody stands out: {finding.stands_out.reason}."


def _first(finding: Finding) -> Any:
    return finding.suspects[0].figures


def _votes(finding: Finding) -> str:
    stands, best = finding.stands_out, _first(finding)
    if stands.client is None:
        return _nobody(finding)
    return (
        f"the file labelled {shown(stands.client)} differs most: {best.votes} of"
        f" {plural(finding.inputs, 'random input')} accuse it, {round(stands.lead or 0)} more than any other file."
        f" If its model were like the others', one of {len(finding.suspects)} would get so many with a probability"
        f" of at most {stands.chance:.1g}. A client whose honest data differ is accused in the same way."
    )


def _vote_cells(figures: Differences, finding: Finding) -> tuple[str, ...]:
    return f"{figures.votes} of {finding.inputs}", f"{figures.silent:.1f}"


def _axes(finding: Finding) -> str:
    stands = finding.stands_out
    if stands.client is None:
        return _nobody(finding)
    return (
        f"the file labelled {shown(stands.client)} stands out: over {plural(finding.inputs, 'misprediction')} its"
        " update raises the wrong class most, with 95 % confidence over the choice of inputs, and in proportion it"
        " does not raise that class on noise more than other updates do."
    )


def _axes_cells(figures: TwoAxes, finding: Finding) -> tuple[str, ...]:
    noise = dict(finding.method.parameters)["noise_inputs"]
    return signed(figures.target), signed(figures.noise), f"{figures.flags} of {noise}"


def _misled(finding: Finding) -> str:
    stands, best = finding.stands_out, _first(finding)
    if stands.client is None:
        return _nobody(finding)
    assert stands.lead is not None
    assert stands.interval is not None
    return (
        f"the file labelled {shown(stands.client)} stands out: of what the round moved on"
        f" {plural(finding.inputs, 'misprediction')}, it accounts for {percent(best.share)}, towards the wrong"
        f" class. That is {percent(stands.lead)} ahead of the next line ({_range(stands.interval)} with 95 %"
        f" confidence over the choice of inputs). {_repair(best, finding)}"
    )


def _repair(best: Misled, finding: Finding) -> str:
    if best.fixed is None:
        return "There is no fusion of the others alone."
    text = f"Fused again from the other files, the model gets {best.fixed} of these {finding.inputs} right"
    if best.broken is None:
        return f"{text}."
    return f"{text}, and {best.broken} of {plural(finding.controls or 0, 'control input')} wrong."


def _misled_cells(figures: Misled, finding: Finding) -> tuple[str, ...]:
    controls = finding.controls or 0
    return (
        percent(figures.share),
        "" if figures.interval is None else _range(figures.interval),
        f"{figures.top} of {finding.inputs}",
        "" if figures.control_share is None else percent(figures.control_share),
        "" if figures.control_top is None else f"{figures.control_top} of {controls}",
        "" if figures.fixed is None else f"{figures.fixed} of {finding.inputs}",
        "" if figures.broken is None else f"{figures.broken} of {controls}",
    )


def _departed(finding: Finding) -> str:
    stands, best = finding.stands_out, _first(finding)
    if stands.client is None:
        return _nobody(finding)
    assert stands.lead is not None
    assert stands.interval is not None
    return (
        f"the file labelled {shown(stands.client)} stands out: its update departs {best.distance:.1f} times as far"
        " as the median file's from what that client sent before, and of what the round moved on"
        f" {plural(finding.inputs, 'misprediction')} the departure accounts for {percent(best.share)}, towards the"
        f" wrong class. It has {percent(best.suspicion)} of the suspicion, {percent(stands.lead)} ahead of the"
        f" next file ({_range(stands.interval)} with 95 % confidence over the choice of inputs)."
        f" {_replaced(best, finding)}"
    )


def _replaced(best: Departed, finding: Finding) -> str:
    text = f"With its usual update instead, the model gets {best.fixed} of these {finding.inputs} right"
    if best.broken is None:
        return f"{text}."
    return f"{text}, and {best.broken} of {plural(finding.controls or 0, 'control input')} wrong."


def _departed_cells(figures: Departed, finding: Finding) -> tuple[str, ...]:
    controls = finding.controls or 0
    return (
        str(figures.rounds),
        f"{figures.distance:.1f}",
        percent(figures.usual),
        percent(figures.share),
        percent(figures.suspicion),
        "" if figures.interval is None else _range(figures.interval),
        f"{figures.top} of {finding.inputs}",
        "" if figures.fixed is None else f"{figures.fixed} of {finding.inputs}",
        "" if figures.broken is None else f"{figures.broken} of {controls}",
    )


def _range(bounds: tuple[float, float]) -> str:
    return f"{percent(bounds[0])} to {percent(bounds[1])}"


_WORDS: Mapping[str, _Words] = {
    "feddebug": _Words(
        ("accused by", "silent alone"),
        _vote_cells,
        _votes,
        "accused by: random inputs on which the others, without it, have the most neurons active in common; silent"
        " alone: neurons, per input, that are active in all others.",
    ),
    "influence": _Words(
        ("on mispredictions", "on noise", "flagged by"),
        _axes_cells,
        _axes,
        "influence of the update on the wrong classes, each column over its range; flagged by: noise inputs under"
        " which it is positive on mispredictions and, in proportion, at most average on noise. The published rule"
        " clusters the clients by both columns; it can accuse nobody among fewer than 15, and is not run.",
    ),
    "mispredictions": _Words(
        ("share", "95 % interval", "first in", "controls", "first in", "fixed", "broken"),
        _misled_cells,
        _misled,
        "share: mean share of the movement towards the wrong class, and the same on control inputs, which the"
        " model gets right; first in: inputs on which no other file's is larger; fixed, broken: mispredictions"
        " right, and controls wrong, with all other files fused again.",
    ),
    "departure": _Words(
        ("rounds", "distance", "usual", "departure", "suspicion", "95 % interval", "first in", "fixed", "broken"),
        _departed_cells,
        _departed,
        "rounds: how many earlier ones of the client are compared with; distance: how far its update departs from"
        " their mean relative to its size, 1 being the median file; usual, departure: mean shares of the movement"
        " towards the wrong class; suspicion: how far a departure is beyond the median file's, times how much it"
        " may have pushed towards the wrong class, as a share over the files; first in: inputs on which no other"
        " file is more suspect; fixed, broken: mispredictions right, and controls wrong, with the usual update in"
        " place of the one that was sent.",
    ),
}
