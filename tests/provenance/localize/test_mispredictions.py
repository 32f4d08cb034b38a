"""The ledger over mispredictions, on a linear classifier where every score has a closed form."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from flforensics.errors import NotComputableError, UsageError
from flforensics.fusion import rule_named
from flforensics.gradients import Call
from flforensics.provenance.localize.chance import interval, lead_over, resampled
from flforensics.provenance.localize.localizing import labelled
from flforensics.provenance.localize.mispredictions import error_margin, mispredictions
from flforensics.rounds import ClientModel
from tests.provenance.localize import rounds


def written_out(round_):
    """Shares, predictions and the predictions of every re-fusion, by arithmetic on the weights alone."""
    values, classes = rounds.inputs()
    x = values.double().numpy()
    previous = round_.previous.tensors["0.weight"].double().numpy()
    new = round_.fused.tensors["0.weight"].double().numpy()
    clients = [client.model.tensors["0.weight"].double().numpy() for client in round_.clients]
    weights = np.array([client.weight for client in round_.clients])
    said = (x @ new.T).argmax(1)
    shares, refused = [], []
    for row, true in zip(x, classes, strict=True):
        others = [c for c in range(rounds.CLASSES) if c != true]
        wrong = max(others, key=lambda c: row @ new[c])
        moves = [w / weights.sum() * (c - previous) for c, w in zip(clients, weights, strict=True)]
        scores = np.array([(move[wrong] - move[true]) @ row for move in moves])
        unexplained = ((new - previous - sum(moves))[wrong] - (new - previous - sum(moves))[true]) @ row
        shares.append(scores / (np.abs(scores).sum() + abs(unexplained)))
        left = []
        for k in range(len(clients)):
            rest = [j for j in range(len(clients)) if j != k]
            fused = sum(weights[j] * clients[j] for j in rest) / weights[rest].sum()
            left.append(int((fused @ row).argmax()))
        refused.append(left)
    return np.array(shares), said, np.array(refused), np.array(classes)


def test_shares_and_refusions_are_the_closed_form():
    round_ = rounds.faulty_round()
    values, classes = rounds.inputs()
    batch = labelled(rounds.case(round_, rounds.linear()), Call((values,)), classes)
    found = mispredictions(batch.case)
    shares, said, refused, true = written_out(round_)
    assert np.allclose(found.shares[:, :-2], shares, rtol=1e-9, atol=1e-12)
    assert found.refused.tolist() == refused.tolist()
    assert batch.wrong.tolist() == (said != true).tolist()
    assert 0 < batch.wrong.sum() < len(said)


def test_the_figures_are_counts_and_means_of_them():
    round_ = rounds.faulty_round()
    (found,) = rounds.localized(round_, "mispredictions").findings
    shares, said, refused, true = written_out(round_)
    wrong = said != true
    assert (found.inputs, found.controls) == (wrong.sum(), (~wrong).sum())
    order = np.argsort(-shares[wrong].mean(0), kind="stable")
    assert [one.client for one in found.suspects] == [f"client-{k}" for k in order]
    for k, one in zip(order, found.suspects, strict=True):
        first = (shares.argmax(1) == k) & (shares[:, k] > 0)
        figures = one.figures
        assert figures.share == pytest.approx(shares[wrong, k].mean())
        assert figures.control_share == pytest.approx(shares[~wrong, k].mean())
        assert (figures.top, figures.control_top) == (first[wrong].sum(), first[~wrong].sum())
        assert figures.towards == (shares[wrong, k] > 0).sum()
        assert figures.fixed == (refused[wrong, k] == true[wrong]).sum()
        assert figures.broken == (refused[~wrong, k] != true[~wrong]).sum()
        assert figures.interval[0] <= figures.share <= figures.interval[1]
        assert one.weight == pytest.approx(rounds.WEIGHTS[k] / sum(rounds.WEIGHTS))


def test_the_faulty_client_is_named_and_its_removal_repairs():
    (found,) = rounds.localized(rounds.faulty_round(), "mispredictions").findings
    best, stands = found.suspects[0], found.stands_out
    assert (best.client, stands.client) == ("client-3", "client-3")
    assert (best.figures.fixed, best.figures.broken) == (found.inputs, 0)
    assert 0 < stands.interval[0] <= stands.lead <= stands.interval[1]


def test_a_seed_gives_the_same_and_another_one_nearly_so():
    values, classes = rounds.inputs(90)
    materials = rounds.usual(calls=(Call((values,)),), true=(tuple(classes),))
    first, again, other = (
        rounds.localized(rounds.faulty_round(), "mispredictions", materials=materials, seed=seed).findings[0]
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first.stands_out.interval != other.stands_out.interval
    assert first.stands_out.interval == pytest.approx(other.stands_out.interval, abs=0.02)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"replays": False}, "this round does not replay"),
        ({"rows": 2}, "fewer than 3 mispredictions say nothing about others"),
    ],
)
def test_nobody_is_named(change, reason):
    values, classes = rounds.inputs()
    ones = [n for n in range(len(classes)) if classes[n] == 1][: change.pop("rows", None)]
    materials = rounds.usual(calls=(Call((values[ones],)),), true=(tuple(classes[n] for n in ones),))
    (found,) = rounds.localized(rounds.faulty_round(), "mispredictions", materials=materials, **change).findings
    assert (found.stands_out.client, found.stands_out.reason) == (None, reason)
    assert found.controls == 0
    assert found.suspects[0].figures.control_share is None
    assert found.suspects[0].figures.broken is None
    assert (found.suspects[0].figures.interval is None) == (len(ones) < 3)


def test_equal_clients_do_not_stand_out():
    round_ = rounds.faulty_round()
    faulty = round_.clients[rounds.FAULTY].model
    clients = tuple(replace(one, model=faulty, weight=1.0) for one in round_.clients)
    (found,) = rounds.localized(replace(round_, clients=clients, fused=faulty), "mispredictions").findings
    assert (found.stands_out.client, found.stands_out.lead) == (None, pytest.approx(0, abs=1e-12))
    assert "does not hold in 95 %" in found.stands_out.reason


def test_an_edit_of_the_global_is_nobodys():
    round_ = rounds.faulty_round(faulty=None)
    round_.fused.tensors["0.weight"][1, 1] -= 5
    (found,) = rounds.localized(round_, "mispredictions").findings
    assert found.stands_out.client is None
    assert found.stands_out.reason == "the largest part is the server's or unexplained"


def test_two_clients():
    (found,) = rounds.localized(rounds.faulty_round(clients=2, faulty=1), "mispredictions").findings
    assert found.stands_out.client == "client-1"


def test_a_single_client_has_no_fusion_without_it():
    (found,) = rounds.localized(rounds.faulty_round(clients=1, faulty=0), "mispredictions").findings
    assert (found.suspects[0].figures.fixed, found.suspects[0].figures.broken) == (None, None)


def test_batches_are_one_list_of_inputs():
    values, classes = rounds.inputs()
    halves = rounds.usual(
        calls=(Call((values[:5],)), Call((values[5:],))), true=(tuple(classes[:5]), tuple(classes[5:]))
    )
    for method in ("mispredictions", "influence"):
        (whole,) = rounds.localized(rounds.faulty_round(), method).findings
        (parts,) = rounds.localized(rounds.faulty_round(), method, materials=halves).findings
        assert [one.client for one in parts.suspects] == [one.client for one in whole.suspects]
        assert parts.stands_out.interval == pytest.approx(whole.stands_out.interval)
        for one, other in zip(parts.suspects, whole.suspects, strict=True):
            for name, value in vars(one.figures).items():
                assert value == pytest.approx(getattr(other.figures, name))


def test_inputs_without_a_true_class_are_complaints():
    values, classes = rounds.inputs()
    ones = [n for n in range(len(classes)) if classes[n] == 1]
    materials = rounds.usual(calls=(Call((values[ones],)),), true=((-1,) * len(ones),))
    (found,) = rounds.localized(rounds.faulty_round(), "mispredictions", materials=materials).findings
    best = found.suspects[0]
    assert (best.client, best.figures.fixed, found.inputs) == ("client-3", len(ones), len(ones))


def test_the_error_margin_is_positive_exactly_on_errors():
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    true = torch.randint(0, 4, (50,), generator=torch.Generator().manual_seed(2))
    margin = error_margin(logits, true)
    assert torch.equal(margin(logits) > 0, logits.argmax(1) != true)
    assert torch.equal(margin.against, true)
    unknown = error_margin(logits, torch.full((50,), -1))
    assert torch.equal(unknown.classes, logits.argmax(1))
    assert torch.equal(unknown(logits), logits.topk(2).values.diff(dim=1).neg().flatten())


def test_all_inputs_right_is_no_answer_and_another_method_still_has_one():
    round_ = rounds.faulty_round(faulty=None)
    with pytest.raises(NotComputableError, match="predicts every given input correctly"):
        rounds.localized(round_, "mispredictions", "influence")
    found = rounds.localized(round_, "feddebug", "mispredictions")
    assert [one.method.name for one in found.findings] == ["feddebug"]
    assert [one.method for one in found.silent] == ["mispredictions"]


def test_a_class_that_the_model_lacks():
    with pytest.raises(UsageError, match="true class 3 and the model has 3 classes"):
        rounds.localized(rounds.faulty_round(), "mispredictions", materials=rounds.usual(true=((3,) * 12,)))


def test_somebody_without_a_file_is_mentioned():
    round_ = rounds.faulty_round()
    clients = (*round_.clients, ClientModel("client-9", 10.0, None))
    found = rounds.localized(replace(round_, clients=clients), "mispredictions", replays=False)
    assert found.warnings == ("nothing can be said about client-9 (file or weight missing)",)
    nobody = tuple(replace(client, model=None) for client in round_.clients)
    with pytest.raises(NotComputableError, match="no client with both a file and a weight"):
        rounds.localized(replace(round_, clients=nobody), "mispredictions")


def test_a_client_without_finite_numbers():
    round_ = rounds.faulty_round()
    round_.clients[0].model.tensors["0.weight"][0, 0] = torch.inf
    round_.fused.tensors["0.weight"][0, 0] = torch.inf
    with pytest.raises(NotComputableError, match="not finite in the new global"):
        rounds.localized(round_, "mispredictions")


def test_another_rule():
    values, classes = rounds.inputs()
    case = replace(rounds.case(rounds.faulty_round(), rounds.linear()), rule=rule_named("median"))
    found = mispredictions(labelled(case, Call((values,)), classes).case)
    # a median takes nothing of one wild client, and the stored global is a mean
    assert found.shares[:, -1].abs().amax() > 0.5


def test_resampled_means_scatter_as_means_do():
    values = torch.randn(200, 2, generator=torch.Generator().manual_seed(3)).double()
    means = resampled(values, seed=5)
    assert torch.equal(means, resampled(values, seed=5))
    for column in range(2):
        low, high = interval(means[:, column])
        half = 1.96 * float(values[:, column].std()) / 200**0.5
        assert (high - low) / 2 == pytest.approx(half, rel=0.1)
        assert (high + low) / 2 == pytest.approx(float(values[:, column].mean()), abs=half / 5)


def test_the_lead_is_over_the_best_other_in_each_resampling():
    means = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0]])
    assert lead_over(means, 0).tolist() == [1.0, -5.0]
