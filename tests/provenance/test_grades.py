"""The table of grades, and its small statistics against enumeration."""

from fractions import Fraction
from itertools import combinations, product

import pytest

from flforensics.provenance.grades import GRADES, at_least, exceeds, graded, spearman
from flforensics.results import Rate

EVERY = list(product((False, True), repeat=4))
CONDITIONS = ("named", "agree", "decisive", "specific")


@pytest.mark.parametrize("met", EVERY)
def test_every_combination_has_the_grade_that_it_deserves(met: tuple[bool, ...]) -> None:
    named, agree, decisive, specific = met
    expected = "D"
    if named:
        expected = "C"
        if agree:
            expected = {2: "A", 1: "B", 0: "D"}[decisive + specific]
    row = graded(dict(zip(CONDITIONS, met, strict=True)))
    assert row.grade == expected


def test_every_row_can_be_reached_and_speaks_for_itself() -> None:
    reached = {graded(dict(zip(CONDITIONS, met, strict=True))) for met in EVERY}
    assert reached == set(GRADES)
    assert len({row.says for row in GRADES}) == len(GRADES)


def test_who_is_on_top_of_everything_is_told_so() -> None:
    row = graded({"named": True, "agree": True, "decisive": True, "specific": False})
    assert row.grade == "B"
    assert "on top for noise as well" in row.says


@pytest.mark.parametrize(("count", "tries", "clients"), [(2, 3, 5), (3, 3, 5), (0, 3, 4), (1, 2, 10), (1, 1, 1)])
def test_pointing_at_random(count: int, tries: int, clients: int) -> None:
    draws = list(product(range(clients), repeat=tries))
    hits = sum(draw.count(0) >= count for draw in draws)
    assert at_least(count, tries, 1 / clients) == pytest.approx(hits / len(draws))


@pytest.mark.parametrize("first", [Rate(4, 4), Rate(3, 4), Rate(1, 4), Rate(0, 4)])
@pytest.mark.parametrize("second", [Rate(5, 5), Rate(2, 5), Rate(0, 5)])
def test_fishers_test_deals_the_successes_out(first: Rate, second: Rate) -> None:
    """Every way in which all successes can fall on the tries, of which the first ones are the first side's."""
    deals = list(combinations(range(first.of + second.of), first.on_top + second.on_top))
    as_many = sum(sum(place < first.of for place in deal) >= first.on_top for deal in deals)
    assert exceeds(first, second) == pytest.approx(float(Fraction(as_many, len(deals))))


def test_on_top_everywhere_is_no_evidence() -> None:
    assert exceeds(Rate(32, 32), Rate(32, 32)) == 1
    assert exceeds(Rate(32, 32), Rate(29, 32)) > 0.05
    assert exceeds(Rate(32, 32), Rate(16, 32)) < 0.05


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((1.0, 2.0, 3.0, 4.0), (10.0, 20.0, 30.0, 40.0), 1),
        ((1.0, 2.0, 3.0, 4.0), (4.0, 3.0, 2.0, -1.0), -1),
        ((1.0, 2.0, 3.0, 4.0), (2.0, 1.0, 4.0, 3.0), 0.6),
        ((1.0, 1.0, 2.0), (1.0, 2.0, 3.0), 0.75**0.5),
        ((1.0, 1.0, 1.0), (1.0, 2.0, 3.0), None),
        ((1.0,), (2.0,), None),
    ],
)
def test_spearman(first: tuple[float, ...], second: tuple[float, ...], expected: float | None) -> None:
    """1 − 6 Σd² / (n³ − n) where there are no ties; with ties, by hand."""
    found = spearman(first, second)
    assert found == (None if expected is None else pytest.approx(expected))
