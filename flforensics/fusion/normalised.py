"""Updates combined with multipliers of their own: x + Σ c_k Δ_k, where Σ c_k need not be 1.

FedNova    c_k = p_k (Σ_j p_j a_j) / a_k, a_k the client's `steps` (Wang et al., NeurIPS 2020, Eq. 4; for local
           SGD with momentum, ‖a_k‖₁ of the paper)
q-FedAvg   c_k = F_k^q L / Σ_j (q F_j^{q−1} ‖L Δ_j‖² + L F_j^q), L = 1 / learning rate of the clients, F_k the
           client's `train_loss` + 1e-10 (Li et al., ICLR 2020, Algorithm 2; Flower, whose legacy API takes one
           loss of the server for all)
The numbers that they need of each client are `extras` of the archive.

Bound: γ_{2K+12} Σ|c_k Δ_k| for the multipliers, the products and the sum in any order, (K+1)u(|x| + |new|) for
adding them one by one, |1 − Σ c_k| times the rounding of a stored previous global (once where the clients are
stored as updates), and for q-FedAvg what the length of the updates leaves open.
Shares are s_k = c_k Δ_k: with q-FedAvg the divisor is held at its realised value.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flforensics.errors import EvidenceError
from flforensics.fusion.computed import Computed
from flforensics.fusion.folding import (
    comparison,
    folds,
    held,
    rounded_clients,
    scaled_updates,
    sum_error,
    update_offset,
)
from flforensics.fusion.history import require_previous
from flforensics.fusion.mean import UniformMean, WeightedMean
from flforensics.fusion.norms import FORMS, Norms, update_norms
from flforensics.fusion.parameters import require_not_negative, require_positive
from flforensics.fusion.rounding import Arithmetic, arithmetics, unit_roundoff
from flforensics.fusion.rule import Coefficients, Comparison, Scene, Shares
from flforensics.rounds import RoundTensor

_LOSS_SHIFT = 1e-10


class _Combination(WeightedMean, ABC):
    """new = x + Σ c_k Δ_k."""

    @property
    @abstractmethod
    def forms(self) -> Sequence[str]:
        """The ways to compute the multipliers."""

    @abstractmethod
    def multipliers(self, scene: Scene) -> Coefficients:
        """c_k, and how far the declared digits leave each open. Raises EvidenceError (EXTRAS)."""

    @abstractmethod
    def openness(self, scene: Scene, form: str, arithmetic: Arithmetic) -> float:
        """How far an honest server's multipliers may be from these, relative to them, beyond a few roundings."""

    def compare(self, terms: RoundTensor, scene: Scene) -> Iterator[Comparison]:
        """The stored tensor against the combination. Raises EvidenceError (HISTORY, EXTRAS)."""
        previous, multipliers = require_previous(terms, scene), self.multipliers(scene)
        (fold,) = folds(terms, multipliers, [update_offset(terms)])
        whole, before, fused = sum(multipliers.values), previous.double(), terms.fused.double()
        around = (terms.count + 1) * (before.abs() + fused.abs())
        for arithmetic in arithmetics(fold.dtypes | {terms.fused.dtype}):
            error = (
                sum_error(terms, fold, arithmetic, roundings=2 * terms.count + 12)
                + unit_roundoff(arithmetic.dtype) * around
                + (1.0 if terms.relative else abs(1 - whole)) * held(previous, arithmetic).error
                + rounded_clients(fold.dtypes, arithmetic, whole * before.abs())
            )
            for form in self.forms:
                open_ = self.openness(scene, form, arithmetic) * fold.magnitude
                yield comparison(form, arithmetic, terms, Computed(before + fold.total, error + open_))

    def shares(self, terms: RoundTensor, scene: Scene) -> Shares:
        """s_k = c_k Δ_k; the server adds nothing. Raises EvidenceError (HISTORY, EXTRAS)."""
        return scaled_updates(terms, self.factors(terms, scene))

    def factors(self, terms: RoundTensor, scene: Scene) -> Sequence[float]:
        """c_k. Raises EvidenceError (HISTORY, EXTRAS)."""
        require_previous(terms, scene)
        return self.multipliers(scene).values


@dataclass(frozen=True)
class FedNova(_Combination):
    """Updates are divided by the clients' steps and multiplied by their weighted mean."""

    @property
    def forms(self) -> Sequence[str]:
        """There is one."""
        return ("difference",)

    def multipliers(self, scene: Scene) -> Coefficients:
        """c_k = p_k τ / a_k with τ = Σ p_j a_j; Raises EvidenceError (EXTRAS) without positive `steps`."""
        steps = _extras(scene, "steps", above=0.0)
        p, open_ = scene.coefficients.values, scene.coefficients.uncertainty
        effective = sum(share * a for share, a in zip(p, steps, strict=True))
        drift = sum(share * a for share, a in zip(open_, steps, strict=True))
        return Coefficients(
            tuple(share * effective / a for share, a in zip(p, steps, strict=True)),
            tuple(
                (own * (effective + drift) + share * drift) / a
                for share, own, a in zip(p, open_, steps, strict=True)
            ),
        )

    def openness(self, scene: Scene, form: str, arithmetic: Arithmetic) -> float:
        """Nothing but roundings."""
        return 0.0


@dataclass(frozen=True)
class QFedAvg(_Combination, UniformMean):
    """Clients with a larger loss count more; weights do not count at all."""

    client_learning_rate: float
    q: float = 0.1

    def __post_init__(self) -> None:
        require_positive(client_learning_rate=self.client_learning_rate)
        require_not_negative(q=self.q)

    @property
    def forms(self) -> Sequence[str]:
        """The ways to measure the updates' lengths."""
        return FORMS

    def survey(self, scene: Scene) -> Norms:
        """The lengths of the clients' updates. Raises EvidenceError (HISTORY) without a previous global."""
        return update_norms(scene)

    def multipliers(self, scene: Scene) -> Coefficients:
        """c_k = F_k^q L / Σ h_j. Raises EvidenceError (EXTRAS) without a `train_loss` that is not negative."""
        divisor = self._divisor(scene, _norms(scene).updates)
        values = tuple(loss**self.q / self.client_learning_rate / divisor for loss in _losses(scene))
        return Coefficients(values, (0.0,) * len(values))

    def openness(self, scene: Scene, form: str, arithmetic: Arithmetic) -> float:
        """How far Σ h_j can be off, over the lengths that an honest server can find."""
        norms = _norms(scene)
        limits = [norms.limits(index, form, arithmetic) for index in range(len(norms.updates))]
        exact = self._divisor(scene, norms.updates)
        lowest, highest = (self._divisor(scene, lengths) for lengths in zip(*limits, strict=True))
        return max(exact / lowest - 1, 1 - exact / highest)

    def _divisor(self, scene: Scene, lengths: Sequence[float]) -> float:
        """Σ q F^{q−1} ‖L Δ‖² + L F^q."""
        scale = 1 / self.client_learning_rate
        return math.fsum(
            self.q * loss ** (self.q - 1) * (scale * length) ** 2 + scale * loss**self.q
            for loss, length in zip(_losses(scene), lengths, strict=True)
        )


def _losses(scene: Scene) -> tuple[float, ...]:
    return tuple(loss + _LOSS_SHIFT for loss in _extras(scene, "train_loss", above=-_LOSS_SHIFT))


def _norms(scene: Scene) -> Norms:
    assert isinstance(scene.facts, Norms)
    return scene.facts


def _extras(scene: Scene, key: str, *, above: float) -> tuple[float, ...]:
    """One number above that for each participant. Raises EvidenceError (EXTRAS) if there is none."""
    values = scene.extras.get(key, ())
    if len(values) == len(scene.positions) and all(math.isfinite(one) and one > above for one in values):
        return values
    what = "a finite" if above < 0 else "a finite and positive"
    raise EvidenceError(
        f"round {scene.number} does not state {what} {key!r} for every client",
        reason="EXTRAS",
        hint=f"the rule needs each client's {key!r}; add what the server knew",
    )
