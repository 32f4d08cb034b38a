"""A trace for people: who is responsible for each prediction."""

import math
from collections.abc import Iterator
from typing import Any

from tabulate import tabulate

from flforensics.report import LIMITS
from flforensics.report.table.anatomy import anatomy_lines, everything
from flforensics.report.table.confirmation import GRADES, confirmation_lines, repair_lines
from flforensics.report.table.counterfactual import COLUMNS, counterfactual_sentence, counterfactual_table
from flforensics.report.table.layout import (
    closing_lines,
    explained,
    label,
    method_line,
    nodes_used,
    replay_line,
    said,
    source,
    title,
    wrapped,
)
from flforensics.report.table.summary import summary_lines
from flforensics.report.words import bar, percent, plural, shown, signed
from flforensics.results import (
    ClientScore,
    InputTrace,
    Parts,
    Responsible,
    Trace,
)

_DETAILED = 5


def trace_lines(result: Trace, top: int | None) -> Iterator[str]:
    """A block for each of a few inputs, or one row for each of many; then the replay, the method, the limits."""
    if len(result.inputs) <= _DETAILED:
        for one in result.inputs:
            yield from _detailed(one, result, top)
            yield ""
            yield from confirmation_lines(one)
    else:
        yield from _rows(result)
        yield ""
    if result.summary is not None:
        yield from summary_lines(result.summary, top)
        yield ""
    yield replay_line(result.replay)
    yield _method_line(result)
    yield from closing_lines(result.untraced, result.warnings, LIMITS)


def _detailed(one: InputTrace, result: Trace, top: int | None) -> Iterator[str]:
    yield title(one.subject, one.prediction, result.labels)
    yield wrapped(_leading(one, result))
    yield ""
    if _counterfactual(one):
        yield counterfactual_table(one, top)
        yield wrapped(COLUMNS)
        return
    shown_clients = one.clients[:top]
    rows: list[tuple[Any, ...]] = [
        (c.rank, _name(c), f"{c.weight:.3f}", signed(c.score), percent(c.share), bar(c.share), *_interval(c))
        for c in shown_clients
    ]
    if len(shown_clients) < len(one.clients):
        rest = one.clients[len(shown_clients) :]
        total = sum(c.score for c in rest)
        rows.append(("", f"{len(rest)} more", f"{sum(c.weight for c in rest):.3f}", signed(total), "", ""))
    if one.parts is not None:
        rows += _other_lines(one, one.parts, result)
    sampled = one.permutations is not None
    yield tabulate(
        rows,
        headers=["", "file labelled", "weight", "score", "share", "", *["95 % interval"] * sampled],
        colalign=("right", "left", "right", "right", "right", "left", *["right"] * sampled),
        disable_numparse=True,
    )
    yield from anatomy_lines(one, top)


def _counterfactual(one: InputTrace) -> bool:
    """Whether the method takes clients out."""
    return bool(one.clients) and one.clients[0].drop is not None


def _name(client: ClientScore) -> str:
    """The file's label, or the group's name and how many files are in it."""
    name = shown(client.client)
    return name if client.members is None else f"{name} ({plural(len(client.members), 'file')})"


def _interval(client: ClientScore) -> list[str]:
    """The interval as one cell, where there is one."""
    return [f"{signed(client.interval[0])} to {signed(client.interval[1])}"] if client.interval else []


def _other_lines(one: InputTrace, parts: Parts, result: Trace) -> list[tuple[Any, ...]]:
    """The ledger's other lines, and the total that all of them add up to."""
    movement = _movement(one, parts)
    named = [("(server)", parts.server)] if parts.server else []
    rows: list[tuple[Any, ...]] = [
        ("", name, "", signed(value), percent(value / movement if movement else 0.0), "")
        for name, value in [*named, ("(unexplained)", parts.unexplained)]
    ]
    rows.append(("", "(numerical residual)", "", signed(parts.residual), "", ""))
    rows.append(("", "(before this round)", "", signed(parts.previous), "", ""))
    rows.append(("", f"= {one.target.function} of {_target(one, result)}", "", signed(one.target.value), "", ""))
    return rows


def _target(one: InputTrace, result: Trace) -> str:
    against = "" if one.target.against is None else f" over {label(one.target.against, result.labels)}"
    return f"{label(one.target.index, result.labels)}{against}"


def _leading(one: InputTrace, result: Trace) -> str:
    if one.before is None or one.round_effect is None:
        return _leading_without_ledger(one, result)
    after, before = one.prediction, one.before
    if before.index == after.index:
        start = f"Before round {result.round} the model already said {said(before)}."
    else:
        start = f"Before round {result.round} the model said {said(before)}; now it says {said(after)}."
    what = explained(one.target, one.prediction, result.labels)
    moved = f"Round {result.round} moved {what} by {signed(one.round_effect)}"
    return f"{start} {moved}; {_answer(one)}"


def _leading_without_ledger(one: InputTrace, result: Trace) -> str:
    best = one.clients[0] if one.clients else None
    if one.responsible.kind != "client" or best is None:
        return f"Nobody is named: {one.responsible.reason}."
    if _counterfactual(one):
        sentence = counterfactual_sentence(
            best, one, target=explained(one.target, one.prediction, result.labels), number=result.round
        )
        return f"{sentence}{_tampering(one)}"
    return (
        f"Of the files of round {result.round}, the one labelled {shown(best.client)} has the largest"
        f" {result.method.name} score, {signed(best.score)}; its softmax share, {percent(best.share)}, is no"
        f" probability.{_tampering(one)}"
    )


def _answer(one: InputTrace) -> str:
    """The sentence that names somebody, or says why nobody is named."""
    responsible: Responsible = one.responsible
    if responsible.kind == "client":
        best = one.clients[0]
        who = "the file labelled" if best.members is None else f"the {plural(len(best.members), 'file')} in"
        return (
            f"of that movement, {who} {shown(best.client)} {'account' if best.members else 'accounts'} for"
            f" {percent(best.share)}. {_certainty(one)}{_tampering(one)}"
        )
    texts = {
        "server": "the largest part of it is the server's own.",
        "unexplained": "the largest part of it is not explained by the stored clients.",
        "previous": f"no client is named: {responsible.reason}.",
        "none": f"no client is named: {responsible.reason}.",
    }
    return texts[responsible.kind]


def _certainty(one: InputTrace) -> str:
    """How far the next line is behind, and how exact the lines are."""
    assert one.parts is not None
    assert one.responsible.lead is not None
    movement = _movement(one, one.parts)
    error = percent(max(one.change or 0.0, abs(one.parts.residual), *map(_half_width, one.clients)) / movement)
    exact = f"the numbers are exact to {error} of it" if one.nodes else "the numbers are exact but for rounding"
    if one.permutations:
        exact = f"with 95 % confidence, each number is within {error} of it"
    return f"That is {percent(one.responsible.lead)} of the movement ahead of the next largest line; {exact}."


def _half_width(client: ClientScore) -> float:
    return 0.0 if client.interval is None else (client.interval[1] - client.interval[0]) / 2


def _tampering(one: InputTrace) -> str:
    """How small an edit that nobody would notice makes another file the first."""
    if one.tamper_bound is not None:
        return (
            f" An edit of at most {percent(math.ceil(100 * one.tamper_bound) / 100)} of the updates involved that"
            " cancels in the fusion was found that overturns this ranking."
        )
    if one.tamper_margin is None:
        return ""
    return (
        f" An edit of {percent(one.tamper_margin)} of the updates involved that cancels in the fusion would"
        " overturn this ranking and still replay."
    )


def _movement(one: InputTrace, parts: Parts) -> float:
    """Σ|line| of everything that this round did; 0 if it did nothing."""
    return sum(abs(c.score) for c in one.clients) + abs(parts.server) + abs(parts.unexplained)


def _rows(result: Trace) -> Iterator[str]:
    """One row per input, where blocks for each would hide the picture."""
    wrong = [one for one in result.inputs if one.subject.true not in (None, one.prediction.index)]
    known = [one for one in result.inputs if one.subject.true is not None]
    yield (
        f"{plural(len(result.inputs), 'input')} under the global of round {result.round}"
        + (f"; {len(wrong)} of {len(known)} with a known class are wrong." if known else ".")
    )
    yield ""
    rows = [_row(one, result) for one in result.inputs]
    graded = any(one.confirmation is not None for one in result.inputs)
    yield tabulate(
        rows,
        headers=["input", "true", "said", "before", "effect", "responsible", "share", *["grade"] * graded],
        colalign=("left", "left", "left", "left", "right", "left", "right", *["left"] * graded),
        disable_numparse=True,
    )
    yield ""
    yield f"Every {everything(result)}client of every input: --format csv or --format json."
    if graded:
        yield wrapped(GRADES)
        yield from repair_lines(result.inputs)


def _row(one: InputTrace, result: Trace) -> tuple[str, ...]:
    subject, responsible = one.subject, one.responsible
    true = "" if subject.true is None else label(subject.true, result.labels)
    mark = "" if subject.true in (None, one.prediction.index) else " ✗"
    who = shown(responsible.client) if responsible.client else f"({responsible.kind})"
    share = percent(one.clients[0].share) if responsible.kind == "client" else ""
    effect = "" if one.round_effect is None else signed(one.round_effect)
    before = "" if one.before is None else said(one.before)
    grade = [] if one.confirmation is None else [one.confirmation.grade]
    return source(subject), true, said(one.prediction) + mark, before, effect, who, share, *grade


def _method_line(result: Trace) -> str:
    permutations = max((one.permutations or 0 for one in result.inputs), default=0)
    used = f"; up to {permutations:,} permutations" if permutations else ""
    return method_line(result.method, result.run, nodes_used(one.nodes for one in result.inputs) + used)
