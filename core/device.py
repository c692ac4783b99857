"""Which device to compute on, and how exactly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from core.errors import RunError


def resolve_device(name: str) -> torch.device:
    """The device that ``engine.device`` stands for.

    Args:
        name: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        RunError: ``cuda`` on a machine, or in a worker, that sees no GPU.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise RunError(
            "engine.device=cuda, but torch sees no CUDA GPU here; use engine.device=auto or cpu"
        )
    return torch.device("cuda" if available and name != "cpu" else "cpu")


PRECISIONS = ("float32", "tf32", "bf16")


@contextmanager
def numerics(precision: str, device: torch.device) -> Iterator[None]:
    """How matrix products and convolutions are computed inside the block.

    Args:
        precision: ``float32``; ``tf32``, float32 whose factors a GPU's tensor cores round to 10
            bits of mantissa; ``bf16``, both factors and results in bfloat16 (torch's autocast),
            while weights, their gradients and sums stay float32.
        device: Where.

    Raises:
        RunError: `check_precision` does.
    """
    check_precision(precision, device)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    half = precision == "bf16"
    try:
        # Cached casts of weights would outlive the steps taken within the block.
        with torch.autocast(device.type, torch.bfloat16, enabled=half, cache_enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse what `device` does not have.

    Raises:
        RunError: It is ``tf32``, on another device than a GPU.
    """
    if precision == "tf32" and device.type != "cuda":
        raise RunError(
            f"engine.precision=tf32, but the device is {device.type}: only NVIDIA GPUs have tf32; "
            "use float32 or bf16"
        )
