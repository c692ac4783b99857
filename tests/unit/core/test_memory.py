"""Freed memory between what is kept goes back to the system."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core.memory import _malloc_trim, release_free_memory


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.skipif(_malloc_trim() is None, reason="only glibc keeps such pages")
def test_what_is_free_between_small_things_that_stay_is_given_back() -> None:
    large, small = [], []
    for _ in range(3_000):  # in turns, so that one lies between two of the others
        large.append(bytearray(b"1" * 100_000))
        small.append(bytearray(b"1" * 1_000))
    full = resident_mb()
    large.clear()
    release_free_memory()
    assert full - resident_mb() > 200
    assert all(one == b"1" * 1_000 for one in small)
