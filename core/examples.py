"""Training examples, as workloads give them to strategies."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Examples:
    """Training examples, ready for the network.

    Attributes:
        inputs: float32, shape (N, C, H, W), normalised, on the device that trains.
        labels: int64, shape (N,), on the same device.
    """

    inputs: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)
