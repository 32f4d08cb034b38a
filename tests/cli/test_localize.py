"""`localize` from the command line, on a real archive where hospital-4 labels nines as sevens."""

import csv
import io
import json

import pytest

from flforensics.provenance.localize import LOCALIZERS
from tests.cli import tampering

ROUND = ("localize", "--device", "cpu", "--round", 12)
JSON = ("--format", "json")


def findings(outcome):
    return {one["method"]["name"]: one for one in outcome.json["findings"]}


@pytest.fixture
def archive(fixtures):
    return fixtures / "digits"


def test_without_inputs_only_random_ones_are_asked(run, archive):
    outcome = run(*ROUND, *JSON, at=archive)
    assert outcome.status == 0
    (found,) = outcome.json["findings"]
    assert found["method"] == {"name": "feddebug", "random_inputs": 10, "threshold": 0.003, "seed": 0}
    assert found["stands_out"]["client"] == "hospital-4"


def test_with_inputs_all_methods_name_the_same(run, archive):
    outcome = run(*ROUND, "inputs", *JSON, at=archive)
    found = findings(outcome)
    assert list(found) == list(LOCALIZERS)
    assert {one["stands_out"]["client"] for one in found.values()} == {"hospital-4"}
    shares = found["mispredictions"]
    assert (shares["inputs"], shares["controls"]) == (10, 14)
    best = shares["clients"][0]
    assert (best["fixed"], best["broken"], best["top"]) == (8, 0, 10)
    assert outcome.json["replay"]["verdict"] == "bit-exact"
    assert "inputs" not in outcome.json


def test_labels_from_a_table_are_the_same(run, archive):
    folders = run(*ROUND, "inputs", "--method", "mispredictions", *JSON, at=archive).json
    table = run(*ROUND, "inputs", "--labels", "inputs/labels.csv", "--method", "mispredictions", *JSON, at=archive)
    assert folders["findings"] == table.json["findings"]


def test_complaints_without_a_class(run, archive):
    (found,) = run(*ROUND, "input.png", "--wrong", "--method", "mispredictions", *JSON, at=archive).json[
        "findings"
    ]
    assert (found["inputs"], found["controls"]) == (1, 0)
    assert found["stands_out"]["reason"].startswith("fewer than 3")
    assert found["clients"][0]["client"] == "hospital-4"
    assert found["clients"][0]["broken"] is None
    assert found["clients"][0]["interval"] is None


def test_the_seed_and_the_number_of_random_inputs(run, archive):
    arguments = ("--random-inputs", 4, "--threshold", 0.1, "--seed", 3, *JSON)
    (first,) = run(*ROUND, *arguments, at=archive).json["findings"]
    assert first["method"] == {"name": "feddebug", "random_inputs": 4, "threshold": 0.1, "seed": 3}
    assert run(*ROUND, *arguments, at=archive).json["findings"] == [first]


def test_precise_says_whether_float32_ranks_the_same(run, archive):
    outcome = run(*ROUND, "inputs/9", "--method", "influence", "--precise", *JSON, at=archive)
    assert (outcome.json["run"]["dtype"], outcome.json["run"]["same_ranking_in_float32"]) == ("float64", True)


def test_a_text_archive(run, fixtures):
    arguments = ("localize", "--round", 6, "inputs", "--labels", "inputs/labels.csv", *JSON)
    found = findings(run(*arguments, at=fixtures / "text"))
    assert list(found) == ["mispredictions", "departure"]
    assert found["mispredictions"]["stands_out"]["client"] == "hospital-3"
    refused = run(*arguments[:3], "--method", "feddebug", at=fixtures / "text")
    assert refused.status == 2
    assert "makes inputs of random numbers" in refused.stderr
    nothing = run(*arguments[:3], at=fixtures / "text")
    assert (nothing.status, nothing.stdout) == (2, "")
    assert "there is nothing to look at" in nothing.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--method", "mispredictions"), "--method mispredictions needs inputs that the global gets wrong"),
        (("--method", "all"), "--method influence needs inputs that the global gets wrong"),
        (("input.png",), "input.png has no true class (1 of 1 inputs)"),
        (("--method", "guess"), "guess"),
        (("--random-inputs", 0), "--random-inputs"),
        (("--threshold", -1), "--threshold"),
    ],
)
def test_wrong_usage(arguments, words, run, archive):
    outcome = run(*ROUND, *arguments, at=archive)
    assert (outcome.status, outcome.stdout) == (2, "")
    assert words in outcome.stderr


def test_nothing_mispredicted(run, archive):
    outcome = run(*ROUND, "inputs/7", "--method", "mispredictions", at=archive)
    assert (outcome.status, outcome.stdout) == (3, "")
    assert "predicts every given input correctly" in outcome.stderr
    with_feddebug = run(*ROUND, "inputs/7", *JSON, at=archive)
    assert with_feddebug.status == 0
    assert [one["method"] for one in with_feddebug.json["silent"]] == ["influence", "mispredictions", "departure"]


def test_nobody_is_named_where_the_round_does_not_replay(run, digits):
    tampering.edit(tampering.client(digits), "0.bias", lambda tensor: tensor + 1)
    outcome = run(*ROUND, "inputs/9", *JSON, at=digits)
    assert outcome.status == 1
    for one in outcome.json["findings"]:
        assert (one["stands_out"]["client"], one["stands_out"]["reason"]) == (None, "this round does not replay")


def test_numbers_that_are_not_finite(run, digits):
    path = tampering.client(digits)
    tampering.edit(path, "0.bias", tampering.at(0, lambda value: value * float("nan")))
    outcome = run(*ROUND, "inputs/9", *JSON, at=digits)
    assert outcome.status == 1
    found = findings(outcome)["feddebug"]
    assert found["stands_out"]["reason"] == "this round does not replay"
    assert (found["clients"][0]["client"], found["clients"][0]["votes"]) == ("hospital-2", 10)
    assert [one["reason"] for one in outcome.json["silent"]] == [
        "the updates of hospital-2 in round 12 are not finite numbers",
        "the scores of hospital-2 in round 12 are not finite numbers",
        "the updates, now or earlier, of hospital-2 in round 12 are not finite numbers",
    ]


def test_no_previous_global_leaves_feddebug(run, digits):
    (digits / "rounds/0011/global.safetensors").unlink()
    outcome = run(*ROUND, "inputs/9", *JSON, at=digits)
    assert list(findings(outcome)) == ["feddebug"]
    assert "has no previous global" in outcome.json["silent"][0]["reason"]


def test_every_format_and_top(run, archive, tmp_path):
    names = [tmp_path / "a.json", tmp_path / "b.csv", tmp_path / "c.txt"]
    outcome = run(*ROUND, "--top", 1, *(part for name in names for part in ("--output", name)), at=archive)
    assert (outcome.status, outcome.stdout) == (0, "")
    assert json.loads(names[0].read_text())["schema"] == "flforensics.localize/1"
    assert len(list(csv.DictReader(io.StringIO(names[1].read_text())))) == 5
    assert "4 more" in names[2].read_text()


def test_the_shape_of_random_inputs_is_in_the_check_or_in_the_table(run, digits):
    with_check = run(*ROUND, *JSON, at=digits).json["findings"]
    manifest = digits / "archive.toml"
    text = manifest.read_text()
    start, end = text.index("[check]"), text.index("[fusion]")
    manifest.write_text(text[:start] + text[end:])
    assert run(*ROUND, *JSON, at=digits).json["findings"] == with_check
    manifest.write_text(manifest.read_text().replace("size = [8, 8]\n", ""))
    outcome = run(*ROUND, at=digits)
    assert outcome.status == 2
    assert "there is nothing to look at" in outcome.stderr


DEPARTURE = ("--method", "departure", *JSON)


def departed(outcome):
    """The finding, and the distances by client."""
    (found,) = outcome.json["findings"]
    return found, {one["client"]: one["distance"] for one in found["clients"]}


def test_a_departure_from_the_rounds_before(run, archive):
    found, distances = departed(run(*ROUND, "inputs", *DEPARTURE, at=archive))
    best = found["clients"][0]
    assert (found["stands_out"]["client"], best["client"]) == ("hospital-4", "hospital-4")
    assert (best["rounds"], best["top"], best["fixed"], best["broken"]) == (10, 10, 8, 0)
    assert {client for client, one in distances.items() if one >= 1.5} == {"hospital-4"}


@pytest.mark.parametrize("number", [2, 5, 8])
def test_in_honest_rounds_nobody_departs_far(number, run, archive):
    """So that nobody can be named, whatever the inputs are; these are mostly right, and so taken as wrong."""
    arguments = ("localize", "--device", "cpu", "--round", number, "inputs/9", "inputs/7", *DEPARTURE)
    found, distances = departed(run(*arguments, at=archive))
    assert found["stands_out"]["client"] is None
    assert max(distances.values()) < 1.2


def test_the_first_round_has_none_before_it(run, archive):
    outcome = run("localize", "--device", "cpu", "--round", 1, "inputs", "--method", "departure", at=archive)
    assert (outcome.status, outcome.stdout) == (3, "")
    assert "no client of round 1 has an earlier round to be compared with" in outcome.stderr


def test_an_earlier_round_that_does_not_replay_is_left_out_and_said(run, digits):
    tampering.edit(digits / "rounds/0010/clients/hospital-1.safetensors", "0.bias", lambda tensor: tensor + 9)
    outcome = run(*ROUND, "inputs", *DEPARTURE, at=digits)
    found, _ = departed(outcome)
    assert outcome.status == 0
    assert outcome.json["warnings"] == ["round 10 is left out of what clients usually send: it does not replay"]
    assert {one["rounds"] for one in found["clients"]} == {10}  # rounds 1 to 9 and 11


def test_an_earlier_file_that_is_missing_is_said(run, digits):
    (digits / "rounds/0009/global.safetensors").unlink()
    outcome = run(*ROUND, "inputs", *DEPARTURE, at=digits)
    warnings = outcome.json["warnings"]
    assert [one.split(" is left out")[0] for one in warnings] == ["round 10", "round 9"]
    assert "no previous global" in warnings[0]
    assert {one["rounds"] for one in departed(outcome)[0]["clients"]} == {9}


def test_rounds_that_do_not_replay_are_no_rounds_to_compare_with(run, digits):
    for number in range(1, 12):
        (digits / f"rounds/{number:04d}/clients/hospital-4.safetensors").unlink()
    again = run(*ROUND, "inputs", *DEPARTURE, at=digits)
    assert again.status == 3
    assert "has an earlier round" in again.stderr
