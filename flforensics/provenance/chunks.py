"""Inputs or clients in groups that fit in memory; where one of inputs does not fit after all, it is halved."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from flforensics.errors import EvidenceError, NotComputableError
from flforensics.provenance.case import Case

Result = TypeVar("Result")

_WORDS = ("out of memory", "not enough memory", "can't allocate memory")


def in_chunks(case: Case, work: Callable[[Case], Result], *, size: int) -> list[Result]:
    """`work` on the inputs in order, `size` at a time; after an allocation has failed, half as many at a time.

    Raises NotComputableError (MEMORY) where not even one input fits.
    """
    waiting = list(torch.split(_rows(case), size))
    results: list[Result] = []
    done = 0
    while waiting:
        rows = waiting.pop(0)
        try:
            results.append(work(replace(case, call=case.call[rows], target=case.target[rows])))
        except (RuntimeError, MemoryError, EvidenceError) as error:
            if not is_out_of_memory(error):
                raise
            if len(rows) == 1:
                raise NotComputableError(
                    f"round {case.round.number} needs more memory for one input than there is",
                    reason="MEMORY",
                    hint="use a machine with more memory, or --device cpu",
                ) from None
            half = (len(rows) + 1) // 2
            waiting = [part for group in (rows, *waiting) for part in torch.split(group, half)]
            continue
        done += len(rows)
        case.progress("inputs", done, case.call.count)
    return results


def in_steps(count: int, step: int) -> list[slice]:
    """So many clients or inputs as slices of `step` of them, the last of what is left."""
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that an allocation failed, on the device or the host."""
    if isinstance(error, EvidenceError):
        return error.reason == "MEMORY"
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in str(error).lower() for words in _WORDS
    )


def _rows(case: Case) -> Tensor:
    return torch.arange(case.call.count, device=case.target.classes.device)
