"""One case: every method on the same archive in turns, its scores compared, its memory measured in a child."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
from torch import Tensor

from flforensics.models import build_network
from tests.bench.measuring import measured
from tests.bench.speed.archives import inputs_of, write_case
from tests.bench.speed.cases import Case
from tests.bench.speed.limit import measured_rates, seconds_at_best, work_of
from tests.bench.speed.methods import HASHED, LEDGER, LOOPS, METHODS, TRACEFL, Method

_SAME = 1e-4
Say = Callable[[str], None]


@dataclass(frozen=True)
class Measurement:
    """How often each method is repeated: until `repeats`, or when a whole round of them would pass `seconds`."""

    repeats: int
    seconds: float
    device: str


def compared(folder: Path, case: Case, how: Measurement, say: Say) -> dict[str, Any]:
    """Seconds, ratios, fractions of the limit and memory of every method on the archive in `folder`."""
    left_out = (() if case.loop else tuple(LOOPS)) + (() if case.tolerance else (LEDGER,))
    methods = {name: method for name, method in METHODS.items() if name not in left_out}
    seconds, scores = _timed(folder, case, methods, how, say)
    if case.loop:
        _require_same(case, scores)
    network = build_network(case.subject.table)
    rates = measured_rates(folder, network, inputs_of(case), device=how.device)
    work = work_of(folder, network, inputs=case.inputs, clients=case.clients)
    rows: dict[str, dict[str, float]] = {}
    for name, method in methods.items():
        rows[name] = {
            "seconds": median(seconds[name]),
            "repeats": len(seconds[name]),
            "to tracefl": _ratio(seconds[name], seconds[TRACEFL]),
        }
        if method.memory:
            say(f"{case.name}: memory of {name}")
            rows[name]["peak"] = _peak(folder, case, name, how.device)
        if case.loop:
            rows[name] |= {ratio: _ratio(seconds[loop], seconds[name]) for loop, ratio in LOOPS.items()}
        if method.passes is not None:
            cores = torch.get_num_threads() if method.hashing else None
            best = seconds_at_best(work, rates, passes=method.passes, hashing_on=cores)
            rows[name]["of the limit"] = best / median(seconds[name])
    return {
        "case": case.name,
        "clients": case.clients,
        "inputs": case.inputs,
        "work": asdict(work),
        "rates": asdict(rates),
        "methods": rows,
    }


def measure_peak(folder: Path, case: Case, name: str, device: str) -> int:
    """Bytes of anonymous memory that the method needs above what was there, in this process."""
    call = inputs_of(case)
    with measured() as work:
        METHODS[name].run(folder, case, call, device)
    return work.peak


def _timed(
    folder: Path, case: Case, methods: dict[str, Method], how: Measurement, say: Say
) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
    """Alternating, so that what else the machine does hits all of them; every method runs at least once."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    scores: dict[str, Tensor] = {}
    _warm_up(folder.parent, case, methods, how.device)
    call, begun = inputs_of(case), time.perf_counter()
    for repeat in range(how.repeats):
        for name, method in methods.items():
            start = time.perf_counter()
            scores[name] = method.run(folder, case, call, how.device)
            seconds[name].append(time.perf_counter() - start)
            say(f"{case.name}: {name} ({repeat + 1} of {how.repeats}): {seconds[name][-1]:.2f} s")
        spent = time.perf_counter() - begun
        if spent * (repeat + 2) / (repeat + 1) > how.seconds:
            break
    return seconds, scores


def _warm_up(beside: Path, case: Case, methods: dict[str, Method], device: str) -> None:
    """Every method once with two clients and inputs, so that imports and what is set up once count for none."""
    small = replace(case, clients=2, inputs=2, distinct=2)
    with TemporaryDirectory(dir=beside) as folder:
        write_case(Path(folder), small)
        for method in methods.values():
            method.run(Path(folder), small, inputs_of(small), device)


def _require_same(case: Case, scores: dict[str, Tensor]) -> None:
    """Raises where a loop's scores and ours differ by more than 1e-4 of the largest score of an input."""
    for name in (TRACEFL, HASHED):
        for loop in LOOPS:
            largest = scores[loop].abs().amax(1)
            worst = float(((scores[name] - scores[loop]).abs().amax(1) / largest).max())
            if not worst <= _SAME:
                raise click.ClickException(f"{case.name}: {name} and {loop} differ by {worst:.1e}")


def _ratio(left: list[float], right: list[float]) -> float:
    return median(one / other for one, other in zip(left, right, strict=True))


def _peak(folder: Path, case: Case, name: str, device: str) -> int:
    arguments = ["peak", str(folder), case.name, name, "--device", device]
    printed = subprocess.run(
        [sys.executable, "-m", "tests.bench.speed", *arguments], check=True, capture_output=True, text=True
    ).stdout
    return int(json.loads(printed))


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    card = torch.cuda.get_device_name() if device == "cuda" else None
    return {"device": card or "cpu", "threads": torch.get_num_threads(), "torch": torch.__version__}
