"""Which federations a scale runs, and what is asked of each."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.bench.accuracy.federations import Setting
from tests.bench.accuracy.models import MODELS
from tests.bench.accuracy.scenarios import Effort

ALPHAS = (0.1, 0.3, 0.7, 1.0)
EPOCHS = 2
"""Passes of a client over its examples in a round, as in TraceFL's paper."""

_ONE = ("correct", "flip-one", "flip-all")
_FAULTS = (*_ONE, "flip-two")
_FEW, _MANY, _LATE, _LARGE = 5, 20, 6, 3
"""Rounds of 10 clients; of 10 of 100, where a client took part twice in so many; with three honest ones before the
culprit's three; of 10 clients with a ResNet-18, which takes most time."""

_LATE_ALPHAS = {"agnews": (0.3,)}
_MOST_ALPHAS = (0.1, 0.3, 1.0)
"""Where a culprit leaves, rounds are trained twice and methods walk eleven of them: fewer alphas, for time."""


@dataclass(frozen=True)
class Cell:
    """One federation and its scenarios; it is one line of the results."""

    setting: Setting
    scenarios: tuple[str, ...]
    effort: Effort


def _default(seed: int) -> list[Cell]:
    """Every dataset, network and alpha: 10 clients, 10 of 100, and a culprit that leaves."""
    cells = []
    few, many = Effort(16, 3, (1, 3, 5), _ONE), Effort(16, 3, (), ("correct",))
    late = Effort(32, 1, (1, 3, 5), ())
    for names in MODELS:
        if names[1] == "resnet18":
            cells += _large(names, seed)
            continue
        for alpha in ALPHAS:
            cells.append(Cell(_setting(names, alpha, 10, _FEW, seed), (*_FAULTS, "noise"), few))
            cells.append(Cell(_setting(names, alpha, 100, _MANY, seed), _FAULTS, many))
            if alpha in _LATE_ALPHAS.get(names[0], _MOST_ALPHAS):
                cells.append(Cell(_setting(names, alpha, 10, _LATE, seed, marks=True), ("absent",), late))
    return cells


def _large(names: tuple[str, str], seed: int) -> list[Cell]:
    """What two cores do with a ResNet-18 in a few minutes: 10 clients at two alphas, 10 of 100 at one."""
    effort = Effort(8, 1, (), ("correct",))
    return [
        Cell(_setting(names, alpha, clients, rounds, seed), scenarios, effort)
        for alpha, clients, rounds, scenarios in (
            (0.3, 10, _LARGE, (*_ONE, "noise")),
            (1.0, 10, _LARGE, _ONE),
            (0.3, 100, _MANY, ("flip-one", "flip-all")),
        )
    ]


def _full(seed: int) -> list[Cell]:
    """Everything with three seeds, ten rounds and many inputs, for a machine with a GPU."""
    effort = Effort(64, 10, (1, 3, 5), _ONE)
    cells = []
    for one in (seed, seed + 1, seed + 2):
        for names in MODELS:
            for alpha in ALPHAS:
                cells.append(Cell(_setting(names, alpha, 10, 10, one), (*_FAULTS, "noise"), effort))
                cells.append(Cell(_setting(names, alpha, 100, _MANY, one), _FAULTS, effort))
                cells.append(Cell(_setting(names, alpha, 10, 10, one, marks=True), ("absent",), effort))
    return cells


def _smoke(seed: int) -> list[Cell]:
    """Everything once, small: does it run?"""
    effort = Effort(2, 1, (1,), ("correct",))
    names = ("mnist", "cnn")
    return [
        Cell(_setting(names, 1.0, 10, 2, seed, examples=600), (*_FAULTS, "noise"), effort),
        Cell(_setting(names, 1.0, 100, 2, seed, examples=2000), _FAULTS, effort),
        Cell(_setting(names, 1.0, 10, 2, seed, examples=600, marks=True), ("absent",), effort),
    ]


def _setting(
    names: tuple[str, str],
    alpha: float,
    clients: int,
    rounds: int,
    seed: int,
    *,
    examples: int | None = None,
    marks: bool = False,
) -> Setting:
    count = examples or MODELS[names].training.examples
    return Setting(*names, alpha, clients, rounds, seed, count, marks, EPOCHS)


SCALES: dict[str, Callable[[int], list[Cell]]] = {"default": _default, "full": _full, "smoke": _smoke}
