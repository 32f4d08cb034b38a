"""How small an edit was found that overturns a ranking and still replays: an upper bound, for any method.

Under a mean, client files may be edited by any δ_k with Σ p_kδ_k = 0. All edits here lie along one direction û,
the gradient of the scores: e_k = p_kδ_k = τ·c_k·û, where the top client a is pushed down and a rival b up as far
as |c_k| ≤ S_k = p_k‖Δ_k‖ allows, and the others take up the difference:

    −c_a = min(S_a, S_b + R),  c_b = min(S_b, S_a + R),  c_j = −(c_a + c_b)·S_j / R,  R = Σ_others S.

To first order b gains ‖G‖(f_b c_b − f_a c_a) on a for each unit of τ, which says where to start. Nothing is
believed: the method itself runs again on the edited files, in the type that they are stored in, and only an
edit after which another client is first is reported. TraceFL is linear in the files of affine layers, so that its
first edit suffices; for the others sizes are raised until one does, and bisected.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from flforensics.errors import NotComputableError
from flforensics.fusion.rule import surveyed
from flforensics.gradients import Plan, plan, record, sample_gradients
from flforensics.gradients.layers import rule_of
from flforensics.provenance.case import Case, Player, Scores
from flforensics.provenance.counterfactual import drops
from flforensics.provenance.logits import class_logits_of
from flforensics.provenance.margins import LINEAR
from flforensics.provenance.shapley import shapley
from flforensics.provenance.slopes import averaged_gradient
from flforensics.provenance.tracefl import layer_factors, traced_layers, tracefl
from flforensics.results import InputTrace, no_progress
from flforensics.rounds import Checkpoint, ClientModel, Round, StoredModel

_TRIES = 12
_STEP = 1.001
_GROWTH = 1.1
_LARGEST = 10.0
_CLOSE = 0.05
_NODES = 4


@dataclass(frozen=True)
class _Slope:
    """To first order, player k's score moves by factors[k]·⟨gradient, e_k⟩ when its file is edited by e_k/p_k."""

    gradient: Mapping[str, Tensor]
    factors: Tensor

    @cached_property
    def size(self) -> float:
        """‖G‖."""
        return math.sqrt(sum(float(one.double().square().sum()) for one in self.gradient.values()))


@dataclass(frozen=True)
class _Search:
    """One method: how its scores move for one input, what they are, and whether they are linear in the edits."""

    slope: Callable[[Case, Tensor, Plan], _Slope]
    scores: Callable[[Case], Tensor]
    linear: bool


@dataclass(frozen=True, eq=False)
class _EditedTensors(Mapping[str, "Tensor"]):
    """A stored model plus factor·û, in the types that it is stored in."""

    stored: Checkpoint
    direction: Mapping[str, Tensor]
    factor: float

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.stored[name]
        if name not in self.direction:
            return tensor
        edit = self.factor * self.direction[name].to(tensor.device).double()
        return (tensor.double() + edit).to(tensor.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


@dataclass(frozen=True)
class Edit:
    """δ_k = steps[k]·û for every client of a case, where `direction` is û by tensors and has length 1.

    `size` is max_k ‖δ_k‖/‖Δ_k‖.
    """

    size: float
    direction: Mapping[str, Tensor]
    steps: tuple[float, ...]

    def applied(self, case: Case) -> Case:
        """The case with the edited files; the globals are not touched."""
        clients = list(case.round.clients)
        for position, step in zip(case.scene.positions, self.steps, strict=True):
            clients[position] = self._client(clients[position], step, case.round)
        round_ = replace(case.round, clients=tuple(clients))
        return replace(case, round=round_, scene=surveyed(case.rule, round_, earlier=case.earlier))

    def scaled(self, size: float) -> "Edit":
        """The edit along the same line with another size."""
        factor = size / self.size
        return Edit(size, self.direction, tuple(factor * step for step in self.steps))

    def _client(self, client: ClientModel, step: float, round_: Round) -> ClientModel:
        assert client.model is not None
        factor = -step if round_.values == "negative-delta" else step
        edited = _EditedTensors(client.model.tensors, self.direction, factor)
        return replace(client, model=StoredModel(edited, client.model.source))


def with_tamper_bounds(case: Case, scores: Scores, inputs: Sequence[InputTrace]) -> tuple[InputTrace, ...]:
    """The answers that name a client with the size of an edit that was found, where `settings.tamper` asks."""
    if not case.settings.tamper or case.settings.method not in SEARCHES or unsearched(case, scores):
        return tuple(inputs)
    named = [one.responsible.kind == "client" for one in inputs]
    edits = tamper_edits(case, scores, named)
    return tuple(
        replace(one, tamper_bound=None if edit is None else edit.size)
        for one, edit in zip(inputs, edits, strict=True)
    )


def tamper_edits(case: Case, scores: Scores, wanted: Sequence[bool]) -> list[Edit | None]:
    """For each input that is wanted an edit after which another player is first; None where none was found."""
    finder = _Finder(case, SEARCHES[case.settings.method], _players(case, scores))
    found = []
    for index, asked in enumerate(wanted):
        found.append(finder.edit(index, scores.clients[index]) if asked else None)
        case.progress("edits", index + 1, len(wanted))
    return found


def unsearched(case: Case, scores: Scores) -> list[str]:
    """Why no edit can be searched for, where one was asked for."""
    settings = case.settings
    if not settings.tamper or settings.method not in SEARCHES:
        return []
    if type(case.rule) not in LINEAR:
        return ["no edit was searched for: under this rule the shares depend on who else took part"]
    if case.previous is None:
        return ["no edit was searched for: without a previous global no update is known to compare it with"]
    if scores.permutations is not None:
        return [
            "no edit was searched for: the scores are sampled, so that an edit's effect is not told from chance"
        ]
    return []


@dataclass(frozen=True)
class _Finder:
    """Edits of one round's files, input by input."""

    case: Case
    search: _Search
    players: tuple[Player, ...]

    def edit(self, index: int, scores: Tensor) -> Edit | None:
        """An edit after which another player is first for this input; None if none was found."""
        rows = slice(index, index + 1)
        case = self.case
        one = replace(case, call=case.call[rows], target=case.target[rows], progress=no_progress)
        slope, top = self.search.slope(one, scores, self._scheme), int(scores.argmax())
        start, moves = self._nearest(slope, scores.double().cpu(), top)
        if not math.isfinite(start):
            return None
        weights = torch.tensor(case.scene.coefficients.values, dtype=torch.float64)
        direction = {name: tensor[0] / slope.size for name, tensor in slope.gradient.items()}
        unit = Edit(1.0, direction, tuple((moves / weights).nan_to_num(nan=0.0).tolist()))

        def overturns(size: float) -> bool:
            try:
                return int(self.search.scores(unit.scaled(size).applied(one))[0].argmax()) != top
            except NotComputableError:
                return False

        size = _smallest(overturns, _STEP * start, once=self.search.linear)
        return None if size is None else unit.scaled(size)

    def _nearest(self, slope: _Slope, scores: Tensor, top: int) -> tuple[float, Tensor]:
        """The first-order size at which some rival comes first, and the edit [K] of size 1 for the nearest one."""
        best, edit = math.inf, torch.zeros(len(self.case.clients), dtype=torch.float64)
        for rival in range(len(self.players)):
            moves = self._moves(top, rival)
            gain = slope.size * float(slope.factors[rival] * moves[rival] - slope.factors[top] * moves[top])
            if rival != top and gain > 0 and float(scores[top] - scores[rival]) / gain < best:
                best, edit = float(scores[top] - scores[rival]) / gain, self._of_clients(moves)
        return best, edit

    def _moves(self, top: int, rival: int) -> Tensor:
        """c for every player, [P]."""
        room = self._room
        others = room.clone()
        others[[top, rival]] = 0.0
        rest = others.sum()
        moves = torch.zeros_like(room)
        moves[top] = -torch.minimum(room[top], room[rival] + rest)
        moves[rival] = torch.minimum(room[rival], room[top] + rest)
        return moves - moves.sum() * others / rest if rest > 0 else moves

    def _of_clients(self, moves: Tensor) -> Tensor:
        """A group's move, divided among its members by their S."""
        edit = torch.zeros_like(self._sizes)
        for player, move, room in zip(self.players, moves, self._room, strict=True):
            members = list(player.members)
            edit[members] = self._sizes[members] * (move / room if room > 0 else 0.0)
        return edit

    @cached_property
    def _room(self) -> Tensor:
        """S of every player, [P]: the sum of its members'."""
        return torch.stack([self._sizes[list(player.members)].sum() for player in self.players])

    @cached_property
    def _sizes(self) -> Tensor:
        """S_k = ‖s_k‖ = p_k‖Δ_k‖ of every client, [K] float64."""
        case, squares = self.case, torch.zeros(len(self.case.clients), dtype=torch.float64)
        for name in case.floating:
            shares = case.rule.shares(case.scene.read(name), case.scene).clients
            squares += shares.flatten(1).square().sum(1).cpu() if shares.dim() > 1 else shares.square().cpu()
        return squares.sqrt()

    @cached_property
    def _scheme(self) -> Plan:
        return plan(self.case.network, self.case.new, self.case.call, target=self.case.target)


def _smallest(overturns: Callable[[float], bool], start: float, *, once: bool) -> float | None:
    """The smallest size seen to overturn: from `start` up in growing steps until one does, then bisected to 5 %.

    At most 12 sizes are tried, and none above 10; with `once` the first that overturns will do.
    """
    low, high, size, growth = 0.0, math.inf, start, _GROWTH
    for _ in range(_TRIES):
        if size > _LARGEST:
            break
        if overturns(size):
            high = size
        else:
            low = size
        if high < math.inf and (once or high - low <= _CLOSE * high):
            break
        if high < math.inf:
            size = (low + high) / 2
        else:
            size, growth = growth * size, growth**2
    return high if high < math.inf else None


def _players(case: Case, scores: Scores) -> tuple[Player, ...]:
    """What the columns of the scores are."""
    return scores.players or tuple(Player(client.client, (k,)) for k, client in enumerate(case.clients))


def _tracefl_slope(case: Case, scores: Tensor, scheme: Plan) -> _Slope:
    """T_k + c_k⟨G, δ_k⟩ with G = β^(L−1−l) ∂f/∂θ on the affine layers; the new global does not change."""
    layers = traced_layers(case.network)
    _, taps = record(case.network, case.new, case.call, target=case.target, layers=layers)
    factors = layer_factors(taps, decay=case.settings.layer_decay)
    found = sample_gradients(case.network, case.new, case.call, target=case.target, plan=scheme).tensors
    gradient = {
        name: factors[layer] * tensor
        for name, tensor in found.items()
        if (layer := name.rpartition(".")[0]) in factors and rule_of(layers[layer]) is not None
    }
    weights = torch.tensor(case.scene.coefficients.values, dtype=torch.float64)
    return _Slope(gradient, torch.ones_like(weights) if case.settings.scale_clients else 1 / weights)


def _drop_slope(case: Case, scores: Tensor, scheme: Plan) -> _Slope:
    """∂(f(new) − f(new − s_k))/∂s_k, averaged over the first two clients."""
    pair = scores.topk(min(2, len(scores))).indices.tolist()
    total: dict[str, Tensor] = {}
    for column in pair:
        state = {**case.new, **{name: case.new[name] - _share(case, name, column) for name in case.floating}}
        found = sample_gradients(case.network, state, case.call, target=case.target, plan=scheme).tensors
        for name, gradient in found.items():
            total[name] = total[name] + gradient / len(pair) if name in total else gradient / len(pair)
    return _Slope(total, torch.ones(len(scores), dtype=torch.float64))


def _share(case: Case, name: str, column: int) -> Tensor:
    share = case.rule.shares(case.scene.read(name), case.scene).clients[column]
    return share.to(case.settings.device, case.settings.dtype)


def _path_slope(case: Case, scores: Tensor, scheme: Plan) -> _Slope:
    """The ledger's averaged gradient: the fluid limit of the Shapley values' own."""
    gradient = averaged_gradient(case, nodes=_NODES, scheme=scheme)
    return _Slope(gradient, torch.ones(len(scores), dtype=torch.float64))


def _drop_scores(case: Case) -> Tensor:
    return drops(case, class_logits_of(case.network, case.new, case.call)).change


SEARCHES: Mapping[str, _Search] = {
    "tracefl": _Search(_tracefl_slope, lambda case: tracefl(case).clients, linear=True),
    "counterfactual": _Search(_drop_slope, _drop_scores, linear=False),
    "shapley": _Search(_path_slope, lambda case: shapley(case).clients, linear=False),
}
"""The methods that have no closed form."""
