"""Laws of the suspicion: how far updates depart, times how much that may have pushed."""

import torch

from flforensics.provenance.localize.departure import suspicion


def effects(inputs=7, clients=6):
    return torch.randn(inputs, clients, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


FAR = torch.tensor([0.7, 1.0, 1.0, 1.2, 3.0, 2.5], dtype=torch.float64)


def test_suspicion_has_no_unit_and_no_order_of_clients():
    values, order = effects(), [3, 1, 5, 0, 4, 2]
    found = suspicion(values, FAR)
    assert torch.allclose(suspicion(5 * values, FAR), found)
    assert torch.allclose(suspicion(values[:, order], FAR[order]), found[:, order])


def test_suspicion_needs_a_distance_beyond_the_usual_and_grows_with_the_push():
    values = effects()
    found = suspicion(values, FAR)
    assert (found[:, FAR <= 1] == 0).all()
    assert (found[:, FAR > 1] > 0).all(), "also of departures that were measured to push against the mistake"
    pushed = values.clone()
    pushed[:, 4] = values.abs().amax(1) + 1
    assert (suspicion(pushed, FAR)[:, 4] > found[:, 4]).all()
    further = suspicion(values, torch.where(FAR == 3, 4, FAR))
    assert torch.allclose(further[:, 4], found[:, 4] * 15 / 8)


def test_of_two_that_depart_far_the_one_that_pushed_the_input_is_most_suspect():
    values = 0.1 * effects()
    values[:3, 4], values[3:, 5] = 4.0, 4.0
    assert suspicion(values, FAR).argmax(1).tolist() == [4] * 3 + [5] * 4


def test_where_most_departures_did_nothing_the_one_that_pushed_is_most_suspect():
    values = torch.zeros(2, 6, dtype=torch.float64)
    values[0, 5] = 1
    found = suspicion(values, FAR)
    assert torch.isfinite(found).all()
    assert found[0].argmax() == 5
    assert torch.allclose(found[1], (FAR**2 - 1).clamp(min=0))
