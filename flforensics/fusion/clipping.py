"""A weighted mean of clients whose updates are first cut to a length: x + Σ p_k min(1, C/‖Δ_k‖) Δ_k.

Flower's server-side fixed clipping (both APIs) around FedAvg; McMahan et al., *Learning Differentially Private
Recurrent Language Models*, ICLR 2018 (FlatClip). The length is taken over all tensors of the client, integer
buffers included. Flower scales arrays in place, and numpy makes the difference of two 0-d arrays a scalar that
cannot be: a tensor without dimensions counts in the length and is not scaled. Noise that the server adds on top
cannot be reproduced and stays unexplained.

The mean's bound is widened by three roundings of each clipped update, by the one that adds it to the previous
global, and by what the length leaves open: |c'_k − c_k| |Δ_k| over the lengths that an honest server can find.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flforensics.fusion.computed import Computed
from flforensics.fusion.folding import comparison, folds, held, mean_of, rounded_clients, scaled_updates, update
from flforensics.fusion.history import require_previous
from flforensics.fusion.mean import WeightedMean
from flforensics.fusion.norms import FORMS, Norms, update_norms
from flforensics.fusion.parameters import require_positive
from flforensics.fusion.rounding import Arithmetic, arithmetics, gamma, unit_roundoff
from flforensics.fusion.rule import Comparison, Scene, Shares
from flforensics.rounds import RoundTensor


@dataclass(frozen=True)
class ClippedMean(WeightedMean):
    """new = x + Σ p_k min(1, C/‖Δ_k‖) Δ_k with C = `clip_norm`."""

    clip_norm: float

    def __post_init__(self) -> None:
        require_positive(clip_norm=self.clip_norm)

    def survey(self, scene: Scene) -> Norms:
        """The lengths of the clients' updates. Raises EvidenceError (HISTORY) without a previous global."""
        return update_norms(scene)

    def compare(self, terms: RoundTensor, scene: Scene) -> Iterator[Comparison]:
        """The stored tensor against the mean of clipped clients, with lengths summed in blocks or in any order."""
        previous, norms = require_previous(terms, scene), _norms(scene)
        clients = norms.dtypes[terms.name]
        tried = arithmetics(clients | {terms.fused.dtype})
        ways = [(form, arithmetic) for arithmetic in tried for form in FORMS]
        factors = self._cuts(terms, norms)
        slack = _Slack(previous.double(), [self._open(terms, norms, *way) for way in ways])
        clipped = _clipped(terms, previous.double(), factors)
        sums = folds(clipped, scene.coefficients, [None, -previous.double()], watch=slack.add)
        models, updates = (replace(one, dtypes=clients) for one in sums)
        for (form, arithmetic), open_ in zip(ways, slack.sums, strict=True):
            mean = mean_of(clipped, models, updates, arithmetic)
            error = (
                mean.error
                + open_
                + gamma(3, arithmetic.dtype) * updates.magnitude
                + unit_roundoff(arithmetic.dtype) * models.magnitude
                + held(previous, arithmetic).error
                + rounded_clients(clients, arithmetic, updates.magnitude + previous.double().abs())
            )
            yield comparison(form, arithmetic, terms, Computed(mean.value, error))

    def shares(self, terms: RoundTensor, scene: Scene) -> Shares:
        """s_k = p_k min(1, C/‖Δ_k‖) Δ_k; the server adds nothing. Raises EvidenceError (HISTORY)."""
        return scaled_updates(terms, self.factors(terms, scene))

    def factors(self, terms: RoundTensor, scene: Scene) -> Sequence[float]:
        """p_k min(1, C/‖Δ_k‖). Raises EvidenceError (HISTORY)."""
        require_previous(terms, scene)
        cuts = self._cuts(terms, _norms(scene))
        return [coefficient * cut for coefficient, cut in zip(scene.coefficients.values, cuts, strict=True)]

    def _cuts(self, terms: RoundTensor, norms: Norms) -> list[float]:
        """c_k, what each client's update of this tensor is multiplied by."""
        if terms.fused.ndim == 0:
            return [1.0] * terms.count
        return [self._factor(length) for length in norms.updates]

    def _factor(self, length: float) -> float:
        return min(1.0, self.clip_norm / length) if length else 1.0

    def _open(self, terms: RoundTensor, norms: Norms, form: str, arithmetic: Arithmetic) -> list[float]:
        """How far the server's c_k may be from ours, relative to ours."""
        if terms.fused.ndim == 0:
            return [0.0] * terms.count
        limits = [norms.limits(index, form, arithmetic) for index in range(terms.count)]
        own = [self._factor(length) for length in norms.updates]
        return [
            max(factor - self._factor(longest), self._factor(shortest) - factor) / factor
            for factor, (shortest, longest) in zip(own, limits, strict=True)
        ]


class _Slack:
    """Σ p_k |c'_k − c_k| |Δ_k| for several ways to measure lengths, gathered as the clients pass by."""

    def __init__(self, previous: Tensor, relative: Sequence[Sequence[float]]) -> None:
        self.sums = [torch.zeros_like(previous) for _ in relative]
        self._previous, self._relative, self._next = previous, relative, 0

    def add(self, model: Tensor, coefficient: float) -> None:
        """The next clipped client's model and its p_k."""
        update = (model - self._previous).abs()
        for total, relative in zip(self.sums, self._relative, strict=True):
            total.add_(update * (coefficient * relative[self._next]))
        self._next += 1


def _clipped(terms: RoundTensor, previous: Tensor, factors: Sequence[float]) -> RoundTensor:
    """The same tensor as full models (float64) after clipping."""
    return replace(
        terms,
        client=lambda index: previous + factors[index] * update(terms, index, previous),
        relative=False,
    )


def _norms(scene: Scene) -> Norms:
    assert isinstance(scene.facts, Norms)
    return scene.facts
