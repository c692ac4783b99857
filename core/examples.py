"""Training examples, as workloads give them to strategies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch


class ExampleSet(Protocol):
    """What a client holds, ready to train on: whatever its workload makes of it."""

    def __len__(self) -> int:
        """Number of examples (n_k)."""

    @property
    def num_bytes(self) -> int:
        """Of all tensors."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Labelled examples, ready for the network.

    Attributes:
        inputs: float32, shape (N, C, H, W), normalised, on the device that trains.
        labels: int64, shape (N,), on the same device.
    """

    inputs: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_bytes(self) -> int:
        """Of inputs and labels."""
        return self.inputs.nbytes + self.labels.nbytes


def labelled(examples: ExampleSet) -> Examples:
    """`examples` of a workload that offers labelled images, which `pairing.fit` has checked."""
    assert isinstance(examples, Examples), "only of a workload that offers labelled images"
    return examples
