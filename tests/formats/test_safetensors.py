"""safetensors: the same tensors as the library reads, and none of the files that have two meanings."""

import json
import struct

import pytest
import safetensors.torch
import torch

from flforensics.errors import EvidenceError
from flforensics.formats import open_checkpoint
from tests.formats.building import Bench, same

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
    torch.bool,
]  # fmt: skip
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def raw(header: object, data: bytes = bytes(8), *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def named(*names: str, **change: object) -> dict[str, object]:
    return dict.fromkeys(names, ENTRY | change)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 0, 3), (1, 2, 1, 2)], ids=str)
def test_reads_what_the_library_reads(bench: Bench, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 100
    tensors = {"first": torch.ones(3), "it": values.abs().to(dtype), "last": torch.arange(5)}
    content = safetensors.torch.save(tensors, metadata={"round": "3"})
    checkpoint = bench.opened(content)
    assert checkpoint.shapes["it"] == shape
    assert checkpoint.dtypes["it"] == dtype
    assert same(checkpoint, safetensors.torch.load(content))


def test_every_read_is_a_tensor_of_its_own(bench: Bench) -> None:
    checkpoint = bench.opened(safetensors.torch.save({"w": torch.ones(2)}))
    checkpoint["w"].zero_()
    assert checkpoint["w"].tolist() == [1.0, 1.0]


def test_a_tensor_that_does_not_fit_into_memory_is_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    checkpoint = bench.opened(safetensors.torch.save({"w": torch.ones(2)}))
    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(EvidenceError, match="'w' of 8 bytes") as caught:
        checkpoint["w"]
    assert caught.value.reason == "MEMORY"


def test_a_file_with_the_header_of_another_is_judged_by_itself(bench: Bench) -> None:
    good = safetensors.torch.save({"w": torch.ones(2)})
    first, second = (
        bench.opened(good),
        bench.opened(good[:-8] + safetensors.torch.save({"w": torch.zeros(2)})[-8:]),
    )
    assert first["w"].tolist() == [1.0, 1.0]
    assert second["w"].tolist() == [0.0, 0.0]
    assert bench.refusal(good + b"x").reason == "TRAILING"
    assert bench.refusal(good[:-1]).reason == "TRUNCATED"


def test_two_files_with_one_bad_header_are_refused_each_by_its_name(bench: Bench) -> None:
    bad = raw(named("w", dtype="F12"))
    assert [bench.refusal(bad).file for _ in range(2)] == ["0.bin", "1.bin"]


def test_an_unknown_name_is_a_missing_key(bench: Bench) -> None:
    checkpoint = bench.opened(raw(named("w")))
    assert "w" in checkpoint
    assert "v" not in checkpoint
    with pytest.raises(KeyError):
        checkpoint["v"]


def test_reads_the_reference_file_by_hand(bench: Bench) -> None:
    header = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    tensors = bench.read(raw(header, struct.pack("<2f", 1.5, -2)))
    assert tensors["w"].tolist() == [1.5, -2.0]


def test_strange_names_are_accepted_as_they_are(bench: Bench) -> None:
    name = "\0\x1b[31m<script>\u202e=cmd()"
    assert list(bench.read(raw(named(name)))) == [name]


HOSTILE = {
    "shorter than its length": (raw(b"{", b"")[:9] + b"", "HEADER"),
    "header beyond the file": (raw(named("w"), length=10_000), "TRUNCATED"),
    "header of 2^64 - 1 bytes": (raw(named("w"), length=2**64 - 1), "LIMIT"),
    "header over 100 MB": (raw(named("w"), length=100_000_001), "LIMIT"),
    "leading space": (raw(b" " + json.dumps(named("w")).encode()), "HEADER"),
    "padded with tabs": (raw(json.dumps(named("w")).encode() + b"\t"), "HEADER"),
    "no JSON": (raw(b"{]}"), "JSON"),
    "not UTF-8": (raw(b'{"\xff": 1}'), "JSON"),
    "a single quote": (raw(b"{'w': 1}"), "JSON"),
    "two values": (raw(b"{}{}"), "JSON"),
    "NaN": (raw(b'{"w": NaN}'), "JSON"),
    "infinity": (raw(b'{"w": {"shape": [-Infinity]}}'), "JSON"),
    "endless number": (raw(b'{"w": ' + b"9" * 5000 + b"}"), "JSON"),
    "deep nesting": (raw(b'{"w": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "JSON"),
    "the same name twice, alike": (raw(b'{"w": %s, "w": %s}' % ((json.dumps(ENTRY).encode(),) * 2)), "DUPLICATE"),
    "the same name twice, different": (
        raw(
            b'{"w": %s, "w": {"dtype": "I32", "shape": [2], "data_offsets": [0, 8]}}' % json.dumps(ENTRY).encode()
        ),
        "DUPLICATE",
    ),
    "a field twice": (raw(b'{"w": {"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}'), "DUPLICATE"),
    "metadata that is no text": (raw({"__metadata__": {"a": 1}, **named("w")}), "METADATA"),
    "metadata that is a list": (raw({"__metadata__": [], **named("w")}), "METADATA"),
    "overlap": (raw(named("v", "w")), "OVERLAP"),
    "partial overlap": (raw({"v": ENTRY, "w": ENTRY | {"data_offsets": [4, 12]}}, bytes(12)), "OVERLAP"),
    "hole": (raw(named("w", data_offsets=[4, 12]), bytes(12)), "HOLE"),
    "trailing byte": (raw(named("w"), bytes(9)), "TRAILING"),
    "only trailing bytes": (raw({}, bytes(9)), "TRAILING"),
    "data cut off": (raw(named("w"), bytes(7)), "TRUNCATED"),
    "no data": (raw(named("w"), b""), "TRUNCATED"),
    "too many bytes": (raw(named("w", shape=[1])), "SIZE"),
    "too few bytes": (raw(named("w", shape=[3])), "SIZE"),
    "overflow": (raw(named("w", shape=[2**62, 4])), "LIMIT"),
    "overflow to the right size": (raw(named("w", shape=[2**32, 2**32 + 2])), "LIMIT"),
    "empty but endless": (raw(named("w", shape=[0, 2**60], data_offsets=[0, 0]), b""), "LIMIT"),
    "rank of 100 000": (raw(named("w", shape=[1] * 100_000)), "LIMIT"),
    "negative dimension": (raw(named("w", shape=[-2])), "SHAPE"),
    "two negative dimensions": (raw(named("w", shape=[-2, -1])), "SHAPE"),
    "true as a dimension": (raw(named("w", shape=[True, 2])), "SHAPE"),
    "fraction as a dimension": (raw(named("w", shape=[2.0])), "SHAPE"),
    "shape that is no list": (raw(named("w", shape=2)), "SHAPE"),
    "negative offset": (raw(named("w", data_offsets=[-8, 0])), "HEADER"),
    "offsets in reverse": (raw(named("w", data_offsets=[8, 0])), "HEADER"),
    "one offset": (raw(named("w", data_offsets=[8])), "HEADER"),
    "offsets as text": (raw(named("w", data_offsets=["0", "8"])), "HEADER"),
    "an extra field": (raw(named("w", more=1)), "HEADER"),
    "a missing field": (raw({"w": {"dtype": "F32", "shape": [2]}}), "HEADER"),
    "a tensor that is a number": (raw({"w": 1}), "HEADER"),
    "unknown type": (raw(named("w", dtype="F128")), "DTYPE"),
    "complex type": (raw(named("w", dtype="C64", shape=[1])), "DTYPE"),
    "type that is no text": (raw(named("w", dtype=["F32"])), "DTYPE"),
    "empty name": (raw(named("")), "NAME"),
    "name of a megabyte": (raw(named("w" * 2**20)), "NAME"),
    "half a surrogate pair": (raw(b'{"\\ud800": %s}' % json.dumps(ENTRY).encode()), "NAME"),
    "truth value of 2": (raw(named("w", dtype="BOOL", shape=[8]), b"\1\0\1\0\1\0\1\2"), "VALUES"),
    "no tensors": (raw({}, b""), "NO_TENSORS"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_refuses(bench: Bench, case: str) -> None:
    content, reason = HOSTILE[case]
    assert bench.refusal(content).reason == reason


def test_refuses_more_tensors_than_any_model_has(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flforensics.formats.checks.MAX_TENSORS", 3)
    empty = {"shape": [0], "data_offsets": [0, 0]}
    assert bench.read(raw(named("a", "b", "c", **empty), b""))
    assert bench.refusal(raw(named("a", "b", "c", "d", **empty), b"")).reason == "LIMIT"


def test_every_truncation_is_refused(bench: Bench) -> None:
    content = raw(named("w"), struct.pack("<2f", 1, 2))
    for length in range(len(content)):
        assert bench.refusal(content[:length]).reason in {"FORMAT", "TRUNCATED"}


@pytest.mark.parametrize("change", ["truncated", "rewritten", "replaced", "removed"])
def test_a_file_that_changes_after_opening_is_refused(bench: Bench, change: str) -> None:
    content = raw(named("w"), struct.pack("<2f", 1, 2))
    file = bench.file(content)
    checkpoint = open_checkpoint(file)
    assert checkpoint["w"].tolist() == [1.0, 2.0]
    if change == "replaced":
        bench.path(content, "other").replace(file.path)
    elif change == "removed":
        file.path.unlink()
    else:
        file.path.write_bytes(content[:-4] if change == "truncated" else content[:-8] + bytes(7) + b"\1")
    with pytest.raises(EvidenceError) as caught:
        checkpoint["w"]
    assert caught.value.reason == ("UNREADABLE" if change == "removed" else "CHANGED")
