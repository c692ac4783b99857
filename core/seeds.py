"""Seeds derived from names, so that randomness depends on what is done and never on who does it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """Derive a 63-bit seed from a run's seed and a path of names.

    Args:
        seed: The run's seed.
        names: What the randomness is for, such as ``("client", round, partition_id)``.

    Returns:
        An integer in [0, 2**63), a pure function of the arguments (SHA-256).

    >>> derive_seed(0, "client", 1, 2) == derive_seed(0, "client", 1, 2)
    True
    >>> derive_seed(0, "client", 1, 2) == derive_seed(0, "client", 12)
    False
    """
    path = "\x1f".join([str(seed), *(f"{type(name).__name__}:{name}" for name in names)])
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") >> 1


def torch_generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on `device`, seeded with `seed`."""
    return torch.Generator(device=device).manual_seed(seed)


def numpy_generator(seed: int) -> np.random.Generator:
    """A NumPy generator seeded with `seed`."""
    return np.random.default_rng(seed)


@contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Seed torch's global generators inside the block and restore them afterwards.

    Module constructors draw their parameters from them, and layers such as dropout what they drop;
    neither takes another generator. Nothing else touches them.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        # Not `torch.manual_seed`, which walks the stack where CUDA has not been used, and seeds
        # GPUs that are not restored.
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed(seed)
        yield
