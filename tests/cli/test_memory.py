"""Memory that was freed stays with the program."""

import os
import subprocess
import sys

import pytest

_FAULTS = """
import resource, sys, torch
from concurrent.futures import ThreadPoolExecutor
from flforensics.cli.memory import keep_freed

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    with ThreadPoolExecutor(1) as hand:
        hand.submit(lambda: [torch.ones(1 << 24) for _ in range(4)]).result()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "kept":
    keep_freed()
for _ in range(3):
    faults()
print(sum(faults() for _ in range(3)))
"""
_PAGES = 12 * (4 << 24) // os.sysconf("SC_PAGE_SIZE")


def faults(how: str) -> int:
    """How many pages the system provides for four tensors of 64 MB in a thread, three times after each other."""
    command = [sys.executable, "-c", _FAULTS, how]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="malloc is not glibc's")
def test_freed_memory_is_used_again_by_any_thread() -> None:
    assert faults("kept") < _PAGES // 5
    assert faults("given back") > _PAGES // 2


@pytest.mark.parametrize("names", [{}, {"CS_GNU_LIBC_VERSION": 2}])
def test_another_malloc_is_left_alone(monkeypatch: pytest.MonkeyPatch, names: dict[str, int]) -> None:
    from flforensics.cli import memory

    monkeypatch.setattr(os, "confstr_names", names)
    monkeypatch.setattr(os, "confstr", lambda _: None)
    monkeypatch.setattr(memory.ctypes, "CDLL", None)
    memory.keep_freed()
