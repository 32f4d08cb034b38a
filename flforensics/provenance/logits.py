"""What a network says about many inputs under one state."""

import torch
from torch import Tensor, nn

from flforensics.errors import EvidenceError
from flforensics.gradients import Call
from flforensics.gradients.record import State, forward
from flforensics.models import class_logits

_FORWARD = 256


def class_logits_of(network: nn.Module, state: State, call: Call) -> Tensor:
    """Class logits under one state, [N, C]. Raises EvidenceError (FORWARD) if the inputs do not fit."""
    rows = []
    for start in range(0, call.count, _FORWARD):
        part = call[start : start + _FORWARD]
        try:
            with torch.no_grad():
                output = forward(network, state, part)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise EvidenceError(
                f"the network cannot take these inputs ({str(error).splitlines()[0]})",
                reason="FORWARD",
                hint="make [input] and [model] in archive.toml describe what was trained",
            ) from None
        rows.append(class_logits(output, samples=part.count))
    return torch.cat(rows)
