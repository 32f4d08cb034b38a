"""The ledger: what each client's share did to the target, along the straight path from old to new global.

Aumann-Shapley cost sharing, the path form of integrated gradients: with θ(t) = θ_prev + t(θ_new − θ_prev),

    score_k = ∫₀¹ ⟨∇f(θ(t)), s_k⟩ dt,      Σ_k score_k + server + unexplained = f(θ_new) − f(θ_prev).

The product with the shares is linear, so gradients are averaged over the nodes of the midpoint rule first and
meet the shares once. Nodes are doubled, for each input, until the residual and the largest change of any score
are both at most `tolerance` · Σ|score|: a residual alone is no stopping rule, as errors of clients cancel in it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from flforensics.errors import NotComputableError
from flforensics.gradients import Gradients, Plan, gradients_at, meet, plan, supports
from flforensics.provenance.case import Case, Lines, Scores
from flforensics.provenance.chunks import in_chunks
from flforensics.provenance.directions import Directions, started_from
from flforensics.provenance.logits import class_logits_of
from flforensics.provenance.margins import LINEAR, tamper_margins
from flforensics.provenance.profile import PASSES, PRODUCTS

_FEW = 3
_TOGETHER = (1, 2, 4)
"""The first numbers of nodes, which meet the shares in one walk: most inputs need two of them, many all three."""


@dataclass(frozen=True)
class _Estimate:
    """Scores [N, K + 2] at some number of nodes, and how good they are; `slopes` are the norms ‖Ḡ‖ behind them."""

    scores: Tensor
    slopes: Tensor
    residual: Tensor
    change: Tensor
    nodes: Tensor
    converged: Tensor


def ledger(case: Case) -> Scores:
    """Scores under the straight path between the round's two globals.

    Raises NotComputableError (PREVIOUS, VARIANCE, NON_FINITE, MEMORY) where the path does not exist or leaves the
    model's domain, or one input does not fit in memory.
    """
    case = case.laid_out()
    previous = started_from(case)
    _require_positive_variances(case, previous)
    directions = Directions(case)
    scheme = plan(case.network, case.new, case.call, target=case.target)
    before, after = (class_logits_of(case.network, state, case.call) for state in (previous, case.new))
    start, end = case.target(before).double(), case.target(after).double()
    found = _doubled(_Walker(case, previous, scheme, directions), end - start)
    server, unexplained = found.scores[:, -2], found.scores[:, -1]
    lines = Lines(start, server, unexplained, found.residual, found.nodes, found.converged, found.change, before)
    untraced = dict.fromkeys(scheme.unused, "the prediction does not depend on it")
    scores = Scores(found.scores[:, :-2], lines, untraced)
    if type(case.rule) not in LINEAR:
        return scores
    margins = tamper_margins(scores.clients, slopes=found.slopes, sizes=directions.sizes())
    return replace(scores, tamper_margins=margins)


@dataclass(frozen=True)
class _Walker:
    """Integrates along the path for any of the inputs and any numbers of nodes."""

    case: Case
    previous: Mapping[str, Tensor]
    scheme: Plan
    directions: Directions

    def integrals(self, inputs: Tensor, levels: Sequence[int], *, again: bool) -> list[tuple[Tensor, Tensor]]:
        """∫ ⟨∇f, s⟩ dt by the midpoint rule, [n, K + 2], and the averaged gradient's norm, [n], for each level.

        All levels meet the shares in one walk, for as many inputs at a time as fit in half of the memory.
        """
        case = self.case
        part = replace(case, call=case.call[inputs], target=case.target[inputs])
        held = self.scheme.bytes_held(levels, itemsize=case.settings.dtype.itemsize)
        size = max(1, case.memory // 2 // max(1, self.scheme.passing + held))
        again = again or len(inputs) > size

        def work(some: Case) -> list[tuple[Tensor, Tensor]]:
            return self._met(some, levels, again=again)

        chunks = in_chunks(part, work, size=size)
        return [
            (torch.cat([scores for scores, _ in level]), torch.cat([slopes for _, slopes in level]))
            for level in zip(*chunks, strict=True)
        ]

    def _met(self, case: Case, levels: Sequence[int], *, again: bool) -> list[tuple[Tensor, Tensor]]:
        settings, profile = case.settings, case.settings.profile
        with profile.stage(PASSES):
            sums = [self._sum(case, nodes) for nodes in levels]
        with profile.stage(PRODUCTS):
            found = meet(
                sums,
                self.directions.walk(supports(sums), again=again),
                like=case.target.classes,
                lines=self.directions.lines,
                room=case.memory // 4 // settings.dtype.itemsize,
            )
        return [
            (products / nodes, squares.sqrt() / nodes)
            for (products, squares), nodes in zip(found, levels, strict=True)
        ]

    def _sum(self, case: Case, nodes: int) -> Mapping[str, Gradients]:
        """Σ over the nodes of ∂f_n/∂θ, for each tensor."""
        total: dict[str, Gradients] = {}
        for node in range(nodes):
            t = (node + 0.5) / nodes
            values, found = gradients_at(  # the state has no name here, so that it is gone before the next is made
                case.network, case.between(self.previous, t), case.call, target=case.target, plan=self.scheme
            )
            _require_finite(case, values, t)
            for name in found:
                total[name] = total[name].plus(found[name]) if name in total else found[name]
        return total


def _doubled(walker: _Walker, movement: Tensor) -> _Estimate:
    """Double the nodes until every input has converged, going on only with those that have not, and could."""
    settings, result = walker.case.settings, None
    active = torch.arange(len(movement), device=movement.device)
    groups = list(_groups(walker.case))
    for index, levels in enumerate(groups):
        found = walker.integrals(active, levels, again=index + 1 < len(groups))
        rows = torch.arange(len(active), device=active.device)
        for nodes, (scores, slopes) in zip(levels, found, strict=True):
            at = active[rows]
            before = None if result is None else result.scores[at]
            fresh = _judged(scores[rows], before, movement[at], slopes[rows], nodes, settings.tolerance)
            result = fresh if result is None else _merged(result, fresh, at)
            rows = rows[~fresh.converged & torch.isfinite(fresh.residual)]
        active = active[rows]
        if not len(active):
            break
    assert result is not None
    return result


def _groups(case: Case) -> Iterator[Sequence[int]]:
    """Numbers of nodes that are evaluated together: 1, 2 and 4, then 8, 16, ... alone; or what was asked for."""
    settings = case.settings
    if settings.nodes is not None:
        yield (settings.nodes,)
        return
    yield [nodes for nodes in _TOGETHER if nodes <= settings.max_nodes]
    nodes = 2 * _TOGETHER[-1]
    while nodes <= settings.max_nodes:
        yield (nodes,)
        nodes *= 2


def _judged(
    scores: Tensor, before: Tensor | None, movement: Tensor, slopes: Tensor, nodes: int, tolerance: float
) -> _Estimate:
    residual = movement - scores.sum(1)
    allowed = tolerance * scores.abs().sum(1)
    unknown = torch.full_like(residual, torch.nan)
    change = unknown if before is None else (scores - before).abs().amax(1)
    converged = (residual.abs() <= allowed) & (change <= allowed)
    return _Estimate(scores, slopes, residual, change, torch.full_like(residual, nodes), converged)


def _merged(old: _Estimate, fresh: _Estimate, rows: Tensor) -> _Estimate:
    """`old` with some rows replaced by newer ones."""
    return _Estimate(
        *(getattr(old, one.name).index_copy(0, rows, getattr(fresh, one.name)) for one in fields(_Estimate))
    )


def _require_positive_variances(case: Case, previous: Mapping[str, Tensor]) -> None:
    """The path is straight, so a variance that is positive at both ends is positive between them."""
    for name, module in case.network.named_modules():
        full = f"{name}.running_var"
        if getattr(module, "running_var", None) is None or full not in case.new:
            continue
        for which, state in (("previous", previous), ("new", case.new)):
            bad = ~(state[full] > 0)
            if bad.any():
                raise _not_computable(case, full, bad, f"is not positive in the {which} global", "VARIANCE")


def _require_finite(case: Case, values: Tensor, t: float) -> None:
    if torch.isfinite(values).all():
        return
    for name in case.floating:
        bad = ~torch.isfinite(case.new[name])
        if bad.any():
            raise _not_computable(case, name, bad, "is not finite in the new global", "NON_FINITE")
    raise NotComputableError(
        f"the target of round {case.round.number} is not finite at t = {t:g} of the path between the two globals",
        reason="NON_FINITE",
        hint="use --precise, or a method that needs no path",
    )


def _not_computable(case: Case, name: str, bad: Tensor, what: str, reason: str) -> NotComputableError:
    """The error that names the tensor, and the clients whose shares push it there most."""
    shares = case.rule.shares(case.scene.read(name), case.scene).clients.cpu()
    part = shares[:, bad.cpu()]
    push = part.sum(1) if reason == "VARIANCE" else torch.where(torch.isfinite(part).all(1), 0.0, -torch.inf)
    order = [index for index in push.argsort().tolist() if push[index] < 0][:_FEW]
    names = ", ".join(case.clients[index].client for index in order)
    blame = f" (pushed there by the files labelled {names})" if names else ""
    return NotComputableError(
        f"the ledger of round {case.round.number} is not computable: {name} {what}{blame}",
        reason=reason,
        hint="trace a round in which it is, or use --method tracefl",
    )
