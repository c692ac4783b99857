"""Clients with images and videos of their own in real processes: runs, and what they survive."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from core.errors import QuorumError
from core.records import RunFolder
from core.workload import OwnData
from data.dataset import image_dataset
from data.export import parquet_of
from data.video.shapestory.make import Recipe, make_corpus
from engine.edge.credentials import read_credentials
from pairing.configuration import parse_config
from server.preparation import prepare
from tests.conftest import Federate, tiny_keys
from tests.integration.edge_federation import (
    PATIENCE_S,
    EdgeFederation,
    Process,
    freeze,
    node_id_of,
    wait_until,
    worker_of,
)
from tests.integration.vlm import vlm_keys

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.timeout(900),
]

DEALT = ("partition.scheme", "partition.alpha")
DP = {"privacy.mechanism": "dp-sgd", "privacy.epsilon": 90.0, "privacy.steps": 2}


def dealt_keys(strategy: str, **keys: object) -> dict[str, object]:
    """A simulation; each array of a message costs the network requests, so that there are few."""
    return tiny_keys(strategy, model__depth=1, **keys)


def own_keys(strategy: str, **keys: object) -> dict[str, object]:
    dealt = dealt_keys(strategy, **keys)
    return {**{k: v for k, v in dealt.items() if k not in DEALT}, "partition.scheme": "own"}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeFederation]:
    """Three clients, each with the images and the video files that simulations would deal it."""
    with EdgeFederation(tmp_path_factory.mktemp("own"), num_clients=3) as federation:
        preparation = prepare(parse_config(tiny_keys("fedavg")))
        dataset = image_dataset(preparation.workload.dataset)
        for client, indices in zip(
            federation.clients, preparation.partition_without.clients, strict=True
        ):
            share = dataset.train.take(indices_of(indices))
            (client / "data" / "train.parquet").write_bytes(parquet_of(share, dataset.class_names))
        deal_videos(federation)
        yield federation


def deal_videos(federation: EdgeFederation) -> None:
    make_corpus(Recipe(train=12, validation=2, test=2), federation.folder / "corpus")
    preparation = prepare(parse_config(video_keys(federation.folder)))
    assert isinstance(preparation.workload, OwnData)
    clients = preparation.partition.clients
    shares = preparation.workload.write_shares(clients, federation.folder / "dealt")
    for client, share in zip(federation.clients, shares, strict=True):
        shutil.copytree(share, client / "data", dirs_exist_ok=True)


def video_keys(folder: Path) -> dict[str, object]:
    """A simulation of clients with different tasks, on video files in `folder`."""
    corpus = {
        "video.source": f"shapestory:{folder / 'corpus'}",
        "video.encoder": "conv3d-random",
        "video.cache": str(folder / "features"),
        "partition.scheme": "iid",
    }
    return vlm_keys(corpus, tasks="retrieval;segmentation", rounds=1)


def indices_of(indices: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Any:
    import torch

    return torch.from_numpy(indices)


@pytest.fixture(scope="module")
def clients(federation: EdgeFederation) -> list[Process]:
    """One process per client; a test that ends one puts another in its place."""
    return federation.start_clients()


def ended(federation: EdgeFederation, name: str) -> dict[str, Any]:
    return RunFolder(federation.runs / name).read_json("run")


def outcomes(federation: EdgeFederation, name: str) -> list[list[str]]:
    records = RunFolder(federation.runs / name).read_rounds()
    return [[client.outcome for client in record.clients] for record in records[1:]]


def weights(path: Path, round: int = 2) -> dict[str, Any]:
    return {n: t.numpy() for n, t in load_file(RunFolder(path).checkpoint(round)).items()}


def assert_same_weights(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    assert one.keys() == other.keys() and one
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


def test_own_images_give_the_weights_of_a_simulation(
    federation: EdgeFederation, clients: list[Process], federate: Federate
) -> None:
    """Of clients that the server knows by the keys that they have."""
    run = federation.start_run(own_keys("feddm", name="own"))
    assert run.wait(PATIENCE_S) == 0, run.text()
    simulated = federate(dealt_keys("feddm"))
    assert_same_weights(weights(simulated), weights(federation.runs / "own"))
    known = RunFolder(federation.runs / "own").read_json("nodes")
    for k, client in enumerate(federation.clients):
        assert (client / "state" / "runs" / "own").is_dir()
        assert known[str(k)]["key"] == read_credentials(client).fingerprint
        assert known[str(k)]["node_id"] == str(node_id_of(clients[k]))


def test_own_video_files_give_the_weights_of_a_simulation(
    federation: EdgeFederation, clients: list[Process], federate: Federate
) -> None:
    """Decoded, encoded and trained on where they lie, by the encoder that the server tells."""
    keys = video_keys(federation.folder)
    own = {**{k: v for k, v in keys.items() if k not in DEALT}, "partition.scheme": "own"}
    run = federation.start_run({**own, "name": "videos"})
    assert run.wait(PATIENCE_S) == 0, run.text()
    assert_same_weights(weights(federate(keys), 1), weights(federation.runs / "videos", 1))
    for client in federation.clients:
        assert list((client / "state" / "cache").glob("*/*.npy")), "features stay with it"


def test_a_private_run_is_paid_from_the_clients_own_ledgers(
    federation: EdgeFederation, clients: list[Process]
) -> None:
    run = federation.start_run({**own_keys("fedavg", name="private", rounds=1), **DP})
    assert run.wait(PATIENCE_S) == 0, run.text()
    assert outcomes(federation, "private") == [["counted"] * 3]
    spent = RunFolder(federation.runs / "private").read_json("privacy")["spent"]
    assert 0 < spent["epsilon"] < 91
    assert charges(federation) == [1, 1, 1]


def charges(federation: EdgeFederation) -> list[int]:
    """Charges in each client's ledger, over all runs."""
    found = []
    for client in federation.clients:
        ledgers = list((client / "state" / "ledgers").glob("partition-*.json"))
        assert len(ledgers) <= 1
        found.append(sum(len(json.loads(path.read_text())["charges"]) for path in ledgers))
    return found


def test_a_straggler_is_late_and_its_reply_counts_in_no_later_round(
    federation: EdgeFederation, clients: list[Process]
) -> None:
    straggler = clients[2]
    answered = straggler.text().count("answered query")
    received = straggler.text().count("Received successfully")
    keys = own_keys("fedavg", name="straggler", rounds=2)
    run = federation.start_run({**keys, "engine.round-timeout-s": 12.0})
    straggler.wait_for("answered query", count=answered + 1)
    worker = worker_of(straggler)
    freeze(worker)
    straggler.wait_for("Received successfully", count=received + 2)
    folder = RunFolder(federation.runs / "straggler")
    wait_until(
        lambda: True if len(folder.read_rounds()) > 1 else None, PATIENCE_S, lambda: run.text()
    )
    os.kill(worker, signal.SIGCONT)
    assert run.wait(PATIENCE_S) == 0, run.text()
    told = outcomes(federation, "straggler")
    assert told[0] == ["counted", "counted", "late"]
    assert all(each[:2] == ["counted", "counted"] for each in told)
    # A reply that counts is one to that round's own request.
    assert told[1][2] in ("late", "counted")


def test_a_server_that_is_killed_in_a_run_goes_on_to_the_same_weights(
    federation: EdgeFederation, clients: list[Process], federate: Federate
) -> None:
    """The SuperLink and all that it started die at once, and come back with the database."""
    answered = clients[0].text().count("answered query")
    run = federation.start_run(own_keys("scaffold", name="cut", rounds=3))
    clients[0].wait_for("answered query", count=answered + 1)
    freeze(worker_of(clients[0]))
    federation.kill_server()
    os.kill(worker_of(clients[0]), signal.SIGCONT)
    run.wait(PATIENCE_S)
    federation.superlink = federation.start_superlink()
    again = federation.start_run(own_keys("scaffold", name="cut", rounds=3) | {"resume": True})
    again.wait(PATIENCE_S)
    assert ended(federation, "cut")["exit_code"] == 0, again.text()
    assert outcomes(federation, "cut") == [["counted"] * 3] * 3
    simulated = federate(dealt_keys("scaffold", rounds=3))
    assert_same_weights(weights(simulated, 3), weights(federation.runs / "cut", 3))


def test_clients_that_do_not_fit_are_refused_before_training_and_told_why(
    federation: EdgeFederation, clients: list[Process], tmp_path: Path
) -> None:
    """One's numpy says that it is another, and one's images are of other classes."""
    metadata = tmp_path / "numpy-0.0.1.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 0.0.1\n")
    assert clients[0].stop() == 0
    usual = federation.environment["PYTHONPATH"]
    federation.environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{usual}"
    clients[0] = federation.start_client(federation.clients[0])
    federation.environment["PYTHONPATH"] = usual
    preparation = prepare(parse_config(tiny_keys("fedavg")))
    dataset = image_dataset(preparation.workload.dataset)
    names = ["a cat", *dataset.class_names[1:]]
    (federation.clients[1] / "data" / "train.parquet").write_bytes(parquet_of(dataset.train, names))
    node_id_of(clients[0])
    run = federation.start_run(own_keys("fedavg", name="unfit"))
    run.wait(PATIENCE_S)
    told = ended(federation, "unfit")
    assert told["exit_code"] == QuorumError.exit_code == 6
    assert "1 of partition.clients=3 clients joined" in told["failure"]
    assert f"numpy is 0.0.1 there and {np.__version__} here" in told["failure"]
    assert "'a cat', which the federation does not have" in told["failure"]
    assert outcomes(federation, "unfit") == []
