"""Lineages as reports: what the matrix shows, that it fits, and that nothing foreign or non-finite gets out."""

import csv
import io
import json
import math
import random

import pytest

from flforensics.report import LINEAGE_LIMITS, REPORTS, render
from flforensics.results import (
    ClientTotal,
    Gap,
    LargestStep,
    Prediction,
    Responsible,
    RoundScore,
    Subject,
    Target,
    Verdict,
)
from tests.report import records


def flat(result, **options):
    """The table as one line."""
    return " ".join(render(result, "table", **options).split())


def rows(result, **options):
    """The matrix, by the first word of its rows."""
    lines = render(result, "table", **options).splitlines()
    begin = next(index for index, line in enumerate(lines) if line.startswith("file labelled"))
    cells = [line.split() for line in lines[begin + 2 : lines.index("", begin)]]
    return {row[0]: row[1:] for row in cells}


def test_the_sentence_and_the_matrix():
    text = flat(records.lineage())
    assert text.startswith(
        "a.png: cat (80 %) The global of round 0 said dog (70 %), that of round 3 says cat (80 %). On the way its"
        " margin over dog went from -1.00 to +2.00; of all that moved it, the file labelled hospital-1 accounts"
        " for 70 %, most of all in round 3 (+2.00). That is 50 % of the movement ahead of the next largest line."
    )
    matrix = rows(records.lineage())
    assert matrix["hospital-1"] == ["+2.50", "70", "%", "+0.5", "+2.0"]
    assert matrix["hospital-2"] == ["-0.25", "-7", "%", "-0.2", "·"]
    assert matrix["(gaps)"] == ["+0.75"]
    assert matrix["="] == ["margin", "+2.00", "+1.0", "+2.0"]
    assert "· no file of that round" in text
    assert "Gap: From the global of round 1 to that of round 2, +0.75: the archive holds no clients of" in text
    assert text.endswith(" ".join(LINEAGE_LIMITS.split()))


def test_rounds_that_do_not_replay_are_marked():
    bad = records.round_replay(round=1, verdict=Verdict.INCONSISTENT)
    text = flat(records.lineage(replays=(bad, records.round_replay())))
    assert " 1! " in text
    assert "! does not replay" in text
    assert "Replay: round 3 consistent" in text
    assert "round 1 inconsistent" in text


def many_rounds(count, clients=5):
    """A lineage with scores of several sizes, which adds up."""
    source = random.Random(count)
    names = [f"hospital-{k}" for k in range(clients)]
    ledgers, value = [], 0.25
    for number in range(1, count + 1):
        scores = tuple(RoundScore(name, 0.2, source.gauss(0, 1 + 9 * (number % 7 == 0))) for name in names)
        value += sum(score.score for score in scores)
        ledgers.append(records.ledger_of(number, clients=scores, value=value))
    sums = {name: sum(c.score for one in ledgers for c in one.clients if c.client == name) for name in names}
    order = sorted(names, key=lambda name: -sums[name])
    totals = tuple(
        ClientTotal(name, sums[name], 0.1, rank, count, (7, 1.0)) for rank, name in enumerate(order, start=1)
    )
    one = records.input_lineage(*ledgers, clients=totals, gaps=(), target=Target("margin", 0, 1, value))
    return records.lineage(one), sums


@pytest.mark.parametrize("count", [1, 12, 40, 300])
def test_it_fits_whatever_the_number_of_rounds(count):
    result, sums = many_rounds(count)
    text = render(result, "table")
    assert max(map(len, text.splitlines())) <= 100
    matrix = rows(result)
    for name, total in sums.items():
        shown, *cells = matrix[name]
        assert float(shown) == pytest.approx(total, abs=0.006)
        assert sum(map(float, cells[2:])) == pytest.approx(total, abs=0.06 * len(cells))
    assert ("that moved most" in text) is (count > 12)


def test_the_others_are_one_row():
    result, sums = many_rounds(6)
    matrix = rows(result, top=2)
    best = sorted(sums.values(), reverse=True)[:2]
    assert float(matrix["3"][1]) == pytest.approx(sum(sums.values()) - sum(best), abs=0.006)


def test_a_lineage_of_gaps_alone():
    gaps = (Gap(0, 1, 3.0, "nothing"), Gap(1, 1, -0.5, "another start"))
    nobody = Responsible("gaps", None, 1.0, True)
    one = records.input_lineage(rounds=(), clients=(), gaps=gaps, responsible=nobody)
    text = flat(records.lineage(one))
    assert "the largest part of what moved it happened in gaps of the archive" in text
    assert "Between the global of round 1 and the model that the next round started from, -0.50" in text


def test_many_inputs_are_rows():
    nobody = records.input_lineage(responsible=Responsible("none", None, None, False, "because"))
    result = records.lineage(*[records.input_lineage()] * 5, nobody)
    text = render(result, "table")
    assert text.count("hospital-1 in 3 (+2.00)") == 6
    assert "(none)" in text


@pytest.mark.parametrize("form", REPORTS)
def test_nothing_hidden_and_nothing_that_is_no_number(form):
    evil = "\x1b[2J\u202e=1"
    one = records.input_lineage(
        records.ledger_of(1, math.nan, math.inf, after=Prediction(0, evil, math.nan), value=-math.inf),
        subject=Subject(evil, 0, "", None),
        gaps=(Gap(0, 1, math.nan, evil),),
        clients=(ClientTotal(evil, math.nan, math.inf, 1, 1, (1, math.nan)),),
    )
    text = render(records.lineage(one, warnings=(evil,)), form)
    assert "\x1b" not in text
    assert "\u202e" not in text
    if form == "json":
        json.loads(text, parse_constant=lambda name: pytest.fail(name))


def test_keys_that_do_not_apply_are_left_out():
    fixed = records.input_lineage(
        records.ledger_of(1, converged=None),
        target=Target("logit", 0, None, 2.0),
        responsible=Responsible("gaps", None, 1.0, True),
    )
    (one,) = json.loads(render(records.lineage(fixed), "json"))["inputs"]
    assert "against" not in one["target"]
    assert "converged" not in one["rounds"][0]
    assert "client" not in one["responsible"]


def test_every_line_is_a_row():
    table = list(csv.DictReader(io.StringIO(render(records.lineage(), "csv"))))
    lines = [(row["line"], row["round"], row["client"]) for row in table]
    assert lines == [
        ("initial", "0", ""),
        ("client", "1", "hospital-1"),
        ("client", "1", "hospital-2"),
        *[(line, "1", "") for line in ("server", "unexplained", "residual")],
        ("client", "3", "hospital-1"),
        *[(line, "3", "") for line in ("server", "unexplained", "residual")],
        ("gap", "2", ""),
    ]
    assert sum(float(row["score"]) for row in table) == 2.0


def test_the_most_suspect_departure_is_said_where_updates_were_compared():
    other = records.input_lineage(most_suspect=LargestStep(3, "hospital-2", 0.5, True))
    text = " ".join(render(records.lineage(other), "table").split())
    where = "that of the file labelled hospital-2 in round 3 (+0.50)."
    assert f"The most suspect departure from what a client had sent before is {where}" in text
    assert "most_suspect" in json.loads(render(records.lineage(other), "json"))["inputs"][0]
    assert "most_suspect.client" in render(records.lineage(other), "csv")
    assert "departure" not in render(records.lineage(), "table")


def test_the_largest_step_is_said_where_it_is_not_the_named_clients():
    plain = " ".join(render(records.lineage(), "table").split())
    assert "largest single step" not in plain
    other = records.input_lineage(largest_step=LargestStep(1, "hospital-2", 1.5, False))
    text = " ".join(render(records.lineage(other), "table").split())
    assert "that of the file labelled hospital-2 in round 1 (+1.50), a round that can name nobody." in text
    document = json.loads(render(records.lineage(other), "json"))["inputs"][0]
    assert document["largest_step"] == {"round": 1, "client": "hospital-2", "score": 1.5, "replays": False}
