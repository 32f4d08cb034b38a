"""Per-sample gradients of a scalar target with respect to a network's whole floating-point state.

In eval mode the inputs of a batch are independent, so one forward and one backward pass of the batch leave, at
every layer, each sample's own input and output gradient. A layer's rule turns the two into the gradient of
each of its parameters, sample by sample: no loop over samples and none over clients.

What is recorded is small: a layer's weight gradient is a sum of outer products of its inputs and output gradients
(`forms`), and it is written out only in pieces, when it meets directions (`meeting`), if at all.

Nothing is taken on trust. Before the first batch `plan` compares every rule with what automatic
differentiation says for one sample inside a batch; for a tensor that a rule gets wrong, or that no rule covers
(a class token, a weight used outside of its layer), the smallest module that uses it is run again (`local`), and
that is compared too. Index letters: n sample, p position, i in, o out, k direction.
"""

from flforensics.gradients.forms import Gradients
from flforensics.gradients.layout import channels_last, laid_out
from flforensics.gradients.meeting import Block, Met, meet, supports, tensors_met
from flforensics.gradients.plan import Plan, plan
from flforensics.gradients.record import Call, State, Tap, Target, record
from flforensics.gradients.samples import SampleGradients, gradients_at, sample_gradients
from flforensics.gradients.support import Support, joined, whole

__all__ = [
    "Block",
    "Call",
    "Gradients",
    "Met",
    "Plan",
    "SampleGradients",
    "State",
    "Support",
    "Tap",
    "Target",
    "channels_last",
    "gradients_at",
    "joined",
    "laid_out",
    "meet",
    "plan",
    "record",
    "sample_gradients",
    "supports",
    "tensors_met",
    "whole",
]
