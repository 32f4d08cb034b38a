"""Which client is faulty, in the three formats: who is named, in which words, and what is left out."""

import csv
import io
import json
from dataclasses import replace

import pytest

from flforensics.report import LIMITS, render
from flforensics.results import Silent, StandsOut, Verdict
from tests.report import records

NOBODY = StandsOut(None, 0.1, reason="because, as said")


def flat(result, **options):
    return " ".join(render(result, "table", **options).split())


def document(result):
    return json.loads(render(result, "json"))


def test_every_method_says_who_stands_out():
    text = flat(records.localization())
    assert text.startswith(
        "feddebug: the file labelled hospital-1 differs most: 9 of 10 random inputs accuse it, 8 more than any"
        " other file. If its model were like the others', one of 3 would get so many with a probability of at most"
        " 0.0001. A client whose honest data differ is accused in the same way."
    )
    assert (
        "influence: the file labelled hospital-2 stands out: over 4 mispredictions its update raises the wrong"
        " class most, with 95 % confidence over the choice of inputs, and"
    ) in text
    assert (
        "mispredictions: the file labelled hospital-1 stands out: of what the round moved on 4 mispredictions, it"
        " accounts for 62 %, towards the wrong class. That is 50 % ahead of the next line (38 % to 62 % with 95 %"
        " confidence over the choice of inputs). Fused again from the other files, the model gets 3 of these 4"
        " right, and 1 of 12 control inputs wrong."
    ) in text
    assert "guilty" not in text
    assert text.endswith(LIMITS)


@pytest.mark.parametrize("finding", [records.votes, records.axes, records.shares])
def test_nobody(finding):
    result = records.localization(finding(stands_out=NOBODY))
    name = result.findings[0].method.name
    assert flat(result).startswith(f"{name}: nobody stands out: because, as said.")
    (found,) = document(result)["findings"]
    assert found["stands_out"] == {"client": None, "lead": 0.1, "reason": "because, as said"}
    rows = list(csv.DictReader(io.StringIO(render(result, "csv"))))
    assert {(row["stands_out"], row["reason"]) for row in rows} == {("", "because, as said")}


def test_without_controls_or_a_fusion_of_the_others():
    alone = records.misled(control_share=None, control_top=None, broken=None)
    text = flat(records.localization(records.shares(suspects=_with(alone), controls=0)))
    assert "the model gets 3 of these 4 right. " in text
    assert " of 0" not in text
    none = records.misled(fixed=None, broken=None, interval=None)
    assert "There is no fusion of the others alone." in flat(
        records.localization(records.shares(suspects=_with(none)))
    )


def _with(figures):
    return (replace(records.shares().suspects[0], figures=figures),)


def test_top_counts_the_rest():
    text = render(records.localization(records.votes()), "table", top=1)
    assert "2 more" in text
    assert "hospital-3" not in text


def test_a_method_without_an_answer_and_a_round_that_does_not_replay():
    silent = (Silent("mispredictions", "the ledger of round 3 is not computable"),)
    replay = records.round_replay(verdict=Verdict.INCONSISTENT)
    text = flat(records.localization(records.votes(), silent=silent, replay=replay, warnings=("take care",)))
    assert "mispredictions has no answer: the ledger of round 3 is not computable." in text
    assert "Replay of round 3: inconsistent (" in text
    assert "Warning: take care." in text
    rough = flat(records.localization(records.shares(rough=2)))
    assert "Warning: for 2 inputs, mispredictions rests on a ledger that did not converge." in rough


def test_the_json_has_every_figure():
    votes, axes, shares = document(records.localization())["findings"]
    assert votes["method"] == {"name": "feddebug", "random_inputs": 10, "threshold": 0.003, "seed": 0}
    assert (votes["inputs"], votes["voting"]) == (10, 10)
    assert votes["clients"][0] == {"client": "hospital-1", "weight": 0.5, "rank": 1, "votes": 9, "silent": 31.5}
    assert votes["stands_out"] == {"client": "hospital-1", "lead": 8.0, "chance": 0.000125}
    assert axes["clients"][1] == {
        "client": "hospital-1",
        "weight": 0.5,
        "rank": 2,
        "target": -0.25,
        "noise": 0.5,
        "flags": 0,
    }
    assert shares["controls"] == 12
    assert shares["clients"][0]["interval"] == [0.5, 0.75]
    assert shares["clients"][0]["broken"] == 1
    assert shares["stands_out"]["interval"] == [0.375, 0.625]


def test_the_csv_has_a_row_for_each_method_and_client():
    rows = list(csv.DictReader(io.StringIO(render(records.localization(), "csv"))))
    assert [(row["method"], row["client"]) for row in rows] == [
        ("feddebug", "hospital-1"),
        ("feddebug", "hospital-2"),
        ("feddebug", "hospital-3"),
        ("influence", "hospital-2"),
        ("influence", "hospital-1"),
        ("mispredictions", "hospital-1"),
        ("mispredictions", "hospital-2"),
    ]
    last = rows[-1]
    assert (last["share"], last["interval.low"], last["interval.high"]) == ("-0.25", "0.5", "0.75")
    assert (last["stands_out"], last["verdict"], last["votes"]) == ("hospital-1", "consistent", "")
