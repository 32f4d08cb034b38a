"""The scalar f that is explained, for one input and one class: margin, logit or logprob."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flforensics.models import class_logits

_Function = Callable[[Tensor, Tensor, Tensor], Tensor]


def _picked(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None]).squeeze(1)


def _margin(logits: Tensor, classes: Tensor, against: Tensor) -> Tensor:
    return _picked(logits, classes) - _picked(logits, against)


def _logit(logits: Tensor, classes: Tensor, _against: Tensor) -> Tensor:
    return _picked(logits, classes)


def _logprob(logits: Tensor, classes: Tensor, _against: Tensor) -> Tensor:
    return _picked(torch.log_softmax(logits, 1), classes)


_NOBODY = -1

_FUNCTIONS: dict[str, _Function] = {"margin": _margin, "logit": _logit, "logprob": _logprob}


@dataclass(frozen=True)
class ClassTarget:
    """f_n for each sample n: `classes` and `against` are [N], fixed under every model on the path."""

    function: str
    classes: Tensor
    against: Tensor

    def __call__(self, output: object) -> Tensor:
        """The network's output as f, [N]."""
        return _FUNCTIONS[self.function](class_logits(output), self.classes, self.against)

    def __getitem__(self, samples: slice | Tensor) -> "ClassTarget":
        """The same target for some of the samples."""
        return ClassTarget(self.function, self.classes[samples], self.against[samples])


def class_target(
    function: str, logits: Tensor, *, chosen: int | None = None, versus: Sequence[int | None] = ()
) -> ClassTarget:
    """The target for `chosen`, or else for each sample's predicted class.

    `against` is the sample's class in `versus` [N], or else, and where that class itself is explained, the best
    other class under these logits [N, C], the new global's.
    """
    classes = logits.argmax(1) if chosen is None else torch.full_like(logits.argmax(1), chosen)
    best = logits.scatter(1, classes[:, None], -torch.inf).argmax(1)
    if not versus:
        return ClassTarget(function, classes, best)
    asked = classes.new_tensor([_NOBODY if one is None else one for one in versus])
    return ClassTarget(function, classes, torch.where((asked == _NOBODY) | (asked == classes), best, asked))
