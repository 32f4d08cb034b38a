"""TraceFL's neuron provenance (Gill, Anwar and Gulzar, ICSE 2025, equations 3 to 6).

    T_k = Σ_l β^(L−1−l) ⟨∂f/∂y_l, layer_l(x_l; c_k θ_k)⟩

over the traced layers l in the order of their first call, with the global model's input x_l and output y_l;
c_k is p_k in the paper and 1 in the published code's default. f is the logit. All traced layers but BertLayer
are affine in their parameters, so their part is the per-sample parameter gradient times the clients' weights
and no client is ever run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from flforensics.errors import NotComputableError
from flforensics.gradients import Tap, record
from flforensics.gradients.layers import rule_of
from flforensics.gradients.plan import rule_gradients
from flforensics.provenance.case import Case, Scores
from flforensics.rounds import RoundTensor

TRACED = (
    "torch.nn.modules.linear.Linear",
    "torch.nn.modules.conv.Conv2d",
    "torch.nn.modules.normalization.LayerNorm",
    "transformers.pytorch_utils.Conv1D",
    "transformers.models.bert.modeling_bert.BertLayer",
)
"""The classes that the published code traces, by name, so that none of their packages is imported here."""

_NOT_TRACED = "tracefl traces Linear, Conv2d, LayerNorm, Conv1D and BertLayer only"
_NOT_CALLED = "its layer is not called as a module, so that there is nothing to observe"


@dataclass(frozen=True)
class _Clients:
    """The clients' weights, one tensor of all clients at a time: [K, *shape], multiplied by c_k."""

    case: Case
    factors: Tensor

    def __getitem__(self, name: str) -> Tensor:
        """[K, *shape] in the type of the computation."""
        case = self.case
        tensor = case.scene.read(name)
        stacked = torch.stack([_full(tensor, index) for index in range(tensor.count)])
        factors = self.factors.reshape(-1, *[1] * (stacked.dim() - 1))
        return (stacked * factors).to(case.settings.device, case.settings.dtype)


def tracefl(case: Case) -> Scores:
    """T_k for every input and client, [N, K]."""
    parts = layer_parts(case)
    none = torch.zeros(case.call.count, len(case.clients), dtype=torch.float64, device=case.settings.device)
    return Scores(sum(parts.values(), none), None, _untraced(case, parts))


def layer_parts(case: Case) -> dict[str, Tensor]:
    """What each traced layer adds to T_k, [N, K] by its name, in the order of first calls.

    Raises NotComputableError (PREVIOUS) where the clients' models are not known.
    """
    if case.round.values != "full" and case.round.previous is None:
        raise NotComputableError(
            f"round {case.round.number} holds updates only and no previous global to add them to",
            reason="PREVIOUS",
            hint="store the model that the round started from",
        )
    scaled = case.settings.scale_clients
    coefficients = torch.tensor(case.scene.coefficients.values, dtype=torch.float64)
    clients = _Clients(case, coefficients if scaled else torch.ones_like(coefficients))
    layers, chunks = traced_layers(case.network), case.chunks()
    parts: list[dict[str, Tensor]] = []
    for index, chunk in enumerate(chunks):
        part = replace(case, call=case.call[chunk], target=case.target[chunk])
        _, taps = record(case.network, case.new, part.call, target=part.target, layers=layers)
        parts.append(_provenance(part, taps, clients))
        case.progress("inputs", index + 1, len(chunks))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _provenance(case: Case, taps: list[Tap], clients: _Clients) -> dict[str, Tensor]:
    """β^(L−1−l) ⟨g_l, layer_l(x_l; c_k θ_k)⟩ for every layer l, each [N, K] in float64."""
    factors = layer_factors(taps, decay=case.settings.layer_decay)
    parts = {}
    for name, factor in factors.items():
        of_layer = [tap for tap in taps if tap.name == name]
        affine = rule_of(of_layer[0].module) is not None
        part = _affine(case, of_layer, clients) if affine else _evaluated(case, of_layer, clients)
        parts[name] = factor * part
    return parts


def layer_factors(taps: list[Tap], *, decay: float) -> dict[str, float]:
    """β^(L−1−l) for every layer that is called, in the order of first calls."""
    order = list(dict.fromkeys(tap.name for tap in taps))
    return {name: decay ** (len(order) - 1 - depth) for depth, name in enumerate(order)}


def _affine(case: Case, taps: list[Tap], clients: _Clients) -> Tensor:
    gradients = rule_gradients(taps, case.new, case.call.count)
    parts = [gradient.flatten(1) @ clients[name].flatten(1).T for name, gradient in gradients.items()]
    return torch.stack(parts).double().sum(0)


def _evaluated(case: Case, taps: list[Tap], clients: _Clients) -> Tensor:
    """A layer that is not affine runs with every client's weights on the global's input, without a mask."""
    module, name = taps[0].module, taps[0].name
    weights = {short: clients[f"{name}.{short}"] for short in _floating_names(module)}

    def output(own: Mapping[str, Tensor], x: Tensor) -> Tensor:
        result = functional_call(module, dict(own), (x,))
        first = result[0] if isinstance(result, tuple) else result
        assert isinstance(first, Tensor)
        return first

    total = torch.zeros(case.call.count, len(case.clients), dtype=torch.float64, device=case.settings.device)
    with torch.no_grad():
        for tap in taps:
            outputs = vmap(output, in_dims=(0, None), chunk_size=8)(weights, tap.arguments[0])
            total += torch.einsum("knf,nf->nk", outputs.flatten(2), tap.gradient.flatten(1)).double()
    return total


def _full(tensor: RoundTensor, index: int) -> Tensor:
    """A client's full tensor, in float64."""
    stored = tensor.client(index).double()
    if not tensor.relative:
        return stored
    assert tensor.previous is not None
    return tensor.previous.double() + stored


def traced_layers(network: nn.Module) -> dict[str, nn.Module]:
    """The layers that the published code traces; nothing inside a traced layer is traced again."""
    found: dict[str, nn.Module] = {}
    for name, module in network.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if not inside and any(_qualified(kind) in TRACED for kind in type(module).__mro__):
            found[name] = module
    return found


def _untraced(case: Case, called: Mapping[str, Tensor]) -> dict[str, str]:
    """Every floating tensor that T_k does not see, with the reason."""
    reasons: dict[str, str] = {}
    layers = traced_layers(case.network)
    for name in case.floating:
        owner = next((layer for layer in layers if name.startswith(f"{layer}.")), None)
        if owner is None:
            reasons[name] = _NOT_TRACED
        elif owner not in called:
            reasons[name] = _NOT_CALLED
    return reasons


def _floating_names(module: nn.Module) -> list[str]:
    return [name for name, tensor in module.state_dict().items() if tensor.is_floating_point()]


def _qualified(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
