"""Where the noise and the samples of private mechanisms come from.

Runs draw from the operating system's generator, whose output nobody can predict or repeat. Tests
inject a seeded one; whatever was noised by it has no epsilon (`privacy.ledger`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

_SUMMANDS = 4


class NoiseSource(Protocol):
    """Draws what a mechanism must not let anybody guess."""

    @property
    def is_system(self) -> bool:
        """Whether it is the operating system's generator."""

    def normal(self, reference: torch.Tensor, std: float) -> torch.Tensor:
        """Independent N(0, std^2) in the form, dtype and place of `reference`."""

    def uniform(self, count: int) -> torch.Tensor:
        """Independent uniform numbers in (0, 1), float64, shape (count,), on the CPU."""


class SystemNoise:
    """The operating system's generator.

    Each value is half the sum of four Gaussians of float64 (N. Holohan, S. Braghin, "Secure Random
    Sampling in Differential Privacy", 2021, arXiv:2107.10138), so that its last bits do not betray
    the uniform numbers it was made of. Sums are still floating-point numbers: the guarantee is that
    of real arithmetic.
    """

    is_system = True

    def normal(self, reference: torch.Tensor, std: float) -> torch.Tensor:
        """See `NoiseSource`."""
        values = _gaussians(_SUMMANDS * reference.numel()).reshape(_SUMMANDS, -1).sum(axis=0)
        drawn = torch.from_numpy(values * (std / _SUMMANDS**0.5)).view(reference.shape)
        return drawn.to(reference.device, reference.dtype)

    def uniform(self, count: int) -> torch.Tensor:
        """See `NoiseSource`. torch's own generator would keep 32 bits of its seed."""
        return torch.from_numpy(_uniforms(count))


class SeededNoise:
    """A generator that repeats, for tests: what it noises is not private."""

    is_system = False

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, reference: torch.Tensor, std: float) -> torch.Tensor:
        """See `NoiseSource`."""
        drawn = torch.randn(reference.shape, generator=self._generator, dtype=reference.dtype)
        return drawn.mul_(std).to(reference.device)

    def uniform(self, count: int) -> torch.Tensor:
        """See `NoiseSource`."""
        return torch.rand(count, generator=self._generator, dtype=torch.float64)


def _gaussians(count: int) -> npt.NDArray[np.float64]:
    """Standard Gaussians by the Box-Muller transform of 53-bit uniforms, shape (count,)."""
    pairs = -(-count // 2)
    uniform = _uniforms(2 * pairs)
    radius = np.sqrt(-2.0 * np.log(uniform[:pairs]))
    angle = 2.0 * np.pi * uniform[pairs:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def _uniforms(count: int) -> npt.NDArray[np.float64]:
    """Uniform numbers in (0, 1) of 53 bits, shape (count,)."""
    bits = np.frombuffer(os.urandom(8 * count), dtype=np.uint64) >> np.uint64(11)
    uniform: npt.NDArray[np.float64] = (bits.astype(np.float64) + 0.5) * 2.0**-53
    return uniform


_SOURCE: ContextVar[NoiseSource] = ContextVar("noise source", default=SystemNoise())  # noqa: B039


def noise_source() -> NoiseSource:
    """What mechanisms of this process draw from."""
    return _SOURCE.get()


@contextmanager
def injected_noise(source: NoiseSource) -> Iterator[None]:
    """Inside the block mechanisms of this process draw from `source`. For tests only."""
    token = _SOURCE.set(source)
    try:
        yield
    finally:
        _SOURCE.reset(token)
