"""Which federations a scale runs, and what is asked of each."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.bench.accuracy.federations import Setting
from tests.bench.accuracy.models import MODELS
from tests.bench.accuracy.scenarios import Effort

ALPHAS = (0.1, 0.3, 0.7, 1.0)
_FAULTS = ("correct", "flip-one", "flip-all")


@dataclass(frozen=True)
class Cell:
    """One federation and its scenarios; it is one line of the results."""

    setting: Setting
    scenarios: tuple[str, ...]
    effort: Effort


def _default(seed: int) -> list[Cell]:
    """Every dataset, network and alpha, with 10 clients and with 10 of 100; fewer absences of ResNet-18."""
    cells = []
    for clients in (10, 100):
        for dataset, model in MODELS:
            large = model == "resnet18"
            for alpha in ALPHAS:
                absent = clients == 10 and (not large or alpha == 0.3)
                scenarios = _FAULTS if clients == 100 else (*_FAULTS, "noise", *(["absent"] if absent else []))
                exact = ("correct",) if large or clients == 100 else _FAULTS
                effort = Effort(8 if large else 16, 2 if large else 3, (1, 3, 5), exact)
                setting = Setting(
                    dataset, model, alpha, clients, 3, seed, MODELS[dataset, model].training.examples
                )
                cells.append(Cell(setting, scenarios, effort))
    return cells


def _full(seed: int) -> list[Cell]:
    """Everything of three seeds on all examples, for a machine with a GPU."""
    effort = Effort(64, 10, (1, 3, 5), _FAULTS)
    return [
        Cell(Setting(*names, alpha, clients, 10, one, 12000), (*_FAULTS, "noise", "absent"), effort)
        for one in (seed, seed + 1, seed + 2)
        for clients in (10, 100)
        for names in MODELS
        for alpha in ALPHAS
    ]


def _smoke(seed: int) -> list[Cell]:
    """Everything once, small: does it run?"""
    effort = Effort(2, 1, (1,), _FAULTS)
    return [
        Cell(
            Setting(*names, 1.0, clients, 2, seed, 600),
            (*_FAULTS, "noise", "absent")[: 5 if clients == 10 else 3],
            effort,
        )
        for names in (("mnist", "cnn"), ("trec", "gpt"))
        for clients in (10, 100)
    ]


SCALES: dict[str, Callable[[int], list[Cell]]] = {"default": _default, "full": _full, "smoke": _smoke}
