"""Canaries: who holds them is a coin's doing, and everything that counts examples agrees."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

from core.config import CanariesConfig, DataConfig, PartitionConfig
from core.errors import DataError
from data.canaries import Canaries, Dealt, deal_canaries
from data.dataset import ImageDataset, image_dataset
from data.partition import Partition
from data.partitioners import load_or_make_partition
from data.sources import load_dataset

KINDS = ("noise", "mislabelled", "members")


@pytest.fixture(scope="module")
def dataset() -> ImageDataset:
    return load_dataset(DataConfig(), 0)


@pytest.fixture(scope="module")
def partition(dataset: ImageDataset) -> Partition:
    return load_or_make_partition(dataset, PartitionConfig(clients=5, alpha=1.0), 0)


def canaries_of(dealt: Dealt) -> Canaries:
    assert dealt.canaries is not None
    return dealt.canaries


def held_by(partition: Partition, k: int) -> set[int]:
    return set(partition.clients[k].tolist())


def test_without_canaries_nothing_changes(dataset: ImageDataset, partition: Partition) -> None:
    dealt = deal_canaries(CanariesConfig(), dataset, partition)
    assert dealt.dataset is dataset and dealt.partition is partition and dealt.canaries is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_canary_is_held_by_its_client_if_its_coin_says_so_and_by_nobody_else(
    dataset: ImageDataset, partition: Partition, kind: str
) -> None:
    dealt = deal_canaries(CanariesConfig(kind=kind, count=300), dataset, partition)
    canaries, held = canaries_of(dealt), dealt.partition
    assert stats.binomtest(int(canaries.included.sum()), 300).pvalue > 0.001
    for index, owner, included in zip(
        canaries.indices.tolist(), canaries.clients, canaries.included, strict=True
    ):
        holders = [k for k in range(5) if index in held_by(held, k)]
        assert holders == ([owner] if included else [])
    others = {k: held_by(partition, k) - set(canaries.indices.tolist()) for k in range(5)}
    assert all(others[k] <= held_by(held, k) for k in range(5))
    assert sum(map(len, held.clients)) == sum(map(len, others.values())) + canaries.included.sum()
    chosen = image_dataset(dealt.dataset).train.take(torch.from_numpy(canaries.indices))
    assert torch.equal(chosen.images, canaries.examples.images)
    assert torch.equal(chosen.labels, canaries.examples.labels)


@pytest.mark.parametrize("kind", KINDS)
def test_class_counts_are_those_of_what_clients_hold(
    dataset: ImageDataset, partition: Partition, kind: str
) -> None:
    dealt = deal_canaries(CanariesConfig(kind=kind, count=100), dataset, partition)
    labels = image_dataset(dealt.dataset).train.labels.numpy()
    for own, counts in zip(dealt.partition.clients, dealt.partition.class_counts, strict=True):
        assert counts.tolist() == np.bincount(labels[own], minlength=10).tolist()
    assert dealt.partition.num_examples == len(labels)


@pytest.mark.parametrize("kind", KINDS)
def test_seed_and_coins_draw_apart(dataset: ImageDataset, partition: Partition, kind: str) -> None:
    config = CanariesConfig(kind=kind, count=100)
    one, same, coins, other = (
        canaries_of(deal_canaries(c, dataset, partition))
        for c in (
            config,
            config,
            dataclasses.replace(config, coins=1),
            dataclasses.replace(config, seed=1),
        )
    )
    assert torch.equal(one.examples.images, same.examples.images)
    assert np.array_equal(one.included, same.included)
    assert torch.equal(one.examples.images, coins.examples.images)
    assert np.array_equal(one.clients, coins.clients)
    assert not np.array_equal(one.included, coins.included)
    assert not torch.equal(one.examples.images, other.examples.images)


def test_mislabelled_are_held_out_images_with_a_wrong_label(
    dataset: ImageDataset, partition: Partition
) -> None:
    most = 9 * len(dataset.validation)
    config = CanariesConfig(kind="mislabelled", count=most)
    examples = canaries_of(deal_canaries(config, dataset, partition)).examples
    right = {i.numpy().tobytes(): int(y) for i, y in zip(*_both(dataset.validation), strict=True)}
    told = {(i.numpy().tobytes(), int(y)) for i, y in zip(*_both(examples), strict=True)}
    assert all(label != right[image] for image, label in told)
    assert len(told) == 9 * len(right)  # every pair once
    with pytest.raises(DataError, match="lower it"):
        deal_canaries(dataclasses.replace(config, count=most + 1), dataset, partition)


def _both(images: object) -> tuple[torch.Tensor, torch.Tensor]:
    return images.images, images.labels  # type: ignore[attr-defined]


def test_members_that_would_leave_a_client_nothing_are_refused(
    dataset: ImageDataset, partition: Partition
) -> None:
    tiny = dataclasses.replace(
        partition,
        clients=tuple(own[:1] for own in partition.clients),
        class_counts=np.eye(5, 10, dtype=np.int64),
    )
    with pytest.raises(DataError, match="holds no image"):
        deal_canaries(CanariesConfig(kind="members", count=5), dataset, tiny)
