"""Sums over the clients of one tensor, and the bounds that every mean needs of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flforensics.fusion.computed import Computation, Computed
from flforensics.fusion.rounding import (
    Arithmetic,
    gamma,
    half_subnormal,
    resolves,
    storage_error,
    unit_roundoff,
)
from flforensics.fusion.rule import Coefficients, Comparison, Shares, ratio
from flforensics.rounds import RoundTensor

_RESOLUTION = 0.1
_PIECE = 1 << 15  # values that stay in the cache while they are added


@dataclass(frozen=True)
class Fold:
    """Sums over the clients of one tensor, all float64: values v_k are models or updates."""

    total: Tensor  # Σ p_k v_k
    magnitude: Tensor  # Σ |p_k v_k|
    plain: Tensor  # Σ |v_k|
    leeway: Tensor  # Σ δ_k |v_k|, δ_k the uncertainty of p_k
    dtypes: frozenset[torch.dtype]


def folds(
    terms: RoundTensor,
    coefficients: Coefficients,
    offsets: Sequence[Tensor | None],
    *,
    watch: Callable[[Tensor, float], None] | None = None,
) -> list[Fold]:
    """Sums of stored + offset over the clients, for several offsets, reading every client once.

    `watch` is called with each client's value under the first offset and its p_k, in the clients' order.
    """
    size, device = terms.fused.numel(), terms.fused.device
    sums = [torch.zeros(4, size, dtype=torch.float64, device=device) for _ in offsets]
    flat = [None if offset is None else offset.flatten() for offset in offsets]
    dtypes: set[torch.dtype] = set()
    for index, coefficient in enumerate(coefficients.values):
        stored = terms.client(index).flatten()
        dtypes.add(stored.dtype)
        if watch is not None:
            value = stored.double() if flat[0] is None else stored.double() + flat[0]
            watch(value.reshape(terms.fused.shape), coefficient)
        for start in range(0, size, _PIECE):
            piece = slice(start, start + _PIECE)
            for own, offset in zip(sums, flat, strict=True):
                value = stored[piece].to(torch.float64, copy=True)
                if offset is not None:
                    value.add_(offset[piece])
                _add(own[:, piece], value, coefficient, coefficients.uncertainty[index])
    shaped = [own.reshape(4, *terms.fused.shape) for own in sums]
    return [Fold(own[0], own[1], own[2], own[3], frozenset(dtypes)) for own in shaped]


def _add(sums: Tensor, value: Tensor, coefficient: float, open_: float) -> None:
    """One client's piece into the four sums of a `Fold`; `value` is used up."""
    sums[0].add_(value, alpha=coefficient)
    value.abs_()
    sums[1].add_(value, alpha=abs(coefficient))
    sums[2].add_(value)
    if open_:
        sums[3].add_(value, alpha=open_)


def model_offset(terms: RoundTensor) -> Tensor | None:
    """What makes a stored tensor a full model."""
    return terms.previous.double() if terms.relative and terms.previous is not None else None


def update_offset(terms: RoundTensor) -> Tensor | None:
    """What makes a stored tensor an update."""
    return None if terms.relative or terms.previous is None else -terms.previous.double()


def update(terms: RoundTensor, index: int, previous: Tensor) -> Tensor:
    """Δ_k in float64, from a stored model or update; `previous` is the global before, in float64."""
    stored = terms.client(index).double()
    return stored if terms.relative else stored - previous


def scaled_updates(terms: RoundTensor, factors: Sequence[float]) -> Shares:
    """s_k = c_k Δ_k; the server adds nothing, and what is left of (new − previous) is unexplained."""
    assert terms.previous is not None
    previous = terms.previous.double()
    nothing = torch.zeros_like(previous)
    clients = torch.stack(
        [factor * update(terms, k, previous) if factor else nothing for k, factor in enumerate(factors)]
    )
    unexplained = terms.fused.double() - previous - clients.sum(0)
    return Shares(clients, nothing, unexplained)


def sum_error(terms: RoundTensor, fold: Fold, arithmetic: Arithmetic, *, roundings: int) -> Tensor:
    """How far Σ p_k v_k can be off when no term passes more than `roundings` roundings.

    γ_m Σ|p_k v_k| + (2K+2)η + η Σ|v_k|, our own evaluation, the declared digits, and the clients' storage.
    """
    relative = gamma(roundings, arithmetic.dtype) + gamma(roundings, torch.float64)
    eta = half_subnormal(arithmetic.dtype)
    error = relative * fold.magnitude + (2 * terms.count + 2) * eta + eta * fold.plain + fold.leeway
    return error + rounded_clients(fold.dtypes, arithmetic, fold.magnitude)


def rounded_clients(dtypes: frozenset[torch.dtype], arithmetic: Arithmetic, magnitude: Tensor) -> Tensor:
    """What rounding the clients, of that weighted magnitude, to the types that they are stored in can add."""
    floating = [dtype for dtype in dtypes if dtype.is_floating_point]
    if not arithmetic.clients_rounded or not floating:
        return torch.zeros((), dtype=torch.float64, device=magnitude.device)
    return storage_error(max(floating, key=unit_roundoff), arithmetic, magnitude)


def mean_of(terms: RoundTensor, models: Fold, updates: Fold, arithmetic: Arithmetic) -> Computed:
    """Σ p_k x_k as an honest server may have computed it: from the models or from their updates, in any order."""
    error = torch.maximum(
        sum_error(terms, models, arithmetic, roundings=terms.count + 3),
        sum_error(terms, updates, arithmetic, roundings=terms.count + 5),
    )
    return Computed(models.total, error)


def held(stored: Tensor, arithmetic: Arithmetic) -> Computed:
    """A stored global as the server may have held it: as it is, or in a type wider than the stored one."""
    value = stored.double()
    wide = arithmetic.clients_rounded or (
        stored.is_floating_point() and unit_roundoff(stored.dtype) <= unit_roundoff(arithmetic.dtype)
    )
    if not wide or not stored.is_floating_point():
        return Computed(value, torch.zeros_like(value))
    return Computed(value, value.abs() * unit_roundoff(stored.dtype) + half_subnormal(stored.dtype))


def mean_comparison(
    form: str, arithmetic: Arithmetic, difference: Tensor, bound: Tensor, *, roundings: int
) -> Comparison:
    """A comparison whose bound is γ_m, for m roundings, of what was summed."""
    worst, outside = ratio(difference, bound)
    floor = gamma(roundings, arithmetic.dtype)
    return Comparison(form, arithmetic, worst, outside, resolves(roundings, arithmetic.dtype), floor)


def comparison(form: str, arithmetic: Arithmetic, terms: RoundTensor, new: Computed) -> Comparison:
    """A comparison with the rule's value and running error; its floor is a typical bound over a typical value."""
    stored = Computation(arithmetic.dtype).stored(new, terms.fused.dtype)
    bound = stored.error.nan_to_num(nan=torch.inf)
    worst, outside = ratio(terms.fused.double() - stored.value, bound)
    floor = _typical(bound, terms)
    return Comparison(form, arithmetic, worst, outside, floor < _RESOLUTION, floor)


def _typical(bound: Tensor, terms: RoundTensor) -> float:
    """The median bound relative to the mean |value| of the new or the previous global, whichever is larger."""
    globals_ = [one for one in (terms.fused, terms.previous) if one is not None]
    magnitude = max((float(one.double().abs().mean()) for one in globals_ if one.numel()), default=0.0)
    return float(bound.median()) / magnitude if magnitude else 0.0
