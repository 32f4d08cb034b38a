"""Per-sample gradients of a whole batch at one point of θ."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from flforensics.gradients.forms import Gradients
from flforensics.gradients.local import local_gradients
from flforensics.gradients.plan import Plan, rule_gradients
from flforensics.gradients.record import Call, State, Target, record


@dataclass(frozen=True)
class SampleGradients:
    """The target's values [N], and ∂f_n/∂θ as [N, *shape] for every tensor that f depends on."""

    values: Tensor
    tensors: Mapping[str, Tensor]


def gradients_at(
    network: nn.Module, state: State, call: Call, *, target: Target, plan: Plan
) -> tuple[Tensor, Mapping[str, Gradients]]:
    """The target's values [N], and every tensor's gradients in their smallest form.

    One forward and one backward pass for the batch, and again for the modules that `plan` runs again.
    """
    modules = {one.module: network.get_submodule(one.module) for one in plan.local}
    values, taps = record(network, state, call, target=target, layers={**plan.layers, **modules})
    found = {
        name: gradients
        for name, gradients in rule_gradients(taps, state, call.count).items()
        if name in plan.ruled
    }
    for one in plan.local:
        found |= local_gradients(one, taps, state)
    return values, found


def sample_gradients(
    network: nn.Module, state: State, call: Call, *, target: Target, plan: Plan
) -> SampleGradients:
    """The same, written out."""
    values, found = gradients_at(network, state, call, target=target, plan=plan)
    written = {name: one.dense().values.reshape(-1, *state[name].shape) for name, one in found.items()}
    return SampleGradients(values, written)
