"""The benchmark's data as a source of Tessera, ``data.source=benchmarks/work_source.py:load``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from core.config import DataConfig
from data.dataset import ImageDataset, LabelledImages

NUM_CLASSES = 10
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
NUM_HELD_OUT = NUM_CLASSES
"""Images of validation and test: the first and the last round are always judged, by a few here."""


def load(config: DataConfig, seed: int) -> ImageDataset:
    """Read ``data.npz`` in the folder `config.root`; some training images are held out too."""
    with np.load(Path(config.root) / "data.npz") as held:
        images, labels = torch.from_numpy(held["images"]), torch.from_numpy(held["labels"])
    few = LabelledImages(images[:NUM_HELD_OUT], labels[:NUM_HELD_OUT])
    return ImageDataset(
        name="",
        class_names=tuple(f"class {c}" for c in range(NUM_CLASSES)),
        mean=MEAN,
        std=STD,
        train=LabelledImages(images, labels),
        validation=few,
        test=few,
    )
