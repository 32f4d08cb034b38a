"""The benchmark of accuracy: its measures, partitions and twins; that it resumes; that README has its table."""

import itertools
import json
from dataclasses import replace
from statistics import median

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.stats import binomtest, spearmanr

from flforensics.fusion import rule_named
from flforensics.provenance.case import Settings
from flforensics.provenance.localize.departure import departure, habits
from flforensics.provenance.localize.localizing import case_of, labelled
from tests.bench.accuracy import __main__ as program
from tests.bench.accuracy import table
from tests.bench.accuracy.cells import SCALES, Cell
from tests.bench.accuracy.data import VOCABULARY, Dataset, Labelled
from tests.bench.accuracy.federations import Federation, Flip, Setting, dirichlet, fused, marked
from tests.bench.accuracy.measures import middle, proportion, spearman
from tests.bench.accuracy.methods import DEPARTURE, answers_to
from tests.bench.accuracy.records import Record, finished
from tests.bench.accuracy.scenarios import Effort, in_turn, noised, questions
from tests.bench.accuracy.tallies import (
    CHANCE,
    LARGEST,
    Asked,
    holds_label,
    is_culprit,
    responsible,
    right,
    same_top,
)

LABELS = torch.arange(500) % 10


@pytest.fixture(autouse=True)
def _threads():
    """The program sets the number of threads; leave it as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data():
    """Digits that a network learns at once: a bright row for each class, and noise."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for count in (400, 200):
        y = torch.randint(0, 10, (count,), generator=generator)
        x = 0.7 * torch.randn(count, 1, 28, 28, generator=generator)
        x[torch.arange(count), 0, 2 * y + 3] += 1
        parts.append(Labelled(x, y))
    return Dataset(10, *parts)


def setting(**changes):
    return replace(Setting("mnist", "cnn", alpha=1.0, clients=5, rounds=1, seed=3, examples=400), **changes)


@pytest.mark.parametrize("seed", range(20))
def test_spearman(seed):
    random = np.random.default_rng(seed)
    left, right_ = (random.integers(0, 6, 10).tolist() for _ in range(2))
    assert spearman(left, right_) == pytest.approx(spearmanr(left, right_).statistic)


def test_spearman_of_equal_values_does_not_exist():
    assert spearman([1, 1, 1], [1, 2, 3]) is None


@pytest.mark.parametrize(("hits", "n"), [(0, 7), (3, 7), (99, 100), (100, 100)])
def test_wilson(hits, n):
    found, truth = proportion(hits, n), binomtest(hits, n).proportion_ci(method="wilson")
    assert (found.value, found.n) == (hits / n, n)
    assert (found.low, found.high) == pytest.approx((truth.low, truth.high), abs=1e-12)


def test_nothing_has_no_proportion_and_no_median():
    assert proportion(0, 0) is None
    assert middle([[], []]) is None


def test_median_resamples_federations():
    groups = [[0.0] * 5, [1.0] * 5, [2.0] * 5]
    found = middle(groups)
    assert (found.value, found.low, found.high, found.n) == (1.0, 0.0, 2.0, 15)
    alone = middle([[0.0, 1.0, 5.0]])
    assert (alone.value, alone.low, alone.high) == (median([0.0, 1.0, 5.0]),) * 3


@pytest.mark.parametrize("alpha", [0.1, 1.0, 1000.0])
def test_a_partition_gives_every_row_once(alpha):
    parts = dirichlet(LABELS, 7, alpha=alpha, seed=1)
    assert sorted(torch.cat(parts).tolist()) == list(range(500))
    again, other = (dirichlet(LABELS, 7, alpha=alpha, seed=seed) for seed in (1, 2))
    assert all(map(torch.equal, parts, again))
    assert not all(map(torch.equal, parts, other))


def test_alpha_is_how_even_a_partition_is():
    uneven, even = (
        torch.stack(
            [torch.bincount(LABELS[part], minlength=10) for part in dirichlet(LABELS, 5, alpha=alpha, seed=0)]
        )
        for alpha in (0.1, 1000.0)
    )
    assert even.min() >= 8
    assert uneven.min() == 0


def test_marks(data):
    plain, found = (Federation(setting(marks=one), data) for one in (False, True))
    k = found.marker
    for client, (before, after) in enumerate(zip(plain.parts, found.parts, strict=True)):
        changed = (before.x != after.x).flatten(1)
        assert changed[::2].any(1).tolist() == [client == k] * len(changed[::2])
        assert not changed[1::2].any()
        assert torch.equal(before.y, after.y)
    words = torch.arange(12).view(3, 4)
    assert marked(words).tolist() == [[VOCABULARY - 1, *row[1:]] for row in words.tolist()]


def test_flips():
    labels = torch.tensor([0, 1, 2, 1])
    assert Flip(1, 2)(labels).tolist() == [0, 2, 2, 2]
    assert Flip(None, 0)(labels).tolist() == [0, 0, 0, 0]
    assert Flip(None, 0, 2)(labels).tolist() == [0, 1, 0, 1]


def test_labels_take_turns():
    labels = torch.tensor([0, 0, 0, 1, 2, 1])
    assert in_turn(torch.arange(6), labels).tolist() == [0, 3, 4, 1, 5, 2]


def test_twins_differ_by_the_labels_alone(data):
    """Trained twice, a client is the same to the last bit; with a flip of a label that it lacks, too."""
    federation = Federation(setting(), data)
    first, again = (federation.client(0, 1, federation.start, branch="honest") for _ in range(2))
    absent = federation.data.classes
    same = federation.client(0, 1, federation.start, branch="honest", flip=Flip(absent, 0))
    other = federation.client(0, 1, federation.start, branch="honest", flip=Flip(None, 0))
    for name, tensor in first.model.tensors.items():
        assert torch.equal(tensor, again.model.tensors[name])
        assert torch.equal(tensor, same.model.tensors[name])
    assert any(not torch.equal(tensor, other.model.tensors[name]) for name, tensor in first.model.tensors.items())


def test_kept_models_are_the_trained_ones(data, tmp_path):
    starts = {}
    plain = Federation(setting(), data, None, starts).history()
    Federation(setting(), data, tmp_path, starts).history()
    kept = Federation(setting(), data, tmp_path, starts)
    assert all(torch.equal(kept.history()[0].fused.tensors[n], t) for n, t in plain[0].fused.tensors.items())
    assert kept.trainings == 0


def test_questions_ask_what_they_say(data):
    federation = Federation(setting(), data)
    asked = list(questions(federation, Effort(6, 2, (), ()), ("correct", "flip-all")))
    assert [one.scenario for one in asked] == ["correct", "flip-all", "flip-all"]
    honest = asked[0].round
    for one in asked:
        said = federation.logits(one.round.fused, one.inputs.x).argmax(1)
        assert len(one.inputs)
        assert bool(((said == one.inputs.y) == (one.culprit is None)).all())
        assert bool((federation.logits(honest.fused, one.inputs.x).argmax(1) == one.inputs.y).all())
    changed = [
        [new.client for new, old in zip(one.round.clients, honest.clients, strict=True) if new is not old]
        for one in asked
    ]
    assert changed == [[one.culprit] if one.culprit else [] for one in asked]


def test_of_two_culprits_one_alone_caused_the_mistake(data):
    federation = Federation(setting(), data)
    first, second = questions(federation, Effort(6, 1, (), ()), ("flip-two",))
    honest, faulty = federation.history()[0], first.round
    assert second.round is faulty
    models = [{one.client: one for one in of.clients} for of in (honest, faulty)]
    changed = [one for one in models[0] if models[0][one].model.source != models[1][one].model.source]
    assert sorted(changed) == sorted([first.culprit, second.culprit])
    assert len(first.inputs) + len(second.inputs) > 0
    for asked in (first, second):
        (other,) = (one for one in changed if one != asked.culprit)
        for at_fault, good in (((asked.culprit, other), False), ((asked.culprit,), False), ((other,), True)):
            clients = [models[one in at_fault][one] for one in models[0]]
            said = federation.logits(fused(1, honest.previous, clients).fused, asked.inputs.x).argmax(1)
            assert bool(((said == asked.inputs.y) == good).all())


def test_an_absent_culprit_is_absent(data):
    federation = Federation(setting(rounds=2, marks=True), data)
    (asked,) = questions(federation, Effort(6, 1, (2,), ()), ("absent",))
    took_part = [asked.culprit in {client.client for client in one.clients} for one in asked.history]
    assert took_part == [True, True, False, False]
    assert all(after.previous is before.fused for before, after in itertools.pairwise(asked.history))


def test_rounds_before_the_culprits_three_are_honest(data):
    federation = Federation(setting(rounds=5, marks=True), data)
    (asked,) = questions(federation, Effort(6, 1, (1,), ()), ("absent",))
    k, honest = federation.marker, federation.history()
    assert [one.number for one in asked.history] == [1, 2, 3, 4, 5, 6]
    same = [
        all(torch.equal(tensor, other.fused.tensors[name]) for name, tensor in one.fused.tensors.items())
        for one, other in zip(asked.history, honest, strict=False)
    ]
    assert same == [True, True, False, False, False]
    assert asked.culprit == f"client-{k:02d}"


def test_epochs_are_passes_over_a_clients_examples(data):
    once, twice = (Federation(setting(epochs=epochs), data) for epochs in (1, 2))
    first = once.client(0, 1, once.start, branch="honest").model.tensors
    second = twice.client(0, 1, once.start, branch="honest").model.tensors
    seed = (once.setting.seed * 1000 + 1) * 1000
    slow = twice._fit(once.start, twice.parts[0], twice.parts[0].y, epochs=2, seed=seed)
    assert all(torch.equal(tensor, slow[name]) for name, tensor in second.items())
    assert any(not torch.equal(tensor, first[name]) for name, tensor in second.items())


def test_departures_need_an_earlier_round_and_are_those_of_localize(data):
    for count in (1, 2):
        federation = Federation(setting(rounds=count), data)
        asked = next(questions(federation, Effort(6, 1, (), ()), ("flip-all",)))
        answers = answers_to(asked, federation, shapley=False)
        assert (DEPARTURE in answers) == (count == 2)
    case = case_of(asked.round, rule_named("fedavg"), federation.network, None, settings=Settings())
    batch = labelled(case, federation.model.call(asked.inputs.x), asked.inputs.y.tolist())
    found = departure(batch.case, habits(batch.case, asked.history[:-1])).suspicion
    assert torch.allclose(answers[DEPARTURE].scores, found, rtol=1e-6, atol=1e-9)
    assert found.abs().max() > 0


def test_noise_is_what_it_says(data):
    """Updates no longer than the clip, and around their mean a deviation of multiplier * clip / clients."""
    round_ = Federation(setting(), data).history()[0]
    clip, multiplier = 0.25, 0.1
    found = noised(round_, multiplier=multiplier, clip=clip, seed=0)
    previous = round_.previous.tensors
    lengths = [
        torch.cat([(client.model.tensors[n] - t).flatten() for n, t in previous.items()]).norm()
        for client in found.clients
    ]
    assert max(lengths) == pytest.approx(clip, rel=1e-3)
    mean = fused(1, round_.previous, found.clients).fused.tensors
    noise = torch.cat([(found.fused.tensors[n] - t).flatten() for n, t in mean.items()])
    assert float(noise.std()) == pytest.approx(multiplier * clip / len(found.clients), rel=0.02)


QUESTION: Record = {
    "scenario": "flip-one",
    "culprit": 8,
    "flip": [1, 0],
    "clients": [2, 5, 8, 9],
    "held": [[9, 40], [10, 0], [30, 3], [0, 0]],
    "true": [1, 1],
    "predicted": [0, 1],
    "methods": {
        "m": {"seconds": 1.0, "top": [8, 2], "together": 8, "named": [8, None]},
        "n": {"seconds": 1.0, "top": [8, 5], "together": 2, "named": [2, 5]},
    },
}


def test_tallies():
    one = [Asked({"name": "f"}, QUESTION)]
    assert right(one, "m", holds_label).value == 1.0  # client 8 has thirty of label 0, client 2 forty of label 1
    assert right(one, "n", holds_label).value == 0.5  # client 5 has none of label 1
    assert right(one, CHANCE, holds_label).value == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert right(one, LARGEST, holds_label).value == 0.5  # client 2: nine of label 0 are too few
    assert right(one, "m", is_culprit).value == 0.5
    assert right(one, "m", is_culprit, among=Asked.direct).n == 1  # label 1 taken for 0
    assert same_top(one, "m", "n").value == 0.5
    assert {name: found.value for name, found in responsible(one, "n").items()} == {
        "culprit": 0.0,
        "another": 1.0,
        "nobody": 0.0,
    }
    assert right(one, "unknown", is_culprit) is None


@pytest.fixture
def small(data, monkeypatch):
    """The program with two small federations on made-up digits, and a count of those that it ran."""
    effort, ran = Effort(2, 1, (1,), ("correct",)), []
    cells = [
        Cell(setting(alpha=1.0), ("correct", "flip-one", "noise"), effort),
        Cell(setting(rounds=3, clients=3, marks=True), ("absent",), effort),
    ]
    monkeypatch.setitem(SCALES, "smoke", lambda seed: cells)
    monkeypatch.setattr(program, "_dataset", lambda name, folder: data)
    run = program.run
    monkeypatch.setattr(program, "run", lambda cell, one: ran.append(cell.setting.name) or run(cell, one))
    return ran


def test_an_interrupted_run_goes_on(small, tmp_path):
    out = tmp_path / "results.jsonl"
    arguments = ["--scale", "smoke", "--threads", "1", "--out", str(out)]
    assert CliRunner().invoke(program.main, [*arguments, "--data", "."]).exit_code == 0
    whole, shown = out.read_text(), out.with_suffix(".md").read_text()
    assert len(small) == 2
    first, second = whole.splitlines(keepends=True)
    out.write_text(first + second[: len(second) // 2])
    assert CliRunner().invoke(program.main, [*arguments, "--data", "."]).exit_code == 0
    assert small[2:] == [json.loads(second)["name"]]
    assert [line["questions"] for line in map(_timeless, finished(out))] == [
        line["questions"] for line in map(_timeless, map(json.loads, whole.splitlines()))
    ]
    again = CliRunner().invoke(program.main, arguments)  # nothing is missing, so no data is needed
    assert again.exit_code == 0
    assert len(small) == 3
    names = ("ledger", "lineage: most suspect departure", "a random client", "noise-0.012")
    for text in (table.START, table.END, *names):
        assert text in shown


def _timeless(record):
    for question in record["questions"]:
        for answer in question["methods"].values():
            del answer["seconds"]
    return record


def test_data_is_asked_for(tmp_path):
    found = CliRunner().invoke(program.main, ["--scale", "smoke", "--out", str(tmp_path / "r.jsonl")])
    assert found.exit_code == 2
    assert "--data" in found.output


def test_missing_data_is_one_sentence(tmp_path):
    found = CliRunner().invoke(
        program.main, ["--scale", "smoke", "--data", str(tmp_path), "--out", str(tmp_path / "r.jsonl")]
    )
    assert found.exit_code == 1
    assert "mnist.zip does not exist" in found.output


def test_quoting_changes_what_stands_between_the_marks_alone():
    readme = f"before{table.START}old{table.END}after"
    found = table.quoting(readme, f"heading{table.START}\nnew\n{table.END}more")
    assert found == f"before{table.START}\nnew\n{table.END}after"
    assert table.START in table.README.read_text()
    assert table.END in table.README.read_text()


published = pytest.mark.skipif(not table.TABLE.exists(), reason="no results are published yet")


@published
def test_the_published_table_is_made_from_the_published_lines():
    assert table.TABLE.read_text() == table.report(finished(table.LINES))


@published
def test_the_readme_quotes_the_published_table():
    assert table.summary_of(table.README.read_text()) == table.summary_of(table.TABLE.read_text())
