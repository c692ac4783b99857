"""What ran, and how fast its cores multiply matrices."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

MATRIX_SIDE = 2048
"""Of the matrix product that stands for the limit of the machine: 48 MB, past every cache."""


def describe() -> dict[str, str | int]:
    """Hardware, versions and date, to stand beside every figure."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
        "date": date.today().isoformat(),
    }


def matrix_flops_per_s(device: torch.device, *, repeats: int = 3) -> float:
    """FLOP/s of a float32 matrix product on the threads (or the GPU) in use; the best of several.

    A product of n x n matrices counts 2 n^3.
    """
    side = MATRIX_SIDE if device.type == "cpu" else 4 * MATRIX_SIDE
    left, right = (torch.randn(side, side, device=device) for _ in range(2))
    torch.mm(left, right)
    return (
        2 * side**3 / min(seconds_of(lambda: torch.mm(left, right), device) for _ in range(repeats))
    )


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """How long `work` takes: on a CPU in CPU seconds per torch thread, on a GPU by the clock."""
    if device.type == "cpu":
        began = time.process_time()
        work()
        return (time.process_time() - began) / torch.get_num_threads()
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
