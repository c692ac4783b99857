"""A data source of `benchmarks.scale`: small images that are drawn instead of read.

``data.source=benchmarks/generated_images.py:generated_images``; it imports nothing of this folder,
since a plug-in is loaded by its path.
"""

from __future__ import annotations

import torch

from core.config import DataConfig
from data.dataset import ImageDataset, LabelledImages

NUM_CLASSES = 10
SIDE = 8
NUM_TRAIN = 100_000
"""Ten images for each of 10,000 clients; ``data.train-examples`` takes fewer."""

NUM_HELD_OUT = 500
"""Images in validation and in test."""


def generated_images(config: DataConfig, seed: int) -> ImageDataset:
    """Grey 8x8 images: a random pattern for each class under noise; equally many of each class.

    The same whatever `seed` is, as with a source that is read from files.
    """
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randint(0, 256, (NUM_CLASSES, 1, SIDE, SIDE), generator=generator)

    def drawn(count: int) -> LabelledImages:
        labels = torch.arange(count) % NUM_CLASSES
        noise = torch.randint(-96, 97, (count, 1, SIDE, SIDE), generator=generator)
        return LabelledImages((patterns[labels] + noise).clamp(0, 255).to(torch.uint8), labels)

    return ImageDataset(
        name=config.source,
        class_names=tuple(str(label) for label in range(NUM_CLASSES)),
        mean=(0.5,),
        std=(0.25,),
        train=drawn(NUM_TRAIN),
        validation=drawn(NUM_HELD_OUT),
        test=drawn(NUM_HELD_OUT),
    )
