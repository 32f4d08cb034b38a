"""What is asked of a federation, and what the true answer is.

A question is a round (and the rounds before it), inputs, and where somebody is at fault, who. The inputs of a
faulty client are *caused* by it: the same round with that client's honest update, trained on the same batches
from the same global, gets them right.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from flforensics.rounds import ClientModel, Round, StoredModel
from tests.bench.accuracy.data import Labelled
from tests.bench.accuracy.federations import EVERY, Federation, Flip, fused, marked

NOISE = ((0.003, 15.0), (0.006, 10.0), (0.012, 15.0))
"""TraceFL's Table II: noise multiplier and clipping norm."""

_POISONED = 3


@dataclass(frozen=True)
class Effort:
    """How much is asked: inputs of one question, faulty clients tried one after another, absences (rounds).

    Shapley values are computed for the first question of each scenario in `shapley`.
    """

    inputs: int
    culprits: int
    absences: tuple[int, ...]
    shapley: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """Inputs [N] on the last round of `history`; `accuracy` is of its global on the test set."""

    scenario: str
    history: tuple[Round, ...]
    inputs: Labelled
    accuracy: float
    culprit: str | None = None
    flip: Flip | None = None

    @property
    def round(self) -> Round:
        return self.history[-1]


def questions(federation: Federation, effort: Effort, names: tuple[str, ...]) -> Iterator[Question]:
    """The questions of the named scenarios, all on the same honest federation."""
    history = tuple(federation.history())
    for name in names:
        yield from SCENARIOS[name](federation, history, effort)


def _correct(federation: Federation, history: tuple[Round, ...], effort: Effort) -> Iterator[Question]:
    """Predictions of the honest round that are right."""
    yield _question(federation, "correct", history, effort)


def _noisy(federation: Federation, history: tuple[Round, ...], effort: Effort) -> Iterator[Question]:
    """Right predictions of a last round whose server clips every update and adds noise to the mean."""
    for multiplier, clip in NOISE:
        round_ = noised(history[-1], multiplier=multiplier, clip=clip, seed=federation.setting.seed)
        yield _question(federation, f"noise-{multiplier:g}", (*history[:-1], round_), effort)


def noised(round_: Round, *, multiplier: float, clip: float, seed: int) -> Round:
    """Differential privacy by the server, with a fixed clipping norm (McMahan et al., ICLR 2018), as in TraceFL.

    Updates of parameters and buffers are clipped to L2 norm `clip`; the mean gets Gaussian noise of standard
    deviation multiplier · clip / clients. Variances of BatchNorm are kept from falling below zero.
    """
    assert round_.previous is not None
    previous = round_.previous.tensors
    floating = [name for name, tensor in previous.items() if tensor.is_floating_point()]
    clients = []
    for client in round_.clients:
        assert client.model is not None
        update = {name: client.model.tensors[name] - previous[name] for name in floating}
        norm = float(torch.stack([one.norm() for one in update.values()]).norm())
        factor = min(1.0, clip / norm) if norm else 1.0
        state = {name: previous[name] + factor * update[name] for name in floating}
        clients.append(replace(client, model=StoredModel({**client.model.tensors, **state}, client.model.source)))
    clean = fused(round_.number, round_.previous, clients)
    generator, deviation = torch.Generator().manual_seed(seed), multiplier * clip / len(clients)
    state = dict(clean.fused.tensors)
    for name in floating:
        noisy = state[name] + deviation * torch.randn(state[name].shape, generator=generator)
        state[name] = noisy.clamp(min=1e-3) if name.endswith("running_var") else noisy
    return replace(clean, fused=StoredModel(state, clean.fused.source))


def _flipped_one(federation: Federation, history: tuple[Round, ...], effort: Effort) -> Iterator[Question]:
    """One client takes its most frequent label for another in the last round."""
    yield from _flipped(federation, history, effort, "flip-one", lambda k: _most_frequent(federation, k))


def _flipped_all(federation: Federation, history: tuple[Round, ...], effort: Effort) -> Iterator[Question]:
    """One client takes everything for class 0 in the last round, as in TraceFL's script."""
    yield from _flipped(federation, history, effort, "flip-all", lambda k: Flip(None, 0))


def _flipped(
    federation: Federation,
    history: tuple[Round, ...],
    effort: Effort,
    scenario: str,
    flip_of: Callable[[int], Flip],
) -> Iterator[Question]:
    round_ = history[-1]
    for k in culprits(federation, round_.number)[: effort.culprits]:
        flip = flip_of(k)
        faulty = _faulty(federation, round_, k, flip)
        poisoned = (*history[:-1], _with(round_, faulty))
        yield _question(federation, scenario, poisoned, effort, honest=round_, culprit=faulty, flip=flip)


def _flipped_two(federation: Federation, history: tuple[Round, ...], effort: Effort) -> Iterator[Question]:
    """Two clients each take their most frequent label for another in the last round; whose mistake is it?

    Asked of each are the inputs that are right if it is honest and the other not, and wrong the other way round.
    """
    round_ = history[-1]
    pair = culprits(federation, round_.number)[:2]
    if len(pair) < 2:
        return
    flips = [_most_frequent(federation, k) for k in pair]
    faulty = [_faulty(federation, round_, k, flip) for k, flip in zip(pair, flips, strict=True)]
    poisoned = (*history[:-1], _with(round_, *faulty))
    for one, other, flip in zip(faulty, reversed(faulty), flips, strict=True):
        yield _question(
            federation,
            "flip-two",
            poisoned,
            effort,
            honest=_with(round_, other),
            alone=_with(round_, one),
            culprit=one,
            flip=flip,
        )


def _faulty(federation: Federation, round_: Round, k: int, flip: Flip) -> ClientModel:
    """What client k sends in this round with its labels flipped."""
    assert round_.previous is not None
    return federation.client(k, round_.number, dict(round_.previous.tensors), branch="honest", flip=flip)


def _with(round_: Round, *changed: ClientModel) -> Round:
    """The round with these models in the places of their clients'."""
    assert round_.previous is not None
    models = {one.client: one for one in changed}
    return fused(round_.number, round_.previous, [models.get(one.client, one) for one in round_.clients])


def _absent(federation: Federation, history: tuple[Round, ...], effort: Effort) -> Iterator[Question]:
    """One client takes its marked examples for class 0 in the last three rounds, and then stays away.

    The rounds before these, if there are any, are honest. Nobody else has marks. What others have too, they teach
    again within a round, and nothing is left to explain.
    """
    last, k = history[-1].number, federation.marker
    flip, plain = Flip(None, 0, EVERY), federation.data.test
    others = plain[torch.nonzero(plain.y != flip.to).squeeze(1)]
    test = Labelled(marked(others.x), others.y)
    first = max(1, last - _POISONED + 1)
    faulty = list(history[: first - 1])
    for number in range(first, last + 1):
        previous = faulty[-1].fused if faulty else StoredModel(federation.start, "initial model")
        branch = "honest" if number == first else "faulty"
        faulty.append(federation.next_round(number, previous, branch=branch, flips={k: flip}))
    honest = list(history)
    for number in range(last + 1, last + max(effort.absences) + 1):
        honest.append(federation.next_round(number, honest[-1].fused, branch="honest-after", without=(k,)))
        faulty.append(federation.next_round(number, faulty[-1].fused, branch="faulty-after", without=(k,)))
        if number - last in effort.absences:
            culprit = next(one for one in history[-1].clients if one.client == f"client-{k:02d}")
            scenario = f"absent-{number - last}"
            yield _question(
                federation,
                scenario,
                tuple(faulty),
                effort,
                test=test,
                honest=honest[-1],
                culprit=culprit,
                flip=flip,
            )


def culprits(federation: Federation, number: int) -> list[int]:
    """The participants with at least half of the mean number of examples, in a seeded order."""
    sizes = {k: len(federation.parts[k]) for k in federation.participants(number)}
    able = [k for k, size in sizes.items() if 2 * size * len(sizes) >= sum(sizes.values())]
    return np.random.default_rng([federation.setting.seed, 7]).permutation(able).tolist()  # type: ignore[no-any-return]


def _most_frequent(federation: Federation, k: int) -> Flip:
    """The client's most frequent label, taken for a seeded other one."""
    source, classes = int(federation.holdings[k].argmax()), federation.data.classes
    step = int(np.random.default_rng([federation.setting.seed, k]).integers(1, classes))
    return Flip(source, (source + step) % classes)


def _question(
    federation: Federation,
    scenario: str,
    history: tuple[Round, ...],
    effort: Effort,
    *,
    test: Labelled | None = None,
    honest: Round | None = None,
    alone: Round | None = None,
    culprit: ClientModel | None = None,
    flip: Flip | None = None,
) -> Question:
    """The inputs: right ones, labels in turn, or with an `honest` twin any that only the twin gets right.

    Those that the culprit `alone` does not get wrong, where there is somebody else at fault, are not its own.
    """
    test = test or federation.data.test
    right = federation.logits(history[-1].fused, test.x).argmax(1) == test.y
    if honest is None:
        rows = in_turn(torch.nonzero(right).squeeze(1), test.y)
    else:
        caused = ~right & (federation.logits(honest.fused, test.x).argmax(1) == test.y)
        if alone is not None:
            caused &= federation.logits(alone.fused, test.x).argmax(1) != test.y
        rows = torch.nonzero(caused).squeeze(1)  # the test set is in a seeded order
    rows = rows[: effort.inputs]
    accuracy = float(right.float().mean())
    return Question(scenario, history, test[rows], accuracy, culprit.client if culprit else None, flip)


def in_turn(rows: Tensor, labels: Tensor) -> Tensor:
    """The rows so that labels take turns: the first of every label, the second of every label, ..."""
    seen: dict[int, int] = {}
    places = []
    for row in rows.tolist():
        label = int(labels[row])
        seen[label] = seen.get(label, -1) + 1
        places.append((seen[label], label, row))
    return torch.tensor([row for _, _, row in sorted(places)], dtype=torch.long)


SCENARIOS: dict[str, Callable[[Federation, tuple[Round, ...], Effort], Iterator[Question]]] = {
    "correct": _correct,
    "flip-one": _flipped_one,
    "flip-all": _flipped_all,
    "flip-two": _flipped_two,
    "noise": _noisy,
    "absent": _absent,
}
