"""Image classification: cross-entropy on labelled images, judged by a confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from core.config import DataConfig, ModelConfig, RunConfig
from core.examples import Examples
from core.metrics import evaluation_of
from core.records import EvaluationRecord
from core.scores import CLASSIFICATION, Scores
from data.dataset import ImageDataset
from data.sources import load_dataset
from models.registry import build_model

EVALUATION_BATCH = 500


@dataclass(frozen=True, slots=True)
class ImageClassification:
    """The workload of one run on one device.

    Attributes:
        dataset: The images.
        model_config: The architecture.
        device: Where models and examples live.
    """

    dataset: ImageDataset
    model_config: ModelConfig
    device: torch.device

    @property
    def num_classes(self) -> int:
        """Number of classes (C)."""
        return self.dataset.num_classes

    @property
    def scores(self) -> Scores:
        """What a model is judged by."""
        return CLASSIFICATION

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.dataset.image_shape

    def build_model(self, seed: int) -> nn.Module:
        """A freshly initialised model; the same seed gives the same bits on any device."""
        model = build_model(self.model_config, self.input_shape, self.num_classes, seed)
        return model.to(self.device)

    def loss(self, model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of each example, shape (B,), nats."""
        return functional.cross_entropy(model(inputs), labels, reduction="none")

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Literal["validation", "test"]) -> EvaluationRecord:
        """Judge the model on a whole split."""
        images = getattr(self.dataset, split)
        training = model.training
        model.eval()
        num_classes = self.num_classes
        cells = torch.zeros(num_classes**2, dtype=torch.int64, device=self.device)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for start in range(0, len(images), EVALUATION_BATCH):
            window = slice(start, start + EVALUATION_BATCH)
            inputs = self.dataset.normalise(images.images[window].to(self.device))
            labels = images.labels[window].to(self.device)
            logits = model(inputs)
            total += functional.cross_entropy(logits, labels, reduction="sum")
            cells += torch.bincount(
                labels * num_classes + logits.argmax(dim=1), minlength=num_classes**2
            )
        model.train(training)
        confusion = cells.view(num_classes, num_classes).cpu().numpy().astype(np.int64)
        return evaluation_of(confusion, float(total) / len(images))

    def examples(self, indices: torch.Tensor) -> Examples:
        """Training images at `indices` (int64, shape (N,)) as network input, on the device."""
        chosen = self.dataset.train.take(indices)
        inputs = self.dataset.normalise(chosen.images.to(self.device))
        return Examples(inputs, chosen.labels.to(self.device))

    def training_examples(self) -> Examples:
        """The whole training split."""
        return self.examples(torch.arange(len(self.dataset.train)))

    def to_pixels(self, inputs: torch.Tensor) -> torch.Tensor:
        """Network input to uint8 pixels, rounded and clamped."""
        return self.dataset.to_pixels(inputs)

    def from_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 pixels to network input."""
        return self.dataset.normalise(pixels)


def open_workload(config: RunConfig, device: torch.device) -> ImageClassification:
    """The configured workload. Data is loaded once per process; `forget_data` lets it go.

    Raises:
        DataError: The data is missing or unfit.
    """
    return ImageClassification(_load(config.data, config.seed), config.model, device)


@lru_cache(maxsize=2)
def _load(data: DataConfig, seed: int) -> ImageDataset:
    return load_dataset(data, seed)


def forget_data() -> None:
    """Drop loaded data, so that it is read from its files anew."""
    _load.cache_clear()
