"""`source = "python"`: only what the operator names is ever imported."""

import sys

import pytest
import torch

from flforensics.errors import UsageError
from flforensics.models import build_network

MODULE = """
from torch import nn
NUMBER = 3
class Network(nn.Module):
    def __init__(self, width=2, options=None):
        super().__init__()
        self.head = nn.Linear(4, width).double()
    def forward(self, inputs):
        return self.head(inputs)
def nothing():
    return None
def broken():
    raise LookupError("no such thing")
"""


@pytest.fixture
def operators_module(tmp_path, monkeypatch):
    (tmp_path / "operators_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "operators_module"
    sys.modules.pop("operators_module", None)


def build(factory, *, drawn=True, **others):
    return build_network({"source": "python", **others}, factory=factory, drawn=drawn)


def test_factory_of_the_operator_is_called(operators_module):
    network = build(f"{operators_module}:Network", arguments={"width": 5, "options": {"a": [1]}})
    assert network.head.weight.shape == (5, 4)
    assert network.head.weight.dtype == torch.float32
    assert not network.training


def test_a_factory_may_build_on_its_initial_weights(operators_module):
    torch.manual_seed(0)
    drawn = build(f"{operators_module}:Network", drawn=False)
    torch.manual_seed(0)
    assert torch.equal(drawn.head.weight, build(f"{operators_module}:Network", drawn=True).head.weight)


def test_the_archive_alone_imports_nothing(operators_module):
    with pytest.raises(UsageError, match=r"'operators_module:Network', and an archive alone.*pass --factory"):
        build(None, name="operators_module:Network")
    assert operators_module not in sys.modules


def test_the_working_folder_is_not_searched(operators_module, tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "brought_along.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path / "inner")
    with pytest.raises(UsageError, match="brought_along"):
        build("brought_along:network")


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("operators_module", "write package.module:function"),
        ("operators_module:", "write package.module:function"),
        (":Network", "write package.module:function"),
        ("operators-module:Network", "write package.module:function"),
        ("..operators_module:Network", "write package.module:function"),
        ("operators_module:Network()", "write package.module:function"),
        ("no_such_module_here:Network", "no_such_module_here"),
        ("operators_module:Netwrk", "has no function Netwrk"),
        ("operators_module:NUMBER", "has no function NUMBER"),
        ("operators_module:nothing", "gives a NoneType"),
        ("operators_module:broken", "LookupError: no such thing"),
    ],
)
def test_what_is_refused_and_said(operators_module, factory, words):
    with pytest.raises(UsageError) as caught:
        build(factory)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({}, "needs the key `source`"),
        ({"source": "keras"}, "source = 'keras' is unknown; use torchvision, transformers, layers, python"),
        ({"source": ["layers"]}, "is not a name"),
        ({"source": "layers", "layers": [], "arguments": {}}, "unknown key 'arguments'; use source, layers"),
        ({"source": "python", "replace": {}}, "unknown key 'replace'"),
    ],
)
def test_source_and_keys_are_checked(table, words):
    with pytest.raises(UsageError) as caught:
        build_network(table, factory="operators_module:Network")
    assert words in str(caught.value)
