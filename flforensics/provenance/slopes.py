"""The target's gradient, averaged along the straight path between a round's two globals."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from flforensics.gradients import Plan, plan, sample_gradients
from flforensics.provenance.case import Case
from flforensics.provenance.directions import started_from


def averaged_gradients(case: Case, nodes: Tensor) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Ḡ of every input over its own number of nodes [N]: for a few inputs at a time, rows and {name: [n, *shape]}.

    Tensors that the target does not depend on are left out.
    """
    scheme = plan(case.network, case.new, case.call, target=case.target)
    few = max(1, case.memory // (2 * case.settings.dtype.itemsize * max(1, case.parameters)))
    for count in sorted(set(nodes.tolist())):
        for rows in torch.split((nodes == count).nonzero().flatten(), few):
            part = replace(case, call=case.call[rows], target=case.target[rows])
            yield rows, averaged_gradient(part, nodes=int(count), scheme=scheme)


def averaged_gradient(case: Case, *, nodes: int, scheme: Plan) -> dict[str, Tensor]:
    """∫ ∂f/∂θ(t) dt by the midpoint rule, [N, *shape] for every tensor that f depends on."""
    previous = started_from(case)
    mean: dict[str, Tensor] = {}
    for node in range(nodes):
        state = case.between(previous, (node + 0.5) / nodes)
        found = sample_gradients(case.network, state, case.call, target=case.target, plan=scheme)
        for name, gradient in found.tensors.items():
            mean[name] = mean[name] + gradient if name in mean else gradient
    return {name: gradient / nodes for name, gradient in mean.items()}
