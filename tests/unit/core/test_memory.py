"""Freed memory between what is kept goes back to the system, and other freed memory stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from core.memory import FreedMemory, _glibc, process_memory

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


@pytest.mark.parametrize(
    ("resident_mb", "trimmed"),
    [
        # 200 at work, as ever: what the first round needs more than nothing is no growth.
        ([100, 200, 200, 264, 200], [0, 0, 0, 0, 0]),
        # Grown by more than 64 since the round after it began, and by more than 128 since it gave
        # back soon after that, and then by more than 256.
        ([100, 200, 265, 210, 275, 338, 339], [0, 0, 1, 1, 1, 1, 2]),
        ([0, 0, 65, 0, 129, 0, 256, 257], [0, 0, 1, 1, 2, 2, 2, 3]),
        # Slowly: by more than 64 each time, whatever came before.
        ([0, 0, *[64] * 19, 65, 0, *[64] * 19, 65], [0, 0, *[0] * 19, 1, 1, *[1] * 19, 2]),
        # Again and again: never more than 512.
        ([0, *[0, 2_000] * 5, 0, 512, 513], [0, *[0, 1, 1, 2, 2, 3, 3, 4, 4, 5], 5, 5, 6]),
    ],
)
def test_only_a_process_that_has_grown_gives_back(
    resident_mb: list[int], trimmed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, sizes, trims = FreedMemory(), iter(resident_mb), []

    class Libc:
        def malloc_trim(self, pad: int) -> int:
            trims.append(pad)
            return 1

    monkeypatch.setattr("core.memory._resident_bytes", lambda: next(sizes) << 20)
    monkeypatch.setattr("core.memory._glibc", Libc)
    called = []
    for _ in resident_mb:
        memory.release_if_grown()
        called.append(len(trims))
    assert called == trimmed


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


def test_a_process_has_one() -> None:
    assert process_memory() is process_memory()
