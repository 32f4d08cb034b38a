"""Shapley values of the clients, or of groups of them: what each adds on average, whoever came before.

    v(S) = f(θ_prev + s_server + s_unexplained + Σ_{k∈S} s_k)

Up to 12 players every coalition is evaluated; beyond that permutations are sampled. What the server and the
unexplained part do before anybody comes has lines of its own, so that everything adds up to f(θ_new).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flforensics.errors import NotComputableError, UsageError
from flforensics.provenance.case import Case, Lines, Player, Scores
from flforensics.provenance.directions import Directions, started_from
from flforensics.provenance.games import Ends, Sampled, enumerated, sampled
from flforensics.provenance.logits import class_logits_of

EXACT = 12
"""The most players whose coalitions are all evaluated."""

_STEPS = 64


@dataclass
class _Mixture:
    """The state θ_prev + the chosen lines of a round, moved from one choice to the next.

    A choice is an integer, one bit for each line of `Directions`. The state is moved in place by the lines that
    differ, and made anew where that is less work or after 64 moves, so that rounding errors do not add up.
    """

    case: Case
    directions: Directions
    state: dict[str, Tensor] = field(default_factory=dict)
    chosen: int = 0
    moved: int = _STEPS + 1

    def at(self, choice: int) -> Mapping[str, Tensor]:
        """The state at `choice`; it is overwritten by the next call."""
        changed = self.chosen ^ choice
        if self.moved + changed.bit_count() > _STEPS or changed.bit_count() > choice.bit_count():
            previous = started_from(self.case)
            copies = {
                name: previous[name].clone(memory_format=torch.contiguous_format) for name in self.case.floating
            }
            self.state, self.chosen, self.moved = {**self.case.new, **copies}, 0, 0
        else:
            self.moved += changed.bit_count()
        self._move_to(choice)
        return self.state

    def _move_to(self, choice: int) -> None:
        changed = self.chosen ^ choice
        lines = [line for line in range(changed.bit_length()) if changed >> line & 1]
        for name in self.case.floating if lines else ():
            tensor, rows = self.state[name].view(-1), self.directions[name]
            for line in lines:
                tensor.add_(rows[line], alpha=1 if choice >> line & 1 else -1)
        self.chosen = choice


@dataclass(frozen=True)
class _ClientGame:
    """v: from a coalition of players to f, with the server's and the unexplained line always present."""

    case: Case
    players: tuple[Player, ...]
    mixture: _Mixture

    def __call__(self, coalition: int, rows: Tensor) -> Tensor:
        """v(coalition) for some inputs, [n]."""
        joined = [player for k, player in enumerate(self.players) if coalition >> k & 1]
        clients = len(self.case.clients)
        return self.value([*(member for one in joined for member in one.members), clients, clients + 1], rows)

    def value(self, lines: list[int], rows: Tensor) -> Tensor:
        """f at θ_prev + these lines. Raises NotComputableError (NON_FINITE)."""
        state = self.mixture.at(sum(1 << line for line in lines))
        logits = class_logits_of(self.case.network, state, self.case.call[rows])
        value = self.case.target[rows](logits).double()
        if not torch.isfinite(value).all():
            names = [client.client for k, client in enumerate(self.case.clients) if k in lines]
            raise NotComputableError(
                f"the target of round {self.case.round.number} is not finite with the shares of"
                f" {', '.join(names) or 'nobody'} alone",
                reason="NON_FINITE",
                hint="use --method tracefl, or trace a round whose files hold finite numbers",
            )
        return value


def shapley(case: Case) -> Scores:
    """Shapley values of every player, exact or with 95 % intervals. A lead counts if it exceeds two half-widths.

    Raises NotComputableError (PREVIOUS, NON_FINITE) where the game does not exist, UsageError for groups that are
    none.
    """
    players = grouped(case, case.settings.groups)
    game = _ClientGame(case, players, _Mixture(case, Directions(case)))
    rows, server = torch.arange(case.call.count, device=case.target.classes.device), len(case.clients)
    previous, served, nobody = game.value([], rows), game.value([server], rows), game(0, rows)
    everybody = case.target(class_logits_of(case.network, case.new, case.call)).double()
    other_movement = (served - previous).abs() + (nobody - served).abs()
    found = _played(case, game, Ends(nobody, everybody), other_movement=other_movement)
    size = torch.maximum(everybody.abs(), found.scores.abs().amax(1))
    rounding = 100 * torch.finfo(case.settings.dtype).eps * size
    exact = len(players) <= EXACT
    none, unknown = torch.zeros_like(size), torch.full_like(size, torch.nan)
    converged = None if exact else found.converged
    return Scores(
        found.scores,
        Lines(previous, served - previous, nobody - served, none, None, converged, unknown),
        {},
        players=players,
        errors=torch.maximum(rounding, 2 * found.half_widths.amax(1)),
        half_widths=None if exact else found.half_widths,
        permutations=None if exact else found.permutations,
    )


def _played(case: Case, game: _ClientGame, ends: Ends, *, other_movement: Tensor) -> Sampled:
    """All coalitions of a few players, or a sample."""
    players, settings = len(game.players), case.settings
    if players > EXACT:
        return sampled(
            game,
            players,
            ends=ends,
            tolerance=settings.tolerance,
            other_movement=other_movement,
            limit=settings.max_permutations,
            seed=settings.seed,
            progress=case.progress,
        )
    scores = enumerated(game, players, ends=ends, progress=case.progress)
    none = torch.zeros_like(ends.nobody)
    return Sampled(scores, torch.zeros_like(scores), none, none == 0)


def grouped(case: Case, groups: tuple[str, ...]) -> tuple[Player, ...]:
    """The players: the groups NAME=CLIENT,CLIENT,... as given, then every other client alone.

    Raises UsageError naming what is no group, no client of the round, or in two groups.
    """
    free = {client.client: k for k, client in enumerate(case.clients)}
    players = [_group(case, text, free) for text in groups]
    players += [Player(name, (place,)) for name, place in free.items()]
    names = [player.name for player in players]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"--group: there are two players named {twice}", hint="give groups names of their own")
    return tuple(players)


def _group(case: Case, text: str, free: dict[str, int]) -> Player:
    """The group that the text describes; its members are no longer free."""
    name, _, members = text.partition("=")
    if not (name and members):
        raise UsageError(f"--group {text} is no group", hint="write NAME=CLIENT,CLIENT,...")
    known = [client.client for client in case.clients]
    places = []
    for member in members.split(","):
        if member not in free:
            problem = "is named twice" if member in known else f"did not take part in round {case.round.number}"
            raise UsageError(f"--group {text}: {member} {problem}", hint=f"clients are {', '.join(known)}")
        places.append(free.pop(member))
    return Player(name, tuple(places))
