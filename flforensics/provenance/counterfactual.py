"""What the round's global would say without a client: its share taken out, or the rule run again without it.

    drop     f(new) − f(new − s_k)
    re-fuse  f(new) − f(the rule on all others, weights renormalised, not rounded)

A drop leaves the others' shares as they are; a re-fusion gives them k's weight too. Neither adds up.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flforensics.errors import EvidenceError, NotComputableError
from flforensics.fusion.rule import Scene, surveyed
from flforensics.provenance.case import Case, Scores, Without
from flforensics.provenance.chunks import in_steps
from flforensics.provenance.directions import client_shares, started_from
from flforensics.provenance.logits import class_logits_of
from flforensics.rounds import ClientModel

_UNDEFINED = ("WEIGHTS", "CLIENTS")


def counterfactual(case: Case) -> Scores:
    """Drop and re-fuse for every input and client; the score is the drop's change of the target.

    Raises NotComputableError (PREVIOUS, NON_FINITE) where no update is known, or a drop has no finite target.
    """
    present = class_logits_of(case.network, case.new, case.call)
    dropped = drops(case, present)
    undefined: dict[str, str] = {}
    refused = _outcomes(case, present, _refusions(case, undefined), offset=len(case.clients))
    size = torch.maximum(case.target(present).double().abs(), dropped.change.abs().amax(1))
    errors = 100 * torch.finfo(present.dtype).eps * size
    warnings = tuple(
        f"there is no fusion without {name}: {undefined.get(name, 'its target is not finite')}"
        for name in _without_answer(case, refused)
    )
    return Scores(dropped.change, None, {}, errors=errors, dropped=dropped, refused=refused, warnings=warnings)


def drops(case: Case, present: Tensor) -> Without:
    """What would be without each client's share; `present` are the logits under the new global, [N, C].

    Raises NotComputableError (PREVIOUS, NON_FINITE).
    """
    dropped = possible_drops(case, present)
    _require_finite(case, dropped)
    return dropped


def possible_drops(case: Case, present: Tensor) -> Without:
    """As `drops`, with NaN where a target without a share is not finite. Raises NotComputableError (PREVIOUS)."""
    started_from(case)
    return _outcomes(case, present, _dropped(case), offset=0)


def _outcomes(
    case: Case, present: Tensor, states: Iterator[Mapping[str, Tensor] | None], *, offset: int
) -> Without:
    """The change of f and the predicted class under each state, one state at a time."""
    value = case.target(present).double()
    changes, classes = [], []
    for index, state in enumerate(states):
        if state is None:
            changes.append(torch.full_like(value, torch.nan))
            classes.append(present.argmax(1))
        else:
            logits = class_logits_of(case.network, {**case.new, **state}, case.call)
            changes.append(value - case.target(logits).double())
            classes.append(logits.argmax(1))
        case.progress("counterfactuals", offset + index + 1, 2 * len(case.clients))
    return Without(torch.stack(changes, 1), torch.stack(classes, 1))


def _dropped(case: Case) -> Iterator[Mapping[str, Tensor]]:
    """new − s_k for every client; the shares are read for as many clients at once as fit in the budget."""
    size = max(1, case.parameters * case.settings.dtype.itemsize)
    step = max(1, case.memory // 2 // size)
    for block in in_steps(len(case.clients), step):
        shares = {name: client_shares(case, name, block) for name in case.floating}
        for row in range(block.stop - block.start):
            yield {name: case.new[name] - shares[name][row] for name in case.floating}


def _refusions(case: Case, undefined: dict[str, str]) -> Iterator[Mapping[str, Tensor] | None]:
    """The rule's value on all other clients, for every client; None, and the reason, where it has none."""
    for client, position in zip(case.clients, case.scene.positions, strict=True):
        others = [one for index, one in enumerate(case.round.clients) if index != position]
        scene = _scene(case, others)
        if isinstance(scene, Scene):
            yield {name: _fused(case, scene, name) for name in case.floating}
        else:
            undefined[client.client] = scene
            yield None


def _scene(case: Case, clients: Sequence[ClientModel]) -> Scene | str:
    """The round without somebody as its rule sees it, or why the rule cannot run."""
    try:
        scene = surveyed(case.rule, replace(case.round, clients=tuple(clients)), earlier=case.earlier)
    except EvidenceError as error:
        if error.reason not in _UNDEFINED:
            raise
        return error.message
    return scene if scene.positions else "nobody else took part"


def _fused(case: Case, scene: Scene, name: str) -> Tensor:
    """previous + Σ clients + server, which is the rule's value before the server rounds it."""
    terms = scene.read(name)
    assert terms.previous is not None
    shares = case.rule.shares(terms, scene)
    value = terms.previous.double() + shares.clients.sum(0) + shares.server
    return value.to(case.settings.device, case.settings.dtype)


def _without_answer(case: Case, outcomes: Without) -> list[str]:
    """The clients without whom some target is not a finite number."""
    bad = (~torch.isfinite(outcomes.change)).any(0).tolist()
    return [client.client for client, one in zip(case.clients, bad, strict=True) if one]


def _require_finite(case: Case, dropped: Without) -> None:
    names = ", ".join(_without_answer(case, dropped))
    if names:
        raise NotComputableError(
            f"the target of round {case.round.number} is not finite without the shares of {names}",
            reason="NON_FINITE",
            hint="use --method tracefl, or trace a round whose files hold finite numbers",
        )
