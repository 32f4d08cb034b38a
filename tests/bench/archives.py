"""Archives of any size for measurements: random clients around a random global, honestly fused."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

State = dict[str, Tensor]

MANIFEST = """format = 1
[model]
source = "torchvision"
name = "{name}"
arguments = {{ num_classes = 10 }}
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


def write_archive(
    folder: Path, make: Callable[[], nn.Module], *, name: str, clients: int, distinct: int | None = None
) -> Path:
    """An archive of torchvision's model `name` with one round, as `write_round` writes it."""
    write_round(folder, make, clients=clients, distinct=distinct)
    (folder / "archive.toml").write_text(MANIFEST.format(name=name))
    return folder


def write_round(folder: Path, make: Callable[[], nn.Module], *, clients: int, distinct: int | None = None) -> None:
    """One round of `clients`, of which `distinct` files differ and the others are hard links to them."""
    torch.manual_seed(0)
    previous = {k: v.detach().clone() for k, v in make().state_dict().items()}
    weights = {f"client-{k:04d}": 100 + 7 * (k % 13) for k in range(clients)}
    total = float(sum(weights.values()))
    fused = {k: torch.zeros_like(v) for k, v in previous.items()}
    files = folder / "rounds/0001/clients"
    files.mkdir(parents=True)
    (folder / "rounds/0000").mkdir()
    for k, (client, weight) in enumerate(weights.items()):
        state = _near(previous, seed=k % (distinct or clients))
        path = files / f"{client}.safetensors"
        if distinct and k >= distinct:
            os.link(files / f"client-{k % distinct:04d}.safetensors", path)
        else:
            save_file(state, path)
        for tensor, value in state.items():
            if value.is_floating_point():
                fused[tensor] += value * (weight / total)
    save_file(previous, folder / "rounds/0000/global.safetensors")
    save_file(fused, folder / "rounds/0001/global.safetensors")
    (folder / "rounds/0001/weights.json").write_text(json.dumps(weights))


def files_of(folder: Path) -> Iterator[Path]:
    """Every file below `folder`, in order."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _near(previous: State, *, seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in previous.items():
        if not tensor.is_floating_point():
            state[name] = tensor
            continue
        noise = 0.01 * torch.randn(tensor.shape, generator=generator)
        state[name] = tensor * (1 + noise.clamp(-0.5, 0.5)) + (0 if name.endswith("running_var") else 0.1 * noise)
    return state
