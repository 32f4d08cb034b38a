"""What a round of federated learning is, wherever it came from.

A checkpoint is a lazy mapping from tensor names to tensors: reading one name reads one tensor, so a plain
dict of tensors is a checkpoint too. Nothing here knows files, formats or arithmetic; `source` is a path to
show, nothing more.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import is_
from typing import TYPE_CHECKING, Literal

from flforensics.errors import EvidenceError

if TYPE_CHECKING:
    from torch import Tensor

Checkpoint = Mapping[str, "Tensor"]
Values = Literal["full", "delta", "negative-delta"]


@dataclass(frozen=True)
class StoredModel:
    """One stored model: its tensors, and the file that they come from."""

    tensors: Checkpoint = field(repr=False)
    source: str

    def read(self, name: str, *, like: tuple[int, ...] | None = None) -> "Tensor":
        """The tensor `name`. Raises EvidenceError: KEY if it is not there, SHAPE if its shape is not `like`."""
        if name not in self.tensors:
            raise EvidenceError(
                f"{self.source} has no tensor {name!r}",
                reason="KEY",
                file=self.source,
                hint="give the complete state dict, or set `key` in [layout] if it sits deeper in the file",
            )
        tensor = self.tensors[name]
        if like is not None and tuple(tensor.shape) != like:
            raise EvidenceError(
                f"{self.source}: tensor {name!r} has shape {tuple(tensor.shape)} where {like} is expected",
                reason="SHAPE",
                file=self.source,
                hint="check that the file belongs to this model and round",
            )
        return tensor

    def pieces(self, name: str, places: Sequence[slice], *, like: tuple[int, ...]) -> "Iterator[Tensor]":
        """A tensor flattened, in pieces one after the other; each is the caller's to write on until the next.

        They come from the file piece by piece where the checkpoint can. Raises as `read` does.
        """
        piecewise, shapes = getattr(self.tensors, "pieces", None), getattr(self.tensors, "shapes", {})
        if piecewise is not None and shapes.get(name) == like:
            yield from piecewise(name, places)
            return
        whole = self.read(name, like=like).flatten()
        yield from (whole[place].clone() for place in places)

    def several(self, shapes: Mapping[str, tuple[int, ...]]) -> "list[Tensor]":
        """These tensors, each flattened, read together where the checkpoint can. Raises as `read` does."""
        together, known = getattr(self.tensors, "several", None), getattr(self.tensors, "shapes", {})
        if together is not None and all(known.get(name) == shape for name, shape in shapes.items()):
            found: list[Tensor] = together(shapes)
            return found
        return [self.read(name, like=shape).flatten() for name, shape in shapes.items()]


@dataclass(frozen=True)
class ClientModel:
    """What the file labelled `client` holds, and the weight that the archive declares for it.

    `weight` is as declared (examples, steps, ...), not normalised; None where the archive states none.
    `uncertainty` is half a unit in its last declared digit (0 for counts). `model` is None where a weight is
    stated and no file exists. `extras` are other numbers that the archive states, such as `steps`.
    """

    client: str
    weight: float | None
    model: StoredModel | None
    uncertainty: float = 0.0
    extras: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundTensor:
    """One tensor of a round: the clients' values, read one at a time, beside the previous and the new global.

    `client(k)` gives client k's tensor in its stored type: the full model, or with `relative` the update
    client − previous. `previous` is None where the archive has none.
    """

    name: str
    previous: "Tensor | None"
    fused: "Tensor"
    count: int
    client: "Callable[[int], Tensor]"
    relative: bool = False

    def pieces(self, index: int, places: Sequence[slice]) -> "Iterator[Tensor]":
        """Client `index`'s values, flattened, in pieces; each is the caller's to write on until the next.

        They come from its file piece by piece where that is possible.
        """
        if isinstance(self.client, _Client):
            return self.client.pieces(index, places)
        whole = self.client(index).flatten()
        return (whole[place].clone() for place in places)


@dataclass(frozen=True)
class _Client:
    """`RoundTensor.client` where the clients' values are those that are stored, or all with the other sign."""

    models: Sequence[StoredModel]
    name: str
    shape: tuple[int, ...]
    negative: bool

    def __call__(self, index: int) -> "Tensor":
        stored = self.models[index].read(self.name, like=self.shape)
        return -stored if self.negative else stored

    def pieces(self, index: int, places: Sequence[slice]) -> "Iterator[Tensor]":
        """The same in pieces."""
        for piece in self.models[index].pieces(self.name, places, like=self.shape):
            yield -piece if self.negative else piece

    def beside(self, other: object) -> bool:
        """Whether the other is a tensor of the same files, too."""
        if not isinstance(other, _Client) or len(other.models) != len(self.models):
            return False
        return self.negative == other.negative and all(map(is_, self.models, other.models))


def together(tensors: Sequence[RoundTensor]) -> "Callable[[int], list[Tensor]]":
    """Reads client k's values in several tensors of a round, each flattened; at once where its file allows."""
    clients = [terms.client for terms in tensors]
    first = clients[0]
    if not isinstance(first, _Client) or not all(map(first.beside, clients)):
        return lambda index: [terms.client(index).flatten() for terms in tensors]
    models, negative = first.models, first.negative
    shapes = {terms.name: tuple(terms.fused.shape) for terms in tensors}

    def read(index: int) -> "list[Tensor]":
        stored = models[index].several(shapes)
        return [-one for one in stored] if negative else stored

    return read


@dataclass(frozen=True)
class Round:
    """One fusion: the previous global, the clients that took part, the global that came out.

    `values` says what the clients' tensors are: full models, client − previous, or previous − client.
    """

    number: int
    previous: StoredModel | None
    clients: tuple[ClientModel, ...]
    fused: StoredModel
    values: Values = "full"

    def tensor(self, name: str, clients: Sequence[ClientModel]) -> RoundTensor:
        """One tensor of the previous and new globals and, when asked, of the given clients (all with a model).

        Raises EvidenceError (KEY, SHAPE) naming the file that differs.
        """
        fused = self.fused.read(name)
        shape = tuple(fused.shape)
        previous = None if self.previous is None else self.previous.read(name, like=shape)
        models = [client.model for client in clients if client.model is not None]
        client = _Client(models, name, shape, self.values == "negative-delta")
        return RoundTensor(name, previous, fused, len(models), client, self.values != "full")


def spans(numbers: Sequence[int]) -> str:
    """Round numbers for people: `rounds 1-12`, `rounds 1-4, 7`, `round 7`, or `no rounds`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    noun = "round" if len(numbers) == 1 else "rounds"
    return f"{noun} {', '.join(texts)}" if numbers else "no rounds"
