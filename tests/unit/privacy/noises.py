"""Sources of noise that tests inject."""

from __future__ import annotations

import torch

from privacy.noise import SystemNoise


class NoNoise(SystemNoise):
    """Samples as a run does, and noises nothing. It does not pass for the system's generator."""

    is_system = False

    def normal(self, reference: torch.Tensor, std: float) -> torch.Tensor:
        return torch.zeros_like(reference)
