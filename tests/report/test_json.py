"""The JSON reports: the contract's keys, types and order, and no number that JSON does not know."""

import json
import math
from dataclasses import replace

import pytest

from flforensics.report import LIMITS, render
from flforensics.results import Exact, Match, Parts, Problem, Responsible, Run, Subject, Untraced, Verdict
from tests.report import records


def document(result):
    """The report, read back; NaN and Infinity are refused."""

    def refused(name):
        raise AssertionError(f"{name} is not JSON")

    text = render(result, "json")
    assert text.endswith("}\n")
    return json.loads(text, parse_constant=refused)


@pytest.mark.parametrize(
    ("result", "schema"),
    [
        (records.inspection(), "flforensics.inspect/1"),
        (records.replay(), "flforensics.replay/1"),
        (records.trace(), "flforensics.trace/1"),
        (records.localization(), "flforensics.localize/1"),
    ],
)
def test_first_the_schema_and_last_the_limits(result, schema):
    keys = list(found := document(result))
    assert (keys[0], keys[-1]) == ("schema", "limits")
    assert found["schema"] == schema
    assert found["limits"] == LIMITS
    assert found["tool"]["name"] == "flforensics"
    assert found["archive"] == {"path": "archives/a", "digest": "sha256:" + "0" * 64}


def test_a_trace_as_the_contract_shows_it():
    found = document(records.trace())
    assert found["run"] == {"device": "cpu", "dtype": "float32", "threads": 1, "versions": {"torch": "2.15.0"}}
    assert found["round"] == 3
    assert found["method"] == {"name": "ledger", "target": "margin", "tolerance": 0.01}
    assert found["replay"] == {
        "rule": "fedavg",
        "verdict": "consistent",
        "form": "direct",
        "arithmetic": "float32",
        "worst_ratio": 0.25,
        "floor": 5e-7,
    }
    assert (found["untraced"], found["warnings"]) == ([], [])
    (one,) = found["inputs"]
    assert one == {
        "source": "a.png",
        "index": 0,
        "sha256": "ab" * 32,
        "true": None,
        "prediction": {"class": 0, "label": "cat", "probability": 0.8},
        "before": {"class": 1, "label": "dog", "probability": 0.7},
        "target": {"function": "margin", "class": 0, "against": 1, "value": 2.0},
        "parts": {"previous": 1.25, "server": 0.0, "unexplained": 0.24, "residual": 0.01},
        "round_effect": 0.75,
        "nodes": 8,
        "converged": True,
        "change": 0.002,
        "clients": [
            {"client": "hospital-1", "weight": 0.5, "score": 1.0, "share": 0.5, "rank": 1},
            {"client": "hospital-2", "weight": 0.5, "score": -0.5, "share": -0.25, "rank": 2},
        ],
        "responsible": {"kind": "client", "client": "hospital-1", "lead": 0.25, "resolved": True},
    }


def test_what_does_not_apply_is_left_out():
    (one,) = document(records.trace(records.without_ledger()))["inputs"]
    assert not {"before", "parts", "round_effect", "nodes", "converged", "change"} & set(one)
    assert "against" not in one["target"]
    (one,) = document(records.trace(records.one_input(converged=None, change=None)))["inputs"]
    assert not {"converged", "change"} & set(one)


def test_what_does_not_exist_is_null():
    """A margin over nothing (one class), an input of unknown class, a weight that is not declared."""
    alone = records.one_input(target=replace(records.one_input().target, against=None))
    (one,) = document(records.trace(alone))["inputs"]
    assert one["target"]["against"] is None
    assert one["true"] is None
    assert document(records.inspection())["rounds"][0]["clients"][1] == {"client": "hospital-2", "weight": None}


@pytest.mark.parametrize("kind", ["server", "unexplained", "previous", "none"])
def test_only_a_client_is_called_one(kind):
    nobody = records.one_input(responsible=Responsible(kind, None, None, False, "because"))
    (one,) = document(records.trace(nobody))["inputs"]
    assert one["responsible"] == {"kind": kind, "lead": None, "resolved": False, "reason": "because"}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_does_not_know_are_null(value):
    odd = records.one_input(
        clients=(records.score(value=value, share=value), records.score("hospital-2", 1.0, rank=2)),
        parts=Parts(value, 0.0, value, value),
        round_effect=value,
        change=value,
    )
    replay = records.round_replay(worst_ratio=value)
    found = document(records.trace(odd, replay=replay))
    (one,) = found["inputs"]
    assert one["clients"][0]["score"] is None
    assert one["clients"][1]["score"] == 1.0
    assert one["parts"] == {"previous": None, "server": 0.0, "unexplained": None, "residual": None}
    assert (one["round_effect"], one["change"], found["replay"]["worst_ratio"]) == (None, None, None)
    assert document(records.replay(replay))["rounds"][0]["worst_ratio"] is None


def test_a_replay_as_the_contract_shows_it():
    (one,) = document(records.replay())["rounds"]
    assert one["clients"] == [
        {"client": "hospital-1", "declared": 0.5},
        {"client": "hospital-2", "declared": 0.5},
    ]
    assert one["tensors"] == [
        {"name": "0.weight", "kind": "float", "elements": 12, "worst_ratio": 0.25, "outside": 0},
        {
            "name": "1.num_batches_tracked",
            "kind": "counter",
            "elements": 1,
            "worst_ratio": None,
            "outside": 0,
            "note": "zero",
        },
    ]
    assert not {"reason", "problems", "exact", "matches"} & set(one)


@pytest.mark.parametrize("verdict", Verdict)
def test_every_verdict_is_its_own_word(verdict):
    assert document(records.replay(records.round_replay(verdict=verdict)))["rounds"][0]["verdict"] == verdict.value


def test_what_else_a_round_can_say():
    found = records.round_replay(
        reason="no decision",
        problems=(Problem("a.pt", "NON_FINITE", "a.pt holds NaN", True),),
        exact=Exact("scaled sum", "Flower", ("hospital-2", "hospital-1")),
        matches=(Match("fedavg", (("beta", 0.9),), None, Verdict.CONSISTENT, "direct", 0.5),),
    )
    (one,) = document(records.replay(found))["rounds"]
    assert one["reason"] == "no decision"
    assert one["problems"] == [
        {"file": "a.pt", "reason": "NON_FINITE", "message": "a.pt holds NaN", "finding": True}
    ]
    assert one["exact"]["order"] == ["hospital-2", "hospital-1"]
    assert one["matches"][0]["verdict"] == "consistent"


def test_the_rest_of_a_trace():
    found = document(
        records.trace(
            run=Run("cuda", "float64", 2, (), True),
            untraced=(Untraced("1.weight", "why"),),
            warnings=("beware",),
        )
    )
    assert found["run"]["same_ranking_in_float32"] is True
    assert found["untraced"] == [{"name": "1.weight", "reason": "why"}]
    assert found["warnings"] == ["beware"]


def test_an_inspection():
    found = document(records.inspection())
    assert found["check"] == {
        "round": 3,
        "input": "check.png",
        "difference": 1e-6,
        "tolerance": 1e-3,
        "passed": True,
    }
    assert found["problems"][0]["finding"] is True
    assert found["fusion"] == {"rule": "fedavg", "weights_kind": "examples"}
    assert document(records.inspection(check=None))["check"] is None


def test_foreign_letters_stay_and_what_is_no_text_is_escaped():
    odd = 'Bär "1"\n\x1b\x7f\x9b\u202e\u2028\U000e0041.png'
    one = records.one_input(subject=Subject(odd, 0, "", None), clients=(records.score("a\udcff"),))
    text = render(records.trace(one), "json")
    text.encode("utf-8")
    assert "Bär" in text
    assert not set("\x1b\x7f\x9b\u202e\u2028\U000e0041\udcff") & set(text)
    (found,) = json.loads(text)["inputs"]
    assert found["source"] == odd
    assert found["clients"][0]["client"] == "a\udcff"
