"""A lineage for people: who moved each prediction in which round, from the initial model on."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import floor, log10

from tabulate import tabulate

from flforensics.report import LINEAGE_LIMITS
from flforensics.report.table.layout import (
    MEANING,
    closing_lines,
    explained,
    label,
    method_line,
    nodes_used,
    said,
    source,
    title,
    wrapped,
)
from flforensics.report.words import percent, plural, shown, signed
from flforensics.results import (
    ClientTotal,
    InputLineage,
    LargestStep,
    Lineage,
    RoundLedger,
    RoundReplay,
    Verdict,
)
from flforensics.rounds import spans

_DETAILED = 5
_WIDTH = 100
_LISTED = 10
_SHORT = 5
_OTHERS = 8
_ABSENT = "·"
_SUMMARY = ("input", "true", "said", "at first", "effect", "responsible", "share", "largest step")


def lineage_lines(result: Lineage, top: int | None) -> Iterator[str]:
    """A matrix for each of a few inputs, or one row for each of many; then the replays, the method, the limits."""
    if len(result.inputs) <= _DETAILED:
        for one in result.inputs:
            yield from _detailed(one, result, top)
            yield ""
    else:
        yield from _summary(result)
        yield ""
    yield from _replay_lines(result)
    nodes = nodes_used(round_.nodes for one in result.inputs for round_ in one.rounds)
    yield method_line(result.method, result.run, nodes)
    yield from closing_lines(result.untraced, result.warnings, LINEAGE_LIMITS)


def _detailed(one: InputLineage, result: Lineage, top: int | None) -> Iterator[str]:
    yield title(one.subject, one.prediction, result.labels)
    yield wrapped(f"{_leading(one, result)} {_answer(one)}")
    yield ""
    matrix = _Matrix(one, result, top)
    yield matrix.text
    if matrix.notes:
        yield wrapped(f"{'; '.join(matrix.notes)}.")
    yield from _gap_lines(one)


def _leading(one: InputLineage, result: Lineage) -> str:
    """Where the prediction came from, and how far the target went."""
    initial, target = one.initial, one.target
    start = (
        f"The global of round {initial.round} said {said(initial.prediction)}, that of round {result.round} says"
        f" {said(one.prediction)}."
    )
    name = explained(target, one.prediction, result.labels)
    return f"{start} On the way {name} went from {signed(initial.value)} to {signed(target.value)};"


def _answer(one: InputLineage) -> str:
    """The sentence that names somebody, or says why nobody is named."""
    responsible = one.responsible
    if responsible.kind == "client":
        assert responsible.lead is not None
        best = one.clients[0]
        number, score = best.strongest
        return (
            f"of all that moved it, the file labelled {shown(best.client)} accounts for {percent(best.share)},"
            f" most of all in round {number} ({signed(score)}). That is {percent(responsible.lead)} of the"
            f" movement ahead of the next largest line.{_step(one)}{_departure(one)}"
        )
    texts = {
        "server": "the largest part of what moved it is the server's own.",
        "unexplained": "the largest part of what moved it is not explained by the stored clients.",
        "gaps": "the largest part of what moved it happened in gaps of the archive.",
    }
    named = texts.get(responsible.kind, f"no client is named: {responsible.reason}.")
    return f"{named}{_step(one)}{_departure(one)}"


def _step(one: InputLineage) -> str:
    """The largest single step, where it is not already named."""
    step = one.largest_step
    if step is None or (step.client == one.responsible.client and step.round == one.clients[0].strongest[0]):
        return ""
    return f" The largest single step towards it is that of {_where(step)}."


def _departure(one: InputLineage) -> str:
    """The most suspect departure, where updates were compared."""
    if one.most_suspect is None:
        return ""
    return f" The most suspect departure from what a client had sent before is that of {_where(one.most_suspect)}."


def _where(step: LargestStep) -> str:
    """Whose, in which round, and how much."""
    doubt = "" if step.replays else ", a round that can name nobody"
    return f"the file labelled {shown(step.client)} in round {step.round} ({signed(step.score)}){doubt}"


def _gap_lines(one: InputLineage) -> Iterator[str]:
    """Each movement that nobody's line holds, and why."""
    for gap in one.gaps[:_LISTED]:
        where = f"From the global of round {gap.start} to that of round {gap.end}"
        if gap.start == gap.end:
            where = f"Between the global of round {gap.start} and the model that the next round started from"
        yield wrapped(f"Gap: {where}, {signed(gap.movement)}: {shown(gap.reason)}.")
    if len(one.gaps) > _LISTED:
        yield f"and {plural(len(one.gaps) - _LISTED, 'more gap')}"


@dataclass(frozen=True)
class _Row:
    """A name, its total and share, and a cell for each round; `values` are what the cells show, if they add up."""

    name: str
    total: str = ""
    share: str = ""
    cells: tuple[str, ...] = ()
    values: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class _Matrix:
    """Clients by rounds; the totals add up from the first value to the target, and so does every column."""

    one: InputLineage
    result: Lineage
    top: int | None

    @cached_property
    def text(self) -> str:
        """The table, at most about 100 columns wide."""
        header = _Row("file labelled", "total", "share", tuple(map(self._header, self.one.rounds)))
        rows = [header, *self._rows]
        left = [list(column) for column in zip(*((row.name, row.total, row.share) for row in rows), strict=True)]
        columns = [_column(rows, place) for place in self._shown]
        others = [["others", *map(self._others, self._rows)]] if self._hidden else []
        return _aligned(left, [*columns, *others])

    @cached_property
    def notes(self) -> list[str]:
        """What a reader must know of the table."""
        notes = []
        if self._hidden:
            notes.append(
                f"the {len(self._shown)} of {len(self.one.rounds)} that moved most; `others` adds up the rest"
            )
        if any(_ABSENT in row.cells for row in self._rows):
            notes.append(f"{_ABSENT} no file of that round")
        if any(self._doubtful(one) for one in self.one.rounds):
            notes.append("! does not replay")
        return notes

    @cached_property
    def _shown(self) -> tuple[int, ...]:
        """The places of as many rounds as fit, those that moved most, oldest first."""
        widths = [
            1 + max(map(len, (self._header(round_), *(row.cells[place] for row in self._rows if row.cells))))
            for place, round_ in enumerate(self.one.rounds)
        ]
        free = _WIDTH - sum(
            2 + max(map(len, column))
            for column in zip(*((r.name, r.total, r.share) for r in self._rows), strict=True)
        )
        if sum(widths) <= free:
            return tuple(range(len(widths)))
        chosen: list[int] = []
        for place in sorted(range(len(widths)), key=lambda place: -sum(map(abs, _lines(self.one.rounds[place])))):
            if sum(widths[one] for one in (*chosen, place)) + _OTHERS > free:
                break
            chosen.append(place)
        return tuple(sorted(chosen))

    @property
    def _hidden(self) -> tuple[int, ...]:
        return tuple(place for place in range(len(self.one.rounds)) if place not in self._shown)

    def _header(self, one: RoundLedger) -> str:
        return f"{one.round}!" if self._doubtful(one) else str(one.round)

    def _doubtful(self, one: RoundLedger) -> bool:
        return any(replay.round == one.round and not replay.verdict.replays for replay in self.result.replays)

    @cached_property
    def _rows(self) -> list[_Row]:
        one, rounds, totals = self.one, self.one.rounds, self.one.totals
        rows = [self._of_clients(shown(client.client), (client,)) for client in one.clients[: self.top]]
        rest = one.clients[len(rows) :]
        if rest:
            rows.append(self._of_clients(f"{len(rest)} more", rest))
        if any(round_.server for round_ in rounds):
            rows.append(self._of_all("(server)", totals.server, [round_.server for round_ in rounds]))
        rows.append(self._of_all("(unexplained)", totals.unexplained, [round_.unexplained for round_ in rounds]))
        rows.append(self._of_all("(residual)", totals.residual, [round_.residual for round_ in rounds]))
        if one.gaps:
            rows.append(_Row("(gaps)", self._total(totals.gaps)))
        rows.append(_Row("(at first)", self._total(one.initial.value)))
        values = tuple(self._cell(round_.value) for round_ in rounds)
        rows.append(_Row(f"= {one.target.function}", self._total(one.target.value), "", values))
        rows.append(_Row("it says", "", "", tuple(_short(shown(round_.after.label)) for round_ in rounds)))
        return rows

    def _of_clients(self, name: str, clients: tuple[ClientTotal, ...]) -> _Row:
        """One client's row, or the sum of several; rounds in which none of them took part are marked."""
        labels = {client.client for client in clients}
        found = [[score.score for score in one.clients if score.client in labels] for one in self.one.rounds]
        share = _percent(clients[0].share) if len(clients) == 1 else ""
        total = self._total(sum(client.score for client in clients))
        values = tuple(sum(scores) if scores else None for scores in found)
        return _Row(name, total, share, tuple(map(self._cell, values)), values)

    def _of_all(self, name: str, total: float, values: list[float]) -> _Row:
        return _Row(name, self._total(total), "", tuple(map(self._cell, values)), tuple(values))

    def _others(self, row: _Row) -> str:
        """The sum of the rounds that are not shown, for rows that add up."""
        if not row.values:
            return ""
        values = [value for place in self._hidden if (value := row.values[place]) is not None]
        return self._cell(sum(values) if values else None)

    def _cell(self, value: float | None) -> str:
        return _ABSENT if value is None else _rounded(value, self._digits)

    def _total(self, value: float) -> str:
        return _rounded(value, self._digits + 1)

    @cached_property
    def _digits(self) -> int:
        """How many digits stand behind the point: one, or as many as show two of the largest score."""
        largest = max((abs(line) for one in self.one.rounds for line in _lines(one)), default=1.0)
        return min(9, 1 - floor(log10(largest))) if 0 < largest < 1 else 1


def _column(rows: list[_Row], place: int) -> list[str]:
    """One round's cells, header first."""
    return [row.cells[place] if row.cells else "" for row in rows]


def _aligned(left: list[list[str]], rounds: list[list[str]]) -> str:
    """Columns of cells as lines, the first to the left; rounds stand closer, as tabulate would not let them."""
    wide, close = ([max(map(len, column)) for column in columns] for columns in (left, rounds))
    lines = []
    for place, cells in enumerate(zip(*left, strict=True)):
        begun = [cell.rjust(width) for cell, width in zip(cells, wide, strict=True)]
        begun[0] = cells[0].ljust(wide[0])
        ended = " ".join(column[place].rjust(width) for column, width in zip(rounds, close, strict=True))
        lines.append("  ".join([*begun, ended]).rstrip())
    rule = "  ".join(["-" * width for width in wide] + [" ".join("-" * width for width in close)])
    return "\n".join([lines[0], rule, *lines[1:]])


def _percent(share: float) -> str:
    """A share in few letters."""
    return "<1 %" if 0 < abs(share) < 0.005 else percent(share)


def _lines(one: RoundLedger) -> tuple[float, ...]:
    return (*(client.score for client in one.clients), one.server, one.unexplained)


def _rounded(value: float, digits: int) -> str:
    """A signed number of so many digits behind the point; what is too small for them is 0."""
    text = f"{value:+.{digits}f}"
    return "0" if float(text) == 0 else text


def _short(text: str) -> str:
    return text if len(text) <= _SHORT else f"{text[: _SHORT - 1]}…"


def _summary(result: Lineage) -> Iterator[str]:
    """One row per input, where a matrix for each would hide the picture."""
    wrong = [one for one in result.inputs if one.subject.true not in (None, one.prediction.index)]
    known = [one for one in result.inputs if one.subject.true is not None]
    yield (
        f"{plural(len(result.inputs), 'input')} under the global of round {result.round}"
        + (f"; {len(wrong)} of {len(known)} with a known class are wrong." if known else ".")
    )
    yield ""
    compared = any(one.most_suspect for one in result.inputs)
    yield tabulate(
        [_summary_row(one, result, compared=compared) for one in result.inputs],
        headers=[*_SUMMARY, *(["most suspect departure"] if compared else [])],
        colalign=(
            "left",
            "left",
            "left",
            "left",
            "right",
            "left",
            "right",
            "left",
            *(["left"] if compared else []),
        ),
        disable_numparse=True,
    )
    yield ""
    yield "Every client of every round and input: --format csv or --format json."


def _summary_row(one: InputLineage, result: Lineage, *, compared: bool) -> tuple[str, ...]:
    subject, responsible = one.subject, one.responsible
    true = "" if subject.true is None else label(subject.true, result.labels)
    mark = "" if subject.true in (None, one.prediction.index) else " ✗"
    effect = signed(one.target.value - one.initial.value)
    begun = (source(subject), true, said(one.prediction) + mark, said(one.initial.prediction), effect)
    steps = (one.largest_step, *([one.most_suspect] if compared else []))
    largest = [
        "" if step is None else f"{shown(step.client)} in {step.round} ({signed(step.score)})" for step in steps
    ]
    if responsible.kind != "client":
        return (*begun, f"({responsible.kind})", "", *largest)
    best = one.clients[0]
    return (*begun, shown(best.client), percent(best.share), *largest)


def _replay_lines(result: Lineage) -> Iterator[str]:
    """The verdicts, with the rounds that got them, and why some got none."""
    texts = []
    for verdict in Verdict:
        rounds = [one.round for one in result.replays if one.verdict is verdict]
        if rounds:
            texts.append(f"{spans(rounds)} {verdict.value} ({MEANING[verdict]})")
    yield wrapped(f"Replay: {'; '.join(texts) or 'no round holds clients'}.")
    reasons: list[RoundReplay] = [one for one in result.replays if one.reason]
    for one in reasons[:_LISTED]:
        yield wrapped(f"Round {one.round}: {one.verdict.value}: {shown(one.reason)}.")
    if len(reasons) > _LISTED:
        yield f"and {plural(len(reasons) - _LISTED, 'more round')} of that kind"
