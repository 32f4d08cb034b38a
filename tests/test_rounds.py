"""Tensors of a round, one or several at a time."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flforensics.errors import EvidenceError
from flforensics.rounds import ClientModel, Round, RoundTensor, StoredModel, together

SHAPES = {"a": (2, 3), "b": (4,), "c": ()}


class Counting(dict[str, Tensor]):
    """A checkpoint that can read several tensors at once, and notes how often it did."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(tensors)
        self.times = 0

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.items()}

    def several(self, names: Iterable[str]) -> list[Tensor]:
        self.times += 1
        return [self[name].clone().flatten() for name in names]


def state(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def made(values: Any = "full", checkpoint: Any = dict) -> Round:
    clients = tuple(ClientModel(f"c{k}", 1.0, StoredModel(checkpoint(state(k)), f"file {k}")) for k in range(3))
    return Round(4, StoredModel(state(10), "previous"), clients, StoredModel(state(11), "fused"), values)


def tensors_of(round_: Round, names: Iterable[str] = SHAPES) -> list[RoundTensor]:
    return [round_.tensor(name, round_.clients) for name in names]


def times(round_: Round) -> list[int]:
    """How often each client's checkpoint was asked for several tensors."""
    return [client.model.tensors.times for client in round_.clients if client.model]  # type: ignore[attr-defined]


@pytest.mark.parametrize("checkpoint", [dict, Counting])
@pytest.mark.parametrize("values", ["full", "delta", "negative-delta"])
def test_several_tensors_are_what_each_is_alone(values: str, checkpoint: Any) -> None:
    tensors = tensors_of(made(values, checkpoint), ["c", "a"])
    read = together(tensors)
    for k in range(3):
        assert [one.tolist() for one in read(k)] == [terms.client(k).flatten().tolist() for terms in tensors]


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


def test_tensors_of_a_client_are_read_at_once() -> None:
    round_ = made(checkpoint=Counting)
    read = together(tensors_of(round_))
    for k in range(2):
        read(k)
    assert times(round_) == [1, 1, 0]


@pytest.mark.parametrize("other", ["mirrored", "fewer", "others", "computed"])
def test_tensors_of_other_clients_are_read_apart(other: str) -> None:
    round_, another = made(checkpoint=Counting), made("negative-delta", Counting)
    a, ours = tensors_of(round_, ["a", "b"])
    b = {
        "mirrored": lambda: another.tensor("b", round_.clients),
        "fewer": lambda: round_.tensor("b", round_.clients[:2]),
        "others": lambda: round_.tensor("b", another.clients),
        "computed": lambda: replace(ours, client=lambda k: 2 * ours.client(k)),
    }[other]()
    assert [one.tolist() for one in together([a, b])(1)] == [
        a.client(1).flatten().tolist(),
        b.client(1).flatten().tolist(),
    ]
    assert times(round_) == [0, 0, 0]


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
    read = together(tensors_of(round_, ["a", "b"]))
    read(0)
    with pytest.raises(EvidenceError, match=r"file 1.*'b'") as caught:
        read(1)
    assert caught.value.reason == {"missing": "KEY", "misshapen": "SHAPE"}[damage]
    assert caught.value.file == "file 1"


@pytest.mark.parametrize("values", ["full", "delta", "negative-delta"])
def test_what_is_written_on_a_piece_changes_no_client(values: str) -> None:
    stored = [torch.arange(6.0).reshape(2, 3) + k for k in range(3)]
    other = RoundTensor("a", None, stored[0], 3, lambda k: stored[k])
    for terms in (*tensors_of(made(values), ["a"]), other):
        before = [terms.client(k).clone() for k in range(3)]
        for k in range(3):
            pieces = []
            for piece in terms.pieces(k, [slice(0, 4), slice(4, 6)]):
                pieces.append(piece.clone())
                piece.fill_(torch.nan)
            assert torch.equal(torch.cat(pieces), before[k].flatten())
        assert all(torch.equal(terms.client(k), before[k]) for k in range(3))
