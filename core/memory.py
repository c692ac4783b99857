"""Memory that is free within the process, given back to the system."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import lru_cache


def release_free_memory() -> None:
    """Give back what glibc holds of freed memory; elsewhere nothing, for others do it themselves.

    What is kept for long, such as a client's few examples, lies between what was freed, such as
    thousands of replies: glibc alone would keep such pages for good, and the process would grow.
    Costs milliseconds.
    """
    if (trim := _malloc_trim()) is not None:
        trim(0)


@lru_cache(maxsize=1)
def _malloc_trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim
