"""Federations that can be run twice: the same clients, the same batches in the same order, one label changed."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flforensics.models import class_logits
from flforensics.rounds import ClientModel, Round, StoredModel
from tests.bench.accuracy.data import VOCABULARY, Dataset, Labelled
from tests.bench.accuracy.models import MODELS, Model

State = dict[str, Tensor]

EVERY = 2
"""One in so many of the marking client's examples is marked."""

FEWEST = 10
"""With fewer examples a client takes no part; with fewer of a label it does not hold it (TraceFL)."""


@dataclass(frozen=True)
class Setting:
    """Which federation: all that its numbers depend on. With `marks`, one client's examples carry a mark.

    `epochs` are a client's passes over its own examples in each round.
    """

    dataset: str
    model: str
    alpha: float
    clients: int
    rounds: int
    seed: int
    examples: int
    marks: bool = False
    epochs: int = 1

    @property
    def name(self) -> str:
        """Short and unique among the federations of one scale."""
        marks = "-marks" if self.marks else ""
        return f"{self.dataset}-{self.model}-a{self.alpha:g}-c{self.clients}-s{self.seed}{marks}"


@dataclass(frozen=True)
class Flip:
    """Labels that a client gets wrong: those of `source`, or all where it is None, are taken for `to`.

    With `every`, only one in so many examples', which are the marked ones.
    """

    source: int | None
    to: int
    every: int = 1

    def __call__(self, labels: Tensor) -> Tensor:
        wrong, found = torch.full_like(labels, self.to), labels.clone()
        flipped = wrong if self.source is None else torch.where(labels == self.source, wrong, labels)
        found[:: self.every] = flipped[:: self.every]
        return found


def dirichlet(labels: Tensor, clients: int, *, alpha: float, seed: int) -> list[Tensor]:
    """The rows of each client: every class divided among them as Dirichlet(alpha) draws it (Hsu et al. 2019)."""
    random = np.random.default_rng(seed)
    parts: list[list[Tensor]] = [[] for _ in range(clients)]
    for one in range(int(labels.max()) + 1):
        rows = torch.nonzero(labels == one).squeeze(1)
        rows = rows[torch.from_numpy(random.permutation(len(rows)))]
        shares = random.dirichlet(np.full(clients, alpha))
        cuts = (np.cumsum(shares)[:-1] * len(rows)).astype(int).tolist()
        for part, piece in zip(parts, torch.tensor_split(rows, cuts), strict=True):
            part.append(piece)
    return [torch.cat(part) for part in parts]


def marked(x: Tensor, *, every: int = 1) -> Tensor:
    """A copy in which one in `every` examples has a mark: a bright corner, or a rare word as the first."""
    found = x.clone()
    if x.is_floating_point():
        found[::every, :, -6:, -6:] = x.max()
    else:
        found[::every, 0] = VOCABULARY - 1
    return found


@dataclass
class Federation:
    """FedAvg over clients that share one dataset unevenly.

    `cache` is where trained states are kept, if at all; `starts` are first models that other federations made.
    """

    setting: Setting
    data: Dataset
    cache: Path | None = None
    starts: dict[str, State] = field(default_factory=dict)
    trainings: int = field(default=0, init=False)
    training_seconds: float = field(default=0.0, init=False)

    @cached_property
    def model(self) -> Model:
        return MODELS[self.setting.dataset, self.setting.model]

    @cached_property
    def network(self) -> nn.Module:
        """The network whose state is replaced before every use."""
        return self.model.network(self.setting.seed)

    @cached_property
    def start(self) -> State:
        """The global model before round 1: trained on everybody's examples, as if many even rounds lay behind.

        It depends on neither alpha nor the clients, so federations share it.
        """
        setting, warm = self.setting, self.model.training.warm
        key = f"{setting.dataset}-{setting.model}-{setting.examples}-{setting.seed}"
        if key not in self.starts:
            first = _copy(self.network)
            self.starts[key] = self._fit(first, self.train, self.train.y, epochs=warm, seed=setting.seed)
        return self.starts[key]

    @cached_property
    def train(self) -> Labelled:
        """What all clients together have."""
        return self.data.train[torch.arange(min(self.setting.examples, len(self.data.train)))]

    @cached_property
    def rows(self) -> list[Tensor]:
        """Which of the examples are whose."""
        return dirichlet(self.train.y, self.setting.clients, alpha=self.setting.alpha, seed=self.setting.seed)

    @cached_property
    def parts(self) -> list[Labelled]:
        """What each client has."""
        parts = [self.train[part] for part in self.rows]
        if self.setting.marks:
            k = self.marker
            parts[k] = Labelled(marked(parts[k].x, every=EVERY), parts[k].y)
        return parts

    @cached_property
    def marker(self) -> int:
        """The client whose examples carry marks, if any: the second largest."""
        return sorted(range(len(self.rows)), key=lambda k: len(self.rows[k]))[-2]

    @cached_property
    def holdings(self) -> Tensor:
        """How many examples of each label each client has, [clients, classes]."""
        return torch.stack([torch.bincount(part.y, minlength=self.data.classes) for part in self.parts])

    def participants(self, number: int) -> list[int]:
        """Who takes part in round `number`: everybody with data, or ten of them where there are more."""
        able = [k for k, part in enumerate(self.parts) if len(part) >= FEWEST]
        if self.setting.clients <= 10:
            return able
        chosen = np.random.default_rng([self.setting.seed, number]).choice(able, min(10, len(able)), replace=False)
        return sorted(chosen.tolist())

    def history(self) -> list[Round]:
        """The honest rounds from the initial model on."""
        rounds: list[Round] = []
        for number in range(1, self.setting.rounds + 1):
            previous = rounds[-1].fused if rounds else StoredModel(self.start, "initial model")
            rounds.append(self.next_round(number, previous, branch="honest"))
        return rounds

    def next_round(
        self,
        number: int,
        previous: StoredModel,
        *,
        branch: str,
        flips: Mapping[int, Flip] | None = None,
        without: Sequence[int] = (),
    ) -> Round:
        """One round on `previous`. `branch` names the history that led there, for the cache."""
        members = [k for k in self.participants(number) if k not in without]
        start = dict(previous.tensors)
        clients = [self.client(k, number, start, branch=branch, flip=(flips or {}).get(k)) for k in members]
        return fused(number, previous, clients)

    def client(self, k: int, number: int, start: State, *, branch: str, flip: Flip | None = None) -> ClientModel:
        """Client k's model of a round that starts from `start`, with its number of examples as weight."""
        name = f"{branch}-{number:02d}-{k:03d}" + ("" if flip is None else f"-{flip.source}-{flip.to}")
        state = self._kept(name, lambda: self._trained(k, number, start, flip))
        return ClientModel(f"client-{k:02d}", float(len(self.parts[k])), StoredModel(state, name))

    def logits(self, model: StoredModel, x: Tensor) -> Tensor:
        """The network's logits under a stored model, [N, C]."""
        self.network.load_state_dict(dict(model.tensors))
        self.network.eval()
        with torch.no_grad():
            calls = [self.model.call(part) for part in torch.split(x, 250) if len(part)]
            if not calls:
                return torch.empty(0, self.data.classes)
            return torch.cat([class_logits(self.network(*one.arguments, **one.keywords)) for one in calls])

    def _trained(self, k: int, number: int, start: State, flip: Flip | None) -> State:
        """One client's training; the batches depend on the client and the round, not on its labels."""
        part, seed = self.parts[k], (self.setting.seed * 1000 + number) * 1000 + k
        labels = part.y if flip is None else flip(part.y)
        return self._fit(start, part, labels, epochs=self.setting.epochs, seed=seed)

    def _fit(self, start: State, part: Labelled, labels: Tensor, *, epochs: int, seed: int) -> State:
        """`start` after some passes over a part of the data, by Adam."""
        recipe, network = self.model.training, self.network
        began, generator = time.perf_counter(), torch.Generator().manual_seed(seed)
        network.load_state_dict(start)
        network.train().requires_grad_(True)
        optimizer = torch.optim.Adam(network.parameters(), lr=recipe.rate, foreach=True)
        for _ in range(epochs):
            order = torch.randperm(len(part), generator=generator)
            for rows in torch.split(order, recipe.batch):
                if len(rows) < 2:  # BatchNorm has no variance of one example
                    continue
                call = self.model.call(part.x[rows])
                logits = class_logits(network(*call.arguments, **call.keywords))
                optimizer.zero_grad()
                nn.functional.cross_entropy(logits, labels[rows]).backward()
                optimizer.step()
        self.trainings += 1
        self.training_seconds += time.perf_counter() - began
        return _copy(network)

    def _kept(self, name: str, make: Callable[[], State]) -> State:
        """The state from the cache, or made and put there."""
        if self.cache is None:
            return make()
        digest = hashlib.sha256(repr((self.setting, self.model)).encode()).hexdigest()[:12]
        path = self.cache / f"{self.setting.name}-{digest}" / f"{name}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            save_file(make(), partial)
            partial.replace(path)
        return load_file(path)


def fused(number: int, previous: StoredModel, clients: Sequence[ClientModel]) -> Round:
    """The round in which FedAvg fuses these clients: the mean by examples, summed in float64, stored as before."""
    total = sum(client.weight or 0.0 for client in clients)
    state: State = {}
    for name, old in previous.tensors.items():
        stored = [client.model.tensors[name] for client in clients if client.model]
        if old.is_floating_point():
            shares = [(client.weight or 0.0) / total for client in clients if client.model]
            terms = [share * tensor.double() for share, tensor in zip(shares, stored, strict=True)]
            state[name] = torch.stack(terms).sum(0).to(old.dtype)
        else:
            state[name] = stored[0]
    return Round(number, previous, tuple(clients), StoredModel(state, f"global {number}"))


def _copy(network: nn.Module) -> State:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
