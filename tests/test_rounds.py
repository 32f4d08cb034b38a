"""Tensors of a round, one or several at a time."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from flforensics.errors import EvidenceError
from flforensics.rounds import ClientModel, Round, StoredModel

SHAPES = {"a": (2, 3), "b": (4,), "c": ()}


class Counting(dict[str, Tensor]):
    """A checkpoint that can read several tensors at once, and notes how often it did."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(tensors)
        self.times = 0

    def several(self, names: list[str]) -> list[Tensor]:
        self.times += 1
        return [self[name].clone() for name in names]


def state(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def made(values: Any = "full", checkpoint: Any = dict) -> Round:
    clients = tuple(ClientModel(f"c{k}", 1.0, StoredModel(checkpoint(state(k)), f"file {k}")) for k in range(3))
    return Round(4, StoredModel(state(10), "previous"), clients, StoredModel(state(11), "fused"), values)


@pytest.mark.parametrize("checkpoint", [dict, Counting])
@pytest.mark.parametrize("values", ["full", "delta", "negative-delta"])
def test_several_tensors_are_what_each_is_alone(values: str, checkpoint: Any) -> None:
    round_ = made(values, checkpoint)
    together = round_.several(["c", "a"], round_.clients)
    assert [terms.name for terms in together] == ["c", "a"]
    for (terms, k), again in product(product(together, range(3)), range(2)):
        alone = round_.tensor(terms.name, round_.clients)
        assert torch.equal(terms.client(k), alone.client(k)), again
        assert torch.equal(terms.fused, alone.fused)
        assert alone.previous is not None
        assert terms.previous is not None
        assert torch.equal(terms.previous, alone.previous)
        assert (terms.count, terms.relative) == (alone.count, alone.relative)


@pytest.mark.parametrize("values", ["full", "delta", "negative-delta"])
def test_a_client_in_pieces_is_the_client(values: str) -> None:
    round_ = made(values)
    terms = round_.tensor("a", round_.clients)
    mirrored = replace(terms, client=lambda k: -terms.client(k))
    for k in range(3):
        whole = terms.client(k).flatten()
        assert [one.tolist() for one in terms.pieces(k, [slice(0, 4), slice(4, 6)])] == [
            whole[:4].tolist(),
            whole[4:].tolist(),
        ]
        assert torch.equal(torch.cat(list(mirrored.pieces(k, [slice(0, 6)]))), -whole)


def test_a_shape_is_wrong_in_pieces_too() -> None:
    round_ = made()
    terms = round_.tensor("a", round_.clients)
    model = round_.clients[2].model
    assert model is not None
    model.tensors["a"] = torch.zeros(6)  # type: ignore[index]
    with pytest.raises(EvidenceError, match="file 2"):
        list(terms.pieces(2, [slice(0, 6)]))


def test_who_goes_client_by_client_reads_each_once() -> None:
    round_ = made(checkpoint=Counting)
    together = round_.several(list(SHAPES), round_.clients)
    for k, terms in product(range(3), together):
        terms.client(k)
    assert [client.model.tensors.times for client in round_.clients if client.model] == [1, 1, 1]  # type: ignore[attr-defined]


def test_tensors_of_one_client_are_kept_at_a_time() -> None:
    round_ = made(checkpoint=Counting)
    first, second, _ = round_.several(list(SHAPES), round_.clients)
    for terms, k in ((first, 0), (first, 1), (second, 0)):
        terms.client(k)
    assert [client.model.tensors.times for client in round_.clients if client.model] == [2, 1, 0]  # type: ignore[attr-defined]


@pytest.mark.parametrize("checkpoint", [dict, Counting])
@pytest.mark.parametrize("damage", ["missing", "misshapen"])
def test_what_is_wrong_with_one_of_them_is_said(damage: str, checkpoint: Any) -> None:
    round_ = made(checkpoint=checkpoint)
    model = round_.clients[1].model
    assert model is not None
    changed: Any = model.tensors
    if damage == "missing":
        del changed["b"]
    else:
        changed["b"] = torch.zeros(5)
    together = round_.several(["a", "b"], round_.clients)
    together[0].client(0)
    with pytest.raises(EvidenceError, match=r"file 1.*'b'") as caught:
        together[0].client(1)
    assert caught.value.reason == {"missing": "KEY", "misshapen": "SHAPE"}[damage]
    assert caught.value.file == "file 1"
