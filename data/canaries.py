"""Canaries: examples of which a fair coin decides whether a client holds them. For audits only.

===========  =======================================================================
noise        m images of uniform noise with labels drawn at random
mislabelled  m images held out for validation, each with a wrong label
members      m of the clients' own training images, with their own labels
===========  =======================================================================

Each is for one client. Those of the first two kinds join the training images behind the last, and
the client's share of the partition where their coin says so; those of the third stay in it or are
taken out. From there on a canary is an example like any other: clients' examples, the counts that
the server expects and the bytes that are predicted all come from the dealt partition.

Which canaries, and whose, depends on ``canaries.seed``; the coins on ``canaries.coins`` too. Who
guesses the coins must not look at them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from core.config import CanariesConfig
from core.errors import DataError
from core.seeds import derive_seed, numpy_generator
from core.workload import Dataset
from data.dataset import ImageDataset, LabelledImages, image_dataset
from data.partition import Indices, Partition


@dataclass(frozen=True, slots=True)
class Canaries:
    """Canaries of a run.

    Attributes:
        examples: Their images and labels, m of them.
        indices: Where they are in the training split that holds them, int64, shape (m,).
        clients: Partition id of the client that each is for, int64, shape (m,).
        included: Whether that client holds it, bool, shape (m,).
    """

    examples: LabelledImages
    indices: Indices
    clients: Indices
    included: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True, slots=True)
class Dealt:
    """What clients hold.

    Attributes:
        dataset: Its training split holds the canaries, included or not, behind all others.
        partition: The indices into it that each client holds.
        canaries: None where there are none.
    """

    dataset: Dataset
    partition: Partition
    canaries: Canaries | None = None


def deal_canaries(config: CanariesConfig, dataset: Dataset, partition: Partition) -> Dealt:
    """Put the configured canaries into what clients hold: a pure function of its arguments.

    Args:
        config: Which canaries.
        dataset: The images, without canaries; without canaries any data.
        partition: Who holds which, without canaries.

    Raises:
        DataError: There are not as many canaries of the kind, or a client is left with nothing.
    """
    if config.kind == "none":
        return Dealt(dataset, partition)
    dataset = image_dataset(dataset)
    generator = numpy_generator(derive_seed(config.seed, "canaries", config.kind))
    coins = numpy_generator(derive_seed(config.seed, "coins", config.coins))
    included = coins.random(config.count) < 0.5
    if config.kind == "members":
        return _leave_out(config.count, dataset, partition, generator, included)
    make = _noise if config.kind == "noise" else _mislabelled
    examples = make(config.count, dataset, generator)
    train = dataset.train
    indices = len(train) + np.arange(config.count)
    clients = generator.permutation(np.arange(config.count) % len(partition.clients))
    canaries = Canaries(examples, indices, clients, included)
    joined = LabelledImages(
        torch.cat([train.images, examples.images]), torch.cat([train.labels, examples.labels])
    )
    held = tuple(
        np.concatenate([own, indices[included & (clients == k)]])
        for k, own in enumerate(partition.clients)
    )
    return _dealt(dataclasses.replace(dataset, train=joined), partition, held, canaries)


def _leave_out(
    count: int,
    dataset: ImageDataset,
    partition: Partition,
    generator: np.random.Generator,
    included: npt.NDArray[np.bool_],
) -> Dealt:
    indices = np.concatenate(partition.clients)
    owners = np.repeat(np.arange(len(partition.clients)), [len(c) for c in partition.clients])
    _refuse_too_many(count, len(indices), "images that clients hold")
    chosen = np.sort(generator.permutation(len(indices))[:count])
    canaries = Canaries(
        dataset.train.take(torch.from_numpy(indices[chosen])),
        indices[chosen],
        owners[chosen],
        included,
    )
    absent = canaries.indices[~included]
    held = tuple(own[~np.isin(own, absent)] for own in partition.clients)
    return _dealt(dataset, partition, held, canaries)


def _noise(count: int, dataset: ImageDataset, generator: np.random.Generator) -> LabelledImages:
    shape = (count, *dataset.image_shape)
    images = generator.integers(0, 256, shape, dtype=np.uint8)
    labels = generator.integers(0, dataset.num_classes, count)
    return LabelledImages(torch.from_numpy(images), torch.from_numpy(labels))


def _mislabelled(
    count: int, dataset: ImageDataset, generator: np.random.Generator
) -> LabelledImages:
    images, wrong = dataset.validation, dataset.num_classes - 1
    _refuse_too_many(count, len(images) * wrong, "held-out images, each with every wrong label")
    pairs = torch.from_numpy(generator.permutation(len(images) * wrong)[:count])
    chosen = images.take(pairs % len(images))
    shift = 1 + pairs // len(images)
    return LabelledImages(chosen.images, (chosen.labels + shift) % dataset.num_classes)


def _refuse_too_many(count: int, there_are: int, what: str) -> None:
    if count > there_are:
        raise DataError(f"canaries.count={count} is above the {there_are} {what}; lower it")


def _dealt(
    dataset: ImageDataset, partition: Partition, held: tuple[Indices, ...], canaries: Canaries
) -> Dealt:
    empty = [k for k, indices in enumerate(held) if not len(indices)]
    if empty:
        raise DataError(
            f"without the canaries that were left out client {empty[0]} holds no image; lower "
            "canaries.count, or raise partition.min-examples"
        )
    labels = dataset.train.labels.numpy()
    counts = [np.bincount(labels[own], minlength=dataset.num_classes) for own in held]
    dealt = dataclasses.replace(
        partition,
        num_examples=len(labels),
        clients=held,
        class_counts=np.stack(counts).astype(np.int64),
    )
    return Dealt(dataset, dealt, canaries)
