"""Confirmations and summaries in every format."""

import csv
import io
import json
from dataclasses import replace

import pytest

from flforensics.report import render
from flforensics.results import (
    Agreement,
    ClientSummary,
    Confirmation,
    Controls,
    Others,
    Rate,
    Repair,
    Responsible,
    Stability,
    Subject,
    Summary,
    SummaryGroup,
)
from tests.report import records

CONFIRMATION = Confirmation(
    client="hospital-1",
    grade="B",
    reason="the methods agree and beat chance",
    agreement=Agreement(
        first=(
            ("ledger", "hospital-1"),
            ("tracefl", "hospital-2"),
            ("drop", "hospital-1"),
            ("refuse", "hospital-1"),
        ),
        agreeing=3,
        of=4,
        at_random=0.5,
        spearman=(("ledger", "tracefl", -1.0), ("ledger", "drop", None)),
    ),
    stability=Stability(
        dtype=(("float32", "hospital-1"), ("float64", "hospital-1")),
        target=(("margin", "hospital-1"), ("logit", "hospital-2"), ("logprob", "hospital-1")),
        layer_decay=(("1.0", "hospital-2"), ("0.9", "hospital-2")),
    ),
    controls=Controls(7, Rate(31, 32), Rate(1, 2), Rate(4, 32), 1.5e-8),
    repair=Repair(1, "dog", True, True, 2.5, Others(stays_right=3, becomes_wrong=1, changes=2)),
)
SUMMARY = Summary(
    chance=0.5,
    largest="hospital-1",
    groups=(
        SummaryGroup(
            True, 4, (ClientSummary("hospital-1", 0.7, 1, 1, 0.2), ClientSummary("hospital-2", 0.3, 3, 2, 0.5))
        ),
        SummaryGroup(
            False, 2, (ClientSummary("hospital-1", 0.7, 2, 0, 0.4), ClientSummary("hospital-2", 0.3, 0, 0, -0.1))
        ),
    ),
    left_out=1,
)


def confirmed(confirmation=CONFIRMATION, **changes):
    return records.trace(records.one_input(confirmation=confirmation, **changes))


def document(result):
    (one,) = json.loads(render(result, "json"))["inputs"]
    return one


def flat(result, **options):
    """The table as one line."""
    return " ".join(render(result, "table", **options).split())


def test_json_has_every_key():
    assert document(confirmed())["confirmation"] == {
        "grade": "B",
        "reason": "the methods agree and beat chance",
        "client": "hospital-1",
        "methods": {"ledger": "hospital-1", "tracefl": "hospital-2", "drop": "hospital-1", "refuse": "hospital-1"},
        "agreement": {
            "agreeing": 3,
            "of": 4,
            "at_random": 0.5,
            "spearman": {"ledger-tracefl": -1.0, "ledger-drop": None},
        },
        "stability": {
            "dtype": {"float32": "hospital-1", "float64": "hospital-1"},
            "target": {"margin": "hospital-1", "logit": "hospital-2", "logprob": "hospital-1"},
            "layer_decay": {"1.0": "hospital-2", "0.9": "hospital-2"},
        },
        "controls": {
            "seed": 7,
            "neighbours": {"on_top": 31, "of": 32},
            "other_classes": {"on_top": 1, "of": 2},
            "noise": {"on_top": 4, "of": 32},
            "p_value": 1.5e-8,
        },
        "repair": {
            "class": 1,
            "label": "dog",
            "changes": True,
            "fixes": True,
            "removed": 2.5,
            "others": {
                "stays_right": 3,
                "becomes_right": 0,
                "becomes_wrong": 1,
                "stays_wrong": 0,
                "keeps": 0,
                "changes": 2,
            },
        },
    }


def test_nobody_asked_nothing_said():
    assert "confirmation" not in document(records.trace())
    assert "confirmation" not in render(records.trace(), "csv")
    assert "Evidence" not in flat(records.trace())


def test_csv_is_the_json_flat():
    (first, second) = csv.DictReader(io.StringIO(render(confirmed(), "csv")), strict=True)
    assert first["confirmation.grade"] == second["confirmation.grade"] == "B"
    assert first["confirmation.methods.tracefl"] == "hospital-2"
    assert first["confirmation.agreement.spearman.ledger-tracefl"] == "-1.0"
    assert first["confirmation.agreement.spearman.ledger-drop"] == ""
    assert first["confirmation.stability.target.logit"] == "hospital-2"
    assert first["confirmation.controls.noise.on_top"] == "4"
    assert first["confirmation.repair.others.stays_right"] == "3"
    assert not any("{" in cell for cell in first.values())


def test_the_table_leads_with_the_grade():
    text = flat(confirmed())
    assert "Evidence: grade B: the methods agree and beat chance. About the file labelled hospital-1:" in text
    assert "hospital-1 is first for ledger, drop and re-fusion; hospital-2 is first for TraceFL." in text
    assert "as many or more would agree with 50 % probability" in text
    assert "Spearman over the clients: ledger/TraceFL -1.00, ledger/drop none." in text
    assert (
        "hospital-1 is first in float32 and float64; hospital-1 is first for the margin and logprob, hospital-2 is"
        " first for the logit; TraceFL: hospital-2 is first with layer decay 1.0 and 0.9." in text
    )
    assert (
        "first for 31 of 32 neighbours of the input, 1 of 2 other classes, 4 of 32 noise inputs (seed 7)."
        " Neighbours against noise: p = 1.5e-08 (Fisher's exact test)." in text
    )
    assert (
        "fused again without it, the model says dog. Of 6 other inputs: 3 still right, 1 now wrong, 2 changed."
        in text
    )
    assert "guilty" not in text
    assert max(map(len, render(confirmed(), "table").splitlines())) <= 100


@pytest.mark.parametrize(
    ("true", "changes", "words"),
    [
        (1, {}, "the model says dog, which is right."),
        (0, {}, "the model says dog, which is wrong."),
        (
            None,
            {"index": 0, "label": "cat", "changes": False},
            "says cat as before, and 250 % of the margin is gone.",
        ),
        (0, {"index": 0, "changes": False, "removed": None, "fixes": None}, "the model says dog, which is right."),
    ],
)
def test_repair_in_words(true, changes, words):
    repair = replace(CONFIRMATION.repair, **changes)
    result = confirmed(replace(CONFIRMATION, repair=repair), subject=Subject("a.png", 0, "ab", true))
    assert words in flat(result)


def test_what_does_not_exist():
    bare = replace(CONFIRMATION, repair=None)
    assert document(confirmed(bare))["confirmation"]["repair"] is None
    assert "the rule has no value without it" in flat(confirmed(bare))
    known = replace(CONFIRMATION, repair=replace(CONFIRMATION.repair, fixes=None, removed=None))
    assert not {"fixes", "removed"} & set(document(confirmed(known))["confirmation"]["repair"])


def test_nobody_is_named_by_a_confirmation():
    none = confirmed(
        replace(CONFIRMATION, grade="D"), responsible=Responsible("none", None, 0.1, False, "because")
    )
    assert "Nobody is named; about the file with the best score, hospital-1:" in flat(none)
    assert "the file labelled hospital" not in flat(none)


def test_many_inputs_have_a_column_of_grades():
    many = [records.one_input(confirmation=replace(CONFIRMATION, grade=grade)) for grade in "ABCDDD"]
    text = render(records.trace(*many), "table")
    rows = [line.split() for line in text.splitlines() if line.startswith("a.png")]
    assert [row[-1] for row in rows] == list("ABCDDD")
    assert "Grades: A, the methods agree" in " ".join(text.split())


@pytest.mark.parametrize(
    ("true", "words"),
    [
        (0, "3 still right, 2 now wrong, 2 changed."),
        (1, "3 still right, 1 now right, 1 now wrong, 2 changed."),
        (2, "3 still right, 1 now wrong, 1 still wrong, 2 changed."),
        (None, "3 still right, 1 now wrong, 3 changed."),
    ],
)
def test_many_inputs_end_with_what_each_named_client_does_to_all_of_them(true, words):
    one = records.one_input(confirmation=CONFIRMATION, subject=Subject("a.png", 0, "ab", true))
    unnamed = replace(one, responsible=Responsible("none", None, 0.1, False, "because"))
    text = flat(records.trace(one, *[unnamed] * 6))
    assert f"Fused again without the file labelled hospital-1: of 7 inputs, {words}" in text


def test_a_label_that_a_terminal_would_obey():
    rude = "\x1b[2J"
    agreement = replace(CONFIRMATION.agreement, first=(("ledger", rude), ("tracefl", rude)))
    stability = Stability((("float32", rude),), (("margin", rude),), (("1.0", rude),))
    result = confirmed(replace(CONFIRMATION, client=rude, agreement=agreement, stability=stability))
    named = tuple(replace(client, client=rude) for client in SUMMARY.groups[0].clients)
    groups = (replace(SUMMARY.groups[0], clients=named),)
    result = replace(result, summary=replace(SUMMARY, largest=rude, groups=groups))
    for form in ("table", "json", "csv"):
        assert "\x1b" not in render(result, form)


def test_the_summary_in_every_format():
    inputs = [records.one_input(), records.one_input()]
    result = records.trace(*inputs, summary=SUMMARY)
    found = json.loads(render(result, "json"))["summary"]
    assert {key: found[key] for key in ("chance", "largest", "left_out")} == {
        "chance": 0.5,
        "largest": "hospital-1",
        "left_out": 1,
    }
    assert found["groups"][1] == {
        "right": False,
        "inputs": 2,
        "clients": [
            {"client": "hospital-1", "weight": 0.7, "on_top": 2, "named": 0, "share": 0.4},
            {"client": "hospital-2", "weight": 0.3, "on_top": 0, "named": 0, "share": -0.1},
        ],
    }
    assert render(result, "csv") == render(records.trace(*inputs), "csv")
    text = flat(result)
    assert "Over the inputs with a known class (4 right and 2 wrong)" in text
    assert "hospital-1 0.700 1 (25 %) 1 20 % 2 (100 %) 0 40 %" in text
    assert "By chance a file is on top of 50 % of them." in text
    assert (
        "with most weight, hospital-1, is on top of 25 % of those that are right and 100 % of those that are"
        in text
    )
    assert "summary" not in json.loads(render(records.trace(*inputs), "json"))


def test_a_summary_of_equals_and_of_the_first_only():
    result = records.trace(records.one_input(), summary=replace(SUMMARY, largest=None))
    assert "No file has more weight than every other." in flat(result)
    short = flat(result, top=1)
    assert "and 1 file with less weight" in short
    assert "hospital-2 0.300" not in short
