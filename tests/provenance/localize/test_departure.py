"""Departures from usual updates: closed forms on a linear classifier, and laws."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from flforensics.errors import NotComputableError
from flforensics.models import build_network
from flforensics.provenance.ledger import ledger
from flforensics.provenance.localize import departure as module
from flforensics.provenance.localize.departure import _update as update_of
from flforensics.provenance.localize.departure import departure, habits, split
from flforensics.rounds import StoredModel
from tests.provenance.architectures import round_from
from tests.provenance.localize import rounds
from tests.provenance.localize.departing import (
    CLIENTS,
    NAME,
    UNUSUAL,
    asked,
    distances_by_loops,
    found,
    history,
    instead,
    update,
    without,
    written_out,
)


@pytest.mark.parametrize(
    "absent", [{}, {0: (1, 2)}, {0: (3,), 1: (3,), 2: (3,)}, {0: (1, 3), 1: (1, 4), 2: (1, 2)}]
)
@pytest.mark.parametrize("count", [2, 4, 6])
def test_departures_are_the_closed_form(count, absent):
    """`absent`: who is missing from which of the earlier rounds; of some clients nothing is known at all."""
    *before, last = history(count)
    rounds_ = [*(without(one, *absent.get(place, ())) for place, one in enumerate(before)), last]
    answer, _ = found(rounds_)
    (scores, suspected, shares, usual, distances), said = written_out(rounds_)
    assert np.allclose(answer.scores, scores, rtol=1e-9, atol=1e-9)
    assert np.allclose(answer.suspicion, suspected, rtol=1e-7, atol=1e-9)
    assert np.allclose(answer.shares[:, :-2], shares, rtol=1e-7, atol=1e-7)
    assert np.allclose(answer.usual, usual, rtol=1e-7, atol=1e-7)
    assert np.allclose(answer.distances, distances)
    assert instead(rounds_) == said


def test_where_others_send_the_same_again_whoever_does_not_is_the_only_suspect():
    """The median client departs by nothing; distances are then over the mean."""
    rounds_ = history(2)
    first, last = rounds_
    clients = [
        one
        if k == rounds.FAULTY
        else replace(
            one,
            model=StoredModel(
                {NAME: last.previous.tensors[NAME].double() + torch.from_numpy(update(first, k))}, one.client
            ),
        )
        for k, one in enumerate(last.clients)
    ]
    answer, _ = found([first, replace(last, clients=tuple(clients))])
    assert answer.distances[rounds.FAULTY] == pytest.approx(CLIENTS)
    assert answer.suspicion.argmax(1).tolist() == [rounds.FAULTY] * len(answer.suspicion)
    assert (answer.suspicion.count_nonzero(1) == 1).all()


def test_who_sends_the_same_again_departs_by_nothing():
    rounds_ = history(2)
    last, first = rounds_[-1], rounds_[0]
    same = {NAME: last.previous.tensors[NAME].double() + torch.from_numpy(update(first, UNUSUAL))}
    clients = list(last.clients)
    clients[UNUSUAL] = replace(clients[UNUSUAL], model=StoredModel(same, "again"))
    rounds_ = [first, replace(last, clients=tuple(clients))]
    answer, batch = found(rounds_)
    assert answer.distances[UNUSUAL] == pytest.approx(0, abs=1e-6)
    assert answer.scores[:, UNUSUAL].abs().max() < 1e-6
    assert answer.suspicion[:, UNUSUAL].tolist() == [0.0] * len(answer.scores)
    expected = (batch.case.call.arguments[0] @ batch.case.new[NAME].T).argmax(1)
    assert [row[UNUSUAL] for row in instead(rounds_)] == expected.tolist()


CURVED = {
    "source": "layers",
    "layers": [
        {"type": "Linear", "in_features": 6, "out_features": 5},
        {"type": "Tanh"},
        {"type": "BatchNorm1d", "num_features": 5},
        {"type": "Linear", "in_features": 5, "out_features": 3},
    ],
}


def curved(count, *, seed=1, clients=4):
    """A network that is curved, with buffers, and rounds of it in which clients move at random."""
    network, generator = build_network(CURVED), torch.Generator().manual_seed(seed)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    def moved(state):
        return {
            name: t + 0.2 * torch.rand(t.shape, generator=generator) if t.is_floating_point() else t
            for name, t in state.items()
        }

    found = []
    for number in range(1, count + 1):
        weights = [float(k + number % 2 + 1) for k in range(clients)]
        one = round_from(state, [moved(state) for _ in range(clients)], weights)
        found.append(replace(one, number=number))
        state = dict(one.fused.tensors)
    return network, found


def parameters(network):
    return [name for name, _ in network.named_parameters()]


def test_usual_updates_and_departures_add_up_to_the_ledger():
    """A client that is split in two splits its score, on a network that is curved, with buffers."""
    network, rounds_ = curved(2)
    batch = asked(rounds_[-1], network)
    known = habits(batch.case, rounds_[:1])
    whole = ledger(batch.case)
    halves = ledger(split(batch.case, known))
    assert torch.allclose(halves.clients[:, 0::2] + halves.clients[:, 1::2], whole.clients, rtol=0.02, atol=1e-4)
    lines, total = halves.lines, halves.clients.sum(1)
    value = batch.case.target(network_logits(batch.case)).double()
    assert torch.allclose(lines.previous + total + lines.server + lines.unexplained + lines.residual, value)
    answer = departure(batch.case, known)
    assert torch.allclose(answer.shares.abs().sum(1) + answer.usual.abs().sum(1), torch.ones(1).double())


@pytest.mark.parametrize("absent", [{}, {0: (1,), 1: (1,), 2: (1,)}, {0: (0, 3), 2: (3,)}])
def test_a_distance_is_the_mean_over_tensors(absent):
    """Against loops on a network of many tensors; `absent` as above. One client changes a single tensor."""
    network, (*before, last) = curved(4, clients=5)
    last.clients[2].model.tensors["3.weight"].mul_(3)
    rounds_ = [*(without(one, *absent.get(place, ())) for place, one in enumerate(before)), last]
    batch = asked(last, network)
    answer = departure(batch.case, habits(batch.case, rounds_[:-1]))
    assert torch.allclose(answer.distances, torch.from_numpy(distances_by_loops(rounds_, parameters(network))))
    assert int(answer.distances.argmax()) == 2


def test_statistics_that_a_layer_stores_count_in_the_ledger_and_not_in_a_distance():
    """They go with the examples, whatever their labels."""
    network, (*before, last) = curved(3, clients=5)

    def answered():
        batch = asked(last, network)
        return departure(batch.case, habits(batch.case, before))

    usual = answered()
    for client in last.clients[:2]:
        client.model.tensors["2.running_mean"].mul_(3)
        client.model.tensors["2.running_var"].mul_(3)
    answer = answered()
    assert torch.equal(answer.distances, usual.distances)
    assert not torch.allclose(answer.scores[:, :2], usual.scores[:, :2], rtol=0.1)


def test_every_thread_keeps_the_tensor_that_it_read_last(monkeypatch):
    """Clients are read by several threads, each client's two parts one after the other."""
    network, (*before, last) = curved(2, clients=4)
    known = habits(asked(last, network).case, before)
    expected = [[part.clone() for part in habit.parts("0.weight")] for habit in known]
    read = []
    monkeypatch.setattr(module, "_update", lambda *one: read.append(one[1].client) or update_of(*one))
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        for k, pool in ((0, one), (1, other), (0, one), (1, other)):
            found = pool.submit(known[k].parts, "0.weight").result()
            assert all(map(torch.equal, found, expected[k]))
    assert sorted(read) == sorted(2 * [known[0].now[1].client, known[1].now[1].client])


def test_tensors_that_did_not_move_before_have_the_measure_of_newcomers():
    network, (*before, last) = curved(3, clients=5)
    for one in before:
        for client in one.clients:
            client.model.tensors["0.bias"].copy_(one.previous.tensors["0.bias"])
    batch = asked(last, network)
    answer = departure(batch.case, habits(batch.case, before))
    assert torch.isfinite(answer.distances).all()
    assert torch.allclose(
        answer.distances, torch.from_numpy(distances_by_loops([*before, last], parameters(network)))
    )


def network_logits(case):
    with torch.no_grad():
        return torch.func.functional_call(case.network, dict(case.new), case.call.arguments)


def test_weights_and_order_of_earlier_rounds_do_not_matter():
    rounds_ = history(4)
    changed = [
        replace(one, clients=tuple(replace(client, weight=1.0) for client in reversed(one.clients)))
        for one in reversed(rounds_[:-1])
    ]
    one, _ = found(rounds_)
    other, _ = found([*changed, rounds_[-1]])
    assert torch.allclose(one.scores, other.scores)
    assert torch.allclose(one.suspicion, other.suspicion)
    assert torch.allclose(one.distances, other.distances)


@pytest.mark.parametrize(("values", "sign"), [("delta", 1), ("negative-delta", -1)])
def test_earlier_updates_may_be_stored_as_such(values, sign):
    rounds_ = history(3)

    def as_update(one, k):
        state = {NAME: sign * torch.from_numpy(update(one, k))}
        return replace(one.clients[k], model=StoredModel(state, "update"))

    stored = [
        replace(one, previous=None, values=values, clients=tuple(as_update(one, k) for k in range(CLIENTS)))
        for one in rounds_[:-1]
    ]
    assert torch.allclose(found(rounds_)[0].scores, found([*stored, rounds_[-1]])[0].scores)


def test_only_the_last_rounds_of_a_client_count():
    rounds_ = history(5)
    assert torch.equal(found(rounds_, most=2)[0].scores, found(rounds_[2:])[0].scores)
    assert not torch.equal(found(rounds_, most=2)[0].scores, found(rounds_)[0].scores)


def test_a_client_without_earlier_rounds_departs_by_all_that_it_sent():
    rounds_ = history(3)
    answer, batch = found([*(without(one, rounds.FAULTY) for one in rounds_[:-1]), rounds_[-1]])
    whole = ledger(batch.case).clients[:, rounds.FAULTY]
    assert torch.allclose(answer.usual[:, rounds.FAULTY], torch.zeros_like(whole))
    assert torch.allclose(answer.scores[:, rounds.FAULTY], whole)


def test_a_newcomer_that_sends_as_much_as_others_is_not_suspect():
    """Its update has the length that the median client's has, for its weight."""
    rounds_ = history(3, faulty=None)
    last = rounds_[-1]
    moves = [torch.from_numpy(update(last, k)) for k in range(CLIENTS)]
    lengths = sorted(float(moves[k].norm()) / last.clients[k].weight ** 0.25 for k in range(1, CLIENTS))
    clients = list(last.clients)
    factor = lengths[1] * clients[0].weight ** 0.25 / float(moves[0].norm())
    state = {NAME: last.previous.tensors[NAME].double() + factor * moves[0]}
    clients[0] = replace(clients[0], model=StoredModel(state, "usual length"))
    answer, _ = found([*(without(one, 0) for one in rounds_[:-1]), replace(last, clients=tuple(clients))])
    assert answer.distances[0] == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize(
    ("rule", "before", "reason"),
    [("fedavg", 0, "EARLIER"), ("median", 2, "RULE"), ("fedavg", 2, "NON_FINITE")],
)
def test_refusals(rule, before, reason):
    rounds_ = history(3)
    if reason == "NON_FINITE":
        rounds_[0].clients[1].model.tensors[NAME][0, 0] = torch.nan
    batch = asked(rounds_[-1], rule=rule)
    with pytest.raises(NotComputableError) as caught:
        departure(batch.case, habits(batch.case, rounds_[:before]))
    assert caught.value.reason == reason
    assert reason != "NON_FINITE" or "client-1" in caught.value.message
