"""What workloads on labelled images share: data, examples, and an evaluation by classes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from core.config import RunConfig
from core.examples import Examples
from core.metrics import evaluation_of
from core.records import EvaluationRecord
from core.scores import CLASSIFICATION, Scores
from core.workload import OwnData, Split, Workload
from data.dataset import ImageDataset
from data.export import write_shares
from data.own import DataForm, check_own, load_own
from data.sources import load_dataset

EVALUATION_BATCH = 500


@dataclass(frozen=True)
class LabelledImageWorkload(Workload, OwnData):
    """A workload whose model tells images' classes: ``model(inputs)`` are logits, shape (B, C)."""

    noun = "images"
    reads = ("data", "model")
    classifies = True

    dataset: ImageDataset

    @classmethod
    def data_key(cls, config: RunConfig) -> Hashable:
        """The source, whatever the workload."""
        return (config.data, config.seed)

    @classmethod
    def load(cls, config: RunConfig) -> ImageDataset:
        """The images of ``data.source``."""
        return load_dataset(config.data, config.seed)

    def form(self) -> str:
        """Classes, constants of normalisation, and the images' size."""
        return DataForm.of(self.dataset).to_text()

    @classmethod
    def check_own(cls, config: RunConfig, source: str) -> None:
        """See `data.own`."""
        check_own(_place(source))

    @classmethod
    def load_own(cls, config: RunConfig, source: str, form: str) -> ImageDataset:
        """See `data.own`."""
        agreed = DataForm.from_text(form)
        return agreed.dataset(load_own(_place(source), agreed))

    def write_shares(
        self, clients: Sequence[npt.NDArray[np.int64]], folder: Path
    ) -> Sequence[Path]:
        """A file of parquet for each client."""
        return write_shares(self.dataset, clients, folder)

    @property
    def scores(self) -> Scores:
        """Accuracy and macro-F1."""
        return CLASSIFICATION

    @property
    def num_classes(self) -> int:
        """Number of classes (C)."""
        return self.dataset.num_classes

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.dataset.image_shape

    def examples(self, indices: torch.Tensor) -> Examples:
        """Training images at `indices` (int64, shape (N,)) as network input, on the device."""
        chosen = self.dataset.train.take(indices)
        inputs = self.dataset.normalise(chosen.images.to(self.device))
        return Examples(inputs, chosen.labels.to(self.device))

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> EvaluationRecord:
        """Judge the model's classes on a whole split."""
        images = getattr(self.dataset, split)
        modes = {module: module.training for module in model.modules()}
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
        for module, mode in modes.items():
            module.training = mode
        confusion = cells.view(num_classes, num_classes).cpu().numpy().astype(np.int64)
        return evaluation_of(confusion, float(total) / len(images))

    def to_pixels(self, inputs: torch.Tensor) -> torch.Tensor:
        """Network input to uint8 pixels, rounded and clamped."""
        return self.dataset.to_pixels(inputs)

    def from_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 pixels to network input."""
        return self.dataset.normalise(pixels)


def _place(source: str) -> Path:
    return Path(source).expanduser().resolve()
