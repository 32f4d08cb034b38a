"""`trace --confirm` on real archives: in digits hospital-4 labels nines as sevens from round 10 on."""

import csv
import io

import pytest

from tests.cli import tampering
from tests.cli.tampering import replace_in

TRACE = ("trace", "--round", 12, "--confirm")
NAMES = '["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]'


def confirmation(outcome):
    return outcome.json["inputs"][0]["confirmation"]


def test_the_culprit_is_confirmed(run, fixtures):
    outcome = run(*TRACE, "input.png", "inputs/9/0553.png", "--format", "json", at=fixtures / "digits")
    assert outcome.status == 0
    first, second = (one["confirmation"] for one in outcome.json["inputs"])
    assert (first["grade"], first["client"]) == (second["grade"], second["client"]) == ("A", "hospital-4")
    assert set(first["methods"]) == {"ledger", "tracefl", "drop", "refuse"}
    assert first["controls"]["other_classes"]["of"] == 9
    assert first["repair"]["label"] == "9"
    assert second["repair"]["fixes"] is True
    assert sum(first["repair"]["others"].values()) == 1


def test_another_margin_is_asked_of_the_neighbours_alone(run, last_rounds):
    def controls(*arguments):
        return confirmation(run(*TRACE, "input.png", *arguments, "--format", "json", at=last_rounds))["controls"]

    plain, over_four = controls(), controls("--against", 4)
    assert over_four["other_classes"] == plain["other_classes"]
    assert over_four["noise"] == plain["noise"]


def test_the_seed_is_stated_and_decides(run, last_rounds):
    def controls(*arguments):
        return confirmation(run(*TRACE, "input.png", *arguments, "--format", "json", at=last_rounds))["controls"]

    assert controls() == controls("--seed", 0)
    other = controls("--seed", 1)
    assert other["seed"] == 1
    assert other["noise"] != controls()["noise"]


def test_texts_are_confirmed_too(run, fixtures):
    outcome = run("trace", "--round", 6, "--confirm", "input.txt", "--format", "csv", at=fixtures / "text")
    rows = list(csv.DictReader(io.StringIO(outcome.stdout), strict=True))
    assert len(rows) == 4
    assert {row["confirmation.grade"] for row in rows} == {"A"}
    assert {row["confirmation.controls.other_classes.of"] for row in rows} == {"3"}


def test_classes_without_names_are_counted(run, last_rounds):
    replace_in(last_rounds / "archive.toml", f"[labels]\nnames = {NAMES}\n", "")
    found = confirmation(run(*TRACE, "input.png", "--precise", "--format", "json", at=last_rounds))
    assert (found["grade"], found["controls"]["other_classes"]["of"]) == ("A", 9)


def test_a_round_that_does_not_replay_is_grade_d(run, last_rounds):
    tampering.edit(tampering.fused(last_rounds), "9.bias", lambda tensor: tensor + 0.01)
    replace_in(last_rounds / "archive.toml", "round = 12", "round = 12\ntolerance = 1")
    outcome = run(*TRACE, "input.png", "--format", "json", at=last_rounds)
    assert outcome.status == 1
    found = confirmation(outcome)
    assert (found["grade"], found["reason"]) == ("D", "not distinguishable: this round does not replay")


@pytest.mark.parametrize("method", ["tracefl", "counterfactual", "shapley"])
def test_only_the_ledger_is_confirmed(method, run, fixtures):
    outcome = run(*TRACE, "input.png", "--method", method, at=fixtures / "digits")
    assert (outcome.status, outcome.stdout) == (2, "")
    assert outcome.stderr == (
        f"flforensics: --confirm grades the ledger's answers, not those of --method {method}.\n"
        "  Leave --method out; the other methods are run beside it.\n"
    )


def test_a_summary_needs_labels(run, fixtures):
    folder = fixtures / "digits"
    labelled = run("trace", "--round", 12, "inputs/9", "--format", "json", at=folder).json
    assert [group["inputs"] for group in labelled["summary"]["groups"]] == [2, 10]
    wrong = {client["client"]: client for client in labelled["summary"]["groups"][1]["clients"]}
    assert max(wrong.values(), key=lambda client: client["on_top"])["client"] == "hospital-4"
    unlabelled = run("trace", "--round", 12, "input.png", "input.png", "--format", "json", at=folder).json
    assert "summary" not in unlabelled
