"""The work of the speed benchmark: reproducible, and what Tessera itself would do."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.peers import given as peers
from benchmarks.peers import hand_loop
from benchmarks.peers.given import Diary, Given
from benchmarks.work import Work, WorkSize, make_work
from core.records import RunFolder
from experiments.run import run
from models.cnn import CNN
from pairing.configuration import parse_config
from server.checkpoint import Checkpoint
from server.progress import PlainProgress

SIZE = WorkSize(rounds=3, num_clients=6, examples_per_client=40, cohort_size=3, side=8)
SAME = 1e-6
"""Relative difference of losses that rounding alone explains in a dozen steps."""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return make_work(tmp_path_factory.mktemp("work"), SIZE)


@pytest.fixture(scope="module")
def finished(work: Work, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Tessera's own run on the work."""
    runs = tmp_path_factory.mktemp("runs")
    keys = {"engine.kind": "in-process", "runs": str(runs), "name": "run"}
    return RunFolder(run(parse_config({**work.settings(), **keys}), PlainProgress()))


def hand_loss(work: Work, given: Given, out: Path) -> float:
    hand_loop.run(given, Diary(out))
    with np.load(out / "weights.npz") as held:
        return work.training_loss({k: torch.from_numpy(held[k]) for k in held.files})


def test_the_same_size_gives_the_same_bytes(work: Work, tmp_path: Path) -> None:
    again = make_work(tmp_path, SIZE)
    assert again.sha256 == work.sha256
    other = make_work(tmp_path, dataclasses.replace(SIZE, rounds=4))
    assert other.sha256 != work.sha256


def test_every_image_is_dealt_to_one_client_and_every_order_is_a_permutation(work: Work) -> None:
    dealt = np.sort(work.arrays["clients"].reshape(-1))
    assert np.array_equal(dealt, np.arange(SIZE.num_clients * SIZE.examples_per_client))
    orders = work.arrays["orders"]
    assert orders.shape == (SIZE.rounds, SIZE.cohort_size, SIZE.examples_per_client)
    assert (np.sort(orders, axis=-1) == np.arange(SIZE.examples_per_client)).all()


def test_cohorts_are_those_that_tessera_asks(work: Work, finished: RunFolder) -> None:
    asked = [
        sorted(client.partition_id for client in record.clients)
        for record in finished.read_rounds()[1:]
    ]
    assert asked == np.sort(work.arrays["cohorts"], axis=1).tolist()
    assert len(set(map(tuple, asked))) > 1


def test_only_the_first_and_the_last_round_are_judged(finished: RunFolder) -> None:
    judged = [record.round for record in finished.read_rounds() if record.test is not None]
    assert judged == [0, SIZE.rounds]


def test_the_plain_network_is_tesseras(work: Work) -> None:
    plain, ours = peers.CNN(SIZE.side), CNN((3, SIZE.side, SIZE.side), 10)
    ours.load_state_dict(work.initial_weights, strict=True)
    plain.load_state_dict(work.initial_weights, strict=True)
    inputs = torch.randn(4, 3, SIZE.side, SIZE.side, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(plain(inputs), ours(inputs), atol=1e-6)


def test_the_published_network_has_its_number_of_parameters() -> None:
    assert sum(p.numel() for p in peers.CNN(32).parameters()) == 2_156_490


def test_a_loop_by_hand_comes_to_tesseras_loss(
    work: Work, finished: RunFolder, tmp_path: Path
) -> None:
    given = Given.read(work.folder)
    identity = parse_config(work.settings()).identity()
    state = Checkpoint.read(finished.checkpoint(SIZE.rounds), identity).state
    wanted = work.training_loss(state.weights)
    assert wanted < work.training_loss(work.initial_weights) - 0.01
    assert hand_loss(work, given, tmp_path) == pytest.approx(wanted, rel=SAME)

    # Were batches, clients or weights others, the losses would tell.
    other_batches = dataclasses.replace(given, orders=given.orders.flip(-1))
    assert hand_loss(work, other_batches, tmp_path) != pytest.approx(wanted, rel=10 * SAME)
