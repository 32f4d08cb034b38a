"""The benchmark itself: its loop is the method, its limit is arithmetic, the README quotes what was measured."""

import json
from pathlib import Path

import pytest
import torch

from tests.bench.speed import table
from tests.bench.speed.archives import inputs_of, write_case
from tests.bench.speed.cases import CNN, SCALES, Case, Subject
from tests.bench.speed.limit import Rates, Work, measured_rates, seconds_at_best, work_of
from tests.bench.speed.methods import HASHED, LOOPS, METHODS, TRACEFL

RESULTS = Path(table.__file__).with_name("results.json")
_TINY = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
_BERT = {
    "source": "transformers",
    "name": "BertForSequenceClassification",
    "arguments": {**_TINY, "vocab_size": 30, "num_labels": 3},
}


@pytest.mark.parametrize(
    "case",
    [
        Case(CNN, 4, 3, 2),
        Case(Subject("tiny BERT", _BERT, (5,), 30), 3, 2, 2),
        Case(Subject("tiny BERT with padding", _BERT, (5,), 30, (2, 5, 3)), 3, 3, 2),
    ],
    ids=lambda c: c.subject.name,
)
def test_the_loops_compute_what_tracefl_computes(case: Case, tmp_path: Path) -> None:
    folder = write_case(tmp_path / "archive", case)
    scores = {name: METHODS[name].run(folder, case, inputs_of(case), "cpu") for name in (*LOOPS, HASHED)}
    ours = METHODS[TRACEFL].run(folder, case, inputs_of(case), "cpu")
    assert ours.shape == (case.inputs, case.clients)
    for name, found in scores.items():
        torch.testing.assert_close(
            found.double(), ours.double(), rtol=0, atol=1e-4 * float(ours.abs().max()), msg=name
        )


def test_the_limit_is_the_sum_of_its_parts() -> None:
    work = Work(bytes=6000, products=800)
    assert seconds_at_best(work, Rates(1000.0, 2.0, 100.0, 300.0, None), passes=3) == 6 + 3 * 2 + 8
    assert seconds_at_best(work, Rates(1000.0, 2.0, 100.0, 300.0, 500.0), passes=1) == 12 + 2 + 8
    assert seconds_at_best(work, Rates(1000.0, 2.0, 100.0, 300.0, None), passes=1, hashing_on=2) == 6 + 2 + 8 + 10


def test_the_work_of_an_archive_counts_every_file_and_value(tmp_path: Path) -> None:
    case = Case(CNN, 2, 3, 2)
    folder = write_case(tmp_path / "archive", case)
    network = torch.nn.Linear(4, 2)
    work = work_of(folder, network, inputs=3, clients=2)
    assert work.products == 3 * 2 * 10
    assert work.bytes > 4 * 4 * 225_034
    rates = measured_rates(
        folder, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 2)), inputs_of(case), device="cpu"
    )
    assert min(rates.reading, rates.passing, rates.multiplying, rates.hashing) > 0
    assert rates.copying is None


def test_cases_are_told_apart_by_name() -> None:
    names = [case.name for case in SCALES["full"]]
    assert len(set(names)) == len(names)


def test_the_readme_quotes_what_was_measured() -> None:
    readme = Path(__file__).parents[2] / "README.md"
    shown = table.markdown(json.loads(RESULTS.read_text()))
    assert RESULTS.with_suffix(".md").read_text() == shown
    assert f"{table.START}\n{shown}{table.END}" in readme.read_text()
