"""Several tensors at once: the same as one after the other, with fewer readings of the file."""

import errno
import io
import json
import os
import random
import struct
from typing import Any

import pytest
import safetensors.torch
import torch

from flforensics.errors import EvidenceError
from flforensics.evidence import EvidenceFile, open_evidence
from flforensics.formats import open_checkpoint
from tests.formats.building import Bench, identical, same

FIELDS = ("dtype", "shape", "data_offsets")
TENSORS = {
    "a": torch.randn(3, 2),
    "b": torch.tensor(7, dtype=torch.int64),
    "c": torch.randn(5).half(),
    "d": torch.tensor([True, False, True]),
    "e": torch.zeros(0, 4),
    "f": torch.randn(2, 2, 2, dtype=torch.float64),
    "g": torch.randn(1).bfloat16(),
}


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Every reading of a file from now on: where it begins, how long it is."""
    found: list[tuple[int, int]] = []
    fill = EvidenceFile._fill

    def noted(file: EvidenceFile, descriptor: int, offset: int, buffer: memoryview) -> None:
        found.append((offset, buffer.nbytes))
        fill(file, descriptor, offset, buffer)

    monkeypatch.setattr(EvidenceFile, "_fill", noted)
    return found


def as_torch() -> bytes:
    buffer = io.BytesIO()
    torch.save(TENSORS, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("content", [safetensors.torch.save(TENSORS), as_torch()], ids=["safetensors", "torch"])
@pytest.mark.parametrize("seed", range(8))
def test_any_of_them_in_any_order_are_what_they_are_alone(bench: Bench, content: bytes, seed: int) -> None:
    names = random.Random(seed).sample(list(TENSORS), seed)
    checkpoint = bench.opened(content)
    found = checkpoint.several(names)
    assert same(dict(zip(names, found, strict=True)), {name: TENSORS[name].flatten() for name in names})


def test_neighbours_are_read_at_once(bench: Bench, readings: list[tuple[int, int]]) -> None:
    tensors = {name: torch.full((4,), float(n)) for n, name in enumerate("abcdefg")}
    checkpoint = bench.opened(safetensors.torch.save(tensors))
    readings.clear()
    found = checkpoint.several(["f", "a", "c", "b", "e"])
    assert [one[0].item() for one in found] == [5.0, 0.0, 2.0, 1.0, 4.0]
    assert sorted(length for _, length in readings) == [32, 48]


def test_numbers_may_lie_anywhere(bench: Bench) -> None:
    """The library puts the widest types first, so that all are aligned; the specification does not."""
    places = {"a": ("U8", [1], [0, 1]), "b": ("F32", [2], [1, 9]), "c": ("F64", [1], [9, 17])}
    header = json.dumps({name: dict(zip(FIELDS, place, strict=True)) for name, place in places.items()}).encode()
    data = struct.pack("<Bffd", 7, 1.5, -2.0, 0.25)
    checkpoint = bench.opened(struct.pack("<Q", len(header)) + header + data)
    assert [one.tolist() for one in checkpoint.several(["c", "b", "a"])] == [[0.25], [1.5, -2.0], [7]]


def test_what_was_read_together_can_be_written_to_apart(bench: Bench) -> None:
    checkpoint = bench.opened(safetensors.torch.save({"a": torch.ones(2), "b": torch.ones(2)}))
    a, b = checkpoint.several(["a", "b"])
    a.zero_()
    assert b.tolist() == [1.0, 1.0]
    assert checkpoint["a"].tolist() == [1.0, 1.0]


def test_truth_values_are_checked_as_ever(bench: Bench) -> None:
    content = safetensors.torch.save({"a": torch.tensor([True]), "b": torch.tensor([True])})
    checkpoint = bench.opened(content[:-1] + b"\x02")
    with pytest.raises(EvidenceError, match="tensor 'b'") as caught:
        checkpoint.several(["a", "b"])
    assert caught.value.reason == "VALUES"


def test_a_file_is_opened_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = bench.opened(safetensors.torch.save({name: torch.ones(4) for name in "abcdefg"}))
    opened, open_ = [], os.open

    def noted(*arguments: Any) -> int:
        opened.append(arguments)
        return open_(*arguments)

    monkeypatch.setattr(os, "open", noted)
    checkpoint.several(["a", "c", "e", "g"])
    assert len(opened) == 1


def test_a_file_that_changed_is_refused(bench: Bench) -> None:
    path = bench.path(safetensors.torch.save({"a": torch.ones(2), "b": torch.ones(2)}), "changing.safetensors")
    checkpoint = open_checkpoint(open_evidence(path, path.name))
    path.write_bytes(safetensors.torch.save({"a": torch.ones(2), "b": torch.ones(3)}))
    with pytest.raises(EvidenceError) as caught:
        checkpoint.several(["a", "b"])
    assert caught.value.reason == "CHANGED"


@pytest.mark.parametrize("content", [safetensors.torch.save(TENSORS), as_torch()], ids=["safetensors", "torch"])
@pytest.mark.parametrize("step", [1, 2, 5, 100])
def test_pieces_are_the_tensor(bench: Bench, content: bytes, step: int) -> None:
    checkpoint = bench.opened(content)
    for name, tensor in TENSORS.items():
        values = tensor.numel()
        places = [slice(start, min(start + step, values)) for start in range(0, values, step)]
        pieces = [piece.clone() for piece in checkpoint.pieces(name, places)]
        assert [len(piece) for piece in pieces] == [place.stop - place.start for place in places]
        assert identical(torch.cat([tensor.flatten()[:0], *pieces]), tensor.flatten())


def test_of_a_tensor_in_pieces_a_piece_is_in_memory(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = bench.opened(safetensors.torch.save({"a": torch.arange(1000.0)}))
    made, empty = [], torch.empty

    def noted(*size: int, **options: Any) -> torch.Tensor:
        made.append(empty(*size, **options).nbytes)
        return empty(*size, **options)

    monkeypatch.setattr(torch, "empty", noted)
    places = [slice(start, start + 100) for start in range(0, 1000, 100)]
    assert sum(float(piece.sum()) for piece in checkpoint.pieces("a", places)) == 999 * 500
    assert made == [400]


def test_a_file_that_changes_between_pieces_is_refused(bench: Bench) -> None:
    path = bench.path(safetensors.torch.save({"a": torch.ones(4)}), "changing.safetensors")
    pieces = open_checkpoint(open_evidence(path, path.name)).pieces("a", [slice(0, 2), slice(2, 4)])
    assert next(pieces).tolist() == [1.0, 1.0]
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(EvidenceError) as caught:
        list(pieces)
    assert caught.value.reason == "CHANGED"


def test_a_file_system_that_fails_is_said(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a network drive even asking what a file is can fail, after its bytes were read."""
    checkpoint = bench.opened(safetensors.torch.save({"a": torch.ones(4)}))
    fstat, asked = os.fstat, []

    def failing(descriptor: int) -> os.stat_result:
        asked.append(descriptor)
        if len(asked) == 2:
            raise OSError(errno.ESTALE, "Stale file handle")
        return fstat(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", failing)
        with pytest.raises(EvidenceError, match="Stale file handle") as caught:
            checkpoint["a"]
    assert caught.value.reason == "UNREADABLE"


def test_a_name_that_is_not_there(bench: Bench) -> None:
    with pytest.raises(KeyError):
        bench.opened(safetensors.torch.save({"a": torch.ones(2)})).several(["a", "z"])
