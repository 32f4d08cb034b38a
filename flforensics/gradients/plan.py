"""Which tensors have a rule that is right on this network, and how the gradients of the others are found."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from flforensics.errors import EvidenceError
from flforensics.gradients.forms import Gradients
from flforensics.gradients.layers import rule_of
from flforensics.gradients.local import Local, arguments_of, local_gradients
from flforensics.gradients.record import Call, State, Tap, Target, forward, record

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}
_NOISE = 100
_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class Held:
    """What one node keeps of a tensor for one sample, in values, and the most that several can come to."""

    values: int
    most: int


@dataclass(frozen=True)
class Plan:
    """How the gradient of each floating tensor is found.

    `layers` have rules, for the tensors in `ruled`; `local` modules are run again; the target does not depend on
    the tensors in `unused`. For one sample, a forward and backward pass takes `passing` bytes, and a node leaves
    `held` of each tensor.
    """

    layers: Mapping[str, nn.Module]
    ruled: frozenset[str]
    local: tuple[Local, ...]
    unused: tuple[str, ...]
    passing: int
    held: Mapping[str, Held]

    def bytes_held(self, levels: Iterable[int], *, itemsize: int) -> int:
        """What sums over these numbers of nodes keep for one sample, all together."""
        return itemsize * sum(
            min(nodes * held.values, held.most) for nodes in levels for held in self.held.values()
        )


def plan(network: nn.Module, state: State, call: Call, *, target: Target) -> Plan:
    """Check every rule on two samples of `call` against automatic differentiation of one of them.

    Raises EvidenceError (INDEPENDENCE) if the samples of a batch influence each other.
    """
    _require_independent_samples(network)
    _differentiate_padding(network)
    layers = {
        name: module for name, module in network.named_modules() if _own(name, module, state) and rule_of(module)
    }
    two = torch.tensor([0, min(1, call.count - 1)], device=next(iter(call.tensors)).device)
    pair = _Pair(network, state, call[two], target[two])
    truth = _truth(pair)
    taps, taking = _watched_memory(network, state, pair.call, target=pair.target, layers=layers)
    found = rule_gradients(taps, state, 2)
    statistics = {name for name in found if name.rpartition(".")[2] in _STATISTICS}
    ruled = {name for name in found if name in statistics or truth.agrees(found[name], name)}
    missing = [name for name, gradient in truth.gradients.items() if gradient is not None and name not in ruled]
    local = _located(pair, missing, truth)
    reached = ruled | {name for one in local for name in one.tensors}
    unused = tuple(name for name in _floating(state) if name not in reached)
    given = _given(taps, pair.call)
    held = {name: _held(found[name], shared=name.rpartition(".")[0] in given) for name in ruled}
    held |= {name: Held(state[name].numel(), state[name].numel()) for one in local for name in one.tensors}
    if local:
        modules = {one.module: network.get_submodule(one.module) for one in local}
        taking = passing(network, state, pair.call, target=pair.target, layers={**layers, **modules})
    return Plan(layers, frozenset(ruled), local, unused, taking, held)


def _given(taps: list[Tap], call: Call) -> set[str]:
    """The layers whose input is the network's own: it is the same at every node."""
    own = {tensor.data_ptr() for tensor in call.tensors}
    return {tap.name for tap in taps if tap.input is not None and tap.input.data_ptr() in own}


def _held(two: Gradients, *, shared: bool) -> Held:
    values = two.held // 2
    return Held(values, max(values, two.width) if shared else two.width)


def passing(
    network: nn.Module, state: State, call: Call, *, target: Target, layers: Mapping[str, nn.Module]
) -> int:
    """The bytes for each sample that a forward and a backward pass with these taps keep between them."""
    return _watched_memory(network, state, call, target=target, layers=layers)[1]


def _watched_memory(
    network: nn.Module, state: State, call: Call, *, target: Target, layers: Mapping[str, nn.Module]
) -> tuple[list[Tap], int]:
    """The taps, and the bytes for each sample that are kept between the two passes."""
    kept: dict[int, int] = {}
    owned = {tensor.data_ptr() for tensor in state.values()}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in owned:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.itemsize
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _, taps = record(network, state, call, target=target, layers=layers)
    recorded = sum(tap.gradient.numel() * tap.gradient.itemsize for tap in taps)
    return taps, (sum(kept.values()) + 2 * recorded) // call.count


@dataclass(frozen=True)
class _Pair:
    """Two samples of the batch, on which everything is tried."""

    network: nn.Module
    state: State
    call: Call
    target: Target

    def recorded(self, layers: Mapping[str, nn.Module]) -> list[Tap]:
        """The taps of these layers."""
        return record(self.network, self.state, self.call, target=self.target, layers=layers)[1]

    @property
    def first(self) -> "_Pair":
        """The first sample alone."""
        return _Pair(self.network, self.state, self.call[:1], self.target[:1])


def _located(pair: _Pair, missing: list[str], truth: "_Truth") -> tuple[Local, ...]:
    """For each tensor the smallest module that, run again, gives the right gradient; at last the whole network.

    The deepest modules are tried first, so that each is run again once. Raises EvidenceError (INDEPENDENCE) where
    even the whole network does not give what it gave in a batch.
    """
    found: list[Local] = []
    waiting = {name: name.rpartition(".")[0] for name in missing}
    while waiting:
        depth = max(map(_depth, waiting.values()))
        deepest = {name: module for name, module in waiting.items() if _depth(module) == depth}
        modules = {name: pair.network.get_submodule(name) for name in dict.fromkeys(deepest.values())}
        taps, alone = pair.recorded(modules), pair.first.recorded(modules)
        for module in modules:
            names = tuple(name for name, at in deepest.items() if at == module)
            one = _right(module, names, pair.state, _calls(taps, module), _calls(alone, module), truth)
            found += [] if one is None else [one]
            located = () if one is None else one.tensors
            waiting = {
                name: module.rpartition(".")[0] if name in names else at
                for name, at in waiting.items()
                if name not in located
            }
        if depth == 0 and waiting:
            raise EvidenceError(
                f"the gradient of {next(iter(waiting))} depends on which inputs are traced together",
                reason="INDEPENDENCE",
                hint="describe a network that treats every input on its own in evaluation",
            )
    return tuple(found)


def _depth(module: str) -> int:
    return module.count(".") + 1 if module else 0


def _calls(taps: list[Tap], module: str) -> list[Tap]:
    return [tap for tap in taps if tap.name == module]


def _right(
    module: str,
    names: tuple[str, ...],
    state: State,
    taps: list[Tap],
    alone: list[Tap],
    truth: "_Truth",
) -> Local | None:
    """How to run the module again for those of the tensors that it gives the right gradient of.

    Which arguments belong to a sample is seen from what changes its length when one sample comes alone.
    """
    sampled = {_sampled(two, one) for two, one in zip(taps, alone, strict=True)}
    if len(sampled) != 1 or any(len(tap.gradient) != 2 for tap in taps):
        return None
    for batched in (True, False):
        local = Local(module, names, next(iter(sampled)), batched)
        try:
            gradients = local_gradients(local, taps, state)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError):
            continue
        right = tuple(name for name in names if truth.agrees(gradients[name], name))
        if right:
            return Local(module, right, local.sampled, batched)
    return None


def _sampled(two: Tap, one: Tap) -> tuple[bool, ...]:
    """For each argument, whether axis 0 is the sample."""
    return tuple(
        isinstance(left, Tensor) and isinstance(right, Tensor) and left.dim() > 0 and left.shape != right.shape
        for left, right in zip(arguments_of(two), arguments_of(one), strict=True)
    )


def rule_gradients(taps: list[Tap], state: State, count: int) -> dict[str, Gradients]:
    """Per-sample gradients by the layers' rules, summed over repeated calls of a layer.

    A call whose input does not have the samples on axis 0 contributes nothing, which `plan` notices.
    """
    found: dict[str, Gradients] = {}
    for tap in taps:
        rule, x = rule_of(tap.module), tap.input
        if rule is None or x is None or len(x) != count or len(tap.gradient) != count:
            continue
        own = _own(tap.name, tap.module, state)
        for short, gradients in rule(tap.module, own, x, tap.gradient).items():
            if short in own:
                name = _joined(tap.name, short)
                found[name] = found[name].plus(gradients) if name in found else gradients
    return found


def _own(name: str, module: nn.Module, state: State) -> dict[str, Tensor]:
    """The tensors that the layer holds itself, by their short names, as `state` gives them."""
    shorts = [
        short
        for tensors in (module._parameters, module._buffers)
        for short, tensor in tensors.items()
        if tensor is not None and tensor.is_floating_point()
    ]
    return {short: state[full] for short in shorts if (full := _joined(name, short)) in state}


@dataclass(frozen=True)
class _Truth:
    """∂f_0/∂θ for every floating tensor but stored statistics, for which torch has no derivative.

    None for a tensor that f_0 does not depend on.
    """

    gradients: Mapping[str, Tensor | None]

    @cached_property
    def largest(self) -> Tensor:
        """The largest value of all."""
        return torch.stack(
            [one.abs().max() for one in self.gradients.values() if one is not None and one.numel()]
        ).max()

    def agrees(self, gradients: Gradients, name: str) -> bool:
        """Equal but for rounding: of the tensor's largest value, or the network's where all cancels out in it."""
        expected, found = self.gradients.get(name), gradients.dense().values[0]
        if expected is None:
            return not found.any()
        if not expected.numel():
            return True
        noise = _NOISE * torch.finfo(found.dtype).eps * self.largest
        difference = (found - expected.flatten()).abs().max()
        return bool(difference <= _TOLERANCE[found.dtype] * expected.abs().max() + noise)


def _truth(pair: _Pair) -> _Truth:
    """By automatic differentiation of one sample."""
    state = pair.state
    names = [name for name in _floating(state) if name.rpartition(".")[2] not in _STATISTICS]
    if not names:
        return _Truth({})
    leaves = {name: state[name].detach().clone().requires_grad_() for name in names}
    with torch.enable_grad():
        value = pair.target(forward(pair.network, {**state, **leaves}, pair.call))[0]
    gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return _Truth(dict(zip(names, gradients, strict=True)))


def _floating(state: State) -> list[str]:
    return [name for name, tensor in state.items() if tensor.is_floating_point()]


def _joined(name: str, short: str) -> str:
    return f"{name}.{short}" if name else short


def _require_independent_samples(network: nn.Module) -> None:
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise EvidenceError(
                f"layer {name} normalises over the batch (it stores no statistics), so that predictions depend on"
                " which inputs are traced together",
                reason="INDEPENDENCE",
                hint="describe the network with track_running_stats = true",
            )


def _differentiate_padding(network: nn.Module) -> None:
    """The padding row of a table is added to the forward pass like any other, so it has a gradient here.

    In training torch leaves it out, so that the row is not learned.
    """
    for module in network.modules():
        if isinstance(module, nn.Embedding):
            module.padding_idx = None
