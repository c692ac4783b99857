"""What every data source yields: labelled images in three splits, and how to normalise them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from core.workload import Dataset


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Images and their classes.

    Attributes:
        images: uint8, shape (N, C, H, W), pixel values 0-255.
        labels: int64, shape (N,), in [0, num_classes).
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __post_init__(self) -> None:
        assert self.images.dtype == torch.uint8 and self.images.ndim == 4
        assert self.labels.dtype == torch.int64 and self.labels.shape == self.images.shape[:1]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: torch.Tensor) -> LabelledImages:
        """The images at `indices` (int64, any order)."""
        return LabelledImages(self.images[indices], self.labels[indices])


@dataclass(frozen=True, slots=True)
class ImageDataset:
    """A data source, loaded.

    Attributes:
        name: The source as configured, such as ``digits``.
        class_names: One name per class, in label order.
        mean: Per channel, in [0, 1] pixel units; a constant of the source, never computed from
            clients' data, so that normalising reveals nothing of it.
        std: Likewise.
        train: What is dealt to clients.
        validation: What choices are made on.
        test: What is reported.
    """

    name: str
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages

    @property
    def num_classes(self) -> int:
        """Number of classes (C)."""
        return len(self.class_names)

    @property
    def num_examples(self) -> dict[str, int]:
        """Images in each split."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: len(split) for name, split in splits.items()}

    @property
    def train_labels(self) -> torch.Tensor:
        """Class of every training image, int64, shape (N,)."""
        return self.train.labels

    def content(self, indices: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Pixels and labels of the training images at `indices`."""
        own = self.train.take(indices)
        return own.images, own.labels

    def sha256(self) -> str:
        """A digest of every pixel and label of the three splits."""
        digest = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            for tensor in (split.images, split.labels):
                digest.update(f"{tuple(tensor.shape)}".encode())
                digest.update(tensor.contiguous().reshape(-1).numpy().data)
        return digest.hexdigest()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.train.images.shape[1:]
        return int(channels), int(height), int(width)

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Map uint8 pixels (N, C, H, W) to float32 network input."""
        mean, std = self._constants(images.device)
        return (images.to(torch.float32) / 255 - mean) / std

    def to_pixels(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map float network input (N, C, H, W) to the nearest uint8 pixels, clamped to 0-255."""
        mean, std = self._constants(inputs.device)
        pixels = (inputs.to(torch.float32) * std + mean) * 255
        return pixels.round().clamp(0, 255).to(torch.uint8)

    def _constants(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        mean = torch.tensor(self.mean, dtype=torch.float32, device=device)
        std = torch.tensor(self.std, dtype=torch.float32, device=device)
        return mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)


def image_dataset(dataset: Dataset) -> ImageDataset:
    """`dataset` of a workload that offers labelled images, which `pairing.fit` has checked."""
    assert isinstance(dataset, ImageDataset), "only of a workload that offers labelled images"
    return dataset
