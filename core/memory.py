"""What glibc does with freed memory: kept for the next round, given back where it piles up."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

KEPT_BYTES = 256 << 20
"""Freed memory at the end of the heap that a process keeps."""

SLACK_BYTES = 64 << 20
"""How much a process may grow at first before freed memory within the heap is given back.

That is beyond what it works with in a round."""

MOST_SLACK_BYTES = 512 << 20
"""The most that it may ever be."""

SOON = 20
"""Calls within which a process that grows as much again is taken to work with that memory."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_THRESHOLD = 32 << 20


def keep_freed_memory() -> None:
    """Let this process use freed memory again instead of asking the system for it anew.

    By default glibc hands large pieces back as soon as they are freed, and the system clears every
    page that is asked for again: the activations and weights of each batch and each reply. That was
    a twelfth of the CPU time of a round of FedAvg.
    """
    if (libc := _glibc()) is not None:
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
        libc.mallopt(_TRIM_THRESHOLD, KEPT_BYTES)


class FreedMemory:
    """Gives freed memory back where a process has grown.

    What is kept for long, such as a client's few examples, lies between what was freed, such as
    thousands of replies: glibc alone would keep such pages for good, and the process would grow.

    To ask for memory anew costs more than to keep it. A process that soon grows as much again is
    taken to work with that memory: it may grow twice as much from then on, up to a limit.
    """

    def __init__(self) -> None:
        self._limit_bytes: int | None = None
        self._slack_bytes = SLACK_BYTES
        self._calls_since_limit = 0
        self._has_worked = False

    def release_if_grown(self) -> None:
        """To be called between clients or rounds; costs microseconds where it has not."""
        if (libc := _glibc()) is None:
            return
        resident_bytes = _resident_bytes()
        if self._limit_bytes is not None:
            self._calls_since_limit += 1
            if resident_bytes > self._limit_bytes:
                libc.malloc_trim(0)
                self._limit_bytes = None
                if self._calls_since_limit < SOON:
                    self._slack_bytes = min(2 * self._slack_bytes, MOST_SLACK_BYTES)
        elif self._has_worked:  # what a round works with lies there freed, and is no growth
            self._limit_bytes = resident_bytes + self._slack_bytes
            self._calls_since_limit = 0
        self._has_worked = True


@lru_cache(maxsize=1)
def process_memory() -> FreedMemory:
    """The one of this process: a server and clients in one process grow together."""
    return FreedMemory()


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@lru_cache(maxsize=1)
def _glibc() -> Any:
    """The C library where it is glibc on Linux; None elsewhere."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
