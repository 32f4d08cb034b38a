"""Departures from usual updates: closed forms on a linear classifier, and laws."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from flforensics.errors import NotComputableError
from flforensics.fusion import rule_named
from flforensics.gradients import Call
from flforensics.models import build_network
from flforensics.provenance.case import Settings
from flforensics.provenance.ledger import ledger
from flforensics.provenance.localize.departure import departure, habits, replaced, split
from flforensics.provenance.localize.localizing import case_of, labelled
from flforensics.rounds import StoredModel
from tests.provenance.architectures import round_from
from tests.provenance.localize import rounds

NAME = "0.weight"
CLIENTS, UNUSUAL = 5, 0
"""Client 0's data are unusual: in every round it pushes class 2 where class 1 is true; the others push back."""


def history(count, *, faulty=rounds.FAULTY, seed=5, clients=CLIENTS):
    """`count` rounds one after the other, the last of which has a faulty client."""
    generator = torch.Generator().manual_seed(seed)
    state = {NAME: torch.eye(rounds.CLASSES, rounds.FEATURES)}
    found = []
    for number in range(1, count + 1):
        moves = [0.02 * torch.randn(rounds.CLASSES, rounds.FEATURES, generator=generator) for _ in range(clients)]
        for k, move in enumerate(moves):
            move[2, 1] += 1.6 if k == UNUSUAL else -0.8
            move[1, 1] -= 0.8 if k == UNUSUAL else -0.4
        if number == count and faulty is not None:
            moves[faulty][2, 1] += 5
        models = [{NAME: state[NAME] + move} for move in moves]
        one = round_from(state, models, rounds.WEIGHTS[:clients])
        found.append(replace(one, number=number))
        state = {NAME: one.fused.tensors[NAME].clone()}
    return found


def asked(round_, network=None, rule="fedavg"):
    values, classes = rounds.inputs()
    case = case_of(round_, rule_named(rule), network or rounds.linear(), None, settings=Settings(precise=True))
    return labelled(case, Call((values,)), classes)


def found(rounds_, **more):
    batch = asked(rounds_[-1])
    return departure(batch.case, habits(batch.case, rounds_[:-1], **more)), batch


def instead(rounds_):
    case = asked(rounds_[-1]).case
    return replaced(case, habits(case, rounds_[:-1])).tolist()


def update(round_, k):
    """What the k-th client of a round changed."""
    return (round_.clients[k].model.tensors[NAME].double() - round_.previous.tensors[NAME].double()).numpy()


def earlier(before, client):
    """A client's updates in these rounds."""
    return [update(one, k) for one in before for k, member in enumerate(one.clients) if member.client == client]


def written_out(rounds_):
    """Scores, shares, usual shares, distances and replaced predictions, by loops over clients and inputs."""
    *before, last = rounds_
    values, classes = rounds.inputs()
    previous, new = (one.tensors[NAME].double().numpy() for one in (last.previous, last.fused))
    weights = np.array([client.weight for client in last.clients]) / sum(c.weight for c in last.clients)
    sent = [earlier(before, client.client) for client in last.clients]
    usual = [np.mean(ones, axis=0) if ones else 0 * update(last, 0) for ones in sent]
    departed = [update(last, k) - usual[k] for k in range(len(weights))]
    ratios = np.ones(len(weights))
    for k, ones in enumerate(sent):
        if ones:
            size = np.mean([(one**2).sum() for one in ones])
            ratios[k] = (departed[k] ** 2).sum() / (size * (1 + 1 / len(ones)))
    known = sorted(ratio for ratio, ones in zip(ratios, sent, strict=True) if ones)
    middle = known[(len(known) - 1) // 2]
    kept = np.maximum(0, 1 - middle / ratios)
    scores, shares, others, said = [], [], [], []
    for x, true in zip(values.double().numpy(), classes, strict=True):
        wrong = max((c for c in range(rounds.CLASSES) if c != true), key=lambda c: x @ new[c])

        def moved(part, x=x, true=true, wrong=wrong):
            return (part[wrong] - part[true]) @ x

        far = np.array([p * moved(part) for p, part in zip(weights, departed, strict=True)])
        near = np.array([p * moved(part) for p, part in zip(weights, usual, strict=True)])
        rest = moved(new - previous) - far.sum() - near.sum()
        movement = abs(far).sum() + abs(near).sum() + abs(rest)
        scores.append(kept * far)
        shares.append(kept * far / movement)
        others.append(near / movement)
        said.append([int(((new - p * part) @ x).argmax()) for p, part in zip(weights, departed, strict=True)])
    return (
        np.array(scores),
        np.array(shares),
        np.array(others),
        np.sqrt(np.where([*map(len, sent)], ratios / middle, np.nan)),
        said,
    )


def without(round_, *clients):
    """The round as if these of its clients had not been stored."""
    return replace(round_, clients=tuple(one for k, one in enumerate(round_.clients) if k not in clients))


@pytest.mark.parametrize(
    "absent", [{}, {0: (1, 2)}, {0: (3,), 1: (3,), 2: (3,)}, {0: (1, 3), 1: (1, 4), 2: (1, 2)}]
)
@pytest.mark.parametrize("count", [2, 4, 6])
def test_departures_are_the_closed_form(count, absent):
    """`absent`: who is missing from which of the earlier rounds; of some clients nothing is known at all."""
    *before, last = history(count)
    rounds_ = [*(without(one, *absent.get(place, ())) for place, one in enumerate(before)), last]
    answer, _ = found(rounds_)
    scores, shares, usual, distances, said = written_out(rounds_)
    assert np.allclose(answer.scores, scores, rtol=1e-9, atol=1e-9)
    assert np.allclose(answer.shares[:, :-2], shares, rtol=1e-7, atol=1e-7)
    assert np.allclose(answer.usual, usual, rtol=1e-7, atol=1e-7)
    assert np.allclose(answer.distances, distances, equal_nan=True)
    assert instead(rounds_) == said


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
    assert abs(unusual.share) < 0.01
    assert next(one.figures.share for one in blamed.suspects if one.client == f"client-{UNUSUAL}") > 0.3


def test_an_honest_round_names_nobody():
    rounds_ = history(8, faulty=None)
    materials = rounds.usual(before=tuple(rounds_[:-1]))
    blamed = rounds.localized(rounds_[-1], "mispredictions", materials=materials).findings[0]
    (departed,) = rounds.localized(rounds_[-1], "departure", materials=materials).findings
    assert blamed.stands_out.client == f"client-{UNUSUAL}"
    assert departed.stands_out.client is None
    assert departed.stands_out.reason


def test_who_sends_the_same_again_departs_by_nothing():
    rounds_ = history(2)
    last, first = rounds_[-1], rounds_[0]
    same = {NAME: last.previous.tensors[NAME].double() + torch.from_numpy(update(first, UNUSUAL))}
    clients = list(last.clients)
    clients[UNUSUAL] = replace(clients[UNUSUAL], model=StoredModel(same, "again"))
    rounds_ = [first, replace(last, clients=tuple(clients))]
    answer, batch = found(rounds_)
    assert answer.distances[UNUSUAL] == pytest.approx(0, abs=1e-6)
    assert answer.scores[:, UNUSUAL].tolist() == [0.0] * len(answer.scores)
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


def test_usual_updates_and_departures_add_up_to_the_ledger():
    """A client that is split in two splits its score, on a network that is curved, with buffers."""
    network, generator = build_network(CURVED), torch.Generator().manual_seed(1)
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    def moved(state):
        return {
            name: t + 0.2 * torch.rand(t.shape, generator=generator) if t.is_floating_point() else t
            for name, t in state.items()
        }

    first = round_from(start, [moved(start) for _ in range(4)], [1.0, 2.0, 3.0, 4.0])
    after = dict(first.fused.tensors)
    last = round_from(after, [moved(after) for _ in range(4)], [4.0, 2.0, 3.0, 4.0])
    batch = asked(last, network)
    whole = ledger(batch.case)
    halves = ledger(split(batch.case, habits(batch.case, [first])))
    assert torch.allclose(halves.clients[:, 0::2] + halves.clients[:, 1::2], whole.clients, rtol=0.02, atol=1e-4)
    lines, total = halves.lines, halves.clients.sum(1)
    value = batch.case.target(network_logits(batch.case)).double()
    assert torch.allclose(lines.previous + total + lines.server + lines.unexplained + lines.residual, value)


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


def test_a_client_without_earlier_rounds_is_not_named():
    rounds_ = history(3)
    before = tuple(without(one, rounds.FAULTY) for one in rounds_[:-1])
    answer = rounds.localized(rounds_[-1], "departure", materials=rounds.usual(before=before))
    (finding,) = answer.findings
    assert finding.suspects[0].client == f"client-{rounds.FAULTY}"
    assert (finding.suspects[0].figures.rounds, finding.suspects[0].figures.distance) == (0, None)
    assert finding.stands_out.client is None
    assert "nothing earlier is known" in finding.stands_out.reason
    assert [f"nothing earlier is known of client-{rounds.FAULTY}" in one for one in answer.warnings] == [True]


def test_a_client_without_earlier_rounds_departs_by_all_that_it_sent():
    rounds_ = history(3)
    answer, batch = found([*(without(one, rounds.FAULTY) for one in rounds_[:-1]), rounds_[-1]])
    whole = ledger(batch.case).clients[:, rounds.FAULTY]
    assert torch.allclose(answer.usual[:, rounds.FAULTY], torch.zeros_like(whole))
    kept = answer.scores[:, rounds.FAULTY] / whole
    assert torch.allclose(kept, kept[0].expand_as(kept))
    assert 0 < kept[0] < 1


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
