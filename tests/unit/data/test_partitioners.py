from __future__ import annotations

import dataclasses
import json
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config import DataConfig, PartitionConfig
from core.errors import DataError
from data.dataset import ImageDataset
from data.partition import Partition
from data.partitioners import load_or_make_partition, make_partition, refuse_too_few
from data.sources import load_dataset

Ints = npt.NDArray[np.int64]
SCHEMES = ["iid", "dirichlet", "pathological", "quantity"]
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 60))


@pytest.fixture(scope="module")
def digits() -> ImageDataset:
    return load_dataset(DataConfig(), seed=0)


def make(seed: int = 0, labels: Ints = LABELS, num_classes: int = 10, **keys: Any) -> Partition:
    return make_partition(labels, num_classes, "here", PartitionConfig(**keys), seed)


def same(one: Partition, other: Partition) -> bool:
    return len(one.clients) == len(other.clients) and all(
        np.array_equal(a, b) for a, b in zip(one.clients, other.clients, strict=True)
    )


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=6)
@given(
    seed=st.integers(0, 2**31 - 1),
    clients=st.integers(5, 12),
    num_classes=st.integers(2, 10),
    least=st.integers(1, 5),
)
def test_every_image_is_dealt_once(
    scheme: str, seed: int, clients: int, num_classes: int, least: int
) -> None:
    labels = np.random.default_rng(seed).permutation(np.arange(600) % num_classes)
    keys = {"scheme": scheme, "clients": clients, "min_examples": least, "alpha": 1.0}
    partition = make(seed, labels, num_classes, **keys)
    assert sorted(np.concatenate(partition.clients)) == list(range(600))
    assert len(partition.clients) == clients and partition.num_examples == 600
    for client, counts in zip(partition.clients, partition.class_counts, strict=True):
        assert len(client) >= least and bool((np.diff(client) > 0).all())
        assert client.dtype == np.int64
        assert [int((labels[client] == c).sum()) for c in range(num_classes)] == counts.tolist()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_seed_decides(scheme: str) -> None:
    first = make(3, scheme=scheme)
    assert same(first, make(3, scheme=scheme))
    assert not same(first, make(4, scheme=scheme))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_global_generators_are_left_alone(scheme: str) -> None:
    np.random.seed(1)
    random.seed(1)
    expected = (np.random.rand(), random.random())
    np.random.seed(1)
    random.seed(1)
    first = make(scheme=scheme)
    assert (np.random.rand(), random.random()) == expected
    assert same(first, make(scheme=scheme))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_nothing_is_sent_printed_or_warned(
    scheme: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError(f"connects to {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    make(scheme=scheme, alpha=0.5)
    assert capfd.readouterr() == ("", "")


def test_importing_is_cheap() -> None:
    code = (
        "import sys, data.partitioners\n"
        "print([m for m in ('datasets', 'flwr_datasets', 'flwr', 'ray') if m in sys.modules])"
    )
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


@pytest.mark.parametrize("clients", [1, 7, 10])
def test_iid_sizes_differ_by_one_at_most(clients: int) -> None:
    sizes = [len(client) for client in make(scheme="iid", clients=clients).clients]
    assert max(sizes) - min(sizes) <= 1


def test_iid_class_mix_is_that_of_all() -> None:
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(10), 500))
    counts = make(labels=labels, scheme="iid").class_counts
    # 500 of a class over 10 clients: mean 50, standard deviation below 6.7 (hypergeometric).
    assert counts.min() > 50 - 5 * 6.7 and counts.max() < 50 + 5 * 6.7
    assert counts.std() > 3


@pytest.mark.parametrize(
    ("clients", "each", "num_classes"),
    [(10, 2, 10), (2, 5, 10), (3, 4, 10), (5, 2, 10), (7, 3, 5), (12, 1, 10), (4, 10, 10)],
)
@pytest.mark.parametrize("seed", range(3))
def test_pathological_deals_exactly_k_classes(
    clients: int, each: int, num_classes: int, seed: int
) -> None:
    labels = np.random.default_rng(seed).permutation(np.arange(1200) % num_classes)
    keys = {"scheme": "pathological", "clients": clients, "classes_per_client": each}
    counts = make(seed, labels, num_classes, **keys).class_counts
    assert ((counts > 0).sum(axis=1) == each).all()
    holders = (counts > 0).sum(axis=0)
    assert holders.min() >= 1 and holders.max() - holders.min() <= 1
    for column, number in zip(counts.T, holders, strict=True):
        shares = column[column > 0]
        assert len(shares) == number and shares.max() - shares.min() <= 1


def test_pathological_draws_different_pairs_of_classes() -> None:
    counts = make(scheme="pathological", clients=30, min_examples=1).class_counts
    pairs = {tuple(np.flatnonzero(row).tolist()) for row in counts}
    assert len(pairs) > 10


def test_quantity_skews_sizes_and_not_classes() -> None:
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(10), 2000))
    partition = make(labels=labels, scheme="quantity", alpha=0.5)
    sizes = partition.class_counts.sum(axis=1)
    assert sizes.max() > 3 * sizes.min()
    for row in partition.class_counts[sizes >= 500]:
        mix, size = row / row.sum(), row.sum()
        assert np.abs(mix - 0.1).max() < 5 * np.sqrt(0.1 * 0.9 / size)
    even = make(labels=labels, scheme="quantity", alpha=1e4).class_counts.sum(axis=1)
    assert even.max() < 1.2 * even.min()


def test_quantity_shares_follow_the_dirichlet_distribution() -> None:
    """The share of one client is Beta(alpha, (K - 1) alpha)."""
    labels, alpha, clients = np.arange(1000) % 2, 5.0, 4
    shares = np.concatenate(
        [
            make(seed, labels, 2, scheme="quantity", alpha=alpha, clients=clients)
            .class_counts.sum(axis=1)
            for seed in range(60)
        ]
    ) / len(labels)  # fmt: skip
    variance = (clients - 1) / (clients**2 * (clients * alpha + 1))
    assert shares.var() == pytest.approx(variance, rel=0.25)


def niid_bench(class_sizes: Ints, alpha: float, seed: int) -> Ints:
    """Class counts by the rule of NIID-Bench's partition code, for 10 clients.

    Where no client below the mean size has a share, all is drawn again.
    """
    generator, clients, least = np.random.default_rng(seed), 10, 10
    while True:
        counts = np.zeros((clients, len(class_sizes)), dtype=np.int64)
        for label, size in enumerate(class_sizes):
            shares = generator.dirichlet(np.full(clients, alpha))
            shares *= counts.sum(axis=1) < class_sizes.sum() / clients
            if shares.sum() == 0:
                break
            ends = (np.cumsum(shares / shares.sum()) * size).astype(np.int64)[:-1]
            counts[:, label] = np.diff(ends, prepend=0, append=size)
        if counts.sum() == class_sizes.sum() and counts.sum(axis=1).min() >= least:
            return counts


def classes_per_client(counts: Ints) -> float:
    return float((counts > 0).sum(axis=1).mean())


ALPHAS = [(0.5, 8.80), (0.1, 5.58), (0.01, 2.12)]


@pytest.mark.parametrize(("alpha", "expected"), ALPHAS)
def test_the_reference_is_niid_bench(alpha: float, expected: float) -> None:
    """`expected`: classes per client of 50,000 balanced labels, simulated independently.

    One partition's mean has a standard deviation of up to 0.6 over seeds.
    """
    sizes = np.full(10, 5000)
    found = [classes_per_client(niid_bench(sizes, alpha, seed)) for seed in range(40)]
    assert np.mean(found) == pytest.approx(expected, abs=0.3)


@pytest.mark.parametrize("alpha", [alpha for alpha, _ in ALPHAS])
def test_dirichlet_agrees_with_the_reference(alpha: float) -> None:
    # No class as large as the mean client: the two differ for a client of exactly the mean size.
    sizes = np.array([437, 481, 523, 467, 533, 509, 541, 449, 557, 503])
    labels = np.repeat(np.arange(10), sizes)
    ours = [make(seed, labels, alpha=alpha).class_counts for seed in range(20)]
    reference = [niid_bench(sizes, alpha, seed) for seed in range(100)]
    for statistic, tolerance in [
        (classes_per_client, 0.4),
        (lambda counts: float(counts.sum(axis=1).std()), 30.0),
        (lambda counts: float(counts.sum(axis=1).max()), 75.0),
    ]:
        assert np.mean([statistic(counts) for counts in ours]) == pytest.approx(
            np.mean([statistic(counts) for counts in reference]), abs=tolerance
        )


def test_dirichlet_with_a_large_alpha_is_nearly_uniform() -> None:
    labels = np.repeat(np.arange(10), 500)
    counts = make(labels=labels, alpha=1e5).class_counts
    assert counts.min() >= 45 and counts.max() <= 55


def test_failed_attempts_are_on_record(digits: ImageDataset) -> None:
    labels = digits.train.labels.numpy()
    found = [make(seed, labels, alpha=0.01) for seed in range(20)]
    failed = [attempt for partition in found for attempt in partition.failed_attempts]
    assert sum(bool(partition.failed_attempts) for partition in found) >= 5
    for partition in found:
        seeds = [attempt.seed for attempt in partition.failed_attempts]
        assert [a.attempt for a in partition.failed_attempts] == list(range(len(seeds)))
        assert len({*seeds, partition.seed}) == len(seeds) + 1
        assert all(0 <= seed < 2**31 for seed in [*seeds, partition.seed])
        assert partition.class_counts.sum(axis=1).min() >= 10
    assert {attempt.reason.partition("(")[0].strip() for attempt in failed} <= {
        "each draw left a client short",
        "only clients above the mean size had a share of some class",
    }


def test_more_attempts_do_not_change_the_first_that_serves(digits: ImageDataset) -> None:
    labels = digits.train.labels.numpy()
    long = make(1, labels, alpha=0.01, max_attempts=100)
    short = make(1, labels, alpha=0.01, max_attempts=len(long.failed_attempts) + 1)
    assert same(long, short) and len(long.failed_attempts) > 0
    with pytest.raises(DataError):
        make(1, labels, alpha=0.01, max_attempts=len(long.failed_attempts))


def test_running_out_of_attempts_says_what_to_relax() -> None:
    with pytest.raises(DataError) as caught:
        make(alpha=0.001, min_examples=55, max_attempts=3)
    message = str(caught.value)
    for part in (
        "partition.scheme=dirichlet",
        "partition.alpha=0.001",
        "partition.clients=10",
        "partition.min-examples=55",
        "partition.max-attempts=3",
        "600 examples",
        "raise partition.alpha",
        "lower partition.min-examples",
    ):
        assert part in message


def test_min_examples_holds_for_pathological_partitions_too() -> None:
    labels = np.repeat(np.arange(10), [300, *[20] * 9])
    with pytest.raises(DataError, match="a client was dealt 10 examples; lower"):
        make(
            labels=labels,
            scheme="pathological",
            classes_per_client=1,
            clients=20,
            min_examples=15,
            max_attempts=2,
        )


def test_too_few_examples_are_refused_without_them_as_they_would_be_with_them() -> None:
    many = PartitionConfig(scheme="iid", clients=61, min_examples=10)
    with pytest.raises(DataError) as early:
        refuse_too_few(609, many)
    with pytest.raises(DataError) as late:
        make(labels=np.arange(609) % 10, scheme="iid", clients=61, min_examples=10)
    assert str(early.value) == str(late.value)
    refuse_too_few(610, many)
    refuse_too_few(1, dataclasses.replace(many, scheme="own"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"clients": 61}, "partition.clients=61 times partition.min-examples=10 must be at most"),
        ({"scheme": "iid", "clients": 601, "min_examples": 1}, "at most the 600 training examples"),
        (
            {"scheme": "pathological", "classes_per_client": 11},
            "classes-per-client=11 must be at most the 10 classes",
        ),
        (
            {"scheme": "pathological", "clients": 4, "classes_per_client": 2},
            "must be at least the 10 classes, or some class is dealt to nobody",
        ),
        (
            {
                "scheme": "pathological",
                "clients": 61,
                "classes_per_client": 10,
                "min_examples": 1,
            },
            "divides a class among 61 clients, which must be at most the 60 examples",
        ),
    ],
)
def test_settings_that_cannot_be_met_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make(**keys)


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=6)
@given(seed=st.integers(0, 2**31 - 1))
def test_no_two_clients_have_examples_of_one_unit(scheme: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels, units = generator.integers(0, 4, 300), generator.integers(0, 150, 300)
    config = PartitionConfig(scheme=scheme, clients=5, min_examples=1, alpha=1.0)
    partition = make_partition(labels, 4, "here", config, seed, units=units)
    assert sorted(np.concatenate(partition.clients)) == list(range(300))
    assert partition.num_examples == 300
    for k, mine in enumerate(partition.clients):
        assert np.array_equal(mine, np.sort(mine))
        assert np.array_equal(partition.class_counts[k], np.bincount(labels[mine], minlength=4))
        others = np.concatenate([c for i, c in enumerate(partition.clients) if i != k])
        assert not set(units[mine]) & set(units[others])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_units_of_one_example_are_dealt_as_examples(scheme: str) -> None:
    config = PartitionConfig(scheme=scheme, clients=5, min_examples=1)
    units = np.random.default_rng(1).permutation(len(LABELS))
    plain = make_partition(LABELS, 10, "here", config, 3)
    assert same(plain, make_partition(LABELS, 10, "here", config, 3, units=units))


def test_units_of_two_examples_are_dealt_by_the_label_of_the_first() -> None:
    """Which is as if the first examples alone were dealt."""
    units = np.repeat(np.arange(len(LABELS)), 2)
    config = PartitionConfig(scheme="dirichlet", clients=5, min_examples=1)
    plain = make_partition(LABELS, 10, "here", config, 3)
    twice = make_partition(np.repeat(LABELS, 2), 10, "here", config, 3, units=units)
    for one, two in zip(plain.clients, twice.clients, strict=True):
        assert np.array_equal(two, np.sort(np.concatenate([2 * one, 2 * one + 1])))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_file_round_trip(scheme: str, digits: ImageDataset, tmp_path: Path) -> None:
    config = PartitionConfig(scheme=scheme, min_examples=5)
    made = load_or_make_partition(digits, config, seed=2)
    file = tmp_path / "partition.json"
    made.write(file)
    # Of a file, scheme and seed do not matter.
    read = load_or_make_partition(
        digits, PartitionConfig(file=str(file), min_examples=5, scheme="iid"), seed=9
    )
    assert same(made, read)
    assert np.array_equal(made.class_counts, read.class_counts)
    for name in ("scheme", "source", "num_examples", "seed", "failed_attempts"):
        assert getattr(read, name) == getattr(made, name)
    assert made.source == "digits" and read.scheme["scheme"] == scheme


def test_a_file_that_does_not_fit_is_refused(digits: ImageDataset, tmp_path: Path) -> None:
    file = tmp_path / "partition.json"
    load_or_make_partition(digits, PartitionConfig(), seed=0).write(file)
    config = PartitionConfig(file=str(file))
    fewer = dataclasses.replace(digits, train=digits.test, name="other")
    with pytest.raises(DataError) as caught:
        load_or_make_partition(fewer, dataclasses.replace(config, clients=9), seed=0)
    message = str(caught.value)
    assert "data.source is digits in the file and other here" in message
    assert "number of training examples is 1295 in the file and 359 here" in message
    assert "partition.clients is 10 in the file and 9 here" in message
    named = dataclasses.replace(digits, class_names=(*digits.class_names, "more"))
    with pytest.raises(DataError, match="number of classes is 10 in the file and 11 here"):
        load_or_make_partition(named, config, seed=0)
    turned = dataclasses.replace(digits.train, labels=digits.train.labels.flip(0))
    with pytest.raises(DataError, match="class counts are not those of the examples here"):
        load_or_make_partition(dataclasses.replace(digits, train=turned), config, seed=0)
    with pytest.raises(DataError, match=r"below partition.min-examples=500"):
        load_or_make_partition(digits, dataclasses.replace(config, min_examples=500), seed=0)


def test_damaged_files_are_refused(digits: ImageDataset, tmp_path: Path) -> None:
    file = tmp_path / "partition.json"
    config = PartitionConfig(file=str(file))
    with pytest.raises(DataError, match="there is no partition file"):
        load_or_make_partition(digits, config, seed=0)
    load_or_make_partition(digits, PartitionConfig(), seed=0).write(file)
    whole = file.read_text()

    def damage(**keys: Any) -> str:
        return json.dumps({**json.loads(whole), **keys})

    clients = json.loads(whole)["clients"]
    for text, message in [
        (whole[: len(whole) // 2], "is not a partition file"),
        ("[]", "is not a partition file"),
        (damage(clients=None), "is not a partition file"),
        (damage(class_counts=3), "whole numbers in 2 dimensions"),
        (damage(clients=[[[1, 2], [3, 4]], [3]]), "whole numbers in 1 dimensions"),
        (damage(clients=[[0.7], [3]]), "whole numbers in 1 dimensions"),
        (damage(clients=[[10**20], [3]]), "is not a partition file"),
        (damage(clients=[[*clients[0], 5000], *clients[1:]]), "deals an index outside 0..1294"),
        (damage(clients=[clients[1], *clients[1:]]), "to more than one client"),
        (damage(clients=clients[1:]), "class counts for 10 clients and examples for 9"),
        (damage(class_counts=[[1, 2]] * 10), "number of classes is 2 in the file"),
    ]:
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            load_or_make_partition(digits, config, seed=0)
