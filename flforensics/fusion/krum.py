"""Krum and Multi-Krum (Blanchard et al., NeurIPS 2017): the clients nearest to their nearest others.

Flower measures distances over all flattened tensors, integer buffers included, and its Message API as
‖x‖² + ‖y‖² − 2 x·y in float32, where cancellation can change who is selected. So every selection that scores
within their rounding allow is an honest one; where there are too many to try, only a global that fits says more.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from flforensics.errors import EvidenceError, UsageError
from flforensics.fusion.distances import Metric, Products, Survey, described, lowest, scores, survey
from flforensics.fusion.folding import scaled_updates
from flforensics.fusion.mean import UniformMean, WeightedMean
from flforensics.fusion.order import CoordinateMedian
from flforensics.fusion.rounding import Arithmetic, unit_roundoff
from flforensics.fusion.rule import Coefficients, Comparison, Scene, Shares
from flforensics.rounds import RoundTensor

_MOST = 16


@dataclass(frozen=True)
class Selection:
    """Some of the clients, by index into the scene; `note` says what makes it possible."""

    members: tuple[int, ...]
    note: str = ""


@dataclass(frozen=True)
class Choices:
    """The selections that an honest server may have made, the most likely first, and whether that is all.

    `finite` is False where a model holds a NaN or an infinity, so that nothing can be selected.
    """

    selections: tuple[Selection, ...]
    complete: bool
    finite: bool


@dataclass(frozen=True)
class Krum:
    """The one client whose K − f − 2 nearest others are nearest, unchanged; f is `malicious`."""

    needs_weights = False
    needs_history = False
    malicious: float = 0

    def __post_init__(self) -> None:
        require_count("malicious", self.malicious, least=0)

    def coefficients(self, declared: Sequence[float], *, uncertainty: Sequence[float]) -> Coefficients:
        """p_k = 1/K: declared weights do not matter for who is selected."""
        return UniformMean().coefficients(declared, uncertainty=uncertainty)

    def survey(self, scene: Scene) -> Choices:
        """Who may have been selected, those whose mean is nearest to the new global first.

        Raises EvidenceError (WEIGHTS) where the most likely have no weight, and those of reading tensors.
        """
        found = survey(scene)
        possible, complete = _possible(found, int(self.malicious), self._keep)
        weighable = [one for one in possible if _weight(scene, one) > 0]
        if possible[0] not in weighable:
            raise EvidenceError(
                "the declared weights of the selected clients sum to 0",
                reason="WEIGHTS",
                hint='correct the weights, or state `weights_kind = "equal"` if the server did not weigh',
            )
        return _ranked(weighable, found.total, scene, complete and weighable == possible)

    def compare(self, terms: RoundTensor, scene: Scene) -> Iterator[Comparison]:
        """The selected clients' tensor in every form and arithmetic, for each honest selection."""
        choices = cast(Choices, scene.facts)
        if not choices.finite:
            read_all(terms)
        for selection in choices.selections:
            part = replace(scene, coefficients=_among(scene.coefficients, selection.members))
            for one in self._of_selected(selected(terms, selection.members), part):
                yield replace(one, form=labelled(one.form, selection, scene))
        if not choices.complete:
            yield any_other()

    def shares(self, terms: RoundTensor, scene: Scene) -> Shares:
        """s_k = q_k Δ_k for the most likely selection, q_k the weights among the selected; 0 for the others."""
        return scaled_updates(terms, self.factors(terms, scene))

    def factors(self, terms: RoundTensor, scene: Scene) -> Sequence[float]:
        """q_k."""
        members = cast(Choices, scene.facts).selections[0].members
        weights = dict(zip(members, _among(scene.coefficients, members).values, strict=True))
        return [weights.get(k, 0.0) for k in range(terms.count)]

    @property
    def _keep(self) -> int:
        return 1

    def _of_selected(self, terms: RoundTensor, scene: Scene) -> Iterator[Comparison]:
        """The median of one client is that client, bit for bit."""
        return CoordinateMedian().compare(terms, scene)


@dataclass(frozen=True)
class MultiKrum(Krum):
    """The weighted mean of the `keep` clients that Krum ranks first."""

    needs_weights = True
    keep: float = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("keep", self.keep, least=1)

    def coefficients(self, declared: Sequence[float], *, uncertainty: Sequence[float]) -> Coefficients:
        """p_k as in a weighted mean of all; those of the selected are normalised again."""
        return WeightedMean().coefficients(declared, uncertainty=uncertainty)

    @property
    def _keep(self) -> int:
        return int(self.keep)

    def _of_selected(self, terms: RoundTensor, scene: Scene) -> Iterator[Comparison]:
        return WeightedMean().compare(terms, scene)


def require_count(key: str, value: float, *, least: int) -> None:
    """Raises UsageError unless the parameter is a whole number of at least `least`."""
    if value < least or value != math.floor(value):
        raise UsageError(
            f"archive.toml: [fusion] key {key!r} must be a whole number of at least {least}, not {value:g}",
            hint="state the value that the server used",
        )


def selected(terms: RoundTensor, members: Sequence[int]) -> RoundTensor:
    """The tensor as if only these clients had taken part."""
    return replace(terms, count=len(members), client=lambda index: terms.client(members[index]))


def read_all(terms: RoundTensor) -> None:
    """Reads every client, so that whoever watches the tensor sees whose numbers are not finite."""
    for index in range(terms.count):
        terms.client(index)


def labelled(form: str, selection: Selection, scene: Scene) -> str:
    """The form's name with who was selected."""
    note = f" ({selection.note})" if selection.note else ""
    return f"{form}, {described(selection.members, scene.positions)}{note}"


def any_other() -> Comparison:
    """A selection that was not tried may have given any global, so this fits and says nothing."""
    return Comparison("any other selection", Arithmetic(torch.float32), 0.0, 0, resolved=False, floor=1.0)


def _possible(found: Survey, malicious: int, keep: int) -> tuple[list[Selection], bool]:
    """Every selection by every metric, each under the first metric that gives it."""
    possible: dict[tuple[int, ...], Selection] = {}
    complete = True
    for metric in found.metrics:
        members, all_of_them = _chosen(metric, malicious, keep)
        complete = complete and all_of_them
        for one in members:
            possible.setdefault(one, Selection(one, metric.note))
    return list(possible.values()), complete


def _chosen(metric: Metric, malicious: int, keep: int) -> tuple[list[tuple[int, ...]], bool]:
    return lowest(*scores(metric, malicious), keep)


def _ranked(possible: Sequence[Selection], total: Products, scene: Scene, complete: bool) -> Choices:
    """Those whose mean may be the new global first, and only as many as are worth a comparison."""
    rows = torch.zeros(len(possible), total.count + 1, dtype=torch.float64)
    for row, selection in zip(rows, possible, strict=True):
        members = list(selection.members)
        row[members] = torch.tensor(_among(scene.coefficients, members).values, dtype=torch.float64)
    rows[:, -1] = -1
    distances, own = total.squared_norm(rows)
    near = distances - own <= _leeway(total, scene.coefficients) ** 2
    order = sorted(range(len(possible)), key=lambda i: (not near[i], _first(i, near), float(distances[i])))
    tried = tuple(possible[i] for i in order[:_MOST])
    untried = any(bool(near[i]) for i in order[_MOST:])
    return Choices(tried, complete and not untried and total.finite, total.finite)


def _first(index: int, near: Tensor) -> int:
    """Selections that do not fit keep their order: what the rule most likely selects, not what comes nearest."""
    return 0 if near[index] else index


def _leeway(total: Products, coefficients: Coefficients) -> Tensor:
    """No honest mean of clients is farther than this from the new global, in the Euclidean norm."""
    roundoff = max(total.coarsest, unit_roundoff(torch.float32))
    roundings = 4 * (total.count + 8) * roundoff + 4 * sum(coefficients.uncertainty) / _smallest(coefficients)
    return roundings * total.squares.sqrt().max()


def _smallest(coefficients: Coefficients) -> float:
    return min((value for value in coefficients.values if value > 0), default=1.0)


def _weight(scene: Scene, selection: Selection) -> float:
    return sum(scene.coefficients.values[k] for k in selection.members)


def _among(coefficients: Coefficients, members: Sequence[int]) -> Coefficients:
    """q_k = p_k / Σ p over the selected; known to ± (δ_k + q_k Σδ) / Σ p."""
    values = [coefficients.values[k] for k in members]
    return WeightedMean().coefficients(values, uncertainty=[coefficients.uncertainty[k] for k in members])
