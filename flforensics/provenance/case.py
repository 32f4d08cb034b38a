"""What every method is asked: one round on one network, and one target for each input."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from flforensics.errors import EvidenceError
from flforensics.fusion.rule import Rule, Scene
from flforensics.gradients import Call, channels_last, laid_out
from flforensics.provenance.profile import Profile
from flforensics.provenance.targets import ClassTarget
from flforensics.results import Progress
from flforensics.rounds import ClientModel, Round, StoredModel

_LEFT = 8  # of the memory at least one part in so many is for inputs and clients, however large the model
_MANY = 16  # inputs from which on eight passes gain more than it takes to lay the states out


@dataclass(frozen=True)
class Settings:
    """What influences the numbers, in the words of the command line.

    `chosen` is the class that is explained, `versus` the one that its margin is over (`true`: each input's own);
    `by` says what scores are split by (layer, neuron), `units` how many neurons are listed; `tamper` asks for a
    search of small edits. `groups` are as they were given, NAME=CLIENT,CLIENT,...; `memory` is in bytes; `profile`
    watches the time.
    """

    method: str = "ledger"
    target: str = "margin"
    chosen: int | None = None
    versus: int | Literal["true"] | None = None
    nodes: int | None = None
    tolerance: float = 0.01
    max_nodes: int = 128
    layer_decay: float = 0.9
    scale_clients: bool = True
    max_permutations: int = 2000
    seed: int = 0
    groups: tuple[str, ...] = ()
    by: str | None = None
    units: int = 10
    tamper: bool = False
    precise: bool = False
    device: str = "cpu"
    memory: int = 1 << 30
    profile: Profile = field(default_factory=Profile, compare=False)

    def opponents(self, true: Sequence[int | None]) -> tuple[int | None, ...]:
        """The class that each input's margin is over, given the true classes; None for the best other one."""
        return tuple(true) if self.versus == "true" else (self.versus,) * len(true)

    @property
    def dtype(self) -> torch.dtype:
        """The type that gradients and products are computed in."""
        return torch.float64 if self.precise else torch.float32


@dataclass(frozen=True)
class Case:
    """One round, its network in eval mode, and a batch of inputs with their targets.

    `new` and `previous` are the network's states under the two globals; `previous` is None where the archive
    has no global of the round before. `scene` is the round as its rule sees it; `earlier` are the rounds before
    it, for rules with server state.
    """

    round: Round
    rule: Rule
    scene: Scene
    network: nn.Module
    new: Mapping[str, Tensor]
    previous: Mapping[str, Tensor] | None
    call: Call
    target: ClassTarget
    settings: Settings
    progress: Progress
    earlier: tuple[Round, ...] = ()

    @cached_property
    def clients(self) -> tuple[ClientModel, ...]:
        """Who took part, in the order of the scores' columns."""
        return tuple(self.round.clients[position] for position in self.scene.positions)

    @cached_property
    def floating(self) -> tuple[str, ...]:
        """θ: the names of the floating-point tensors, by the model's types."""
        return tuple(name for name, tensor in self.new.items() if tensor.is_floating_point())

    @property
    def parameters(self) -> int:
        """P, the number of floating-point values."""
        return sum(self.new[name].numel() for name in self.floating)

    @property
    def memory(self) -> int:
        """Bytes for inputs and clients: what the settings allow, less the models that are there all the time.

        Those are the network's own tensors, the globals, and a state between them. An eighth is left in any case.
        """
        models = 2 if self.previous is None else 4
        held = models * self.parameters * self.settings.dtype.itemsize
        return max(self.settings.memory - held, self.settings.memory // _LEFT)

    def laid_out(self) -> "Case":
        """The same case, its states in the order in memory that is fastest for many passes with many inputs."""
        few = self.call.count < _MANY
        names = frozenset() if few else channels_last(self.network, self.new, self.call)
        if not names:
            return self
        previous = None if self.previous is None else laid_out(self.previous, names)
        return replace(self, new=laid_out(self.new, names), previous=previous)

    def between(self, previous: Mapping[str, Tensor], t: float) -> dict[str, Tensor]:
        """θ(t) on the straight path from `previous` to the new global, whose integer buffers it keeps."""
        floating = {name: torch.lerp(previous[name], self.new[name], t) for name in self.floating}
        return {**self.new, **floating}


@dataclass(frozen=True)
class Lines:
    """What a ledger adds to the clients' scores, each [N] (float64, or counts and flags).

    previous + Σ scores + server + unexplained + residual = f. `change` is the largest change of any score at
    the last doubling of nodes (NaN where there was none). `nodes` and `converged` are None for methods without.
    `before` are the class logits under the previous global, [N, C], where the method has asked for them.
    """

    previous: Tensor
    server: Tensor
    unexplained: Tensor
    residual: Tensor
    nodes: Tensor | None
    converged: Tensor | None
    change: Tensor
    before: Tensor | None = None


@dataclass(frozen=True)
class Player:
    """A client, or a group of clients that is judged as one: `members` are columns of `Case.clients`."""

    name: str
    members: tuple[int, ...]


@dataclass(frozen=True)
class Without:
    """What would be without each client: f(new) − f(without), [N, K], and the class then predicted, [N, K].

    A column of NaN where there is no such thing.
    """

    change: Tensor
    classes: Tensor


@dataclass(frozen=True)
class Scores:
    """A score for each input and client, [N, K] float64, and the other lines where the method has a ledger.

    `untraced` maps what the method leaves out to the reason. The columns are `players` where they are not simply
    the clients. `errors` [N] is how far apart two scores must be (None: as `lines` say); `half_widths` [N, K] are
    of 95 % confidence intervals, `permutations` [N] how many were sampled for them; `tamper_margins` [N] the
    smallest edits that overturn the ranking; `dropped` and `refused` are counterfactuals.
    """

    clients: Tensor
    lines: Lines | None
    untraced: Mapping[str, str]
    players: tuple[Player, ...] | None = None
    errors: Tensor | None = None
    half_widths: Tensor | None = None
    permutations: Tensor | None = None
    tamper_margins: Tensor | None = None
    dropped: Without | None = None
    refused: Without | None = None
    warnings: tuple[str, ...] = ()


def network_state(network: nn.Module, model: StoredModel, *, settings: Settings) -> dict[str, Tensor]:
    """The stored model as the network's state: floating tensors in the settings' type, integers as they are.

    Integer counters may be missing, as some frameworks drop them. Raises EvidenceError (KEY, SHAPE, UNKNOWN_KEY).
    """
    expected = network.state_dict()
    unknown = [name for name in model.tensors if name not in expected]
    if unknown:
        raise EvidenceError(
            f"{model.source} has tensors that the model does not know: {_some(unknown)}",
            reason="UNKNOWN_KEY",
            file=model.source,
            hint="correct [model] in archive.toml so that it describes the network that was trained",
        )
    state: dict[str, Tensor] = {}
    for name, own in expected.items():
        if not own.is_floating_point() and name not in model.tensors:
            continue
        stored = model.read(name, like=tuple(own.shape))
        dtype = settings.dtype if own.is_floating_point() else own.dtype
        # one row of strides for one shape, however it was stored: kernels are chosen by strides
        state[name] = stored.flatten().view(own.shape).to(settings.device, dtype)
    return state


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
