"""Threads beside the main one: what they make, in which order, and how many threads torch gives each."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from flforensics.provenance.hands import HANDS, Hands


def test_items_made_ahead_come_in_their_order_and_so_does_an_error() -> None:
    def items() -> Iterator[int]:
        yield from range(1, 4)
        raise ValueError("at the fourth")

    with Hands() as hands:
        found = hands.ahead(items())
        assert [next(found), next(found), next(found)] == [1, 2, 3]
        with pytest.raises(ValueError, match="at the fourth"):
            next(found)


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_every_line_is_in_one_portion(count: int) -> None:
    with Hands() as hands:
        portions = hands.share(lambda hand, some: (hand, list(range(some.start, some.stop))), slice(5, 5 + count))
    assert [hand for hand, _ in portions] == list(range(min(HANDS, count)))
    assert [line for _, lines in portions for line in lines] == list(range(5, 5 + count))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_each_item_is_worked_on_once_by_as_many_threads_as_were_asked_for(count: int) -> None:
    done, waiting = [], threading.Barrier(count)

    def work(item: int) -> int:
        if item < count:
            waiting.wait(timeout=60)
        done.append(item)
        return -item

    with Hands(count) as hands:
        assert hands.each(work, range(20)) == [-item for item in range(20)]
    assert sorted(done) == list(range(20))


def test_the_first_error_is_raised_and_what_was_not_begun_is_left() -> None:
    begun = []

    def work(item: int) -> None:
        begun.append(item)
        time.sleep(0.01)
        if item > 0:
            raise ValueError(f"at {item}")

    with pytest.raises(ValueError, match="at 1"), Hands() as hands:
        hands.each(work, range(500))
    assert len(begun) < 250


def test_hands_work_alone_and_nobody_else_does() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with Hands() as hands:
            assert hands.share(lambda _, __: torch.get_num_threads(), slice(0, HANDS)) == [1] * HANDS
            assert list(hands.ahead(iter([torch.get_num_threads()]))) == [3]
            assert list(hands.ahead(torch.get_num_threads() for _ in range(2))) == [3, 3]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
