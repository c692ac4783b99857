"""scikit-learn's handwritten digits: 1,797 greyscale images of 8x8, part of that package."""

from __future__ import annotations

import numpy as np
import torch

from core.config import DataConfig
from data.splits import Source, labelled

MEAN, STD = 0.305, 0.376
"""Over all 1,797 images, written down once."""


def check(config: DataConfig) -> None:
    """The digits are always there."""


def load(config: DataConfig, seed: int) -> Source:
    """Read the digits; their pixels of 0 to 16 are scaled to 0 to 255.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
    Learning Repository, 1998; the copy of its test set in `sklearn.datasets.load_digits`.
    """
    from sklearn.datasets import load_digits  # takes a quarter of a second

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    names = tuple(str(name) for name in digits.target_names)
    train = labelled(torch.from_numpy(pixels[:, None]), digits.target, config.source)
    return Source(names, (MEAN,), (STD,), train)
