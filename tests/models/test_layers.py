"""`source = "layers"` and [model.replace]: what is allowed, and what an error says."""

import inspect
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from flforensics.errors import UsageError
from flforensics.models import ALLOWED_LAYERS, build_network

LINEAR = {"type": "Linear", "in_features": 4, "out_features": 2}


def build(*layers):
    return build_network({"source": "layers", "layers": list(layers)})


def test_same_network_as_written_in_python():
    network = build(
        {"type": "Unflatten", "dim": 1, "unflattened_size": [1, 4, 4]},
        {"type": "Conv2d", "in_channels": 1, "out_channels": 3, "kernel_size": [3, 1], "stride": 2, "bias": False},
        {"type": "BatchNorm2d", "num_features": 3, "eps": 1e-3},
        {"type": "ReLU", "inplace": True},
        {"type": "Flatten"},
        {"type": "Dropout", "p": 0.9},
        {"type": "Linear", "in_features": 6, "out_features": 2},
    )
    written = nn.Sequential(
        nn.Unflatten(1, (1, 4, 4)),
        nn.Conv2d(1, 3, (3, 1), stride=2, bias=False),
        nn.BatchNorm2d(3, eps=1e-3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.9),
        nn.Linear(6, 2),
    ).eval()
    written.load_state_dict(network.state_dict())
    inputs = torch.randn(5, 16)
    assert torch.equal(network(inputs), written(inputs))


def test_layers_are_called_by_name_or_place_and_stacks_nest():
    network = build(
        {"type": "Sequential", "name": "body", "layers": [{**LINEAR, "out_features": 4, "name": "first"}]}, LINEAR
    )
    assert list(network.state_dict()) == ["body.first.weight", "body.first.bias", "1.weight", "1.bias"]


def test_comes_in_eval_mode_float32_on_the_cpu():
    network = build(LINEAR, {"type": "BatchNorm1d", "num_features": 2})
    assert not any(module.training for module in network.modules())
    assert {tensor.dtype for tensor in network.parameters()} == {torch.float32}
    assert {tensor.device.type for tensor in network.parameters()} == {"cpu"}


def test_random_numbers_of_the_caller_are_left_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    build(LINEAR)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ({"type": "Linera"}, ["[model.layers[0]]", "'Linera'", "did you mean", "Linear"]),
        ({"type": "FractionalMaxPool2d", "kernel_size": 2}, ["'FractionalMaxPool2d' is not an allowed layer"]),
        ({"type": "LSTM", "input_size": 3, "hidden_size": 3}, ["'LSTM' is not an allowed layer"]),
        ({"type": "Module"}, ["'Module' is not an allowed layer"]),
        ({"type": "torch.nn.Linear"}, ["not an allowed layer"]),
        ({**LINEAR, "in_feature": 4}, ["Linear has no key 'in_feature'", "in_features, out_features, bias"]),
        ({**LINEAR, "device": "meta"}, ["Linear has no key 'device'"]),
        ({**LINEAR, "dtype": "float16"}, ["Linear has no key 'dtype'"]),
        ({"type": "Linear"}, ["Linear cannot be built", "in_features"]),
        ({**LINEAR, "in_features": "4"}, ["Linear cannot be built"]),
        ({**LINEAR, "in_features": -4}, ["Linear cannot be built"]),
        ({"type": "LayerNorm", "normalized_shape": 2, "eps": float("nan")}, ["eps = nan", "finite"]),
        ({"type": "LayerNorm", "normalized_shape": {"a": 2}}, ["normalized_shape = {'a': 2}"]),
        ({**LINEAR, "out_features": 10**13}, ["does not fit in this machine's memory"]),
        ({**LINEAR, "name": "a.b"}, ["name = 'a.b'"]),
        ({**LINEAR, "name": "forward"}, ["cannot be built", "forward"]),
        ({**LINEAR, "name": ""}, ["name = ''"]),
        ({}, ["needs the key `type`"]),
        ("Linear", ["[model.layers[0]] is 'Linear'"]),
        ({"type": "Sequential", "layers": []}, ["[model.layers[0].layers] is not a list"]),
        ({"type": "Sequential", "layers": [LINEAR], "p": 1}, ["unknown key 'p'"]),
        ({"type": "BatchNorm1d", "num_features": 2, "track_running_stats": False}, ["depend on the other inputs"]),
    ],
)
def test_what_is_refused_and_said(layer, words):
    with pytest.raises(UsageError) as caught:
        build(layer)
    assert str(caught.value).startswith("archive.toml: [model")
    for word in words:
        assert word in str(caught.value)


def test_lists_become_tuples_as_written_in_python():
    network = build({"type": "MaxPool2d", "kernel_size": [2, 1]}, {"type": "ZeroPad2d", "padding": [1, 2, 3, 4]})
    assert (network[0].kernel_size, network[1].padding) == ((2, 1), (1, 2, 3, 4))


def test_names_are_not_used_twice():
    with pytest.raises(UsageError, match=r"layers\[1\].*name = 'a'"):
        build({**LINEAR, "name": "a"}, {**LINEAR, "name": "a"})


@pytest.mark.parametrize("layers", [None, [], "Linear", {}, 3])
def test_layers_must_be_a_list(layers):
    with pytest.raises(UsageError, match=r"\[model.layers\] is not a list"):
        build_network({"source": "layers", "layers": layers})


def test_many_layers_share_one_memory_budget():
    half = {"type": "Linear", "in_features": 1 << 16, "out_features": 1 << 16}
    with pytest.raises(UsageError, match="does not fit in this machine's memory"):
        build({**LINEAR, "out_features": 1 << 44}, half)


def test_every_allowed_layer_is_a_layer_with_one_input():
    for name, layer in ALLOWED_LAYERS.items():
        assert layer is getattr(nn, name)
        parameters = inspect.signature(layer.forward).parameters.values()
        assert sum(one.default is one.empty for one in parameters) == 2, name


class Draws(TorchDispatchMode):
    """Counts the random numbers that are drawn into parameters."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default):
            self.count += args[0].numel()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("drawn", "count"), [(True, 4 * 3 + 3), (False, 0)])
def test_initial_weights_are_drawn_where_they_are_asked_for(drawn, count):
    with Draws() as draws:
        build_network(
            {"source": "layers", "layers": [LINEAR | {"in_features": 4, "out_features": 3}]}, drawn=drawn
        )
    assert draws.count == count


def test_building_a_network_does_not_load_torchs_compiler():
    """It takes two seconds, and nothing here is compiled."""
    code = (
        "import sys; from flforensics.models import build_network;"
        " layer = {'type': 'Conv2d', 'in_channels': 1, 'out_channels': 2, 'kernel_size': 3};"
        " build_network({'source': 'layers', 'layers': [layer]}); sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
