"""TraceFL's neuron provenance as a straightforward loop (Gill, Anwar and Gulzar, ICSE 2025, equations 3 to 6).

Restated for this benchmark from the paper: every client's model is built from its file, hooks keep what goes into
and comes out of every traced layer of the global model, and then, for every input, traced layer and client, the
client's layer runs on the global's input and meets the gradient. Nothing of the package's gradients is used.

The published code goes about it in another order, which `as_coded` follows: gradients input by input, every
client's layer on all inputs together, and then for each input and client one product, whose terms are looked at
for values that are not finite.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from flforensics.gradients import Call

_DECAY = 0.9
_TRACED = ("Linear", "Conv2d", "LayerNorm", "Conv1D", "BertLayer")


@dataclass(frozen=True)
class _Federation:
    """The global model, and the traced layers of every client with the client's weight p_k in their parameters."""

    fused: nn.Module
    clients: list[dict[str, nn.Module]]


def provenance(folder: Path, build: Callable[[], nn.Module], call: Call, *, at_once: int, device: str) -> Tensor:
    """Raw T_k for the predicted classes, [N, K], clients as in weights.json; `at_once` inputs at a time."""
    federation = _load(folder, build, device)
    chunks = [call[start : start + at_once] for start in range(0, call.count, at_once)]
    return torch.cat([_trace(federation, chunk.to(torch.device(device), torch.float32)) for chunk in chunks])


def as_coded(folder: Path, build: Callable[[], nn.Module], call: Call, *, device: str) -> Tensor:
    """The same in the order of the published code."""
    federation, call = _load(folder, build, device), call.to(torch.device(device), torch.float32)
    inputs = {name: x for name, (x, _) in _hooked(federation.fused, call)[0].items()}
    slopes = [_slopes_of_one(federation.fused, call[n : n + 1]) for n in range(call.count)]
    scores = torch.zeros(call.count, len(federation.clients))
    for depth, (name, x) in enumerate(inputs.items()):
        factor = _DECAY ** (len(inputs) - 1 - depth)
        outputs = [_first(layers[name](x)).detach() for layers in federation.clients]
        for n, slope in enumerate(slopes):
            gradient = _finite(slope[name])
            for k, output in enumerate(outputs):
                scores[n, k] += factor * torch.dot(_finite(output[n]), gradient).item()
    return scores


def _slopes_of_one(network: nn.Module, call: Call) -> dict[str, Tensor]:
    """The predicted class's gradients at the outputs of traced layers, found with those of all parameters."""
    network.zero_grad()
    kept, chosen = _hooked(network, call)
    for _, output in kept.values():
        output.retain_grad()
    chosen.backward()
    return {name: output.grad for name, (_, output) in kept.items() if output.grad is not None}


def _finite(values: Tensor) -> Tensor:
    """The values, flattened; the published code looks at all of them, too."""
    assert not values.isnan().any()
    assert not values.isinf().any()
    return values.flatten()


def _load(folder: Path, build: Callable[[], nn.Module], device: str) -> _Federation:
    """The network is built once; every model is a copy of it that takes the tensors of its file."""
    weights: dict[str, int] = json.loads((folder / "rounds/0001/weights.json").read_text())
    network, total = build().eval().to(device), sum(weights.values())
    clients = []
    for client, weight in weights.items():
        model = _filled(copy.deepcopy(network), folder / f"rounds/0001/clients/{client}.safetensors")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(weight / total)
        clients.append(_traced(model))
    return _Federation(_filled(network, folder / "rounds/0001/global.safetensors"), clients)


def _filled(network: nn.Module, path: Path) -> nn.Module:
    network.load_state_dict(load_file(path))
    return network


def _traced(network: nn.Module) -> dict[str, nn.Module]:
    """The layers that the published code traces; nothing inside a traced layer is traced again."""
    found: dict[str, nn.Module] = {}
    for name, module in network.named_modules():
        if type(module).__name__ in _TRACED and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    return found


def _trace(federation: _Federation, call: Call) -> Tensor:
    """T_k for these inputs, [n, K]."""
    seen = _seen(federation.fused, call)
    scores = torch.zeros(call.count, len(federation.clients), device=call_device(call))
    with torch.no_grad():
        for depth, (name, (x, gradient)) in enumerate(seen.items()):
            for k, layers in enumerate(federation.clients):
                products = _first(layers[name](x)) * gradient
                scores[:, k] += _DECAY ** (len(seen) - 1 - depth) * products.flatten(1).sum(1)
    return scores.cpu()


def _seen(network: nn.Module, call: Call) -> dict[str, tuple[Tensor, Tensor]]:
    """By traced layer in the order of calls: its input, and the predicted class's gradient at its output."""
    kept, chosen = _hooked(network, call)
    gradients = torch.autograd.grad(chosen, [y for _, y in kept.values()])
    return {name: (x, gradient) for (name, (x, _)), gradient in zip(kept.items(), gradients, strict=True)}


def _hooked(network: nn.Module, call: Call) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor]:
    """By traced layer in the order of calls: its input and output; and the predicted classes' logits, summed."""
    kept: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(name: str) -> Callable[..., Any]:
        def keep(_module: nn.Module, given: tuple[Any, ...], output: Any) -> Any:
            kept[name] = (given[0].detach(), _first(output))
            handed = _first(output).clone()
            return (handed, *output[1:]) if isinstance(output, tuple) else handed

        return keep

    handles = [module.register_forward_hook(hook(name)) for name, module in _traced(network).items()]
    output = network(*call.arguments, **call.keywords)
    for handle in handles:
        handle.remove()
    logits = getattr(output, "logits", output)
    return kept, logits.gather(1, logits.argmax(1, keepdim=True)).sum()


def call_device(call: Call) -> torch.device:
    """Where the inputs are."""
    return next(iter((*call.arguments, *call.keywords.values()))).device


def _first(output: Any) -> Tensor:
    first = output[0] if isinstance(output, tuple) else output
    assert isinstance(first, Tensor)
    return first
