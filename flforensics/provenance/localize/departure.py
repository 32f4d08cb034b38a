"""Whose update departs from what that client usually sends, and what the departure did to the mispredictions.

On a mistake that one client's fault has tipped, an honest client with unusual data often moves the model more
than the faulty one. But unusual data are there in every round, and a fault is a change. So every client is split
in two, its usual update and its departure from it:

    u_k = mean of its updates in its last earlier rounds,        d_k = Δ_k − u_k,

and the ledger is computed with both as lines of their own. It still adds up, as a client that is split in two
splits its score: previous + Σ usual + Σ departures + server + unexplained = f. Both lie on this round's path and
have this round's factor c_k, so that neither another path nor another weight is taken for a departure.

Honest updates differ from round to round too, so two things are asked of a departure. *How far is it?* In each
tensor b, r_kb = ‖d_kb‖² / (m_kb (1 + 1/n_k)), with n_k earlier rounds and m_kb the mean ‖Δ_kb‖² over them; the
last factor is the variance of a difference from a mean of n. What is usual in this round is the median client,
whom most are taken to be like, and the distance is

    D_k = Σ_b ℓ_b √(r_kb / median_j r_jb) / Σ_b ℓ_b,        ℓ_b = median_j ‖Δ_jb‖,

over its own median, so that 1 is usual. (A fault is often in few tensors, which the others would hide.) b are the
parameters, which a client trains towards its labels. The means and variances that BatchNorm stores are long, are
those of the examples whatever their labels, and would hide it too. Of a client without an earlier round nothing
usual is known: u = 0, and in place of r there is ‖Δ_b‖²/√p_k, as updates grow with the examples, and slower than
their number. *What did it do to this input?* e_k = ⟨Ḡ, c_k d_k⟩ in the target's unit, where usual departures do
σ = 1.4826 median_j |e_j| (as a standard deviation, Hampel 1974). Together

    suspicion_k = max(0, D_k² − 1) (1 + max(0, e_k)/σ).

Of D_k² only 1 is usual, so that the first factor is the odds of new against usual, as in the positive-part
shrinkage of James and Stein (1961), which keeps 1 − 1/D². The second is how much the departure may have pushed:
what a fault added is known but to σ, as honest departures would have pushed too, to either side. So an update
that departs far is suspect even where its effect is measured as nothing, less so than one equally far that
pushed. It is not bounded, so that of two clients that both depart far the one that pushed this input comes first.
Without a unit, it can be compared with that of other rounds.

A departure is a change, and a change is no fault yet: new data are one, and where the global itself was changed,
honest clients depart to repair it. A fault that lasts becomes usual.
"""

import threading
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

_DEVIATION = 1.4826
"""A normal distribution's standard deviation over its median absolute deviation (Hampel 1974)."""


@dataclass(frozen=True)
class Departures:
    """For N inputs and K clients, float64 where not said otherwise.

    `scores` [N, K]: the departures, in the target's unit; `suspicion` [N, K]: without one. `shares` [N, K + 2]:
    the departures, the server's and the unexplained line as shares of the movement; `usual` [N, K]: the usual
    updates' shares. `distances` [K]: D_k, how far each update departs, 1 being usual. `rough` counts the inputs
    whose ledger did not converge.
    """

    scores: Tensor
    suspicion: Tensor
    shares: Tensor
    usual: Tensor
    distances: Tensor
    rough: int


@dataclass
class Habit:
    """A client's update in this round, and those in its earlier rounds, over the tensors `names`.

    `measured` are those of them whose lengths count in its distance. `latest` holds, for every thread, the one
    tensor of one client that it read last, for both of its parts: no more fits in memory.
    """

    now: tuple[Round, ClientModel]
    before: tuple[tuple[Round, ClientModel], ...]
    names: tuple[str, ...]
    measured: tuple[str, ...]
    latest: threading.local

    def parts(self, name: str) -> tuple[Tensor, Tensor]:
        """The usual update and the departure from it in one tensor, float64."""
        key, latest = (self.now[1].client, name), self.latest.__dict__
        if latest.get("key") != key:
            latest.clear()
            now = _update(*self.now, name)
            usual = torch.zeros_like(now)
            for one in self.before:
                usual += _update(*one, name) / len(self.before)
            latest.update(key=key, parts=(usual, now - usual))
        return cast("tuple[Tensor, Tensor]", latest["parts"])

    @cached_property
    def lengths(self) -> Tensor:
        """Of B measured tensors, [3, B]: ‖d‖², m (1 + 1/n) (0 without an earlier round), and ‖Δ‖²."""
        columns = []
        for name in self.measured:
            usual, departed = self.parts(name)
            sizes = [_squares(_update(*one, name)) for one in self.before]
            count = max(len(sizes), 1)
            columns.append((_squares(departed), sum(sizes) / count * (1 + 1 / count), _squares(usual + departed)))
        return torch.tensor(columns, dtype=torch.float64).T


def habits(case: Case, before: Sequence[Round], *, most: int = EARLIER) -> tuple[Habit, ...]:
    """What is known of each client of `case`: its last `most` updates in `before` (oldest first)."""
    latest = threading.local()
    statistics = {name for name, _ in case.network.named_buffers()}
    measured = tuple(name for name in case.floating if name not in statistics)
    return tuple(
        Habit((case.round, one), tuple(_sent(one.client, before))[-most:], case.floating, measured, latest)
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
    distances = _distances(case, known)
    scores = ledger(split(case, known))
    require_finite(case, scores.clients[:, 1::2], "scores")
    rows, effects, lines = shares_of(scores), scores.clients[:, 1::2].cpu(), scores.lines
    return Departures(
        effects,
        suspicion(effects, distances),
        torch.cat([rows[:, 1:-2:2], rows[:, -2:]], 1),
        rows[:, 0:-2:2],
        distances,
        0 if lines is None or lines.converged is None else int((~lines.converged).sum()),
    )


def suspicion(effects: Tensor, distances: Tensor) -> Tensor:
    """max(0, D² − 1) (1 + max(0, e)/σ), [N, K], of what departures did, e [N, K], and how far they are, D [K].

    Where most did nothing, σ is of their mean.
    """
    noise = _DEVIATION * _usual(effects.abs().T)[:, None]
    return (distances.square() - 1).clamp(min=0) * (1 + _over(effects.clamp(min=0), noise))


def replaced(case: Case, known: Sequence[Habit]) -> Tensor:
    """The class predicted had a client sent its usual update, [N, K]; −1 where that model's target is not finite.

    Raises NotComputableError (PREVIOUS, RULE).
    """
    departing = split(case, known, parts=(_DEPARTURE,))
    without = possible_drops(departing, class_logits_of(case.network, case.new, case.call))
    return torch.where(torch.isfinite(without.change), without.classes, -1).cpu()


def _distances(case: Case, known: Sequence[Habit]) -> Tensor:
    """D_k, [K]."""
    lengths = torch.stack([habit.lengths for habit in known])
    require_finite(case, lengths.sum((1, 2))[None], "updates, now or earlier,")
    departed, measure, sent = lengths.unbind(1)
    compared = torch.tensor([bool(habit.before) for habit in known])
    weights = torch.tensor(case.scene.coefficients.values, dtype=torch.float64).clamp(min=0)
    own, first = _over(departed, measure), _over(sent, weights.sqrt()[:, None])
    far = torch.where(measure > 0, _over(own, _usual(own[compared])), _over(first, _usual(first[compared])))
    tensors = _usual(sent[compared]).sqrt()
    mean = _over(far.sqrt() @ tensors, tensors.sum())
    return _over(mean, _usual(mean[compared]))


def _usual(rows: Tensor) -> Tensor:
    """The median of the rows, or their mean where that is 0."""
    middle = rows.median(0).values
    return torch.where(middle > 0, middle, rows.mean(0))


def _over(values: Tensor, unit: Tensor) -> Tensor:
    """values / unit; 0 where there is no unit."""
    return torch.where(unit > 0, values / unit, 0.0)


def _squares(tensor: Tensor) -> float:
    return float(tensor.square().sum())


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
        case.scene,
        positions=tuple(range(len(clients))),
        read=lambda name: round_.tensor(name, clients),
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
