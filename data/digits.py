"""scikit-learn's handwritten digits: 1,797 greyscale images of 8x8, part of that package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from core.config import DataConfig
from core.errors import DataError
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
    table = _table()
    pixels = np.rint(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    names = tuple(str(digit) for digit in range(10))
    train = labelled(torch.from_numpy(pixels[:, None]), table[:, -1], config.source)
    return Source(names, (MEAN,), (STD,), train)


def _table() -> npt.NDArray[np.int64]:
    """64 pixels and the label a row, from scikit-learn's own file.

    Importing scikit-learn takes longer than all else that a client's process does to start.
    """
    found = importlib.util.find_spec("sklearn")
    for folder in (found and found.submodule_search_locations) or ():
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            return np.loadtxt(file, delimiter=",", dtype=np.int64)
    raise DataError(
        "data.source=digits: scikit-learn, which brings the images, is not installed or keeps them "
        'elsewhere; install it: python -m pip install "scikit-learn>=1.7"'
    )
