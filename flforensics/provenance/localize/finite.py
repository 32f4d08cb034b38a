"""No ranking is made of numbers that are not finite."""

import torch
from torch import Tensor

from flforensics.errors import NotComputableError
from flforensics.provenance.case import Case


def require_finite(case: Case, values: Tensor, what: str) -> None:
    """Raise NotComputableError (NON_FINITE), naming the clients whose column of `values` [N, K] is not finite."""
    bad = (~torch.isfinite(values)).any(0).tolist()
    names = ", ".join(client.client for client, one in zip(case.clients, bad, strict=True) if one)
    if names:
        raise NotComputableError(
            f"the {what} of {names} in round {case.round.number} are not finite numbers",
            reason="NON_FINITE",
            hint="that is a finding of its own; feddebug ranks such files too",
        )
