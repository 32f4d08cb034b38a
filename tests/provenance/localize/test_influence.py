"""The influence test against its formula in numpy, one input and one client at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from flforensics.errors import NotComputableError
from flforensics.gradients import Call
from flforensics.provenance.localize.influence import Influences, influence
from flforensics.provenance.localize.localizing import labelled
from tests.provenance.architectures import ARCHITECTURES, make_round
from tests.provenance.localize import rounds


def slow(network, round_, x, label):
    """1/K <grad log p, update / |update|> over the parameters, for one input and every client."""
    parameters = [name for name, _ in network.named_parameters()]
    previous = {
        name: tensor.double() for name, tensor in round_.previous.tensors.items() if tensor.is_floating_point()
    }
    leaves = {name: previous[name].clone().requires_grad_() for name in parameters}
    loss = nn.functional.cross_entropy(functional_call(network, {**previous, **leaves}, (x[None],)), label[None])
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    gradient = np.concatenate([one.numpy().ravel() for one in gradients])
    scores = []
    for client in round_.clients:
        parts = [(client.model.tensors[name].double() - previous[name]).numpy().ravel() for name in parameters]
        update = np.concatenate(parts)
        scores.append(-gradient @ update / np.linalg.norm(update) / len(round_.clients))
    return scores


@pytest.mark.parametrize("name", ["cnn", "batch norm"])
def test_both_axes_are_the_formula(name):
    architecture = ARCHITECTURES[name]
    network, call = architecture.network(), architecture.call(3)
    round_ = make_round(network)
    batch = labelled(rounds.case(round_, network), call, [-1] * 3)
    noise = Call((torch.rand(2, 1, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),))
    found = influence(batch.mispredicted(), noise)
    network, labels = architecture.network().double().eval(), batch.case.target.classes
    expected = [
        slow(network, round_, x.double(), label) for x, label in zip(call.arguments[0], labels, strict=True)
    ]
    assert torch.allclose(found.target, torch.tensor(expected), rtol=1e-9, atol=1e-12)
    others = [[slow(network, round_, z, label) for label in labels] for z in noise.arguments[0]]
    assert torch.allclose(found.noise, torch.tensor(np.mean(others, axis=1)), rtol=1e-9, atol=1e-12)


def test_chunks_change_nothing():
    architecture = ARCHITECTURES["cnn"]
    network, call = architecture.network(), architecture.call(6)
    round_ = make_round(network)
    noise = Call((call.arguments[0][:3].double(),))
    whole, parts = (
        influence(labelled(rounds.case(round_, network, memory=memory), call, [-1] * 6).case, noise)
        for memory in (1 << 30, 1)
    )
    assert torch.allclose(whole.target, parts.target, rtol=1e-12)
    assert torch.allclose(whole.noise, parts.noise, rtol=1e-12)


def test_a_client_that_changed_nothing_has_no_influence():
    network = ARCHITECTURES["cnn"].network()
    round_ = make_round(network, change=lambda clients, previous: clients.__setitem__(1, dict(previous)))
    batch = labelled(rounds.case(round_, network), ARCHITECTURES["cnn"].call(2), [-1, -1])
    found = influence(batch.case, batch.case.call)
    assert (found.target[:, 1] == 0).all()
    assert torch.isfinite(found.target).all()


def test_flags_are_the_published_comparison():
    generator = torch.Generator().manual_seed(6)
    target = torch.randn(4, 7, generator=generator).double()
    noise = torch.randn(5, 7, generator=generator).double()
    s = target.mean(0).tolist()
    expected = []
    for k in range(7):
        count = 0
        for row in noise.tolist():
            suspects = [j for j in range(7) if s[j] > 0]
            ratio = sum(row[j] for j in suspects) / sum(s[j] for j in suspects)
            count += s[k] > 0 and row[k] / s[k] <= ratio
        expected.append(count)
    found = Influences(target, noise)
    assert found.flags.tolist() == expected
    sure = [k for k in found.order if expected[k] == 5]
    assert found.order[: len(sure)] == sorted(sure, key=lambda k: -s[k])
    rest = found.order[len(sure) :]
    assert rest == sorted(rest, key=lambda k: -s[k])


def test_nobody_is_flagged_where_nobody_raises_the_class():
    found = Influences(-torch.ones(2, 3).double(), torch.ones(5, 3).double())
    assert found.flags.tolist() == [0, 0, 0]


def test_the_faulty_client_is_named():
    (found,) = rounds.localized(rounds.faulty_round(), "influence").findings
    assert found.stands_out.client == f"client-{rounds.FAULTY}"
    assert found.inputs == 4
    assert found.suspects[0].figures.flags == 5
    targets = [one.figures.target for one in found.suspects]
    assert max(targets) - min(targets) == pytest.approx(1)


def test_who_raises_the_class_on_noise_too_is_not_named():
    everywhere = Call((torch.eye(rounds.FEATURES)[1].expand(5, -1) * 3.0,))
    round_ = rounds.faulty_round()
    # another client that raises class 2 on the inputs by less, and does not on this noise
    round_.clients[0].model.tensors["0.weight"][2, 3:] += 1.0
    values, classes = rounds.inputs()
    values[:, 3:] += 0.3
    materials = rounds.usual(noise=everywhere, calls=(Call((values,)),), true=(tuple(classes),))
    (found,) = rounds.localized(round_, "influence", materials=materials).findings
    assert found.stands_out.client is None
    assert found.stands_out.reason == "the update with the most influence raises these classes on noise as well"


def test_no_previous_global_no_answer():
    with pytest.raises(NotComputableError, match="no previous global"):
        rounds.localized(replace(rounds.faulty_round(), previous=None), "influence")
