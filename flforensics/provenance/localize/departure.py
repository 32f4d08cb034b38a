"""Whose update departs from what that client usually sends, and what the departure did to the mispredictions.

On a mistake that one client's fault has tipped, an honest client with unusual data often moves the model more
than the faulty one. But unusual data are there in every round, and a fault is a change. So every client is split
in two, its usual update and its departure from it:

    u_k = mean of its updates in its last earlier rounds,        d_k = Δ_k − u_k,

and the ledger is computed with both as lines of their own. It still adds up, as a client that is split in two
splits its score: previous + Σ usual + Σ departures + server + unexplained = f. Both lie on this round's path and
have this round's factor c_k, so that neither another path nor another weight is taken for a departure.

Honest updates differ from round to round too, and a client with large updates has large departures. How far it
departed relative to its size is r_k = ‖d_k‖² / (m_k (1 + 1/n_k)), with n_k earlier rounds and m_k the mean ‖Δ_k‖²
over them; the last factor is the variance of a difference from a mean of n. What is usual in this round is the
median of r over the clients, whom most are taken to be honest, and

    departure_k = max(0, 1 − median/r_k) ⟨Ḡ, c_k d_k⟩

is left (the positive-part shrinkage of James and Stein 1961, with the median as the noise): a client that departs
as others do departs by nothing. Of a client without an earlier round nothing usual is known: u = 0 and r = 1.

A departure is a change, and a change is no fault yet: new data are one, and where the global itself was changed,
honest clients depart to repair it. A fault that lasts becomes usual.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from flforensics.errors import NotComputableError
from flforensics.fusion.rule import Rule, Scene, Shares
from flforensics.provenance.case import Case
from flforensics.provenance.counterfactual import possible_drops
from flforensics.provenance.directions import started_from
from flforensics.provenance.ledger import ledger
from flforensics.provenance.localize.finite import require_finite
from flforensics.provenance.localize.mispredictions import shares_of
from flforensics.provenance.logits import class_logits_of
from flforensics.rounds import ClientModel, Round, RoundTensor, StoredModel

EARLIER = 10
"""How many of its earlier rounds a client is compared with, at most."""

_USUAL, _DEPARTURE = 0, 1


@dataclass(frozen=True)
class Departures:
    """For N inputs and K clients, float64 where not said otherwise.

    `scores` [N, K]: the departures, in the target's unit. `shares` [N, K + 2]: these, the server's and the
    unexplained line as shares of the movement; `usual` [N, K]: the usual updates' shares. `distances` [K]: how far
    each update departs, √(r_k/median), 1 being usual; NaN for a client of which nothing earlier is known. `rough`
    counts the inputs whose ledger did not converge.
    """

    scores: Tensor
    shares: Tensor
    usual: Tensor
    distances: Tensor
    rough: int


@dataclass
class Habit:
    """A client's update in this round, and those in its earlier rounds, over the tensors `names`.

    `latest` holds the one tensor of one client that was read last, for both of its parts: no more fits in memory.
    """

    now: tuple[Round, ClientModel]
    before: tuple[tuple[Round, ClientModel], ...]
    names: tuple[str, ...]
    latest: dict[tuple[str, str], tuple[Tensor, Tensor]]

    def parts(self, name: str) -> tuple[Tensor, Tensor]:
        """The usual update and the departure from it in one tensor, float64."""
        key = (self.now[1].client, name)
        if key not in self.latest:
            self.latest.clear()
            now = _update(*self.now, name)
            usual = torch.zeros_like(now)
            for one in self.before:
                usual += _update(*one, name) / len(self.before)
            self.latest[key] = (usual, now - usual)
        return self.latest[key]

    @cached_property
    def lengths(self) -> tuple[float, float]:
        """‖d‖², and m (1 + 1/n), what it is measured by; without an earlier round both are ‖Δ‖²."""
        departed = sum(float(self.parts(name)[1].square().sum()) for name in self.names)
        if not self.before:
            return departed, departed
        count = len(self.before)
        size = sum(float(_update(*one, name).square().sum()) for one in self.before for name in self.names) / count
        return departed, size * (1 + 1 / count)


def habits(case: Case, before: Sequence[Round], *, most: int = EARLIER) -> tuple[Habit, ...]:
    """What is known of each client of `case`: its last `most` updates in `before` (oldest first)."""
    latest: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}
    return tuple(
        Habit((case.round, one), tuple(_sent(one.client, before))[-most:], case.floating, latest)
        for one in case.clients
    )


def departure(case: Case, known: Sequence[Habit]) -> Departures:
    """Departures for every input of `case`, whose target is an error margin.

    Raises NotComputableError as the ledger does, and where no client has an earlier round (EARLIER), the rule's
    shares are no multiples of the updates (RULE), or an update is not finite (NON_FINITE).
    """
    started_from(case)
    if not any(habit.before for habit in known):
        raise NotComputableError(
            f"no client of round {case.round.number} has an earlier round to be compared with",
            reason="EARLIER",
            hint="choose a later round, or use --method mispredictions",
        )
    kept, distances = _kept(case, known)
    scores = ledger(split(case, known))
    require_finite(case, scores.clients[:, 1::2], "scores")
    rows, factors = shares_of(scores), torch.cat([kept, torch.ones(2, dtype=torch.float64)])
    lines = scores.lines
    rough = 0 if lines is None or lines.converged is None else int((~lines.converged).sum())
    return Departures(
        scores.clients[:, 1::2].cpu() * kept,
        torch.cat([rows[:, 1:-2:2], rows[:, -2:]], 1) * factors,
        rows[:, 0:-2:2],
        distances,
        rough,
    )


def replaced(case: Case, known: Sequence[Habit]) -> Tensor:
    """The class predicted had a client sent its usual update, [N, K]; −1 where that model's target is not finite.

    Raises NotComputableError (PREVIOUS, RULE).
    """
    departing = split(case, known, parts=(_DEPARTURE,))
    without = possible_drops(departing, class_logits_of(case.network, case.new, case.call))
    return torch.where(torch.isfinite(without.change), without.classes, -1).cpu()


def _kept(case: Case, known: Sequence[Habit]) -> tuple[Tensor, Tensor]:
    """max(0, 1 − median/r_k) and √(r_k/median), [K]."""
    lengths = torch.tensor([habit.lengths for habit in known], dtype=torch.float64)
    require_finite(case, lengths.sum(1)[None], "updates, now or earlier,")
    departed, measure = lengths.unbind(1)
    ratios = torch.where(departed > 0, departed / measure, 0.0)
    compared = torch.tensor([bool(habit.before) for habit in known])
    usual = ratios[compared].median()
    kept = torch.where(ratios > 0, (1 - usual / ratios).clamp(min=0), 0.0)
    distances = torch.where(ratios == usual, 1.0, (ratios / usual).sqrt())
    return kept, torch.where(compared, distances, torch.nan)


def _sent(client: str, before: Sequence[Round]) -> Iterator[tuple[Round, ClientModel]]:
    """The rounds in which a client sent a model, with it."""
    for round_ in before:
        for one in round_.clients:
            if one.client == client and one.model is not None:
                yield round_, one


def _update(round_: Round, client: ClientModel, name: str) -> Tensor:
    """What a client changed in one tensor, float64. Raises NotComputableError (PREVIOUS)."""
    terms = round_.tensor(name, [client])
    stored = terms.client(0).double()
    if terms.relative:
        return stored
    if terms.previous is None:
        raise NotComputableError(
            f"round {round_.number} has no previous global, so that no update is known",
            reason="PREVIOUS",
            hint="store the model that the round started from",
        )
    return stored - terms.previous.double()


def split(case: Case, known: Sequence[Habit], *, parts: Sequence[int] = (_USUAL, _DEPARTURE)) -> Case:
    """The case in which these parts of every client's update stand for it, one after the other."""
    clients = tuple(
        replace(client, model=StoredModel(_Part(habit, part), client.client))
        for client, habit in zip(case.clients, known, strict=True)
        for part in parts
    )
    round_ = replace(case.round, clients=clients, values="delta")
    scene = replace(
        case.scene, positions=tuple(range(len(clients))), read=lambda name: round_.tensor(name, clients)
    )
    rule = cast("Rule", _Parted(case.rule, case.scene, len(parts)))
    return replace(case, round=round_, scene=scene, rule=rule)


@dataclass(frozen=True)
class _Part(Mapping[str, Tensor]):
    """One part of a client's update as a checkpoint: computed when read."""

    habit: Habit
    part: int

    def __getitem__(self, name: str) -> Tensor:
        return self.habit.parts(name)[self.part]

    def __contains__(self, name: object) -> bool:
        return name in self.habit.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.habit.names)

    def __len__(self) -> int:
        return len(self.habit.names)


@dataclass(frozen=True)
class _Parted:
    """The rule on parts of updates: each has the factor that the whole had, c_k as it was realised.

    That is all of a rule that shares need.
    """

    rule: Rule
    scene: Scene
    parts: int

    def factors(self, terms: RoundTensor, _scene: Scene) -> Sequence[float]:
        """c_k for every part. Raises NotComputableError (RULE)."""
        found = self.rule.factors(self.scene.read(terms.name), self.scene)
        if found is None:
            raise NotComputableError(
                f"the rule of round {self.scene.number} does not take a multiple of each update, so that a part"
                " of an update has no share of its own",
                reason="RULE",
                hint="use --method mispredictions",
            )
        return [factor for factor in found for _ in range(self.parts)]

    def shares(self, terms: RoundTensor, scene: Scene) -> Shares:
        """c_k times each part."""
        factors = self.factors(terms, scene)
        clients = torch.stack([factor * terms.client(k).double() for k, factor in enumerate(factors)])
        assert terms.previous is not None
        movement = terms.fused.double() - terms.previous.double()
        return Shares(clients, torch.zeros_like(movement), movement - clients.sum(0))
