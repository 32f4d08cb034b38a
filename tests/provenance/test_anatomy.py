"""Parts of scores by layer and by neuron: they add up, and equal what slow loops give for those tensors alone."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from flforensics.models import class_logits
from flforensics.provenance.trace import Answers
from flforensics.provenance.units import UNITS, layer_of, unit_sums
from flforensics.results import InputTrace
from flforensics.rounds import Round
from tests import oracle
from tests.provenance.architectures import ARCHITECTURES, Architecture, make_round
from tests.provenance.test_oracle import double, single_calls, traced

EVERY = 10**6
every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def owners(network: nn.Module) -> dict[str, str]:
    """Floating tensors and the module that holds them."""
    return {
        f"{layer}.{short}": layer
        for layer, module in network.named_modules()
        for short, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        if tensor.is_floating_point()
    }


def shares_of(round_: Round) -> list[dict[str, Tensor]]:
    assert round_.previous is not None
    previous = double(round_.previous.tensors)
    total = sum(client.weight or 0 for client in round_.clients)
    shares = []
    for client in round_.clients:
        assert client.model is not None
        state = double(client.model.tensors)
        shares.append({k: (client.weight or 0) / total * (state[k] - previous[k]) for k in state})
    return shares


def oracle_parts(
    architecture: Architecture, round_: Round, found: Answers, pieces: list[dict[str, Tensor]], *, nodes: int
) -> Tensor:
    """∫⟨∇f, piece⟩ dt by plain loops, [N, pieces]."""
    assert round_.previous is not None

    def target(n: int, logits: Tensor) -> Tensor:
        chosen, against = found.inputs[n].target.index, found.inputs[n].target.against
        assert against is not None
        return logits[0, chosen] - logits[0, against]

    return oracle.ledger(
        architecture.network(),
        double(round_.previous.tensors),
        double(round_.fused.tensors),
        pieces,
        single_calls(architecture),
        target=target,
        logits=class_logits,
        nodes=nodes,
    )


def alone(share: Mapping[str, Tensor], keep: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
    """The share with all but some of its numbers set to zero; `keep` gives a mask for each tensor."""
    return {name: tensor * keep(name, tensor) for name, tensor in share.items()}


def parts_of(one: InputTrace, client: str) -> dict[str, float]:
    assert one.layers is not None
    return {layer.layer: dict(layer.clients)[client] for layer in one.layers}


@every_architecture
@pytest.mark.parametrize("method", ["ledger", "tracefl"])
def test_layers_add_up_to_the_scores(name: str, method: str) -> None:
    """Inputs need different numbers of nodes here, and each is taken apart at its own."""
    architecture = ARCHITECTURES[name]
    round_ = make_round(architecture.network())
    for one in traced(architecture, round_, method=method, by="layer", tolerance=0.05).inputs:
        size, tolerance = sum(abs(client.score) for client in one.clients), 1e-12
        for client in one.clients:
            assert sum(parts_of(one, client.client).values()) == pytest.approx(client.score, abs=tolerance * size)
        assert one.layers is not None
        assert [client for client, _ in one.layers[0].clients] == [client.client for client in one.clients]
        if one.parts is None:
            assert {layer.server for layer in one.layers} == {None}
        else:
            unexplained = sum(layer.unexplained or 0.0 for layer in one.layers)
            assert unexplained == pytest.approx(one.parts.unexplained, abs=tolerance * size)
            assert sum(layer.server or 0.0 for layer in one.layers) == one.parts.server


@every_architecture
def test_layers_of_the_ledger(name: str) -> None:
    architecture = ARCHITECTURES[name]
    round_ = make_round(architecture.network())
    found = traced(architecture, round_, by="layer", nodes=2)
    owner, shares = owners(architecture.network()), shares_of(round_)
    assert found.inputs[0].layers is not None
    layers = [layer.layer for layer in found.inputs[0].layers]
    assert layers == [layer for layer in dict.fromkeys(owner.values()) if layer in layers]
    pieces = [
        alone(share, lambda tensor, value, layer=layer: torch.tensor(owner.get(tensor) == layer))  # type: ignore[misc]
        for layer in layers
        for share in shares
    ]
    truth = oracle_parts(architecture, round_, found, pieces, nodes=2)
    own = torch.tensor(
        [[parts_of(one, c.client)[layer] for layer in layers for c in round_.clients] for one in found.inputs],
        dtype=torch.float64,
    )
    torch.testing.assert_close(own, truth, rtol=1e-9, atol=1e-10)


@every_architecture
def test_layers_of_tracefl(name: str) -> None:
    """The oracle with one traced layer alone, times its decay."""
    decay = 0.5
    architecture = ARCHITECTURES[name]
    round_ = make_round(architecture.network())
    found = traced(architecture, round_, method="tracefl", by="layer", layer_decay=decay)
    weights = [client.weight or 0 for client in round_.clients]
    for depth, layer in enumerate(architecture.traced):
        truth = oracle.tracefl(
            architecture.network(),
            double(round_.fused.tensors),
            [double(client.model.tensors) for client in round_.clients if client.model],
            single_calls(architecture),
            layers=[layer],
            factors=[weight / sum(weights) for weight in weights],
            decay=decay,
            logits=class_logits,
            classes=[one.target.index for one in found.inputs],
        )
        own = [[parts_of(one, c.client)[layer] for c in round_.clients] for one in found.inputs]
        scale = decay ** (len(architecture.traced) - 1 - depth)
        own_parts = torch.tensor(own, dtype=torch.float64)
        torch.testing.assert_close(own_parts, scale * truth, rtol=1e-9, atol=1e-10)


@every_architecture
def test_neurons_add_up_to_their_layers(name: str) -> None:
    architecture = ARCHITECTURES[name]
    round_ = make_round(architecture.network())
    by_layer = traced(architecture, round_, by="layer", nodes=1).inputs
    by_neuron = traced(architecture, round_, by="neuron", units=EVERY, nodes=1).inputs
    for one, other in zip(by_neuron, by_layer, strict=True):
        assert one.neurons is not None
        sums: dict[str, float] = dict.fromkeys(parts_of(other, one.neurons.client), 0.0)
        for unit in one.neurons.units:
            sums[unit.layer] += unit.part
        assert sums == pytest.approx(parts_of(other, one.neurons.client), abs=1e-10)
        assert one.neurons.rest == pytest.approx(0, abs=1e-10)
        sizes = [abs(unit.part) for unit in one.neurons.units]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[-1] > 0


@pytest.mark.parametrize("method", ["tracefl", "counterfactual", "shapley"])
def test_scores_that_have_no_such_parts_are_left_whole(method: str) -> None:
    """So that several methods can be run with the same settings."""
    architecture = ARCHITECTURES["one logit"]
    for one in traced(architecture, make_round(architecture.network()), method=method, by="neuron").inputs:
        assert (one.layers, one.neurons) == (None, None)


def row(index: int) -> Callable[[Tensor], Tensor]:
    return lambda tensor: (torch.arange(len(tensor)) == index).reshape(-1, *[1] * (tensor.dim() - 1))


def column(index: int) -> Callable[[Tensor], Tensor]:
    return lambda tensor: torch.arange(tensor.shape[-1]) == index


UNIT_CASES = {
    "a channel of a grouped convolution": ("cnn", "3", "channel", 6, row(6)),
    "a neuron": ("cnn", "6", "neuron", 11, row(11)),
    "a feature": ("cnn", "7", "feature", 3, row(3)),
    "a channel of BatchNorm": ("batch norm", "1", "channel", 2, row(2)),
    "a token": ("bert", "bert.embeddings.word_embeddings", "row", None, None),
    "a neuron of Conv1D": ("gpt", "transformer.h.0.mlp.c_fc", "neuron", 5, column(5)),
}


@pytest.mark.parametrize("case", UNIT_CASES)
def test_units_of_the_ledger(case: str) -> None:
    name, layer, kind, number, mask = UNIT_CASES[case]
    architecture = ARCHITECTURES[name]
    round_ = make_round(architecture.network())
    found = traced(architecture, round_, by="neuron", units=EVERY, nodes=1)
    for n, one in enumerate(found.inputs[:2]):
        place = number if number is not None else int(single_calls(architecture)[n][1]["input_ids"][0, 0])
        chosen = mask or row(place)
        assert one.neurons is not None
        (share,) = (
            share
            for client, share in zip(round_.clients, shares_of(round_), strict=True)
            if client.client == one.neurons.client
        )
        piece = alone(
            share,
            lambda tensor, value, chosen=chosen: (  # type: ignore[misc]
                chosen(value) if tensor.rpartition(".")[0] == layer and value.dim() else torch.zeros(())
            ),
        )
        truth = oracle_parts(architecture, round_, found, [piece], nodes=1)[n, 0]
        (unit,) = (unit for unit in one.neurons.units if (unit.layer, unit.unit) == (layer, place))
        assert (unit.kind, unit.tensor) == (kind, None)
        assert unit.part == pytest.approx(float(truth), rel=1e-8, abs=1e-12)
        assert unit.share == pytest.approx(unit.part / one.neurons.score)


def test_the_first_client_is_taken_apart() -> None:
    architecture = ARCHITECTURES["cnn"]
    round_ = make_round(architecture.network())
    for one in traced(architecture, round_, by="neuron", units=3).inputs:
        assert one.neurons is not None
        assert (one.neurons.client, one.neurons.score) == (one.clients[0].client, one.clients[0].score)
        assert len(one.neurons.units) == 3
        listed = sum(unit.part for unit in one.neurons.units)
        assert listed + one.neurons.rest == pytest.approx(one.neurons.score)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "torch.nn.modules.linear.Linear": (lambda: nn.Linear(4, 3), (2, 4)),
    "torch.nn.modules.conv.Conv1d": (lambda: nn.Conv1d(4, 6, 2, groups=2), (2, 4, 5)),
    "torch.nn.modules.conv.Conv2d": (lambda: nn.Conv2d(4, 6, 2, groups=2), (2, 4, 5, 5)),
    "torch.nn.modules.conv.Conv3d": (lambda: nn.Conv3d(2, 3, 2), (2, 2, 3, 3, 3)),
    "torch.nn.modules.conv.ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 6, 2, groups=2), (2, 4, 5)),
    "torch.nn.modules.conv.ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 6, 2, groups=2), (2, 4, 5, 5)),
    "torch.nn.modules.conv.ConvTranspose3d": (lambda: nn.ConvTranspose3d(2, 3, 2), (2, 2, 3, 3, 3)),
    "torch.nn.modules.normalization.GroupNorm": (lambda: nn.GroupNorm(2, 4), (2, 4, 5)),
    "torch.nn.modules.batchnorm._BatchNorm": (lambda: nn.BatchNorm2d(4), (2, 4, 5, 5)),
    "torch.nn.modules.instancenorm._InstanceNorm": (lambda: nn.InstanceNorm2d(4, affine=True), (2, 4, 5, 5)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_unit_is_what_its_output_depends_on(kind: str) -> None:
    """Exactly the numbers that belong to a channel have a gradient when only that channel's output counts."""
    build, shape = LAYERS[kind]
    network = nn.Sequential(build()).eval()
    output = network(torch.randn(shape, generator=torch.Generator().manual_seed(3)))
    for channel in range(output.shape[1]):
        weights = torch.randn(output[:, channel].shape, generator=torch.Generator().manual_seed(4))
        parameters = dict(network.named_parameters())
        gradients = torch.autograd.grad(
            (output[:, channel] * weights).sum(), list(parameters.values()), retain_graph=True
        )
        for name, gradient in zip(parameters, gradients, strict=True):
            units, counts = unit_sums(network, name, (gradient != 0).double()[None])
            assert (units.layer, units.kind, units.tensor) == ("0", UNITS[kind].kind, None)
            size = gradient.numel() / output.shape[1]
            assert counts[0].tolist() == [size if other == channel else 0.0 for other in range(output.shape[1])]


def test_what_no_row_covers_is_one_unit() -> None:
    network = nn.Module()
    network.token = nn.Parameter(torch.ones(1, 5))
    network.attention = nn.MultiheadAttention(4, 2)
    products = {name: torch.ones(2, *tensor.shape) for name, tensor in network.named_parameters()}
    found = {name: unit_sums(network, name, tensor) for name, tensor in products.items()}
    token, sums = found["token"]
    assert (token.layer, token.kind, token.tensor) == ("token", "tensor", "token")
    assert sums.tolist() == [[5.0], [5.0]]
    stacked, sums = found["attention.in_proj_weight"]
    assert (stacked.layer, stacked.tensor, sums.shape) == ("attention", "attention.in_proj_weight", (2, 1))
    projected, sums = found["attention.out_proj.weight"]
    assert (projected.layer, projected.kind, projected.tensor, sums.shape) == (
        "attention.out_proj",
        "neuron",
        None,
        (2, 4),
    )
    assert layer_of("attention.in_proj_weight") == "attention"
