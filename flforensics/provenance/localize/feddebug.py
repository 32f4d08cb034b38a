"""FedDebug's differential testing (Gill, Anwar and Gulzar, ICSE 2023), restated.

Every client's model runs on random inputs. A neuron is an output of a Linear or Conv2d layer, as in the published
code, and is active where that output, after a ReLU, exceeds the threshold (0.003 in the published code). For each
input, the client is accused whose removal leaves the others with the most neurons active in all of them.

That is the client which alone leaves the most neurons inactive: leaving k out adds to the neurons that are
active in everybody exactly those that are inactive in k only. So one pass over the clients is enough, where the
intersections over all leave-one-out subsets take K². The published code accuses the first of equals; here such
an input accuses nobody.

An accusation says that a model differs. Honest clients whose data differ do so too: on the nine honest rounds of
`fixtures/digits`, whose five clients hold skewed labels, the test accuses somebody far beyond chance in each.

Its inputs are Kaiming-uniform noise (`inputs.kaiming_noise`). Above ten clients the published Flower baseline also
keeps only inputs on which at least three clients agree, by a clock; this is not done here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flforensics.errors import NotComputableError
from flforensics.gradients.record import forward
from flforensics.provenance.case import Case

_BATCH = 16
_NOBODY = -1


@dataclass(frozen=True)
class Silences:
    """[N, K]: on input n, how many neurons client k alone leaves inactive."""

    counts: Tensor

    @property
    def accused(self) -> Tensor:
        """The column that each input accuses, [N]; −1 where two clients tie."""
        best, column = self.counts.max(1)
        unique = (self.counts == best[:, None]).sum(1) == 1
        return torch.where(unique, column, _NOBODY)

    @property
    def votes(self) -> Tensor:
        """How many inputs accuse each client, [K]."""
        accused = self.accused
        return torch.bincount(accused[accused != _NOBODY], minlength=self.counts.shape[1])


def feddebug(case: Case, *, threshold: float = 0.003) -> Silences:
    """Run every client's model on the (random) inputs of `case`; its target does not matter. `threshold` >= 0.

    Raises NotComputableError (LAYERS, PREVIOUS).
    """
    layers = {
        name: module for name, module in case.network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)
    }
    parts = torch.split(torch.arange(case.call.count, device=case.target.classes.device), _BATCH)
    missing: list[Tensor | None] = [None] * len(parts)
    which: list[Tensor | None] = [None] * len(parts)
    for k in range(len(case.clients)):
        state = client_state(case, k)
        for index, rows in enumerate(parts):
            inactive = ~_active(case, state, rows, layers, threshold)
            missing[index] = _added(missing[index], inactive.int())
            which[index] = _added(which[index], inactive.int() * k)
        case.progress("clients", k + 1, len(case.clients))
    pairs = zip(missing, which, strict=True)
    return Silences(
        torch.cat([_alone(m, w, len(case.clients)) for m, w in pairs if m is not None and w is not None])
    )


def client_state(case: Case, column: int) -> dict[str, Tensor]:
    """A client's whole model as the network's state; integer buffers are the new global's."""
    state = dict(case.new)
    for name in case.floating:
        tensor = case.scene.read(name)
        stored = tensor.client(column).double()
        if tensor.relative and tensor.previous is None:
            raise NotComputableError(
                f"round {case.round.number} holds updates only and no previous global to add them to",
                reason="PREVIOUS",
                hint="store the model that the round started from",
            )
        full = tensor.previous.double() + stored if tensor.relative and tensor.previous is not None else stored
        state[name] = full.reshape(case.new[name].shape).to(case.settings.device, case.settings.dtype)
    return state


def _active(
    case: Case, state: Mapping[str, Tensor], rows: Tensor, layers: Mapping[str, nn.Module], threshold: float
) -> Tensor:
    """Which neurons are active, [n, neurons]. NaN is not active."""
    outputs: list[Tensor] = []
    handles = [module.register_forward_hook(_keep(outputs, threshold)) for module in layers.values()]
    try:
        with torch.no_grad():
            forward(case.network, state, case.call[rows])
    finally:
        for handle in handles:
            handle.remove()
    if not outputs:
        raise NotComputableError(
            "the network calls no Linear or Conv2d layer, whose outputs feddebug takes for neurons",
            reason="LAYERS",
            hint="use another --method",
        )
    return torch.cat(outputs, 1)


def _keep(outputs: list[Tensor], threshold: float) -> Callable[..., None]:
    def hook(_module: nn.Module, _given: object, output: Tensor) -> None:
        outputs.append((output > threshold).flatten(1))

    return hook


def _added(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total.add_(part)


def _alone(missing: Tensor, which: Tensor, clients: int) -> Tensor:
    """[n, K] from, for each input and neuron, how many clients leave it inactive and the sum of their columns."""
    return torch.stack([((missing == 1) & (which == k)).sum(1) for k in range(clients)], 1)
