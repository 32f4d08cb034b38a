"""Weighted and uniform means, in the three forms that servers compute them in.

Bounds: any order of summation, weights rounded or not, a final division or not (Higham, §3.1 and §4.2).
direct       Σ p_k x_k                      γ_{K+3} Σ|p_k x_k| + (2K+2)η + η Σ|x_k| + storage
difference   x_prev + Σ p_k (x_k − x_prev)  γ_{K+5} Σ p_k|x_k − x_prev| + (K+1)u(|x_prev| + |x_new|) + storage
running      m ← m + n_k (x_k − m)/N_k      its own recurrence, in the declared order (`running_mean`)
Each is widened by our own evaluation in float64 and by the digits that the declared weights leave open.
"""

from collections.abc import Iterator, Sequence

from flforensics.fusion.folding import (
    Fold,
    folds,
    mean_comparison,
    model_offset,
    scaled_updates,
    sum_error,
    update_offset,
)
from flforensics.fusion.rounding import Arithmetic, arithmetics, storage_error, unit_roundoff
from flforensics.fusion.rule import Coefficients, Comparison, Scene, Shares
from flforensics.fusion.running_mean import RunningMean
from flforensics.rounds import RoundTensor


class WeightedMean:
    """new = Σ p_k x_k with p_k the declared weights, normalised."""

    needs_weights = True
    needs_history = False

    def coefficients(self, declared: Sequence[float], *, uncertainty: Sequence[float]) -> Coefficients:
        """p_k = n_k / Σ n; where each n_k is known to ± δ_k, p_k is to ± (δ_k + p_k Σδ) / Σ n."""
        total, open_ = sum(declared), sum(uncertainty)
        values = tuple(weight / total for weight in declared)
        return Coefficients(
            values, tuple((own + p * open_) / total for own, p in zip(uncertainty, values, strict=True))
        )

    def survey(self, scene: Scene) -> object:
        """A mean needs to know nothing of the other tensors."""
        return None

    def compare(self, terms: RoundTensor, scene: Scene) -> Iterator[Comparison]:
        """Every form in every arithmetic; the difference form only where a previous global exists.

        The clients are read once for the first comparison, and once more for all the others together.
        """
        (models,) = folds(terms, scene.coefficients, [model_offset(terms)])
        first, *others = arithmetics(models.dtypes | {terms.fused.dtype})
        yield _direct(terms, models, first)
        offsets = [model_offset(terms)] if terms.previous is None else [model_offset(terms), update_offset(terms)]
        running = RunningMean(terms)
        _, *updates = folds(terms, scene.coefficients, offsets, watch=running.add)
        for arithmetic in (first, *others):
            if arithmetic is not first:
                yield _direct(terms, models, arithmetic)
            for fold in updates:
                yield _difference(terms, fold, arithmetic)
            yield running.comparison(terms, models, arithmetic)

    def shares(self, terms: RoundTensor, scene: Scene) -> Shares:
        """s_k = p_k Δ_k; the server adds nothing, and what is left of (new − previous) is unexplained."""
        return scaled_updates(terms, scene.coefficients.values)

    def factors(self, terms: RoundTensor, scene: Scene) -> Sequence[float] | None:
        """p_k."""
        return scene.coefficients.values


class UniformMean(WeightedMean):
    """new = (1/K) Σ x_k, whatever weights are declared."""

    needs_weights = False

    def coefficients(self, declared: Sequence[float], *, uncertainty: Sequence[float]) -> Coefficients:
        """p_k = 1/K."""
        count = len(declared)
        return Coefficients((1 / count,) * count, (0.0,) * count)


def _direct(terms: RoundTensor, models: Fold, arithmetic: Arithmetic) -> Comparison:
    """|new − Σ p_k x_k| against γ_{K+3} Σ|p_k x_k| + underflow + storage."""
    roundings = terms.count + 3
    bound = sum_error(terms, models, arithmetic, roundings=roundings)
    bound = bound + storage_error(terms.fused.dtype, arithmetic, terms.fused.double().abs())
    difference = terms.fused.double() - models.total
    return mean_comparison("direct", arithmetic, difference, bound, roundings=roundings)


def _difference(terms: RoundTensor, updates: Fold, arithmetic: Arithmetic) -> Comparison:
    """|new − x_prev − Σ p_k Δ_k| against γ_{K+5} Σ p_k|Δ_k| + (K+1)u(|x_prev| + |x_new|) + storage."""
    assert terms.previous is not None
    previous, fused = terms.previous.double(), terms.fused.double()
    roundings = terms.count + 5
    bound = (
        sum_error(terms, updates, arithmetic, roundings=roundings)
        + (terms.count + 1) * unit_roundoff(arithmetic.dtype) * (previous.abs() + fused.abs())
        + storage_error(terms.fused.dtype, arithmetic, fused.abs())
    )
    difference = fused - previous - updates.total
    return mean_comparison("difference", arithmetic, difference, bound, roundings=roundings)
