"""Tensors that a server treats apart: BatchNorm statistics that it copies, heads that it leaves alone.

Frameworks differ most in what they do with buffers: some average them like parameters, some keep the first
client's, some the previous global's, some recompute them. [fusion] states it; the rule speaks of the others.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flforensics.fusion.rounding import Arithmetic, arithmetics
from flforensics.fusion.rule import Coefficients, Comparison, Rule, Scene, Shares, ratio
from flforensics.rounds import RoundTensor

BUFFERS = r"(.*\.)?running_(mean|var)"
"""The names of floating-point buffers that frameworks treat apart."""


@dataclass(frozen=True)
class Treatment:
    """What a server did to a tensor instead of the rule: one line of help, and the value that it gave it.

    `value` is None where nothing can be predicted; then all of the movement is the server's own.
    """

    help: str
    value: Callable[[RoundTensor], Tensor | None]


def _previous(tensor: RoundTensor) -> Tensor | None:
    return tensor.previous


def _first(tensor: RoundTensor) -> Tensor | None:
    if not tensor.relative or tensor.previous is None:
        return tensor.client(0)
    return tensor.previous + tensor.client(0)


TREATMENTS: dict[str, Treatment] = {
    "previous": Treatment("kept from the previous global", _previous),
    "first": Treatment("copied from the first client", _first),
    "recomputed": Treatment("computed anew by the server, which no file can show", lambda _tensor: None),
}


@dataclass(frozen=True)
class WithPolicies:
    """`rule` for every tensor but those whose whole name matches a pattern: they have a treatment of their own."""

    rule: Rule
    policies: tuple[tuple[str, str], ...]

    @property
    def needs_weights(self) -> bool:
        """As the rule."""
        return self.rule.needs_weights

    @property
    def needs_history(self) -> bool:
        """As the rule."""
        return self.rule.needs_history

    def coefficients(self, declared: Sequence[float], *, uncertainty: Sequence[float]) -> Coefficients:
        """As the rule."""
        return self.rule.coefficients(declared, uncertainty=uncertainty)

    def survey(self, scene: Scene) -> object:
        """As the rule."""
        return self.rule.survey(scene)

    def compare(self, tensor: RoundTensor, scene: Scene) -> Iterator[Comparison]:
        """The rule's comparisons, or for a tensor treated apart, whether it is exactly what was stated."""
        treatment = self._treatment(tensor.name)
        if treatment is None:
            yield from self.rule.compare(tensor, scene)
            return
        value = TREATMENTS[treatment].value(tensor)
        expected = tensor.fused if value is None else value.to(tensor.fused.dtype)
        difference = tensor.fused.double() - expected.double()
        worst, outside = ratio(difference, torch.zeros_like(difference))
        yield Comparison(treatment, _exact(tensor), worst, outside, True, 0.0)

    def shares(self, tensor: RoundTensor, scene: Scene) -> Shares:
        """The rule's shares. What is copied is its client's, what is kept nobody's, what is anew the server's."""
        treatment = self._treatment(tensor.name)
        if treatment is None:
            return self.rule.shares(tensor, scene)
        assert tensor.previous is not None
        previous, fused = tensor.previous.double(), tensor.fused.double()
        clients = torch.zeros(tensor.count, *fused.shape, dtype=torch.float64)
        server = torch.zeros_like(fused)
        value = TREATMENTS[treatment].value(tensor)
        if value is None:
            server = fused - previous
        elif treatment == "first":
            clients[0] = value.double() - previous
        return Shares(clients, server, fused - previous - clients.sum(0) - server)

    def factors(self, tensor: RoundTensor, scene: Scene) -> Sequence[float] | None:
        """As the rule, but for what is treated apart."""
        return self.rule.factors(tensor, scene) if self._treatment(tensor.name) is None else None

    def _treatment(self, name: str) -> str | None:
        return next((treatment for pattern, treatment in self.policies if re.fullmatch(pattern, name)), None)


def _exact(tensor: RoundTensor) -> Arithmetic:
    return arithmetics(frozenset({tensor.fused.dtype}))[0]


def policies_of(table: Mapping[str, str], buffers: str | None) -> tuple[tuple[str, str], ...]:
    """Patterns and treatments: [fusion.tensors] first, then what is stated for all buffers."""
    stated = tuple((re.escape(name).replace(r"\*", ".*"), treatment) for name, treatment in table.items())
    return stated if buffers is None else (*stated, (BUFFERS, buffers))
