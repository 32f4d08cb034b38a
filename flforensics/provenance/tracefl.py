"""TraceFL's neuron provenance (Gill, Anwar and Gulzar, ICSE 2025, equations 3 to 6).

    T_k = Σ_l β^(L−1−l) ⟨∂f/∂y_l, layer_l(x_l; c_k θ_k)⟩

over the traced layers l in the order of their first call, with the global model's input x_l and output y_l;
c_k is p_k in the paper and 1 in the published code's default. f is the logit. All traced layers but BertLayer
are affine in their parameters, so their part is the per-sample parameter gradient times the clients' weights
and no client is ever run.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from flforensics.errors import NotComputableError
from flforensics.gradients import Tap, record, supports, tensors_met
from flforensics.gradients.layers import rule_of
from flforensics.gradients.plan import passing, rule_gradients
from flforensics.provenance.case import Case, Scores
from flforensics.provenance.chunks import in_chunks, in_steps
from flforensics.provenance.directions import Models
from flforensics.provenance.hands import HANDS, Hands
from flforensics.provenance.many_models import Products, Weights, products_of
from flforensics.provenance.profile import PASSES, PRODUCTS

TRACED = (
    "torch.nn.modules.linear.Linear",
    "torch.nn.modules.conv.Conv2d",
    "torch.nn.modules.normalization.LayerNorm",
    "transformers.pytorch_utils.Conv1D",
    "transformers.models.bert.modeling_bert.BertLayer",
)
"""The classes that the published code traces, by name, so that none of their packages is imported here."""

_OUTPUTS = 8  # how many values a layer works with at a time for one of its output
_AT_ONCE = {False: 1 << 22, True: 1 << 24}  # values that a hand works with at a time, on a processor or a GPU
_NOT_TRACED = "tracefl traces Linear, Conv2d, LayerNorm, Conv1D and BertLayer only"
_NOT_CALLED = "its layer is not called as a module, so that there is nothing to observe"


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
    observed = _Observed(case, traced_layers(case.network), Models(case))
    parts = in_chunks(case, observed.provenance, size=observed.chunk)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def layer_factors(taps: list[Tap], *, decay: float) -> dict[str, float]:
    """β^(L−1−l) for every layer that is called, in the order of first calls."""
    order = list(dict.fromkeys(tap.name for tap in taps))
    return {name: decay ** (len(order) - 1 - depth) for depth, name in enumerate(order)}


@dataclass(frozen=True)
class _Observed:
    """The traced layers of a case, and the clients' models."""

    case: Case
    layers: Mapping[str, nn.Module]
    models: Models

    @cached_property
    def chunk(self) -> int:
        """How many inputs at a time leave half of the memory free."""
        case, pair = self.case, slice(0, 2)
        taking = passing(case.network, case.new, case.call[pair], target=case.target[pair], layers=self.layers)
        return max(1, case.memory // 2 // max(1, taking))

    @cached_property
    def factors(self) -> Tensor:
        """c_k, [K] in float64."""
        coefficients = torch.tensor(self.case.scene.coefficients.values, dtype=torch.float64)
        scaled = coefficients if self.case.settings.scale_clients else torch.ones_like(coefficients)
        return scaled.to(self.case.settings.device)

    def provenance(self, case: Case) -> dict[str, Tensor]:
        """β^(L−1−l) ⟨g_l, layer_l(x_l; c_k θ_k)⟩ of every layer l for some inputs, each [n, K] in float64."""
        profile = case.settings.profile
        with profile.stage(PASSES):
            _, taps = record(case.network, case.new, case.call, target=case.target, layers=self.layers)
        weights = layer_factors(taps, decay=case.settings.layer_decay)
        found = {name: self._nothing(case) for name in weights}
        affine = [tap for tap in taps if rule_of(tap.module) is not None]
        with profile.stage(PRODUCTS):
            for tensor, products in self._affine(case, affine):
                found[tensor.rpartition(".")[0]] += products * self.factors
            found |= self._evaluated(case, [tap for tap in taps if rule_of(tap.module) is None])
        return {name: weights[name] * part for name, part in found.items()}

    def _nothing(self, case: Case) -> Tensor:
        return torch.zeros(case.call.count, self.models.lines, dtype=torch.float64, device=self.factors.device)

    def _affine(self, case: Case, taps: list[Tap]) -> Iterator[tuple[str, Tensor]]:
        """⟨g_l, layer_l(x_l; θ_k)⟩ by tensors."""
        gradients = rule_gradients(taps, case.new, case.call.count)
        blocks = self.models.walk(supports([gradients]), again=case.call.count < self.case.call.count)
        room = case.memory // 4 // case.settings.dtype.itemsize
        met = tensors_met([gradients], blocks, like=case.target.classes, lines=self.models.lines, room=room)
        return ((name, one.products) for name, (one,) in met)

    def _evaluated(self, case: Case, taps: list[Tap]) -> dict[str, Tensor]:
        """Layers that are not affine run with every client's weights on the global's input, without a mask.

        A hand reads a layer of some clients and runs it, and then goes on with others: nobody waits for anybody.
        """
        calls: dict[str, list[Tap]] = {}
        for tap in taps:
            calls.setdefault(tap.name, []).append(tap)
        found, on_gpu = {name: self._nothing(case) for name in calls}, self.factors.device.type == "cuda"
        count = HANDS if on_gpu else torch.get_num_threads()
        room = min(case.memory // 8 // count // case.settings.dtype.itemsize, _AT_ONCE[on_gpu])

        def prepared(name: str) -> _Layer:
            return self._layer(name, calls[name], room=room // 2)

        def run(task: tuple[_Layer, slice]) -> None:
            layer, lines = task
            with torch.no_grad():
                found[layer.name][:, lines] = layer.products(lines).double()

        with Hands(count) as hands:
            layers = hands.each(prepared, calls)
            hands.each(run, self._tasks(layers, room))
        return found

    def _tasks(self, layers: Iterable["_Layer"], room: int) -> "Iterator[tuple[_Layer, slice]]":
        """Every layer with some clients at a time, so that their weights and outputs fit into so many values."""
        for layer in layers:
            yield from ((layer, lines) for lines in in_steps(self.models.lines, max(1, room // layer.values)))

    def _layer(self, name: str, taps: Sequence[Tap], *, room: int) -> "_Layer":
        """A layer and its calls, run in the way that is right with the first client's weights."""
        tensors = self.models.several([f"{name}.{short}" for short in _floating_names(taps[0].module)])
        factors = self.factors.tolist()

        def weights(lines: slice) -> Weights:
            found = tensors.of(lines, factors=factors)
            return {full.removeprefix(f"{name}."): rows for full, rows in found.items()}

        with torch.no_grad():
            first = weights(slice(0, 1))
            ways = [products_of(tap.module, first, tap.arguments[0], tap.gradient, room=room) for tap in taps]
        values = sum(tensor.numel() for tensor in first.values()) + _OUTPUTS * taps[0].gradient.numel()
        return _Layer(name, values, weights, ways)


@dataclass(frozen=True)
class _Layer:
    """A layer that is run with clients' weights, c_k θ_k [k, *shape] by its own names, and how in each call.

    For one client it takes so many `values`.
    """

    name: str
    values: int
    weights: Callable[[slice], Weights]
    ways: Sequence[Products]

    def products(self, lines: slice) -> Tensor:
        """⟨g_l, layer_l(x_l; c_k θ_k)⟩ of some clients over all calls, [n, k]."""
        weights = self.weights(lines)
        return torch.stack([products(weights) for products in self.ways]).sum(0)


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
