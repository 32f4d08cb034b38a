"""The results as Markdown: everything that a reader needs to judge a method, and where it falls short."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tabulate import tabulate

from flforensics.report.words import plural
from tests.bench.accuracy.measures import Measure
from tests.bench.accuracy.methods import AGAINST_TRUTH, DEPARTURE, DISTANCE
from tests.bench.accuracy.records import REFERENCES, Record
from tests.bench.accuracy.tallies import (
    BASELINES,
    Asked,
    asked,
    correlation,
    holds_label,
    holds_most,
    is_culprit,
    methods_of,
    relative_time,
    responsible,
    right,
    right_together,
    same_top,
)

TABLE = Path(__file__).with_name("results.md")
README = Path(__file__).parents[3] / "README.md"
LINES = Path(__file__).with_name("results.jsonl.gz")
START, END = "<!-- summary -->", "<!-- end of summary -->"
"""What the README quotes stands between these."""

Row = list[str]
_FLIPS = ("flip-one", "flip-all")


def report(records: Sequence[Record]) -> str:
    """The whole file."""
    if not records:
        return "No cell is finished.\n"
    sections = [_heading(records), START, summary(records), END, *(section(records) for section in _SECTIONS)]
    return "\n\n".join(sections) + "\n"


def quoting(readme: str, written: str) -> str:
    """The README with the summary of a report between its marks."""
    before, _, rest = readme.partition(START)
    _, _, after = rest.partition(END)
    return before + START + summary_of(written) + END + after


def summary_of(text: str) -> str:
    """What stands between the marks, with its white space."""
    return text.partition(START)[2].partition(END)[0]


def summary(records: Sequence[Record]) -> str:
    """One line for each method over everything."""
    correct, flips, absent = asked(records, "correct"), asked(records, *_FLIPS), asked(records, "absent-")
    two = asked(records, "flip-two")
    rows = []
    for method in (*BASELINES, *methods_of([*correct, *flips, *absent])):
        rows.append(
            [
                method,
                _number(correlation(correct, method, "shapley")),
                _percent(same_top(correct, method, "shapley")),
                _percent(right(correct, method, holds_label)),
                _percent(right(correct, method, holds_most)),
                _percent(right(flips, method, is_culprit, among=Asked.direct)),
                _percent(right(flips, method, is_culprit)),
                _percent(right_together(flips, method)),
                _percent(right(two, method, is_culprit)),
                _percent(right(absent, method, is_culprit, among=Asked.direct)),
                _percent(right(absent, method, is_culprit)),
                _times(relative_time([*correct, *flips, *absent], method)),
            ]
        )
    heads = [
        "method",
        "rank correlation with Shapley",
        "same top client as Shapley, %",
        "top client holds the label, %",
        "... holds most of it, %",
        "flipped client on top: what the flip taught, %",
        "... all that it caused, %",
        "... all of a round's together, %",
        "two flipped: the one that caused it on top, %",
        "absent culprit on top: what the flip taught, %",
        "... all that it caused by then, %",
        "time, ledger = 1",
    ]
    return _table(heads, rows)


def _heading(records: Sequence[Record]) -> str:
    versions = " ".join(f"{name} {version}" for name, version in records[0]["versions"].items())
    seconds, training = (sum(record[key] for record in records) for key in ("seconds", "training_seconds"))
    seeds = sorted({record["seed"] for record in records})
    inputs = sum(len(question["true"]) for record in records for question in record["questions"])
    return (
        "# How often each method is right\n\n"
        f"Written by `make bench-accuracy`, scale {records[0]['scale']}, seed {', '.join(map(str, seeds))};"
        f" {versions}; {len(records)} federations, {inputs} inputs, in {seconds:.0f} s on"
        f" {plural(records[0]['threads'], 'thread')}, of which training {training:.0f} s."
        " README.md says what was run and what is counted."
        " In brackets: 95 % intervals (Wilson for proportions; medians by resampling federations)."
    )


def _goals(records: Sequence[Record]) -> str:
    """What the project set out to show, and what of it these runs do not show."""
    correct = asked(records, "correct")
    rows: list[Row] = []
    for name, group in _grouped(correct, lambda one: _kind(one.record)):
        rank, top = correlation(group, "ledger", "shapley"), same_top(group, "ledger", "shapley")
        rows.append(_goal(f"ledger, rank correlation with Shapley: {name}", rank, 0.97, _number))
        rows.append(_goal(f"ledger, same top client as Shapley, %: {name}", top, 0.9, _percent))
    flips = asked(records, *_FLIPS)
    for method in [one for one in methods_of(flips) if one in ("ledger", AGAINST_TRUTH, DEPARTURE)]:
        for name, group in _grouped(flips, lambda one: f"α {one.record['alpha']:g}"):
            taught, all_ = (right(group, method, is_culprit, among=among) for among in (Asked.direct, None))
            together = right_together(group, method)
            rows.append(
                _goal(f"{method}, flipped client, what the flip taught, %: {name}", taught, 0.99, _percent)
            )
            rows.append(_goal(f"{method}, flipped client, all that it caused, %: {name}", all_, 0.99, _percent))
            rows.append(
                _goal(f"{method}, flipped client, a round's together, %: {name}", together, 0.99, _percent)
            )
    absent = asked(records, "absent-")
    for method in methods_of(absent):
        if method.startswith("lineage"):
            for name, group in _grouped(absent, lambda one: one.scenario):
                taught, all_ = (right(group, method, is_culprit, among=among) for among in (Asked.direct, None))
                rows.append(_goal(f"{method}, what the flip taught, %: {name}", taught, 0.95, _percent))
                rows.append(_goal(f"{method}, all that it caused, %: {name}", all_, 0.95, _percent))
    return "\n\n".join(["## What was hoped for", _table(["figure", "measured", "n", "hoped for", ""], rows)])


def _goal(figure: str, measure: Measure | None, least: float, shown: Callable[[Measure | None], str]) -> Row:
    if measure is None:
        return [figure, "–", "0", "", "not measured"]
    hoped = Measure(least, least, least, 0)
    reached = "reached" if measure.value >= least else "**not reached**"
    return [figure, shown(measure), str(measure.n), shown(hoped).split(" (")[0], reached]


def _agreement(records: Sequence[Record]) -> str:
    """With exact Shapley values and with re-fusion, for each dataset and network."""
    parts = ["## Agreement with exact Shapley values and with re-fusion, by dataset and network"]
    questions = asked(records, "correct", *_FLIPS)
    for reference in REFERENCES:
        methods = [
            name for name in methods_of(questions) if name not in (reference, AGAINST_TRUTH, DEPARTURE, DISTANCE)
        ]
        rows = []
        for name, group in _grouped(questions, lambda one: _kind(one.record)):
            pairs = [(correlation(group, m, reference), same_top(group, m, reference)) for m in methods]
            count = next((top.n for _, top in pairs if top), 0)
            cells = [f"{_number(rank)} · {_percent(top)}" if rank else "–" for rank, top in pairs]
            rows.append([name, str(count), *cells])
        parts.append(f"Median rank correlation with {reference} · same top client, %:")
        parts.append(_table(["federation", "inputs", *methods], rows))
    return "\n\n".join(parts)


def _localisation(records: Sequence[Record]) -> str:
    questions = asked(records, "correct")
    return "\n\n".join(
        [
            "## Right predictions: whom the top client is",
            "The top client holds the predicted label (at least ten examples: the rule of TraceFL's paper), %:",
            _by_alpha(questions, lambda group, method: right(group, method, holds_label)),
            "The top client holds most of the label, %:",
            _by_alpha(questions, lambda group, method: right(group, method, holds_most)),
            "The top client holds the label, by dataset and network, %:",
            _by(questions, lambda one: _kind(one.record), lambda group, method: right(group, method, holds_label)),
        ]
    )


def _flipped(records: Sequence[Record]) -> str:
    parts = ["## Mistakes that one client's flipped labels caused"]
    for scenario, what in (("flip-one", "one label flipped"), ("flip-all", "all labels flipped to one class")):
        questions = asked(records, scenario)
        parts += [
            f"The flipped client on top, {what}; what the flip taught, %:",
            _by_alpha(questions, lambda group, method: right(group, method, is_culprit, among=Asked.direct)),
            f"The flipped client on top, {what}; all inputs that the honest twin of the round gets right, %:",
            _by_alpha(questions, lambda group, method: right(group, method, is_culprit)),
            f"The flipped client on top of all these inputs of a round together, {what}, %:",
            _by_alpha(questions, right_together, baselines=()),
        ]
    two = asked(records, "flip-two")
    parts += [
        "Two clients flipped a label each; on top of the mistakes that one of them alone caused, that one, %:",
        _by_alpha(two, lambda group, method: right(group, method, is_culprit)),
    ]
    questions = asked(records, *_FLIPS)
    rows = [
        [method, *(_percent(measure) for measure in responsible(questions, method).values())]
        for method in methods_of(questions)
        if any(responsible(questions, method).values())
    ]
    parts += [
        "Whom `responsible` names, both flips, %:",
        _table(["method", "the flipped client", "another", "nobody"], rows),
        "The flipped client on top, by dataset and network, both flips; what the flip taught, %:",
        _by(
            questions,
            lambda one: _kind(one.record),
            lambda group, method: right(group, method, is_culprit, among=Asked.direct),
        ),
    ]
    return "\n\n".join(parts)


def _noise(records: Sequence[Record]) -> str:
    questions = asked(records, "noise-")
    return "\n\n".join(
        [
            "## Differential-privacy noise",
            "Right predictions of a global with noise (multiplier); the top client holds the label, %:",
            _by(questions, lambda one: one.scenario, lambda group, method: right(group, method, holds_label)),
            "The same client on top as re-fusion, %:",
            _by(questions, lambda one: one.scenario, lambda group, method: same_top(group, method, "re-fusion")),
        ]
    )


def _absent(records: Sequence[Record]) -> str:
    questions = asked(records, "absent-")
    return "\n\n".join(
        [
            "## A culprit that has left",
            "The culprit on top, after rounds without it, %:",
            _by(questions, lambda one: one.scenario, lambda group, method: right(group, method, is_culprit)),
            "The culprit on top, what the flip taught, %:",
            _by(
                questions,
                lambda one: one.scenario,
                lambda group, method: right(group, method, is_culprit, among=Asked.direct),
            ),
            "The culprit on top of all these inputs together, %:",
            _by(questions, lambda one: one.scenario, right_together, baselines=()),
        ]
    )


_SECTIONS: tuple[Callable[[Sequence[Record]], str], ...] = (
    _goals,
    _agreement,
    _localisation,
    _flipped,
    _noise,
    _absent,
)


def _by_alpha(
    questions: Sequence[Asked],
    measure: Callable[[Sequence[Asked], str], Measure | None],
    *,
    baselines: Sequence[str] = BASELINES,
) -> str:
    def key(one: Asked) -> str:
        return f"α {one.record['alpha']:g}, {_federation(one.record)}"

    return _by(questions, key, measure, baselines=baselines)


def _by(
    questions: Sequence[Asked],
    key: Callable[[Asked], str],
    measure: Callable[[Sequence[Asked], str], Measure | None],
    *,
    baselines: Sequence[str] = BASELINES,
) -> str:
    """A row for each group of questions and one for all, a column for each method."""
    methods = [*baselines, *methods_of(questions)]
    rows = []
    for name, group in _grouped(questions, key):
        found = [measure(group, method) for method in methods]
        rows.append([name, str(max((one.n for one in found if one), default=0)), *map(_percent, found)])
    return _table(["", "n", *methods], rows)


def _grouped(questions: Iterable[Asked], key: Callable[[Asked], str]) -> list[tuple[str, list[Asked]]]:
    groups: dict[str, list[Asked]] = {}
    everything = list(questions)
    for one in everything:
        groups.setdefault(key(one), []).append(one)
    return [*groups.items(), ("all", everything)]


def _kind(record: Record) -> str:
    return f"{record['dataset']}, {record['model']}, {_federation(record)}"


def _federation(record: Record) -> str:
    return "10 clients" if record["clients"] == 10 else f"10 of {record['clients']}"


def _table(heads: Sequence[str], rows: Sequence[Row]) -> str:
    return tabulate(rows, headers=heads, tablefmt="github", disable_numparse=True)


def _percent(measure: Measure | None) -> str:
    if measure is None:
        return "–"
    value, low, high = (f"{100 * one:.0f}" for one in (measure.value, measure.low, measure.high))
    return value if measure.low == measure.high else f"{value} ({low} to {high})"


def _number(measure: Measure | None) -> str:
    return "–" if measure is None else f"{measure.value:.2f} ({measure.low:.2f} to {measure.high:.2f})"


def _times(measure: Measure | None) -> str:
    return "–" if measure is None else f"{measure.value:.2g}"
