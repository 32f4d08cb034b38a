"""What every fusion rule offers, and the records that it speaks in."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from flforensics.errors import EvidenceError
from flforensics.fusion.rounding import Arithmetic
from flforensics.rounds import ClientModel, Round, RoundTensor


@dataclass(frozen=True)
class Coefficients:
    """p_k for some clients (Σ p_k = 1 over all), and how far the declared digits leave each open."""

    values: tuple[float, ...]
    uncertainty: tuple[float, ...]


@dataclass(frozen=True)
class Scene:
    """What a rule may use of one round: who took part and how much, and any tensor of it, read when asked.

    `positions` are the participants' places in the round, `weights` what is declared for them. `earlier` holds
    the rounds before, oldest first, for rules whose server keeps state. `facts` is what the rule's own survey
    of the whole model found. `extras` are other numbers that the archive states for each participant, by name
    (`steps`, `train_loss`). `complete` is False where someone whom the round names is not among the participants.
    """

    number: int
    positions: tuple[int, ...]
    weights: tuple[float, ...]
    coefficients: Coefficients
    names: tuple[str, ...]
    read: Callable[[str], RoundTensor]
    earlier: tuple["Scene", ...] = ()
    facts: object = None
    extras: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    complete: bool = True


@dataclass(frozen=True)
class Comparison:
    """|stored − rule| over its bound under one form and arithmetic: the worst ratio, and how many exceed 1.

    `resolved` is False where the bound is so wide that fitting it says nothing. `floor` is the bound relative
    to Σ|p_k x_k|: the smallest change that this comparison can see.
    """

    form: str
    arithmetic: Arithmetic
    worst_ratio: float
    outside: int
    resolved: bool
    floor: float


@dataclass(frozen=True)
class Shares:
    """Where (new − previous) came from, for one tensor: Σ clients + server + unexplained, exactly.

    `clients` is [K, ...]; `server` and `unexplained` have the tensor's shape; all float64.
    """

    clients: Tensor
    server: Tensor
    unexplained: Tensor


class Rule(Protocol):
    """A fusion rule: a pure function of tensors and weights."""

    needs_weights: bool
    needs_history: bool

    def coefficients(self, declared: Sequence[float], *, uncertainty: Sequence[float]) -> Coefficients:
        """p_k from the declared weights (all finite, none negative, not all zero)."""

    def survey(self, scene: Scene) -> object:
        """What the rule must know of the whole model before it can fuse one tensor, such as distances."""

    def compare(self, tensor: RoundTensor, scene: Scene) -> Iterator[Comparison]:
        """The stored tensor against the rule, for every form and arithmetic, tightest first."""

    def shares(self, tensor: RoundTensor, scene: Scene) -> Shares:
        """Which part of (new − previous) the rule took from each client."""

    def factors(self, tensor: RoundTensor, scene: Scene) -> Sequence[float] | None:
        """c_k where every share is c_k Δ_k and the server has none (no other client is needed); else None."""


def surveyed(rule: Rule, round_: Round, *, earlier: Sequence[Round] = ()) -> Scene:
    """The round as `rule` sees it, with the facts of its survey.

    Raises EvidenceError (WEIGHTS, HISTORY, and those of reading tensors).
    """
    scenes = tuple(_scene(rule, one) for one in (*earlier, round_))
    scene = replace(scenes[-1], earlier=scenes[:-1] if rule.needs_history else ())
    return replace(scene, facts=rule.survey(scene))


def _scene(rule: Rule, round_: Round) -> Scene:
    positions, weights, coefficients = _participation(rule, round_.clients)
    clients = [round_.clients[position] for position in positions]
    return Scene(
        round_.number,
        positions,
        weights,
        coefficients,
        tuple(round_.fused.tensors),
        lambda name: round_.tensor(name, clients),
        extras=_extras(clients),
        complete=len(positions) == len(round_.clients) > 0,
    )


def _extras(clients: Sequence[ClientModel]) -> Mapping[str, tuple[float, ...]]:
    """The other numbers that are stated for every participant, by name."""
    names = set.intersection(*(set(client.extras) for client in clients)) if clients else set()
    return {name: tuple(client.extras[name] for client in clients) for name in sorted(names)}


def _participation(
    rule: Rule, clients: Sequence[ClientModel]
) -> tuple[tuple[int, ...], tuple[float, ...], Coefficients]:
    """Who took part, as far as the archive knows: positions, declared weights, p_k.

    A client with a weight and no file counts in Σ n, so that its part stays unexplained; one with a file and
    no weight cannot be given a part by a rule that weighs. Raises EvidenceError (WEIGHTS) if all weights are 0.
    """
    counted = [k for k, client in enumerate(clients) if client.weight is not None or not rule.needs_weights]
    declared = [clients[k].weight or 0.0 for k in counted]
    if rule.needs_weights and counted and not 0 < sum(declared) < math.inf:
        raise EvidenceError(
            f"the declared weights sum to {sum(declared):g}",
            reason="WEIGHTS",
            hint='correct the weights, or state `weights_kind = "equal"` if the server did not weigh',
        )
    every = rule.coefficients(declared, uncertainty=[clients[k].uncertainty for k in counted])
    chosen = [i for i, k in enumerate(counted) if clients[k].model is not None]
    coefficients = Coefficients(
        tuple(every.values[i] for i in chosen), tuple(every.uncertainty[i] for i in chosen)
    )
    return tuple(counted[i] for i in chosen), tuple(declared[i] for i in chosen), coefficients


def ratio(difference: Tensor, bound: Tensor) -> tuple[float, int]:
    """The largest |difference| / bound and how many exceed 1; 0/0 counts as 0. Non-finite differences exceed."""
    if difference.numel() == 0:
        return 0.0, 0
    ratios = torch.where(difference == 0, 0.0, difference.abs() / bound).nan_to_num(nan=float("inf"))
    return float(ratios.max()), int((ratios > 1).sum())
