"""The lineage from the command line, on an archive whose hospital-4 takes nines for sevens from round 10 on."""

import csv
import io
import json
import os
import shutil

import pytest

from tests.cli import tampering

LINEAGE = ("lineage", "input.png", "--nodes", 1)
AROUND = (*LINEAGE, "--from", 3, "--round", 7)


def first(outcome):
    (one,) = outcome.json["inputs"]
    return one


def added_up(one):
    rounds = sum(
        round_["parts"]["server"] + round_["parts"]["unexplained"] + round_["parts"]["residual"]
        + sum(client["score"] for client in round_["clients"])
        for round_ in one["rounds"]
    )  # fmt: skip
    return one["initial"]["value"] + rounds + sum(gap["movement"] for gap in one["gaps"])


@pytest.fixture
def archive(fixtures):
    return fixtures / "digits"


def test_it_names_the_fault_and_where_it_began(run, archive):
    outcome = run(*LINEAGE, "--format", "json", at=archive)
    assert outcome.status == 0
    document, one = outcome.json, first(outcome)
    assert document["schema"] == "flforensics.lineage/1"
    assert [round_["verdict"] for round_ in document["rounds"]] == ["bit-exact"] * 12
    assert one["responsible"]["client"] == "hospital-4"
    assert one["clients"][0]["strongest"]["round"] == 10
    assert [round_["prediction"]["label"] for round_ in one["rounds"]][-4:] == ["9", "7", "9", "7"]
    assert added_up(one) == pytest.approx(one["target"]["value"], abs=1e-9)
    totals = sum(client["score"] for client in one["clients"]) + sum(one["totals"].values())
    assert one["initial"]["value"] + totals == pytest.approx(one["target"]["value"], abs=1e-9)


def test_from_a_round_on_it_is_the_trace_of_the_next(run, archive):
    outcome = run(*LINEAGE, "--from", 11, "--format", "json", at=archive)
    traced = first(run("trace", "--round", 12, "input.png", "--nodes", 1, "--format", "json", at=archive))
    one = first(outcome)
    assert [round_["round"] for round_ in outcome.json["rounds"]] == [11, 12]
    assert one["initial"]["round"] == 11
    assert one["target"] == traced["target"]
    for mine, its in zip(one["clients"], traced["clients"], strict=True):
        assert mine["client"] == its["client"]
        assert mine["score"] == pytest.approx(its["score"], abs=1e-5)


def test_departures_tell_the_fault_from_what_is_usual(run, archive):
    asked = ("lineage", "inputs/9", "--from", 8, "--nodes", 1, "--against", "true", "--departures")
    document = run(*asked, "--format", "json", at=archive).json
    assert document["method"]["earlier_rounds"] == 10
    wrong = [one for one in document["inputs"] if one["prediction"]["class"] != one["true"]]
    assert len(wrong) == 10
    for one in wrong:
        assert one["most_suspect"]["client"] == "hospital-4"
        assert one["most_suspect"]["round"] == 10
        assert one["most_suspect"]["replays"]
        cells = {client["client"]: client for client in one["rounds"][1]["clients"]}
        assert one["most_suspect"]["score"] == cells["hospital-4"]["departure"] > 0
        others = [client["suspicion"] for name, client in cells.items() if name != "hospital-4"]
        assert cells["hospital-4"]["suspicion"] > 100 * max(others)
    table = run(*asked, at=archive).stdout
    assert "most suspect departure" in table.splitlines()[2]


def test_nothing_departs_in_the_first_round_of_all(run, archive):
    one = first(run(*LINEAGE, "--round", 2, "--departures", "--format", "json", at=archive))
    assert [["departure" in client for client in round_["clients"]] for round_ in one["rounds"]] == [
        [False] * 5,
        [True] * 5,
    ]
    plain = first(run(*LINEAGE, "--round", 2, "--format", "json", at=archive))
    assert "most_suspect" not in plain
    scores = [
        [client["score"] for round_ in each["rounds"] for client in round_["clients"]] for each in (one, plain)
    ]
    assert scores[0] == scores[1]


def test_departures_after_a_round_that_does_not_replay_name_nobody(run, digits):
    tampering.edit(tampering.fused(digits, 3), "0.bias", lambda tensor: tensor + 1)
    outcome = run(*LINEAGE, "--departures", "--format", "json", at=digits)
    assert outcome.status == 1
    assert not first(outcome)["most_suspect"]["replays"]


def test_up_to_a_round(run, archive):
    outcome = run(*LINEAGE, "--from", 7, "--round", 9, "--format", "json", at=archive)
    one = first(outcome)
    assert (outcome.json["round"], one["prediction"]["label"]) == (9, "9")
    assert [round_["round"] for round_ in one["rounds"]] == [8, 9]


def test_many_inputs_each_as_if_alone(run, archive):
    outcome = run("lineage", "inputs/9", "--from", 9, "--nodes", 2, "--format", "json", at=archive)
    many = {one["source"]: one for one in outcome.json["inputs"]}
    assert len(many) == 12
    assert all(added_up(one) == pytest.approx(one["target"]["value"], abs=1e-9) for one in many.values())
    alone = first(run("lineage", "inputs/9/0815.png", "--from", 9, "--nodes", 2, "--format", "json", at=archive))
    together = many["inputs/9/0815.png"]
    for mine, its in zip(alone["clients"], together["clients"], strict=True):
        assert mine["score"] == pytest.approx(its["score"], abs=1e-4)


def test_the_rows_of_a_spreadsheet_add_up(run, digits):
    shutil.rmtree(digits / "rounds/0005")
    outcome = run(*AROUND, "--format", "csv", at=digits)
    rows = list(csv.DictReader(io.StringIO(outcome.stdout)))
    assert sum(float(row["score"]) for row in rows) == pytest.approx(float(rows[0]["target.value"]), abs=1e-9)
    assert {row["line"] for row in rows} == {"initial", "client", "server", "unexplained", "residual", "gap"}
    assert {row["verdict"] for row in rows if row["line"] == "client"} == {"bit-exact"}


def test_float64_says_whether_float32_ranks_alike(run, archive):
    outcome = run(*LINEAGE, "--from", 10, "--precise", "--format", "json", at=archive)
    assert outcome.json["run"]["same_ranking_in_float32"] is True
    assert outcome.json["method"] == {"name": "ledger", "target": "margin", "nodes": 1}


# ------------------------------------------------------------- what is wrong


def no_global(archive):
    tampering.fused(archive, 5).unlink()


def no_round(archive):
    shutil.rmtree(archive / "rounds/0005")


def no_clients(archive):
    shutil.rmtree(archive / "rounds/0005/clients")
    tampering.weights(archive, 5).unlink()


def truncated(archive):
    path = tampering.client(archive, number=5)
    path.write_bytes(path.read_bytes()[:1000])


def misshapen(archive):
    tampering.edit(tampering.client(archive, number=5), "0.bias", lambda tensor: tensor[:3])


def a_pipe(archive):
    path = tampering.client(archive, number=5)
    path.unlink()
    os.mkfifo(path)


def no_weights(archive):
    tampering.weights(archive, 5).write_text("{")


def a_global_of_no_format(archive):
    tampering.fused(archive, 5).write_bytes(b"hello")


GAPS = {
    no_global: (4, 6, "rounds/0005/global.safetensors does not exist; round 6 has no previous global"),
    no_round: (4, 6, "the archive holds nothing of round 5; round 6 has no previous global"),
    no_clients: (4, 5, "the archive holds no clients of round 5"),
    truncated: (4, 5, "rounds/0005/clients/hospital-2.safetensors ends before byte 1120 (it has 1000)"),
    misshapen: (4, 5, "hospital-2.safetensors: tensor '0.bias' has shape (3,) where (16,) is expected"),
    a_pipe: (4, 5, "rounds/0005/clients/hospital-2.safetensors is not a regular file"),
    no_weights: (4, 5, "rounds/0005/weights.json is not a table of weights"),
    a_global_of_no_format: (4, 6, "rounds/0005/global.safetensors is of no known format"),
}


@pytest.mark.parametrize("damage", GAPS, ids=lambda damage: damage.__name__)
def test_what_is_missing_or_rejected_is_a_gap(damage, run, digits):
    damage(digits)
    start, end, reason = GAPS[damage]
    outcome = run(*AROUND, "--output", "report.json", "--output", "report.txt", at=digits)
    assert outcome.status == 3
    (one,) = json.loads((digits / "report.json").read_text())["inputs"]
    (gap,) = one["gaps"]
    assert (gap["from"], gap["to"]) == (start, end)
    assert reason in gap["reason"]
    assert one["totals"]["gaps"] == gap["movement"]
    assert added_up(one) == pytest.approx(one["target"]["value"], abs=1e-9)
    table = " ".join((digits / "report.txt").read_text().split())
    assert f"Gap: From the global of round {start} to that of round {end}," in table


def test_nobody_is_named_from_a_round_that_does_not_replay(run, digits):
    tampering.edit(tampering.fused(digits, 5), "0.bias", lambda tensor: tensor + 1)
    outcome = run(*LINEAGE, "--format", "json", at=digits)
    one = first(outcome)
    assert outcome.status == 1
    assert [round_["verdict"] for round_ in outcome.json["rounds"]].count("inconsistent") == 1
    assert one["responsible"]["kind"] == "none"
    assert "rests on rounds 5-6" in one["responsible"]["reason"]
    assert abs(one["rounds"][4]["parts"]["unexplained"]) > 1
    assert added_up(one) == pytest.approx(one["target"]["value"], abs=1e-9)
    assert any("--from 6 leaves out what does not replay" in warning for warning in outcome.json["warnings"])
    later = run(*LINEAGE, "--from", 6, "--format", "json", at=digits)
    assert (later.status, first(later)["responsible"]["client"]) == (0, "hospital-4")


def test_a_client_that_is_not_finite_is_a_finding(run, digits):
    tampering.edit(tampering.client(digits, number=5), "0.bias", lambda tensor: tensor * float("nan"))
    outcome = run(*AROUND, "--format", "json", at=digits)
    assert outcome.status == 1
    assert [gap["to"] for gap in first(outcome)["gaps"]] == [5]


def test_without_the_initial_model_it_begins_with_the_first_global(run, digits):
    tampering.fused(digits, 0).unlink()
    outcome = run(*LINEAGE, "--round", 3, "--format", "json", at=digits)
    assert (outcome.status, first(outcome)["initial"]["round"]) == (0, 1)
    assert (
        "the lineage begins with the global of round 1: round 1 has no previous global" in outcome.json["warnings"]
    )


def test_rounds_without_a_global_at_the_end(run, digits):
    tampering.fused(digits, 12).unlink()
    tampering.replace_in(digits / "archive.toml", "round = 12", "round = 11")
    manifest = digits / "archive.toml"
    lines = manifest.read_text().splitlines(keepends=True)
    begin = lines.index(next(line for line in lines if line.startswith("[check]")))
    end = lines.index("[fusion]\n")
    manifest.write_text("".join(lines[:begin] + lines[end:]))
    outcome = run(*LINEAGE, "--from", 9, "--format", "json", at=digits)
    assert (outcome.status, outcome.json["round"]) == (0, 11)
    assert "no global is stored of round 12: the lineage ends with round 11" in outcome.json["warnings"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--round", 13), "--round 13: the archive holds no global of that round"),
        (("--from", -1), "--from -1: the archive holds no global of that round"),
        (("--from", 12), "--from 12 is not before round 12"),
        (("--from", 9, "--round", 8), "--from 9 is not before round 8"),
        (("--class", "ten"), "--class ten is no class of this model"),
    ],
)
def test_arguments_that_mean_nothing(arguments, words, run, archive):
    outcome = run(*LINEAGE, *arguments, at=archive)
    assert (outcome.status, outcome.stdout) == (2, "")
    assert words in outcome.stderr


def test_the_first_model_has_no_lineage(run, archive):
    outcome = run(*LINEAGE, "--round", 0, at=archive)
    assert (outcome.status, outcome.stdout) == (3, "")
    assert "no model from before that round is stored" in outcome.stderr
