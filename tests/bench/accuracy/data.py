"""Real data as tensors: images by pixel, texts as the ids of their most frequent words."""

import csv
import random
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flforensics.errors import UsageError

VOCABULARY = 2000
_WORD = re.compile(r"[a-z]+|[0-9]+|[^\sa-z0-9]")
_UNKNOWN = 1  # 0 pads
Row = TypeVar("Row")


@dataclass(frozen=True)
class Labelled:
    """Examples, axis 0, and their classes [N]. Images are float32 [N, C, H, W], texts int64 ids [N, L]."""

    x: Tensor
    y: Tensor

    def __getitem__(self, rows: Tensor) -> "Labelled":
        return Labelled(self.x[rows], self.y[rows])

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Dataset:
    """What clients learn from, and what the finished model is asked about."""

    classes: int
    train: Labelled
    test: Labelled


def load(name: str, folder: Path) -> Dataset:
    """One of DATASETS from its file in `folder`. Raises UsageError if it is not there."""
    path = folder / _PLACES[name]
    if not path.exists():
        raise UsageError(
            f"{path} does not exist", hint="give --data the folder with mnist.zip, cifar10.zip, trec/ and agnews/"
        )
    return DATASETS[name](path)


def _images(path: Path, *, mean: float, deviation: float) -> Dataset:
    """A zip of train/CLASS/* and test/CLASS/*, in a seeded order."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if not name.endswith("/"))
        classes = sorted({name.split("/")[1] for name in names})
        parts = []
        for part in ("train", "test"):
            chosen = _shuffled([name for name in names if name.startswith(f"{part}/")])
            pixels = np.stack([np.array(Image.open(BytesIO(archive.read(name)))) for name in chosen])
            x = torch.from_numpy(pixels).float().div(255).sub(mean).div(deviation)
            x = x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2).contiguous()
            parts.append(Labelled(x, torch.tensor([classes.index(name.split("/")[1]) for name in chosen])))
    return Dataset(len(classes), *parts)


def _questions(path: Path) -> Dataset:
    """TREC: LABEL:fine text, in latin-1; the six coarse labels."""
    rows = []
    for part in ("train", "test"):
        lines = (path / f"{part}.txt").read_text("latin-1").splitlines()
        rows.append([(line.split(":", 1)[0], line.split(" ", 1)[1]) for line in lines if line.strip()])
    train, test = rows
    return _texts(_shuffled(train), _shuffled(test), length=24)


def _news(path: Path) -> Dataset:
    """AG News: class, title, description; the last 1,000 of a seeded order are for testing."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = _shuffled([(row[0], f"{row[1]} {row[2]}") for row in list(csv.reader(file))[1:]])
    return _texts(rows[:-1000], rows[-1000:], length=40)


def _texts(train: Sequence[tuple[str, str]], test: Sequence[tuple[str, str]], *, length: int) -> Dataset:
    """Texts as word ids: the training texts' most frequent words, cut and padded with 0 to `length`."""
    labels = sorted({label for label, _ in train})
    counts = Counter(word for _, text in train for word in _WORD.findall(text.lower()))
    words = sorted(counts, key=lambda word: (-counts[word], word))[: VOCABULARY - 2]
    ids = {word: index + 2 for index, word in enumerate(words)}

    def encoded(rows: Iterable[tuple[str, str]]) -> Labelled:
        x, y = [], []
        for label, text in rows:
            tokens = [ids.get(word, _UNKNOWN) for word in _WORD.findall(text.lower())[:length]] or [_UNKNOWN]
            x.append(tokens + [0] * (length - len(tokens)))
            y.append(labels.index(label))
        return Labelled(torch.tensor(x), torch.tensor(y))

    return Dataset(len(labels), encoded(train), encoded(test))


def _shuffled(rows: Sequence[Row]) -> list[Row]:
    return random.Random(0).sample(list(rows), len(rows))


DATASETS: dict[str, Callable[[Path], Dataset]] = {
    "mnist": lambda path: _images(path, mean=0.13, deviation=0.31),
    "cifar10": lambda path: _images(path, mean=0.47, deviation=0.25),
    "trec": _questions,
    "agnews": _news,
}
_PLACES = {"mnist": "mnist.zip", "cifar10": "cifar10.zip", "trec": "trec", "agnews": "agnews/agnews.csv"}
