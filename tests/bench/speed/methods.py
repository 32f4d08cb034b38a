"""The ways from the files to the scores that are put side by side."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flforensics.archive import open_archive
from flforensics.cli.laboratory import network_of
from flforensics.fusion.specification import fusion_specification, rule_of
from flforensics.gradients import Call
from flforensics.models import build_network
from flforensics.provenance.case import Settings
from flforensics.provenance.trace import Questions, trace_round
from flforensics.results import Subject as Named
from tests.bench.speed.archives import ROUND
from tests.bench.speed.cases import Case
from tests.bench.speed.paper_loop import as_coded, provenance

Run = Callable[[Path, Case, Call, str], Tensor]


@dataclass(frozen=True)
class Method:
    """From an archive's folder, a case, its inputs and a device to scores [N, K].

    `passes` are needed for each input, where their number is fixed; `memory`: whether it is measured; `hashing`:
    whether every file is hashed too.
    """

    run: Run
    passes: int | None = None
    memory: bool = True
    hashing: bool = False


def _ours(hashing: bool = False, **settings: object) -> Run:
    def run(folder: Path, case: Case, call: Call, device: str) -> Tensor:
        archive = open_archive(folder)
        with archive.hashing() if hashing else nullcontext():
            round_ = archive.round(ROUND)
            found = trace_round(
                round_,
                rule_of(fusion_specification(archive.manifest.fusion)),
                network_of(archive, factory=None),
                Questions(call, tuple(Named(str(n), n, "", None) for n in range(call.count))),
                settings=Settings(device=device, memory=case.memory, **settings),  # type: ignore[arg-type]
                labels=(),
                replays=True,
            )
            if hashing:
                assert archive.digest
        rows = [{client.client: client.score for client in one.clients} for one in found.inputs]
        return torch.tensor([[row[client.client] for client in round_.clients] for row in rows])

    return run


def _loop(at_once: int) -> Run:
    def run(folder: Path, case: Case, call: Call, device: str) -> Tensor:
        return provenance(folder, lambda: build_network(case.subject.table), call, at_once=at_once, device=device)

    return run


def _coded(folder: Path, case: Case, call: Call, device: str) -> Tensor:
    return as_coded(folder, lambda: build_network(case.subject.table), call, device=device)


def _hashing(folder: Path, case: Case, call: Call, device: str) -> Tensor:
    archive = open_archive(folder)
    archive.round(ROUND)
    assert archive.digest
    return torch.empty(0)


TRACEFL, LOOP, CODED, BATCHED = "tracefl", "paper's loop", "published order", "paper's loop, 50 inputs at once"
LEDGER_8, LEDGER, HASHED, HASHING = "ledger --nodes 8", "ledger", "tracefl, with hashing", "hashing alone"

METHODS: dict[str, Method] = {
    LOOP: Method(_loop(1), memory=False),
    CODED: Method(_coded, memory=False),
    BATCHED: Method(_loop(50)),
    TRACEFL: Method(_ours(method="tracefl"), passes=1),
    HASHED: Method(_ours(hashing=True, method="tracefl"), passes=1, memory=False, hashing=True),
    LEDGER_8: Method(_ours(nodes=8), passes=8),
    LEDGER: Method(_ours()),
    HASHING: Method(_hashing, memory=False),
}

LOOPS = {LOOP: "loop to it", CODED: "coded loop to it", BATCHED: "batched loop to it"}
"""The paper's method, and what the results call the ratio of each of these to another method."""
