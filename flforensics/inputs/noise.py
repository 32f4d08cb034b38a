"""Inputs that nobody took: random numbers of an input's shape, as published methods draw them.

Images are drawn as pixels and normalised as pictures are. Token ids are not drawn: a random sentence is not noise.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from flforensics.inputs.images import image_settings, normalised
from flforensics.inputs.kinds import kind_of


def noise_shape(table: Mapping[str, object]) -> tuple[int, ...] | None:
    """The shape of one input, where the [input] `table` fixes it: images of a stated size."""
    if kind_of(table).name != "image":
        return None
    settings = image_settings(table)
    sides = settings.geometry.crop or settings.geometry.size
    return None if sides is None else (1 if settings.mode == "L" else 3, *sides)


def kaiming_noise(table: Mapping[str, object], shape: tuple[int, ...], *, count: int, seed: int) -> Tensor:
    """[count, *shape], Kaiming-uniform as FedDebug draws it: in ±√(6/n), with n the values of one input."""
    return _prepared(table, _uniform(shape, count, seed) * 2 - 1, scale=math.sqrt(6 / math.prod(shape)))


def uniform_noise(table: Mapping[str, object], shape: tuple[int, ...], *, count: int, seed: int) -> Tensor:
    """[count, *shape], uniform in [0, 1], as FLForensics draws its non-target inputs."""
    return _prepared(table, _uniform(shape, count, seed), scale=1.0)


def _uniform(shape: tuple[int, ...], count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.rand(shape, generator=generator) for _ in range(count)])


def _prepared(table: Mapping[str, object], values: Tensor, *, scale: float) -> Tensor:
    values = values * scale
    return normalised(values, image_settings(table)) if kind_of(table).name == "image" else values
