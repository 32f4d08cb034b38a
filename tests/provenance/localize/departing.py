"""Rounds in which one client departs from what it sent before, and its departure written out by loops."""

from dataclasses import replace

import numpy as np
import torch

from flforensics.fusion import rule_named
from flforensics.gradients import Call
from flforensics.provenance.case import Settings
from flforensics.provenance.localize.departure import departure, habits, replaced
from flforensics.provenance.localize.localizing import case_of, labelled
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
