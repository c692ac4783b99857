"""Freed memory between what is kept goes back to the system, and other freed memory stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from core.memory import FreedMemory, _glibc

pytestmark = pytest.mark.skipif(_glibc() is None, reason="only glibc keeps such pages")


GIVEN_BACK = """
import os
from pathlib import Path
from core.memory import FreedMemory

def resident_mb():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

memory = FreedMemory()
memory.release_if_grown()
large, small = [], []
for _ in range(3_000):  # 300 MB in large pieces, each between two small ones
    large.append(bytearray(b"1" * 100_000))
    small.append(bytearray(b"1" * 1_000))
full = resident_mb()
large.clear()
memory.release_if_grown()
assert all(one == b"1" * 1_000 for one in small)
print(full - resident_mb())
"""
"""In a process of its own: one that has run other tests may hold as much freed memory already."""


def run(code: str, *arguments: str) -> str:
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout


def test_what_is_free_between_small_things_that_stay_is_given_back() -> None:
    assert float(run(GIVEN_BACK)) > 200


def test_a_process_that_has_not_grown_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, trims = FreedMemory(), []
    sizes = iter([100, 100 + 64, 100 + 65, 90, 100 + 64, 300, 290, 290 + 64])
    monkeypatch.setattr("core.memory._resident_bytes", lambda: next(sizes) << 20)
    libc = _glibc()

    class Libc:
        def malloc_trim(self, pad: int) -> int:
            trims.append(pad)
            return int(libc.malloc_trim(pad))

    monkeypatch.setattr("core.memory._glibc", Libc)
    called = []
    for _ in range(6):
        memory.release_if_grown()
        called.append(len(trims))
    # At 100, 164: no; at 165, then 90: yes; at 164: no; at 300, then 290: yes; at 354: no.
    assert called == [0, 0, 1, 1, 2, 2]


FAULTS = """
import resource, sys, torch
from core.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def work():
    for _ in range(20):
        torch.ones(2_000_000)
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_memory_that_is_kept_is_not_asked_for_again() -> None:
    assert int(run(FAULTS, "keep")) < 100  # 20 times 8 MB are 40,000 pages
