"""Image classification: cross-entropy on labelled images, judged by a confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from core.examples import ExampleSet, labelled
from core.workload import Objective
from models.registry import make_model
from workloads.images import LabelledImageWorkload


@dataclass(frozen=True)
class ImageClassification(LabelledImageWorkload):
    """The model's cross-entropy on labelled images."""

    name = "classification"

    def make_model(self) -> nn.Module:
        """The architecture that ``model.name`` names."""
        return make_model(self.config.model, self.input_shape, self.num_classes)

    def loss(self, model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of each example, shape (B,), nats."""
        return functional.cross_entropy(model(inputs), labels, reduction="none")

    def objective(
        self, model: nn.Module, examples: ExampleSet, *, seed: int, partition_id: int | None
    ) -> Objective:
        """The mean cross-entropy of a client's images."""
        own = labelled(examples)
        return LabelledObjective(self, model, own.inputs, own.labels)


@dataclass(frozen=True, slots=True)
class LabelledObjective(Objective):
    """The mean loss of labelled images.

    Attributes:
        workload: Whose loss it is.
        model: What is trained.
        inputs: float32, shape (N, C, H, W).
        labels: int64, shape (N,).
    """

    workload: ImageClassification
    model: nn.Module
    inputs: torch.Tensor
    labels: torch.Tensor

    @property
    def num_examples(self) -> int:
        """All of them."""
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """The images'."""
        return self.labels.device

    def losses(self, batch: torch.Tensor) -> torch.Tensor:
        """Loss of each, shape (B,)."""
        return self.workload.loss(self.model, self.inputs[batch], self.labels[batch])
