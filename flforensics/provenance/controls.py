"""Inputs to compare an answer with: neighbours of an input, and noise of its shape. Seeded by the input itself.

A neighbour of an image is moved by one pixel or gets a little noise, one of other numbers gets a little noise, and
one of a text has one token replaced. Noise has the mean and spread of the input's numbers, or random tokens in the
places of the text's; masks and padding stay as they are. Tokens are drawn from the ids up to the text's largest.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from flforensics.gradients import Call

COUNT = 32
"""How many neighbours, and how many noise inputs, an input gets."""

_IDS, _MASK = "input_ids", "attention_mask"
_LITTLE = 0.1
_MOVES = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
_IMAGE_AXES = 3

_Change = Callable[[Tensor, Tensor, torch.Generator], Iterator[Tensor]]


def neighbours(one: Call, *, seed: int, digest: str) -> Call:
    """`COUNT` slightly changed versions of the one input in the call, which has the SHA-256 `digest`."""
    return _changed(one, f"neighbours {seed} {digest}", _near, _one_token)


def noise(one: Call, *, seed: int, digest: str) -> Call:
    """`COUNT` inputs that look like the one in the call from afar and show nothing."""
    return _changed(one, f"noise {seed} {digest}", _spread, _all_tokens)


def _changed(one: Call, seed: str, numbers: _Change, tokens: _Change) -> Call:
    """The call with its numbers or its tokens changed; everything else is repeated."""
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7]))

    def change(name: str, tensor: Tensor) -> Tensor:
        row = tensor[0].cpu()
        if row.is_floating_point():
            rows = numbers(row, torch.ones_like(row, dtype=torch.bool), generator)
        elif name == _IDS:
            rows = tokens(row, _places(row, one.keywords), generator)
        else:
            return tensor.repeat(COUNT, *[1] * row.dim())
        return torch.stack([next(rows) for _ in range(COUNT)]).to(tensor)

    return Call(
        tuple(change(_IDS, tensor) for tensor in one.arguments),
        {name: change(name, tensor) for name, tensor in one.keywords.items()},
    )


def _near(row: Tensor, _places: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """Images in every direction first; then a little noise."""
    if row.dim() == _IMAGE_AXES:
        yield from (_moved(row, down, right) for down, right in _MOVES)
    while True:
        yield row + _LITTLE * _deviation(row) * torch.randn(row.shape, generator=generator, dtype=row.dtype)


def _moved(image: Tensor, down: int, right: int) -> Tensor:
    """The image [..., H, W] one pixel off, its border repeated."""
    rows = (torch.arange(image.shape[-2]) - down).clamp(0, image.shape[-2] - 1)
    columns = (torch.arange(image.shape[-1]) - right).clamp(0, image.shape[-1] - 1)
    return image[..., rows[:, None], columns]


def _spread(row: Tensor, _places: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        yield row.mean() + _deviation(row) * torch.randn(row.shape, generator=generator, dtype=row.dtype)


def _deviation(row: Tensor) -> Tensor:
    """The spread of the numbers; 1 where they are all the same."""
    deviation = row.std(correction=0)
    return deviation if deviation > 0 else torch.ones_like(deviation)


def _places(row: Tensor, keywords: Mapping[str, Tensor]) -> Tensor:
    """Where a text's own tokens stand: under the mask, or before what it is filled up with at its end.

    Its first and last token are left alone, where there are others: they mark its ends.
    """
    mask = keywords[_MASK][0].cpu().bool() if _MASK in keywords else row != row[-1]
    places = (mask if mask.any() else torch.ones_like(row, dtype=torch.bool)).nonzero().flatten()
    return places[1:-1] if len(places) > 2 else places


def _one_token(row: Tensor, places: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        place = places[torch.randint(len(places), (1,), generator=generator)]
        yield _replaced(row, place, generator)


def _all_tokens(row: Tensor, places: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        yield _replaced(row, places, generator)


def _replaced(row: Tensor, places: Tensor, generator: torch.Generator) -> Tensor:
    changed = row.clone()
    changed[places] = torch.randint(int(row.max()) + 1, (len(places),), generator=generator, dtype=row.dtype)
    return changed
