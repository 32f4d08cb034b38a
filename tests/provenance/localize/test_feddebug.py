"""FedDebug's differential testing against the intersections of sets, written out."""

from dataclasses import replace
from itertools import combinations, product

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from flforensics.errors import NotComputableError
from flforensics.gradients import Call
from flforensics.models import build_network
from flforensics.provenance.localize.chance import chance_of
from flforensics.provenance.localize.feddebug import feddebug
from flforensics.rounds import Round
from tests.provenance.architectures import ARCHITECTURES, make_round
from tests.provenance.localize import rounds

WEIGHTS = (400.0, 250.0, 90.0, 120.0)


def active_sets(network: nn.Module, state: dict[str, Tensor], x: Tensor, threshold: float) -> set[tuple[str, int]]:
    """The neurons of one client that are active on one input, by layer and place."""
    seen: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _m, _x, output, name=name: seen.__setitem__(name, output.clone()))
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    functional_call(network, state, (x[None],))
    for handle in handles:
        handle.remove()
    return {
        (name, place)
        for name, output in seen.items()
        for place, value in enumerate(torch.relu(output).flatten().tolist())
        if value > threshold
    }


def slow(network: nn.Module, round_: Round, inputs: Tensor, threshold: float) -> list[list[int]]:
    """For every input and client, the neurons that all others have active in common."""
    states = [dict(client.model.tensors) for client in round_.clients if client.model]
    table = []
    for x in inputs:
        sets = [active_sets(network, state, x, threshold) for state in states]
        everybody = range(len(sets))
        subsets = combinations(everybody, len(sets) - 1)
        common = {(set(everybody) - set(subset)).pop(): subset for subset in subsets}
        table.append([len(set.intersection(*(sets[k] for k in common[left_out]))) for left_out in everybody])
    return table


@pytest.mark.parametrize(("name", "threshold"), [("cnn", 0.003), ("batch norm", 0.4), ("one logit", 0.003)])
def test_the_accused_is_whose_removal_leaves_most_neurons_in_common(name, threshold):
    architecture = ARCHITECTURES[name]
    network, call = architecture.network(), architecture.call(5)
    round_ = make_round(network, weights=WEIGHTS)
    found = feddebug(rounds.case(round_, network, call, precise=False), threshold=threshold)
    network = architecture.network().eval()
    expected = torch.tensor(slow(network, round_, call.arguments[0], threshold))
    shared = expected - found.counts
    assert (shared == shared[:, :1]).all(), "the counts are those intersections less what everybody shares"
    for row, accused in zip(expected.tolist(), found.accused.tolist(), strict=True):
        best = [k for k, common in enumerate(row) if common == max(row)]
        assert accused == (best[0] if len(best) == 1 else -1)
    assert int(found.votes.sum()) == int((found.accused >= 0).sum())


def test_a_faulty_network_gets_all_votes():
    network = ARCHITECTURES["cnn"].network()

    def fault(clients, _previous):
        clients[2] = {name: -tensor for name, tensor in clients[2].items()}

    round_ = make_round(network, weights=WEIGHTS, change=fault)
    found = feddebug(rounds.case(round_, network, ARCHITECTURES["cnn"].call(10)))
    assert found.votes.tolist() == [0, 0, 10, 0]


def test_updates_give_the_same_as_models():
    network = ARCHITECTURES["cnn"].network()
    round_ = make_round(network, weights=WEIGHTS)
    assert round_.previous is not None
    clients = tuple(
        replace(
            client,
            model=replace(
                client.model,
                tensors={name: round_.previous.tensors[name] - t for name, t in client.model.tensors.items()},
            ),
        )
        for client in round_.clients
    )
    call = ARCHITECTURES["cnn"].call(10)
    full = feddebug(rounds.case(round_, network, call))
    updates = replace(round_, clients=clients, values="negative-delta")
    assert torch.equal(feddebug(rounds.case(updates, network, call)).counts, full.counts)
    with pytest.raises(NotComputableError, match="holds updates only"):
        feddebug(rounds.case(replace(updates, previous=None), network, call))


def test_a_client_without_finite_numbers_is_accused():
    round_ = rounds.faulty_round(faulty=None)
    broken = round_.clients[1].model.tensors["0.weight"]
    broken[:] = torch.nan
    assert feddebug(rounds.case(round_, rounds.linear(), rounds.usual().probes)).votes.tolist()[1] > 0


def test_a_network_without_such_layers():
    network = build_network({"source": "layers", "layers": [{"type": "BatchNorm1d", "num_features": 3}]})
    round_ = make_round(network)
    with pytest.raises(NotComputableError, match="no Linear or Conv2d"):
        feddebug(rounds.case(round_, network, Call((torch.ones(2, 3),))))


@pytest.mark.parametrize(("voting", "clients", "votes"), [(4, 3, 3), (5, 2, 4), (3, 4, 2), (4, 3, 0)])
def test_chance_is_counted_out(voting, clients, votes):
    every = list(product(range(clients), repeat=voting))
    tail = sum(row.count(0) >= votes for row in every) / len(every)
    anybody = sum(max(row.count(k) for k in range(clients)) >= votes for row in every) / len(every)
    assert chance_of(votes, voting=voting, clients=clients) == pytest.approx(min(1, clients * tail))
    assert chance_of(votes, voting=voting, clients=clients) >= anybody - 1e-12


def test_chance_of_many_votes_does_not_overflow():
    assert 0 <= chance_of(900, voting=1000, clients=50) < 1e-100


def test_equal_clients_accuse_nobody():
    round_ = rounds.faulty_round(faulty=None)
    same = replace(round_, clients=tuple(replace(one, model=round_.clients[0].model) for one in round_.clients))
    (found,) = rounds.localized(same, "feddebug").findings
    assert (found.voting, found.stands_out.client) == (0, None)
    assert found.stands_out.reason == "no random input tells one client from all others"
    assert [one.figures.votes for one in found.suspects] == [0] * 5


def test_of_two_clients_nobody_is_the_odd_one():
    (found,) = rounds.localized(rounds.faulty_round(clients=2, faulty=1), "feddebug").findings
    assert found.stands_out.reason == "of two clients, either is the odd one out"


def test_who_is_named():
    probes = Call((torch.eye(rounds.FEATURES)[1].expand(10, -1) + 0.0,))
    (found,) = rounds.localized(rounds.faulty_round(), "feddebug", materials=rounds.usual(probes=probes)).findings
    best = found.suspects[0]
    assert (best.client, best.figures.votes, found.stands_out.client) == ("client-3", 10, "client-3")
    assert found.stands_out.lead == 10
    assert found.stands_out.chance == chance_of(10, voting=10, clients=5)
    (silent,) = rounds.localized(
        rounds.faulty_round(), "feddebug", materials=rounds.usual(probes=probes), replays=False
    ).findings
    assert (silent.stands_out.client, silent.stands_out.reason) == (None, "this round does not replay")


def test_few_votes_name_nobody():
    probes = Call((torch.eye(rounds.FEATURES)[1].expand(2, -1) + 0.0,))
    (found,) = rounds.localized(rounds.faulty_round(), "feddebug", materials=rounds.usual(probes=probes)).findings
    assert found.suspects[0].figures.votes == 2
    assert found.stands_out.client is None
    assert found.stands_out.reason == "clients that differ in nothing give such votes too"
