"""MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100 through torchvision, from files under a root."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from core.config import DataConfig
from core.errors import DataError
from data.splits import Source, labelled

_IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@dataclass(frozen=True, slots=True)
class Published:
    """A data set as published.

    Attributes:
        dataset: Name of torchvision's class.
        folder: Folder under the root.
        files: Files in that folder.
        mean: Of the training pixels, per channel, in [0, 1] units.
        std: Likewise.
    """

    dataset: str
    folder: str
    files: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


PUBLISHED = {
    "mnist": Published("MNIST", "MNIST/raw", _IDX_FILES, (0.1307,), (0.3081,)),
    "fashion-mnist": Published(
        "FashionMNIST", "FashionMNIST/raw", _IDX_FILES, (0.2860,), (0.3530,)
    ),
    "cifar10": Published(
        "CIFAR10",
        "cifar-10-batches-py",
        (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"),
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
    ),
    "cifar100": Published(
        "CIFAR100",
        "cifar-100-python",
        ("train", "test", "meta"),
        (0.5071, 0.4865, 0.4409),
        (0.2673, 0.2564, 0.2762),
    ),
}


def check(config: DataConfig) -> None:
    """Refuse a data set whose files are missing, unless they are to be downloaded.

    Raises:
        DataError: Lists the missing files.
    """
    published = PUBLISHED[config.source]
    folder = Path(config.root).expanduser() / published.folder
    missing = [name for name in published.files if not (folder / name).is_file()]
    if missing and not config.download:
        raise DataError(
            f"data.source={config.source}: {folder} lacks {', '.join(missing)}; put the unpacked "
            f"files there (data.root={config.root}), or set data.download=true to fetch them"
        )


def load(config: DataConfig, seed: int) -> Source:
    """Read a data set, downloading it first where that is asked for.

    Raises:
        DataError: Files are missing, damaged or cannot be fetched.
    """
    check(config)
    import torchvision.datasets  # takes two seconds

    published = PUBLISHED[config.source]
    kind = getattr(torchvision.datasets, published.dataset)
    root = Path(config.root).expanduser()
    splits = []
    for is_train in (True, False):
        try:
            split = kind(root, train=is_train, download=config.download)
        except Exception as error:  # torchvision raises whatever a damaged file provokes
            raise DataError(
                f"data.source={config.source} cannot be read from {root / published.folder}: "
                f"{error or type(error).__name__}; replace the files, or remove them and set "
                "data.download=true"
            ) from error
        pixels = torch.as_tensor(split.data)
        images = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
        splits.append(labelled(images.contiguous(), np.asarray(split.targets), config.source))
    # MNIST's names are "0 - zero" and so on.
    names = tuple(name.partition(" - ")[0] for name in split.classes)
    return Source(names, published.mean, published.std, splits[0], test=splits[1])
