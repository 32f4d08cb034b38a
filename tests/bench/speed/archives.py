"""The archive of a case on disk, and its inputs."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from flforensics.gradients import Call
from flforensics.models import build_network
from tests.bench.archives import write_round
from tests.bench.speed.cases import Case

_MANIFEST = """format = 1
[model]
{model}
[input]
kind = "tensor"
batched = true
[fusion]
rule = "fedavg"
[layout]
global = "rounds/{{round:04d}}/global.safetensors"
client = "rounds/{{round:04d}}/clients/{{client}}.safetensors"
weights = "rounds/{{round:04d}}/weights.json"
"""
ROUND = 1


def write_case(folder: Path, case: Case) -> Path:
    """The archive of `case` in `folder`: random clients around a random global, honestly fused."""
    table = case.subject.table
    write_round(folder, lambda: build_network(table), clients=case.clients, distinct=case.distinct)
    lines = [f"{key} = {_toml(value)}" for key, value in table.items()]
    (folder / "archive.toml").write_text(_MANIFEST.format(model="\n".join(lines)))
    return folder


def inputs_of(case: Case) -> Call:
    """The case's random inputs, always the same."""
    generator, subject = torch.Generator().manual_seed(1), case.subject
    if subject.vocabulary is None:
        return Call((torch.randn(case.inputs, *subject.shape, generator=generator),))
    tokens = torch.randint(1, subject.vocabulary, (case.inputs, *subject.shape), generator=generator)
    if not subject.lengths:
        return Call((), {"input_ids": tokens})
    lengths = torch.tensor([subject.lengths[n % len(subject.lengths)] for n in range(case.inputs)])
    mask = (torch.arange(subject.shape[0]) < lengths[:, None]).long()
    return Call((), {"input_ids": tokens * mask, "attention_mask": mask})


def _toml(value: object) -> str:
    """Plain values, lists and tables of them, on one line."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)
