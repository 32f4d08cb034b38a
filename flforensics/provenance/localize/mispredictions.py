"""Who moved the model towards its mispredictions: the ledger over many inputs, controls and re-fusion.

For an input of class y, f is the error margin: the logit of the best other class under the new global minus that
of y, both classes held fixed. f > 0 exactly where the input is mispredicted, and a client's score is how far its
update pushed f up. Its share is score / (Σ|score| + |server| + |unexplained|), so that no input weighs more
because its logits are large. A client's figure is the mean share over the mispredicted inputs.

Shares, not softmaxes or ranks, because they keep their sign: an update that speaks against the error counts
against the suspicion. The first client stands out if its mean share is positive and its lead over every other line
of the ledger stays positive in 95 % of resamplings of the inputs (percentile bootstrap). That covers the choice of
inputs, not another training run. Two figures stand beside it and are no part of the ranking: the same share on
correctly predicted inputs, where a client with large updates alone has large shares too, and what re-fusion
without the client repairs and breaks, which is an intervention and uses no gradient. Subtracting the control share
would be wrong: it would clear a client that harms every input.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from flforensics.provenance.case import Case, Scores
from flforensics.provenance.counterfactual import counterfactual
from flforensics.provenance.ledger import ledger
from flforensics.provenance.localize.finite import require_finite
from flforensics.provenance.targets import ClassTarget


@dataclass(frozen=True)
class Blame:
    """For N inputs and K clients, float64 where not said otherwise.

    `shares` [N, K + 2]: the clients', the server's, the unexplained share of the movement of the error margin.
    `refused` [N, K]: the class predicted once the others are fused again, −1 where there is no such fusion.
    `rough` counts the inputs whose ledger did not converge.
    """

    shares: Tensor
    refused: Tensor
    rough: int


def mispredictions(case: Case) -> Blame:
    """Shares and re-fusions for every input of `case`, whose target is an error margin (`error_margin`).

    Raises NotComputableError as the ledger does, and (NON_FINITE) where a score is not finite.
    """
    scores = ledger(case)
    require_finite(case, scores.clients, "scores")
    without = counterfactual(case).refused
    assert without is not None
    refused = torch.where(torch.isfinite(without.change), without.classes, -1)
    lines = scores.lines
    rough = 0 if lines is None or lines.converged is None else int((~lines.converged).sum())
    return Blame(shares_of(scores), refused, rough)


def joined(parts: list[Blame]) -> Blame:
    """Several batches as one."""
    return Blame(
        torch.cat([part.shares for part in parts]),
        torch.cat([part.refused for part in parts]),
        sum(part.rough for part in parts),
    )


def error_margin(logits: Tensor, true: Tensor) -> ClassTarget:
    """The best class other than the true one, over the true one; `true` [N].

    Where `true` is −1 the true class is not known: the predicted class over the best other one.
    """
    against = torch.where(true >= 0, true, logits.scatter(1, logits.argmax(1, keepdim=True), -torch.inf).argmax(1))
    others = logits.scatter(1, against[:, None], -torch.inf)
    return ClassTarget("margin", others.argmax(1), against)


def shares_of(scores: Scores) -> Tensor:
    """The lines divided by the movement, [N, K + 2]; 0 where nothing moved."""
    lines = scores.lines
    assert lines is not None
    rows = torch.cat([scores.clients, lines.server[:, None], lines.unexplained[:, None]], 1)
    movement = rows.abs().sum(1, keepdim=True)
    return torch.where(movement > 0, rows / movement, 0.0).cpu()
