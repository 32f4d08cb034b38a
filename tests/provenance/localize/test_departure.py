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


def pushes(move):
    """The fault: class 2 where class 1 is true."""
    move[2, 1] += 5


def shies(move):
    """Far from usual, in what the inputs do not have, and a little against their mistake."""
    move[0, 2] += 5
    move[2, 1] -= 0.3


def history(count, *, faulty=rounds.FAULTY, fault=pushes, seed=5, clients=CLIENTS):
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
            fault(moves[faulty])
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


def update(round_, k, name=NAME):
    """What the k-th client of a round changed."""
    return (round_.clients[k].model.tensors[name].double() - round_.previous.tensors[name].double()).numpy()


def earlier(before, client, name=NAME):
    """A client's updates in these rounds."""
    return [
        update(one, k, name) for one in before for k, member in enumerate(one.clients) if member.client == client
    ]


def middle_of(values):
    """The median, the lower one of two, or the mean where that is 0."""
    found = sorted(values)[(len(values) - 1) // 2]
    return found or sum(values) / len(values)


def squares(values):
    return sum(float(one) ** 2 for one in np.ravel(values))


def distances_by_loops(rounds_, names=(NAME,)):
    """How far every client's update departs, tensor by tensor and client by client."""
    *before, last = rounds_
    total = sum(client.weight for client in last.clients)
    known = [k for k, client in enumerate(last.clients) if earlier(before, client.client, names[0])]
    sums, weights = [0.0] * len(last.clients), 0.0
    for name in names:
        own, sizes = {}, {}
        for k, client in enumerate(last.clients):
            sent = earlier(before, client.client, name)
            sizes[k] = squares(update(last, k, name))
            measure = sum(map(squares, sent)) / max(len(sent), 1) * (1 + 1 / max(len(sent), 1))
            if measure:
                own[k] = squares(update(last, k, name) - sum(sent) / len(sent)) / measure
        grown = {k: sizes[k] / (last.clients[k].weight / total) ** 0.5 for k in sizes}
        usual, large = (middle_of([one.get(k, 0.0) for k in known]) for one in (own, grown))
        length = middle_of([sizes[k] for k in known]) ** 0.5
        weights += length
        for k in range(len(last.clients)):
            ratio = own[k] / usual if k in own else grown[k] / large if large else 0.0
            sums[k] += length * ratio**0.5
    means = [one / weights for one in sums]
    return np.array([one / middle_of([means[k] for k in known]) for one in means])


def written_out(rounds_):
    """Scores, suspicion, shares, usual shares, distances and replaced predictions, by loops over inputs."""
    *before, last = rounds_
    values, classes = rounds.inputs()
    previous, new = (one.tensors[NAME].double().numpy() for one in (last.previous, last.fused))
    weights = np.array([client.weight for client in last.clients]) / sum(c.weight for c in last.clients)
    sent = [earlier(before, client.client) for client in last.clients]
    usual = [np.mean(ones, axis=0) if ones else 0 * update(last, 0) for ones in sent]
    departed = [update(last, k) - usual[k] for k in range(len(weights))]
    distances = distances_by_loops(rounds_)
    scores, suspected, shares, others, said = [], [], [], [], []
    for x, true in zip(values.double().numpy(), classes, strict=True):
        wrong = max((c for c in range(rounds.CLASSES) if c != true), key=lambda c: x @ new[c])

        def moved(part, x=x, true=true, wrong=wrong):
            return (part[wrong] - part[true]) @ x

        far = np.array([p * moved(part) for p, part in zip(weights, departed, strict=True)])
        near = np.array([p * moved(part) for p, part in zip(weights, usual, strict=True)])
        rest = moved(new - previous) - far.sum() - near.sum()
        movement = abs(far).sum() + abs(near).sum() + abs(rest)
        noise = 1.4826 * sorted(abs(far))[(len(far) - 1) // 2]
        scores.append(far)
        suspected.append(
            [max(0, d * d - 1) * (1 + max(0, e) / noise) for d, e in zip(distances, far, strict=True)]
        )
        shares.append(far / movement)
        others.append(near / movement)
        said.append([int(((new - p * part) @ x).argmax()) for p, part in zip(weights, departed, strict=True)])
    return tuple(map(np.array, (scores, suspected, shares, others, distances))), said


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
    (scores, suspected, shares, usual, distances), said = written_out(rounds_)
    assert np.allclose(answer.scores, scores, rtol=1e-9, atol=1e-9)
    assert np.allclose(answer.suspicion, suspected, rtol=1e-7, atol=1e-9)
    assert np.allclose(answer.shares[:, :-2], shares, rtol=1e-7, atol=1e-7)
    assert np.allclose(answer.usual, usual, rtol=1e-7, atol=1e-7)
    assert np.allclose(answer.distances, distances)
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


def floating(network):
    return [name for name, tensor in network.state_dict().items() if tensor.is_floating_point()]


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
    assert torch.allclose(answer.distances, torch.from_numpy(distances_by_loops(rounds_, floating(network))))
    assert int(answer.distances.argmax()) == 2


def test_tensors_that_did_not_move_before_have_the_measure_of_newcomers():
    network, (*before, last) = curved(3, clients=5)
    for one in before:
        for client in one.clients:
            client.model.tensors["0.bias"].copy_(one.previous.tensors["0.bias"])
    batch = asked(last, network)
    answer = departure(batch.case, habits(batch.case, before))
    assert torch.isfinite(answer.distances).all()
    assert torch.allclose(
        answer.distances, torch.from_numpy(distances_by_loops([*before, last], floating(network)))
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
