"""Geometric medians: a weighted mean whose weights fall with the distance to the result (Weiszfeld's algorithm).

Each step takes w_k ∝ a_k / max(ε, ‖m − x_k‖), and stops where the objective Σ a_k ‖m − x_k‖ hardly changes. Steps
are followed in the space of the weights, from inner products alone; intervals around the distances bound how far
a server's own weights may be off (its m, the norms, the division), and with them the value at every coordinate.
Where its objective may fall on either side of the stopping rule, every step that it may have stopped at is honest.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from flforensics.fusion.distances import Products, long_sum, no_products, products
from flforensics.fusion.folding import scaled_updates
from flforensics.fusion.krum import require_count
from flforensics.fusion.mean import WeightedMean
from flforensics.fusion.parameters import require_not_negative
from flforensics.fusion.rounding import Arithmetic, arithmetics, gamma
from flforensics.fusion.rule import Coefficients, Comparison, Scene, Shares
from flforensics.fusion.stacked import Stack, comparison, stacked
from flforensics.rounds import RoundTensor

_RESOLUTION = 0.1


@dataclass(frozen=True)
class Step:
    """The weights of one step, Σ w_k = 1, and how far a server's may be from them."""

    weights: Tensor
    error: Tensor


@dataclass(frozen=True)
class GeometricMedian:
    """OpenFL's: every tensor on its own, and each step's weights are divided again by the next distances."""

    needs_weights = True
    needs_history = False
    iterations: float = 4
    epsilon: float = 1e-5
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        require_count("iterations", self.iterations, least=0)
        require_not_negative(epsilon=self.epsilon, tolerance=self.tolerance)

    def coefficients(self, declared: Sequence[float], *, uncertainty: Sequence[float]) -> Coefficients:
        """p_k as in a weighted mean: the weights of the objective."""
        return WeightedMean().coefficients(declared, uncertainty=uncertainty)

    def survey(self, scene: Scene) -> Mapping[str, Products]:
        """The inner products that each tensor's distances are taken from."""
        return {name: products(stacked(scene.read(name))) for name in scene.names}

    def compare(self, terms: RoundTensor, scene: Scene) -> Iterator[Comparison]:
        """Every form in every arithmetic, each at the step that fits this tensor best."""
        stack, found = stacked(terms), cast(Mapping[str, Products], scene.facts)[terms.name]
        for arithmetic in dict.fromkeys((Arithmetic(torch.float64), *arithmetics(stack.dtypes))):
            for form in stack.forms:
                descent = _Descent(found, arithmetic, form, self.epsilon)
                tried = [_compared(stack, step, descent) for step in self.steps(descent, scene.coefficients)]
                yield min(tried, key=lambda one: (one.outside, one.worst_ratio))

    def shares(self, terms: RoundTensor, scene: Scene) -> Shares:
        """s_k = w_k Δ_k with the weights of the step that the new global is nearest to."""
        return scaled_updates(terms, self.factors(terms, scene))

    def factors(self, terms: RoundTensor, scene: Scene) -> Sequence[float]:
        """w_k."""
        found = cast(Mapping[str, Products], scene.facts)[terms.name]
        descent = _Descent(found, Arithmetic(torch.float32), "direct", self.epsilon)
        steps = self.steps(descent, scene.coefficients)
        rows = torch.stack([torch.cat([step.weights, -torch.ones(1, dtype=torch.float64)]) for step in steps])
        return steps[int(found.squared_norm(rows)[0].argmin())].weights.tolist()

    def steps(self, descent: "_Descent", coefficients: Coefficients) -> list[Step]:
        """Every step that a server may have stopped at, the last one last."""
        step = start = descent.start(coefficients)
        honest: list[Step] = []
        objective = descent.objective(start, start)
        for _ in range(int(self.iterations)):
            factors = step if self._compounding else start
            step = descent.following(step, factors)
            before, objective = objective, descent.objective(step, step if self._compounding else start)
            may_stop, may_go_on = _stopping(before, objective, self.tolerance)
            if may_stop:
                honest.append(step)
            if not may_go_on:
                break
        return honest if honest and honest[-1] is step else [*honest, step]

    @property
    def _compounding(self) -> bool:
        return True


@dataclass(frozen=True)
class RobustAggregation(GeometricMedian):
    """RFA (Pillutla et al., IEEE TSP 2022): the whole model at once; the weights of the objective stay fixed."""

    def survey(self, scene: Scene) -> Mapping[str, Products]:
        """The inner products over all floating tensors, for every tensor alike."""
        stacks = ((name, stacked(scene.read(name))) for name in scene.names)
        parts = [products(stack) for _, stack in stacks if stack.clients[0].is_floating_point()]
        return dict.fromkeys(scene.names, sum(parts, no_products(len(scene.positions))))

    @property
    def _compounding(self) -> bool:
        return False


@dataclass(frozen=True)
class _Distances:
    """‖m − x_k‖ for every client, and how far a server's may be off."""

    value: Tensor
    error: Tensor


@dataclass(frozen=True)
class _Descent:
    """Weiszfeld's steps over one set of coordinates, for servers of one arithmetic and form."""

    found: Products
    arithmetic: Arithmetic
    form: str
    epsilon: float

    def start(self, coefficients: Coefficients) -> Step:
        """The weights of the objective, which are those of the first mean."""
        weights = torch.tensor(coefficients.values, dtype=torch.float64)
        given = torch.tensor(coefficients.uncertainty, dtype=torch.float64)
        return Step(weights, given + self._growth(4) * weights)

    def distances(self, step: Step) -> _Distances:
        """‖m − x_k‖ for m = Σ w_k x_k.

        A server's m is off by at most Σ δ_k ‖x_k − m‖ for its weights and by its roundings of Σ w_k x_k; its
        norms, by the growth of a long sum; clients that were rounded, when read or when stored, by that.
        """
        count = self.found.count
        rows = torch.cat([torch.eye(count, dtype=torch.float64) - step.weights, torch.zeros(count, 1)], 1)
        square, own = self.found.squared_norm(rows)
        value = square.sqrt()
        evaluated = torch.maximum((square + own).sqrt() - value, value - (square - own).clamp(min=0).sqrt())
        sizes = self._rounding()
        rounding = sizes + ((step.weights + step.error) * sizes).sum()
        error = evaluated + (step.error * (value + evaluated)).sum() + rounding
        return _Distances(value, error + self._growth(long_sum(self.found.size) + 4) * (value + error))

    def following(self, step: Step, factors: Step) -> Step:
        """w_k ∝ a_k / max(ε, ‖m − x_k‖), the interval of each quotient and of its part in the sum."""
        distance = self.distances(step)
        divisor = distance.value.clamp(min=self.epsilon)
        growth = self._growth(self.found.count + 6)
        give = distance.error + growth * divisor
        low = (factors.weights - factors.error).clamp(min=0) / (divisor + give)
        high = (factors.weights + factors.error) / (divisor - give).clamp(min=0)
        value = factors.weights / divisor
        weights = value / value.sum()
        least = low / (low + high.sum() - high)
        most = high / (high + low.sum() - low)
        error = torch.maximum(most - weights, weights - least).nan_to_num(nan=1.0) + growth * weights
        return Step(weights, error.clamp(max=1.0))

    def objective(self, step: Step, factors: Step) -> tuple[float, float]:
        """Σ a_k ‖m − x_k‖, and how far a server's may be off."""
        distance = self.distances(step)
        value = float((factors.weights * distance.value).sum())
        error = (factors.weights + factors.error) * distance.error + factors.error * distance.value
        return value, float(error.sum()) + self._growth(self.found.count + 4) * value

    def leeway(self, step: Step) -> float:
        """Σ δ_k ‖x_k − m‖, which bounds how far the step's mean is open, relative to the models' own size."""
        size = float((step.weights * self.found.lengths).sum())
        return float((step.error * self.distances(step).value).sum()) / size if size else 0.0

    def resolves(self, step: Step) -> bool:
        """Whether the step's weights are known well enough to tell it from any other mean of these clients."""
        distance = self.distances(step)
        apart = float((step.weights * distance.value).sum())
        if apart <= float((step.weights * distance.error).sum()):
            return True
        return float((step.error * distance.value).sum()) < _RESOLUTION * apart

    def _rounding(self) -> Tensor:
        """How far, in norm, reading one client and adding it up as part of a mean may be off, [K]."""
        models, values = self.found.lengths, self.found.lengths if self.form == "direct" else self.found.movements
        stored = self.found.coarsest if self.arithmetic.clients_rounded else 0.0
        return self._growth(2 * len(models) + 6) * values + (self._growth(2) + stored) * models

    def _growth(self, roundings: int) -> float:
        return gamma(roundings, self.arithmetic.dtype)


def _stopping(before: tuple[float, float], after: tuple[float, float], tolerance: float) -> tuple[bool, bool]:
    """Whether |before − after| may be, and may not be, below tolerance · after."""
    change, give = abs(before[0] - after[0]), before[1] + after[1] * (1 + tolerance)
    threshold = tolerance * after[0]
    return change - give < threshold, change + give >= threshold


def _compared(stack: Stack, step: Step, descent: _Descent) -> Comparison:
    """|new − Σ w_k v_k| against the bound of a weighted mean and Σ δ_k |v_k − value|, Σ w_k being 1."""
    form, arithmetic, roundings = descent.form, descent.arithmetic, len(stack.clients) + 5
    weights, error = step.weights[:, None], step.error[:, None]

    def judged() -> Iterator[tuple[Tensor, Tensor]]:
        for block in stack.blocks():
            view = block.view(form)
            value = (weights * view.values).sum(0)
            bound = view.bound((weights * view.values.abs()).sum(0), roundings, arithmetic)
            yield view.target - value, bound + (error * (view.values - value).abs()).sum(0)

    leeway, resolved = descent.leeway(step), descent.resolves(step)
    return comparison(form, arithmetic, judged(), roundings=roundings, leeway=leeway, resolved=resolved)
