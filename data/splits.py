"""From what a source holds to train, validation and test.

Splits that a source lacks are held out by class under a constant seed, so that runs with different
seeds are judged on the same images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from core.config import DataConfig
from core.errors import DataError
from core.seeds import derive_seed, numpy_generator
from data.dataset import ImageDataset, LabelledImages

SPLIT_SEED = 0
"""Seed of every held-out split; no configuration changes it."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a loader found.

    Attributes:
        class_names: One name per class, in label order.
        mean: Per channel, in [0, 1] pixel units; a constant of the source.
        std: Likewise.
        train: The training images; a split that is None is held out of them.
        validation: The source's own validation split, if it has one.
        test: The source's own test split, if it has one.
    """

    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: LabelledImages
    validation: LabelledImages | None = None
    test: LabelledImages | None = None


def labelled(images: torch.Tensor, labels: npt.ArrayLike, where: str) -> LabelledImages:
    """Pair `images` (uint8, (N, C, H, W)) with `labels` ((N,), whole numbers).

    Args:
        images: The images.
        labels: Their classes.
        where: What holds them, for the error message.

    Raises:
        DataError: There is not one label per image.
    """
    classes = torch.from_numpy(np.array(labels, dtype=np.int64))
    if len(classes) != len(images):
        raise DataError(f"{where} holds {len(images)} images and {len(classes)} labels")
    return LabelledImages(images, classes)


def complete(source: Source, config: DataConfig) -> ImageDataset:
    """Give `source` the splits it lacks.

    Args:
        source: What a loader found.
        config: Its ``test_fraction`` and ``validation_fraction`` are the shares of each class that
            are held out, at least one image.

    Raises:
        DataError: The splits contradict each other, or a class has too few images to hold any out.
    """
    _refuse_unfit(source, config.source)
    names, train, validation, test = (
        source.class_names,
        source.train,
        source.validation,
        source.test,
    )
    if test is None:
        train, test = hold_out(train, names, config.test_fraction, "test")
    if validation is None:
        train, validation = hold_out(train, names, config.validation_fraction, "validation")
    return ImageDataset(config.source, names, source.mean, source.std, train, validation, test)


def _refuse_unfit(source: Source, name: str) -> None:
    class_names, mean, std = source.class_names, source.mean, source.std
    shape = tuple(source.train.images.shape[1:])
    splits = {"training": source.train, "validation": source.validation, "test": source.test}
    for title, split in splits.items():
        if split is None:
            continue
        if not len(split):
            raise DataError(f"{name} holds no {title} image")
        if tuple(split.images.shape[1:]) != shape:
            raise DataError(
                f"{name}: {title} images are {describe_shape(split.images.shape[1:])}, training "
                f"images {describe_shape(shape)}; all must agree"
            )
        low, high = int(split.labels.min()), int(split.labels.max())
        if low < 0 or high >= len(class_names):
            raise DataError(
                f"{name}: a {title} image has label {low if low < 0 else high}; labels must be 0 "
                f"to {len(class_names) - 1}, the classes of the training images"
            )
    counts = torch.bincount(source.train.labels, minlength=len(class_names))
    if not counts.all():
        empty = class_names[int((counts == 0).nonzero()[0])]
        raise DataError(
            f"{name}: class {empty!r} has no training image; add some, or leave the class out"
        )
    if not len(mean) == len(std) == shape[0] or min(std) <= 0:
        raise DataError(
            f"{name}: images have {shape[0]} channels; mean {mean} and std {std} must have as many "
            "values, std above 0"
        )


def hold_out(
    images: LabelledImages, class_names: Sequence[str], fraction: float, split: str
) -> tuple[LabelledImages, LabelledImages]:
    """Hold a share of each class out, the same whatever the run's seed.

    Args:
        images: What to take from.
        class_names: One name per class.
        fraction: Share of each class held out, rounded, at least one image and never all.
        split: What the held-out images are for; part of the seed.

    Returns:
        The rest and the held-out images, both in their old order.

    Raises:
        DataError: A class has fewer than two images.
    """
    generator = numpy_generator(derive_seed(SPLIT_SEED, split))
    labels, held = images.labels.numpy(), np.zeros(len(images), dtype=bool)
    for label, name in enumerate(class_names):
        members = generator.permutation(np.flatnonzero(labels == label))
        if len(members) < 2:
            raise DataError(
                f"class {name!r} is left with {len(members)} of the 2 images needed to hold one "
                f"out for {split}; add images or leave the class out"
            )
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held[members[:count]] = True
    kept, taken = np.flatnonzero(~held), np.flatnonzero(held)
    return images.take(torch.from_numpy(kept)), images.take(torch.from_numpy(taken))


def equal_share(
    images: LabelledImages, class_names: Sequence[str], num_examples: int, seed: int
) -> LabelledImages:
    """Draw `num_examples` images, an equal share of each class, in their old order.

    Where `num_examples` is no multiple of the classes, drawn classes give one more.

    Raises:
        DataError: There are more classes than images asked for, or a class is short of its share.
    """
    num_classes = len(class_names)
    if num_examples < num_classes:
        raise DataError(
            f"data.train-examples={num_examples} leaves a class without images; it must be 0 or at "
            f"least {num_classes}, one per class"
        )
    generator = numpy_generator(derive_seed(seed, "train-examples"))
    share = np.full(num_classes, num_examples // num_classes)
    share[generator.permutation(num_classes)[: num_examples % num_classes]] += 1
    labels, drawn = images.labels.numpy(), []
    for label, name in enumerate(class_names):
        members = generator.permutation(np.flatnonzero(labels == label))
        if len(members) < share[label]:
            smallest = int(np.bincount(labels, minlength=num_classes).min())
            raise DataError(
                f"data.train-examples={num_examples} asks for {share[label]} training images of "
                f"class {name!r}, which has {len(members)}; use at most {smallest * num_classes}"
            )
        drawn.append(members[: share[label]])
    return images.take(torch.from_numpy(np.sort(np.concatenate(drawn))))


def describe_shape(shape: Sequence[int]) -> str:
    """Channels, height and width as text.

    >>> describe_shape((3, 32, 32))
    '3x32x32'
    """
    return "x".join(str(int(size)) for size in shape)
