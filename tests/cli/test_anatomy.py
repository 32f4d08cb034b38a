"""--against, --by and --tamper on a real archive, in which hospital-4 labels nines as sevens."""

import csv
import io

import pytest

TRACE = ("trace", "--device", "cpu", "--round", 12)


@pytest.fixture
def archive(fixtures):
    return fixtures / "digits"


def flat(text):
    return " ".join(text.split())


def rows(outcome):
    return list(csv.DictReader(io.StringIO(outcome.stdout)))


def test_why_seven_and_not_zero(run, archive):
    (one,) = run(*TRACE, "input.png", "--against", 0, "--format", "json", at=archive).json["inputs"]
    assert {key: one["target"][key] for key in ("class", "against")} == {"class": 7, "against": 0}
    assert "moved its margin over 0" in flat(run(*TRACE, "input.png", "--against", 0, at=archive).stdout)


def test_inputs_predicted_as_that_class_keep_the_best_other_one(run, archive):
    outcome = run(*TRACE, "inputs/9", "--against", "7", "--nodes", 1, "--format", "json", at=archive)
    inputs = outcome.json["inputs"]
    sevens = [one for one in inputs if one["prediction"]["class"] == 7]
    assert 0 < len(sevens) < len(inputs)
    for one in inputs:
        assert (one["target"]["against"] == 7) is (one["prediction"]["class"] != 7)
    assert outcome.json["warnings"] == [
        f"{len(sevens)} of {len(inputs)} inputs are predicted as the class of --against themselves: their margins"
        " are over the best other class"
    ]


def test_the_true_class_of_inputs_that_are_wrong(run, archive):
    asked = (*TRACE, "inputs/7", "inputs/9", "--nodes", 1, "--format", "json")
    outcome = run(*asked, "--against", "true", at=archive)
    plain = run(*asked, at=archive).json["inputs"]
    right = [one for one in plain if one["prediction"]["class"] == one["true"]]
    for one, best in zip(outcome.json["inputs"], plain, strict=True):
        wrong = one["prediction"]["class"] != one["true"]
        assert one["target"]["against"] == (one["true"] if wrong else best["target"]["against"])
    assert outcome.json["method"]["against"] == "true"
    assert outcome.json["warnings"] == [
        f"{len(right)} of {len(plain)} inputs are right, or their true class is not known: their margins are over"
        " the best other class"
    ]


def test_lineage_over_the_true_class(run, archive):
    arguments = ("lineage", "inputs/9/0815.png", "--nodes", 1, "--from", 10, "--format", "json")
    (one,) = run(*arguments, "--against", "true", at=archive).json["inputs"]
    (other,) = run(*arguments, "--against", 4, at=archive).json["inputs"]
    assert (one["target"]["against"], other["target"]["against"]) == (9, 4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--against", "true"), "--against true: no input has a true class other than the one that is explained"),
        (("--against", "ten"), "--against ten is no class of this model"),
        (("--against", 10), "--against 10 does not exist"),
        (("--against", 7), "--against 7 is what the model says of every input itself"),
        (("--against", 3, "--class", 3), "--class and --against are the same class"),
        (("--against", 3, "--target", "logit"), "--against needs a margin, and --target is logit"),
        (("--against", 3, "--method", "tracefl"), "--method tracefl explains the logit, which is over no class"),
        (("--by", "layer", "--method", "shapley"), "--method shapley has no parts by layer"),
        (("--by", "neuron", "--method", "tracefl"), "--method tracefl has no parts by neuron"),
        (("--by", "head"), "'head' is not one of 'layer', 'neuron'"),
        (("--by", "neuron", "--top", 0), "0 is not in the range"),
    ],
)
def test_what_cannot_be_meant(arguments, words, run, archive):
    outcome = run(*TRACE, "input.png", *arguments, at=archive)
    assert (outcome.status, outcome.stdout) == (2, "")
    assert words in flat(outcome.stderr)


def test_layers_in_json_and_csv(run, archive):
    arguments = (*TRACE, "inputs/9/0553.png", "input.png", "--by", "layer", "--format")
    inputs = run(*arguments, "json", at=archive).json["inputs"]
    found = rows(run(*arguments, "csv", at=archive))
    assert len(found) == 2 * 5 * 5
    for one in inputs:
        assert [layer["layer"] for layer in one["layers"]] == ["0", "1", "4", "5", "9"]
        for client in one["clients"]:
            parts = [
                p["score"] for layer in one["layers"] for p in layer["clients"] if p["client"] == client["client"]
            ]
            assert sum(parts) == pytest.approx(client["score"], abs=1e-4)
            own = [r for r in found if (r["source"], r["client"]) == (one["source"], client["client"])]
            assert [float(row["layer.score"]) for row in own] == parts
            assert {float(row["score"]) for row in own} == {client["score"]}
        for layer in one["layers"]:
            assert layer["server"] == 0
            assert abs(layer["unexplained"]) < 1e-5


def test_the_label_flip_sits_in_the_last_layers_two_neurons(run, archive):
    """hospital-4 calls nines sevens: the two neurons that carry most of its score are those of 9 and 7."""
    arguments = (*TRACE, "input.png", "--by", "neuron", "--top", 2)
    (one,) = run(*arguments, "--format", "json", at=archive).json["inputs"]
    assert one["neurons"]["client"] == "hospital-4"
    assert {(unit["layer"], unit["kind"], unit["unit"]) for unit in one["neurons"]["units"]} == {
        ("9", "neuron", 7),
        ("9", "neuron", 9),
    }
    total = sum(unit["part"] for unit in one["neurons"]["units"]) + one["neurons"]["others"]["part"]
    assert total == pytest.approx(one["clients"][0]["score"], abs=1e-4)
    assert len(one["clients"]) == 5
    found = rows(run(*arguments, "--format", "csv", at=archive))
    assert [(row["client"], row["unit.unit"]) for row in found] == [("hospital-4", "9"), ("hospital-4", "7")]
    text = run(*arguments, at=archive).stdout
    assert "hospital-1" in text, "--top is about neurons here"
    assert text.count("neuron ") == 2


def test_ten_neurons_unless_told_otherwise(run, archive):
    (one,) = run(*TRACE, "input.png", "--by", "neuron", "--format", "json", at=archive).json["inputs"]
    assert len(one["neurons"]["units"]) == 10


def test_many_inputs_say_where_their_parts_are(run, archive):
    text = run(*TRACE, "inputs/9", "--by", "layer", "--nodes", 1, at=archive).stdout
    assert "Every layer of every client of every input: --format csv or --format json." in text


def test_parts_in_float64(run, archive):
    document = run(*TRACE, "input.png", "--by", "layer", "--precise", "--format", "json", at=archive).json
    assert document["run"]["same_ranking_in_float32"] is True
    (one,) = document["inputs"]
    parts = sum(layer["clients"][0]["score"] for layer in one["layers"])
    assert parts == pytest.approx(one["clients"][0]["score"], rel=1e-12)


@pytest.mark.parametrize("method", ["tracefl", "counterfactual", "shapley"])
def test_a_found_edit_is_called_an_upper_bound(method, run, archive):
    arguments = (*TRACE, "input.png", "--method", method)
    (usual,) = run(*arguments, "--format", "json", at=archive).json["inputs"]
    assert "tamper_margin" not in usual
    (one,) = run(*arguments, "--tamper", "--format", "json", at=archive).json["inputs"]
    assert one["tamper_margin"]["kind"] == "upper bound"
    assert 0 < one["tamper_margin"]["value"] < 1
    text = flat(run(*arguments, "--tamper", at=archive).stdout)
    assert "that cancels in the fusion was found that overturns this ranking." in text
    assert "smallest" not in text
