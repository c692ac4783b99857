"""Which device to compute on."""

from __future__ import annotations

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
