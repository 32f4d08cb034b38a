"""Servers that give the clients' mean update to an optimizer, whose state they keep from round to round.

With Δ = Σ p_k x_k − x, on every tensor, buffers included, as Flower computes them (both APIs, 1.41):

    m ← β m + φ Δ        v ← rule(v, Δ)        x ← x + η m / (√v + τ)

FedAvgM, below, has φ = 1 and no divisor; the rules in `adaptive` have φ = 1 − β. The state starts before the first
round and is rebuilt from there; FedAvgM's momentum can also be read from the two globals before. Bounds come from
running error analysis of these formulas, whichever way the mean was computed. A stored global counts as rounded:
with numpy 2, Flower's FedAdam holds float64 and hands out float64, which many clients save as float32.

Shares: the divisor is held at its realised value, so s_k = η φ p_k Δ_k / (√v + τ), and `server` is what the old
momentum adds. That adds up; it is not what would have happened without the client.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from flforensics.errors import EvidenceError
from flforensics.fusion.computed import Computation, Computed
from flforensics.fusion.folding import comparison, folds, held, mean_of, model_offset, update, update_offset
from flforensics.fusion.history import known_from_the_first, require_previous
from flforensics.fusion.mean import WeightedMean
from flforensics.fusion.parameters import require_fraction, require_positive
from flforensics.fusion.rounding import Arithmetic, arithmetics
from flforensics.fusion.rule import Coefficients, Comparison, Scene, Shares
from flforensics.rounds import RoundTensor

_EXACT = Arithmetic(torch.float64)


@dataclass(frozen=True)
class State:
    """What the server remembers of one tensor after some rounds: m, v, and how many rounds."""

    momentum: Computed
    second: Computed
    rounds: int = 0


class Optimizer(WeightedMean, ABC):
    """A weighted mean whose change goes through an optimizer."""

    needs_history = True

    @property
    @abstractmethod
    def decay(self) -> float:
        """β, what is kept of the momentum."""

    @property
    @abstractmethod
    def fresh(self) -> float:
        """φ, how much of Δ enters the momentum."""

    @abstractmethod
    def rate(self, rounds: int) -> Computed:
        """η in the given round, counted from 1, as a 0-d value."""

    @abstractmethod
    def start(self, server: Computation, zeros: Computed) -> Computed:
        """v before the first round."""

    @abstractmethod
    def second(self, server: Computation, second: Computed, change: Computed) -> Computed:
        """v after a round that changed the tensor by Δ."""

    @abstractmethod
    def divisor(self, server: Computation, state: State) -> Computed | None:
        """√v + τ, or None where the step is not divided."""

    def memories(
        self, terms: RoundTensor, scene: Scene, servers: Sequence[Arithmetic]
    ) -> Iterator[tuple[str, list[State]]]:
        """Every way to know the server's state before this round: its name, and the state in each arithmetic."""
        yield "rebuilt", self.rebuilt(terms, scene, servers)

    def compare(self, terms: RoundTensor, scene: Scene) -> Iterator[Comparison]:
        """The stored tensor against the step from every state that the server may have been in.

        Raises EvidenceError (HISTORY) where no state can be known.
        """
        for compared, _ in self._attempts(terms, scene):
            yield compared

    def factors(self, terms: RoundTensor, scene: Scene) -> None:
        """The server adds its momentum, and may scale every coordinate by itself."""

    def shares(self, terms: RoundTensor, scene: Scene) -> Shares:
        """s_k = η φ p_k Δ_k / (√v + τ), and what the old momentum adds as the server's part.

        Raises EvidenceError (HISTORY) where no state can be known.
        """
        previous = require_previous(terms, scene).double()
        before, server = self._likely(terms, scene), Computation(torch.float64)
        change = _Changes(terms, scene.coefficients).under(_EXACT)
        after = self._advanced(server, before, change)
        divisor = self.divisor(server, after)
        gain = self.rate(after.rounds).value / (1.0 if divisor is None else divisor.value)
        clients = torch.stack(
            [
                gain * (self.fresh * coefficient * update(terms, index, previous))
                for index, coefficient in enumerate(scene.coefficients.values)
            ]
        )
        own = gain * (self.decay * before.momentum.value)
        return Shares(clients, own, terms.fused.double() - previous - own - clients.sum(0))

    def rebuilt(self, terms: RoundTensor, scene: Scene, servers: Sequence[Arithmetic]) -> list[State]:
        """The state from all the rounds before. Raises EvidenceError (HISTORY) where they are not all there."""
        history = known_from_the_first(scene)
        states = [self.initial(terms, arithmetic) for arithmetic in servers]
        for earlier in history:
            past = earlier.read(terms.name)
            require_previous(past, earlier)
            changes = _Changes(past, earlier.coefficients)
            states = [
                self._advanced(Computation(arithmetic.dtype), state, changes.under(arithmetic))
                for arithmetic, state in zip(servers, states, strict=True)
            ]
        return states

    def initial(self, terms: RoundTensor, arithmetic: Arithmetic) -> State:
        """The state before the first round."""
        values = torch.zeros(terms.fused.shape, dtype=torch.float64, device=terms.fused.device)
        zeros = Computed(values, values)
        return State(zeros, self.start(Computation(arithmetic.dtype), zeros))

    def _attempts(self, terms: RoundTensor, scene: Scene) -> Iterator[tuple[Comparison, State]]:
        """Each comparison with the state that it starts from."""
        previous = require_previous(terms, scene)
        changes = _Changes(terms, scene.coefficients)
        servers = arithmetics(changes.dtypes | {terms.fused.dtype})
        for form, states in self.memories(terms, scene, servers):
            for arithmetic, state in zip(servers, states, strict=True):
                server = Computation(arithmetic.dtype)
                step = self._step(server, self._advanced(server, state, changes.under(arithmetic)))
                new = server.add(held(previous, arithmetic), step)
                yield comparison(form, arithmetic, terms, new), state

    def _likely(self, terms: RoundTensor, scene: Scene) -> State:
        """The first state that explains the stored tensor, or else the first of all."""
        first: State | None = None
        for compared, state in self._attempts(terms, scene):
            if compared.worst_ratio <= 1:
                return state
            first = first or state
        assert first is not None
        return first

    def _advanced(self, server: Computation, state: State, change: Computed) -> State:
        """The state after one more round."""
        momentum = server.add(server.scale(state.momentum, self.decay), server.scale(change, self.fresh))
        return State(momentum, self.second(server, state.second, change), state.rounds + 1)

    def _step(self, server: Computation, state: State) -> Computed:
        """What is added to the previous global."""
        step = server.multiply(state.momentum, server.scale(self.rate(state.rounds), 1.0))
        divisor = self.divisor(server, state)
        return step if divisor is None else server.divide(step, divisor)


@dataclass(frozen=True)
class FedAvgM(Optimizer):
    """m ← μ m + Δ, x ← x + η m, the first m being Δ (Flower; Hsu et al., arXiv:1909.06335).

    Without momentum there is no state. With it, m is known from the two globals before, (x − x_before) / η, or
    rebuilt from the first round on.
    """

    learning_rate: float = 1.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        require_positive(learning_rate=self.learning_rate)
        require_fraction(momentum=self.momentum)

    @property
    def decay(self) -> float:
        """μ."""
        return self.momentum

    @property
    def fresh(self) -> float:
        """Δ enters as it is."""
        return 1.0

    def rate(self, rounds: int) -> Computed:
        """The same η in every round."""
        return constant(self.learning_rate)

    def start(self, server: Computation, zeros: Computed) -> Computed:
        """There is no v."""
        return zeros

    def second(self, server: Computation, second: Computed, change: Computed) -> Computed:
        """There is no v."""
        return second

    def divisor(self, server: Computation, state: State) -> None:
        """The step is not divided."""

    def memories(
        self, terms: RoundTensor, scene: Scene, servers: Sequence[Arithmetic]
    ) -> Iterator[tuple[str, list[State]]]:
        """The momentum from the two globals before, which costs no client, then from all rounds."""
        if self.momentum == 0:
            yield "rebuilt", [self.initial(terms, arithmetic) for arithmetic in servers]
            return
        consecutive = self._consecutive(terms, scene, servers)
        if consecutive is not None:
            yield "consecutive", consecutive
        try:
            rebuilt = self.rebuilt(terms, scene, servers)
        except EvidenceError as error:
            if consecutive is None or error.reason != "HISTORY":
                raise
            return
        yield "rebuilt", rebuilt

    def _consecutive(self, terms: RoundTensor, scene: Scene, servers: Sequence[Arithmetic]) -> list[State] | None:
        """m = (x − x_before) / η, where both globals are there."""
        if not scene.earlier or scene.earlier[-1].number != scene.number - 1:
            return None
        before = scene.earlier[-1].read(terms.name).previous
        if before is None or terms.previous is None:
            return None
        states = []
        for arithmetic in servers:
            server, zeros = Computation(arithmetic.dtype), self.initial(terms, arithmetic)
            reached = server.add(held(terms.previous, arithmetic), zeros.momentum)
            moved = server.scale(server.subtract(reached, held(before, arithmetic)), 1.0)
            momentum = server.divide(moved, constant(self.learning_rate))
            states.append(State(momentum, zeros.second))
        return states


class _Changes:
    """Δ of one tensor, its clients read once, under any arithmetic."""

    def __init__(self, terms: RoundTensor, coefficients: Coefficients) -> None:
        offsets = [model_offset(terms), update_offset(terms)]
        self._models, self._updates = folds(terms, coefficients, offsets)
        self._terms = terms
        self.dtypes = self._models.dtypes

    def under(self, arithmetic: Arithmetic) -> Computed:
        """Σ p_k x_k − x as a server computing so may have found it."""
        assert self._terms.previous is not None
        mean = mean_of(self._terms, self._models, self._updates, arithmetic)
        return Computation(arithmetic.dtype).subtract(mean, held(self._terms.previous, arithmetic))


def constant(value: float) -> Computed:
    """A number that both the server and we take as it is."""
    return Computed(torch.tensor(value, dtype=torch.float64), torch.zeros((), dtype=torch.float64))
