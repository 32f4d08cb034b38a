"""The summary of many inputs against counts by hand."""

import pytest

from flforensics.provenance.summary import summary
from flforensics.results import ClientSummary, InputTrace, Prediction, Responsible, Subject, SummaryGroup
from tests.report import records

WEIGHTS = {"a": 0.5, "b": 0.3, "c": 0.2}


def one(
    true: int | None,
    said: int,
    shares: dict[str, float],
    *,
    named: str | None = None,
    weights: dict[str, float] | None = None,
) -> InputTrace:
    """An input: its true class, what the model says, the clients' shares, and who is named."""
    order = sorted(shares, key=lambda client: -shares[client])
    clients = tuple(
        records.score(client, shares[client], share=shares[client], rank=rank, weight=(weights or WEIGHTS)[client])
        for rank, client in enumerate(order, 1)
    )
    found = Responsible("client" if named else "none", named, 0.1, bool(named), "" if named else "because")
    answer: InputTrace = records.one_input(
        subject=Subject("x", 0, "", true),
        prediction=Prediction(said, str(said), 0.9),
        clients=clients,
        responsible=found,
    )
    return answer


INPUTS = (
    one(0, 0, {"a": 0.6, "b": 0.3, "c": -0.1}, named="a"),
    one(1, 1, {"a": 0.1, "b": 0.7, "c": 0.2}, named="b"),
    one(2, 2, {"a": 0.5, "b": -0.4, "c": 0.1}),
    one(0, 1, {"a": -0.3, "b": 0.1, "c": 0.6}, named="c"),
    one(2, 0, {"a": -0.2, "b": 0.0, "c": 0.8}, named="c"),
    one(None, 0, {"a": 1.0, "b": 0.0, "c": 0.0}, named="a"),
)


def test_right_and_wrong_inputs_apart() -> None:
    found = summary(INPUTS)
    assert found is not None
    assert (found.chance, found.largest, found.left_out) == (pytest.approx(1 / 3), "a", 1)
    right, wrong = found.groups
    assert right == SummaryGroup(
        True,
        3,
        (
            ClientSummary("a", 0.5, 2, 1, pytest.approx(0.4)),
            ClientSummary("b", 0.3, 1, 1, pytest.approx(0.2)),
            ClientSummary("c", 0.2, 0, 0, pytest.approx(0.2 / 3)),
        ),
    )
    assert wrong == SummaryGroup(
        False,
        2,
        (
            ClientSummary("a", 0.5, 0, 0, pytest.approx(-0.25)),
            ClientSummary("b", 0.3, 0, 0, pytest.approx(0.05)),
            ClientSummary("c", 0.2, 2, 2, pytest.approx(0.7)),
        ),
    )


def test_every_input_has_one_on_top_and_at_most_one_named() -> None:
    found = summary(INPUTS)
    assert found is not None
    for group in found.groups:
        assert sum(client.on_top for client in group.clients) == group.inputs
        assert sum(client.named for client in group.clients) <= group.inputs


def test_a_group_without_inputs_is_left_out() -> None:
    found = summary(INPUTS[:3])
    assert found is not None
    assert [group.right for group in found.groups] == [True]


@pytest.mark.parametrize("inputs", [(), INPUTS[:1], (INPUTS[0], INPUTS[5])])
def test_fewer_than_two_known_inputs_are_no_many(inputs: tuple[InputTrace, ...]) -> None:
    assert summary(inputs) is None


def test_nobody_is_the_largest_among_equals() -> None:
    equal = dict.fromkeys(WEIGHTS, 1 / 3)
    found = summary([one(0, 0, {"a": 0.5, "b": 0.2, "c": 0.1}, weights=equal) for _ in range(2)])
    assert found is not None
    assert found.largest is None
    assert [client.client for client in found.groups[0].clients] == ["a", "b", "c"]


def test_the_largest_stands_first() -> None:
    weights = {"a": 0.2, "b": 0.5, "c": 0.3}
    found = summary([one(0, 0, {"a": 0.5, "b": 0.2, "c": 0.1}, weights=weights) for _ in range(2)])
    assert found is not None
    assert found.largest == "b"
    assert [client.client for client in found.groups[0].clients] == ["b", "c", "a"]
