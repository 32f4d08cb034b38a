"""The two-axis influence test after FLForensics (Jia, Fang, Liu, Zhang and Gong, NeurIPS 2025), for one round.

The influence of client k's update on an input x that the model takes for class c, and on noise z with that class:

    s_k  = 1/K ⟨−∇ℓ(θ_prev; x, c), Δ_k/‖Δ_k‖⟩,      s'_k = 1/K ⟨−∇ℓ(θ_prev; z, c), Δ_k/‖Δ_k‖⟩

with ℓ the cross-entropy and θ the trainable parameters. (Published: gradients g = −Δ/η and a factor η, summed over
check-points of training; here one round, and η, which an archive does not hold, is left out.) A poisoned update
raises the wrong class on x, s > 0. So does an honest one whose data hold that class; but that one raises it on
noise too. The published rule clusters the clients by both axes (HDBSCAN, clusters of at least 7), suspects the
clusters with s > 0 that hold fewer than half of the clients, and of several accuses those whose s'/s is at most
the suspects' mean; the verdict must be the same for all of five noise inputs.

The clustering is not done here: it cannot accuse anybody among fewer than 15 clients. Each client is its own
cluster, and so `flags` counts the noise inputs under which it is on the suspects' side of that mean.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flforensics.gradients import Call
from flforensics.gradients.record import forward
from flforensics.models import class_logits
from flforensics.provenance.case import Case
from flforensics.provenance.chunks import in_chunks
from flforensics.provenance.directions import started_from
from flforensics.provenance.localize.finite import require_finite
from flforensics.provenance.targets import ClassTarget

NOISE_INPUTS = 5
"""How many noise inputs the published code takes."""


@dataclass(frozen=True)
class Influences:
    """`target` [N, K]: s for every input; `noise` [M, K]: s' for every noise input, over the inputs' classes."""

    target: Tensor
    noise: Tensor

    @property
    def flags(self) -> Tensor:
        """Under how many of the M noise inputs s > 0 and s'/s is at most the mean over all with s > 0, [K]."""
        mean = self.target.mean(0)
        positive = mean > 0
        line = self.noise[:, positive].mean(1) / mean[positive].mean()
        return ((self.noise <= line[:, None] * mean) & positive).sum(0)

    @property
    def order(self) -> list[int]:
        """Columns: those on the suspects' side for every noise input first, then by s."""
        sure, mean = self.flags == len(self.noise), self.target.mean(0)
        return sorted(range(len(mean)), key=lambda k: (not sure[k], -float(mean[k])))


def influence(case: Case, noise: Call) -> Influences:
    """Both axes for every input of `case` (its target's classes) and every input of `noise`; float64.

    Raises NotComputableError (PREVIOUS, NON_FINITE).
    """
    updates = _Updates(case, _lengths(case))
    target = _influences(case, updates)
    classes, counts = torch.unique(case.target.classes, return_counts=True)
    others = [
        _influences(replace(case, call=noise, target=ClassTarget("logprob", label, label)), updates)
        for label in classes[:, None].expand(-1, noise.count)
    ]
    weights = counts / counts.sum()
    return Influences(target, torch.einsum("c,cmk->mk", weights.double(), torch.stack(others)))


@dataclass(frozen=True)
class _Updates:
    """Δ_k/‖Δ_k‖ over the parameters, one tensor of all clients at a time; 0 for a client that changed nothing."""

    case: Case
    lengths: Tensor

    def __getitem__(self, name: str) -> Tensor:
        """[K, values] in the type of the computation."""
        settings = self.case.settings
        return (_update(self.case, name) / self.lengths[:, None]).to(settings.device, settings.dtype)


def _influences(case: Case, updates: _Updates) -> Tensor:
    """1/K ⟨∇ log p(class), Δ_k/‖Δ_k‖⟩ under the previous global for every input of `case`, [N, K]."""
    written_out = 2 * case.settings.dtype.itemsize * max(1, case.parameters)

    def met(some: Case) -> Tensor:
        gradients = [_gradient(some, row) for row in range(some.call.count)]
        total = torch.zeros(len(gradients), len(case.clients), dtype=torch.float64, device=case.settings.device)
        for name in gradients[0]:
            total += (torch.stack([one[name].flatten() for one in gradients]) @ updates[name].T).double()
        return total / len(case.clients)

    return torch.cat(in_chunks(case, met, size=max(1, case.memory // written_out)))


def _gradient(case: Case, row: int) -> dict[str, Tensor]:
    """∇ log p(class) of one input, for every parameter. One at a time: no layer has to be known for that."""
    previous = started_from(case)
    leaves = {name: previous[name].clone().requires_grad_() for name in _trainable(case)}
    with torch.enable_grad():
        output = forward(case.network, {**previous, **leaves}, case.call[row : row + 1])
        value = torch.log_softmax(class_logits(output, samples=1), 1)[0, case.target.classes[row]]
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def _update(case: Case, name: str) -> Tensor:
    """Δ_k of one tensor, [K, values] in float64."""
    tensor = case.scene.read(name)
    stored = torch.stack([tensor.client(k).double().flatten() for k in range(tensor.count)])
    if tensor.relative or tensor.previous is None:
        return stored
    return stored - tensor.previous.double().flatten()


def _lengths(case: Case) -> Tensor:
    """‖Δ_k‖ over all parameters, [K]; 1 for a client that changed nothing. NotComputableError (NON_FINITE)."""
    started_from(case)
    squares = torch.stack([_update(case, name).square().sum(1) for name in _trainable(case)]).sum(0)
    require_finite(case, squares[None], "updates")
    return torch.where(squares > 0, squares.sqrt(), 1.0)


def _trainable(case: Case) -> list[str]:
    """The parameters, once each; the published code leaves BatchNorm's statistics out."""
    return [name for name, _ in case.network.named_parameters() if name in case.new]
