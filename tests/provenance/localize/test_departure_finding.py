"""Who is first in the finding on departures, and who may be named."""

from dataclasses import replace

import pytest

from flforensics.gradients import Call
from flforensics.rounds import StoredModel
from tests.provenance.localize import rounds
from tests.provenance.localize.departing import NAME, UNUSUAL, found, history, shies, without


def test_the_fault_is_named_and_unusual_data_are_not():
    rounds_ = history(4)
    materials = rounds.usual(before=tuple(rounds_[:-1]))
    blamed = rounds.localized(rounds_[-1], "mispredictions", materials=materials).findings[0]
    (departed,) = rounds.localized(rounds_[-1], "departure", materials=materials).findings
    assert departed.stands_out.client == f"client-{rounds.FAULTY}"
    best = departed.suspects[0].figures
    assert (best.rounds, best.fixed, best.top) == (3, departed.inputs, departed.inputs)
    unusual = next(one.figures for one in departed.suspects if one.client == f"client-{UNUSUAL}")
    assert unusual.usual > best.share
    assert (best.suspicion > 0.95, unusual.suspicion < 0.05) == (True, True)
    assert max(abs(one.figures.share) for one in departed.suspects[1:]) < 0.1 * best.share
    assert next(one.figures.share for one in blamed.suspects if one.client == f"client-{UNUSUAL}") > 0.3


def test_an_honest_round_names_nobody():
    rounds_ = history(8, faulty=None)
    materials = rounds.usual(before=tuple(rounds_[:-1]))
    blamed = rounds.localized(rounds_[-1], "mispredictions", materials=materials).findings[0]
    (departed,) = rounds.localized(rounds_[-1], "departure", materials=materials).findings
    assert blamed.stands_out.client == f"client-{UNUSUAL}"
    assert departed.stands_out.client is None
    assert departed.stands_out.reason


def test_who_departs_a_little_is_not_named():
    """It leads in every input, and pushed all of them."""

    def nudges(move):
        move[2, 1] += 0.05

    rounds_ = history(8, fault=nudges)
    materials = rounds.usual(before=tuple(rounds_[:-1]))
    (departed,) = rounds.localized(rounds_[-1], "departure", materials=materials).findings
    best = departed.suspects[0]
    assert (best.client, best.figures.top) == (f"client-{rounds.FAULTY}", departed.inputs)
    assert best.figures.share > 0
    assert 1 < best.figures.distance < 1.5
    assert departed.stands_out.client is None
    assert "hardly further" in departed.stands_out.reason


def test_figures_are_means_and_counts_over_the_mispredictions():
    rounds_ = history(8, faulty=None)
    answer, batch = found(rounds_)
    materials = rounds.usual(before=tuple(rounds_[:-1]))
    (finding,) = rounds.localized(rounds_[-1], "departure", materials=materials).findings
    suspected = answer.suspicion / answer.suspicion.sum(1, keepdim=True)
    for one in finding.suspects:
        k = int(one.client.removeprefix("client-"))
        wrong, right = suspected[batch.wrong], suspected[~batch.wrong]
        assert one.figures.suspicion == pytest.approx(float(wrong[:, k].mean()), rel=1e-4)
        assert one.figures.top == int((wrong.argmax(1) == k).sum())
        assert one.figures.control_top == int((right.argmax(1) == k).sum())
        assert one.figures.share == pytest.approx(float(answer.shares[batch.wrong, k].mean()), rel=1e-4)
        assert one.figures.towards == int((answer.scores[batch.wrong, k] > 0).sum())
        assert one.figures.distance == pytest.approx(float(answer.distances[k]), rel=1e-5)
    assert [one.figures.suspicion for one in finding.suspects] == sorted(
        (one.figures.suspicion for one in finding.suspects), reverse=True
    )


def test_who_departs_far_but_away_from_the_mistakes_is_not_named():
    rounds_ = history(8, fault=shies)
    materials = rounds.usual(before=tuple(rounds_[:-1]))
    (departed,) = rounds.localized(rounds_[-1], "departure", materials=materials).findings
    best = departed.suspects[0]
    assert (best.client, best.figures.distance > 1.5) == (f"client-{rounds.FAULTY}", True)
    assert departed.stands_out.client is None
    assert "away from their wrong classes" in departed.stands_out.reason


def test_nobody_is_named_where_most_is_not_explained_by_clients():
    *before, last = history(4)
    edited = {NAME: last.fused.tensors[NAME].clone()}
    edited[NAME][2, 1] += 20
    last = replace(last, fused=StoredModel(edited, "edited"))
    (departed,) = rounds.localized(last, "departure", materials=rounds.usual(before=tuple(before))).findings
    assert departed.suspects[0].client == f"client-{rounds.FAULTY}"
    assert departed.stands_out.client is None
    assert "unexplained" in departed.stands_out.reason


def test_a_client_without_earlier_rounds_is_not_named():
    rounds_ = history(3)
    before = tuple(without(one, rounds.FAULTY) for one in rounds_[:-1])
    answer = rounds.localized(rounds_[-1], "departure", materials=rounds.usual(before=before))
    (finding,) = answer.findings
    best = finding.suspects[0]
    assert best.client == f"client-{rounds.FAULTY}"
    assert (best.figures.rounds, best.figures.distance > 1.5) == (0, True)
    assert finding.stands_out.client is None
    assert "nothing earlier is known" in finding.stands_out.reason
    assert [f"nothing earlier is known of client-{rounds.FAULTY}" in one for one in answer.warnings] == [True]


def test_of_two_clients_nobody_is_named():
    rounds_ = history(3, clients=2, faulty=1)
    (finding,) = rounds.localized(
        rounds_[-1], "departure", materials=rounds.usual(before=tuple(rounds_[:-1]))
    ).findings
    assert (finding.suspects[0].client, finding.stands_out.client) == ("client-1", None)
    assert "fewer than three clients" in finding.stands_out.reason


def test_batches_are_one_list_of_inputs():
    rounds_ = history(3)
    values, classes = rounds.inputs()
    before = tuple(rounds_[:-1])
    halves = rounds.usual(
        calls=(Call((values[:5],)), Call((values[5:],))),
        true=(tuple(classes[:5]), tuple(classes[5:])),
        before=before,
    )
    whole = rounds.localized(rounds_[-1], "departure", materials=rounds.usual(before=before)).findings[0]
    parts = rounds.localized(rounds_[-1], "departure", materials=halves).findings[0]
    assert [one.client for one in whole.suspects] == [one.client for one in parts.suspects]
    assert whole.suspects[0].figures.share == pytest.approx(parts.suspects[0].figures.share)
