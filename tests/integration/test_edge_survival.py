"""Clients with images of their own in real processes: runs, and what they survive."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from core.errors import QuorumError, RunError
from core.records import RunFolder
from data.dataset import image_dataset
from data.export import parquet_of
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

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.timeout(900),
]

DEALT = ("partition.scheme", "partition.alpha")
DP = {"privacy.mechanism": "dp-sgd", "privacy.epsilon": 90.0, "privacy.steps": 2}
FEATURE = {
    "privacy.mechanism": "feature",
    "privacy.noise-multiplier": 2.0,  # the run before has spent what a budget would leave
    "privacy.steps": 3,
    "feddm.initialisation": "noise",
}
GIVEN = {"privacy.mechanism": "dp-sgd", "privacy.noise-multiplier": 2.0, "privacy.steps": 2}


def dealt_keys(strategy: str, **keys: object) -> dict[str, object]:
    """A simulation; each array of a message costs the network requests, so that there are few."""
    return tiny_keys(strategy, model__depth=1, **keys)


def own_keys(strategy: str, **keys: object) -> dict[str, object]:
    dealt = dealt_keys(strategy, **keys)
    return {**{k: v for k, v in dealt.items() if k not in DEALT}, "partition.scheme": "own"}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeFederation]:
    """Three clients, each with the images that a simulation would deal it."""
    with EdgeFederation(tmp_path_factory.mktemp("own"), num_clients=3) as federation:
        preparation = prepare(parse_config(tiny_keys("fedavg")))
        dataset = image_dataset(preparation.workload.dataset)
        for client, indices in zip(
            federation.clients, preparation.partition_without.clients, strict=True
        ):
            share = dataset.train.take(indices_of(indices))
            (client / "data" / "train.parquet").write_bytes(parquet_of(share, dataset.class_names))
        yield federation


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


@pytest.mark.parametrize("strategy", ["scaffold", "feddm"])
def test_own_images_give_the_weights_of_a_simulation(
    strategy: str, federation: EdgeFederation, clients: list[Process], federate: Federate
) -> None:
    run = federation.start_run(own_keys(strategy, name=f"own-{strategy}"))
    assert run.wait(PATIENCE_S) == 0, run.text()
    simulated = federate(dealt_keys(strategy))
    assert_same_weights(weights(simulated), weights(federation.runs / f"own-{strategy}"))
    for client in federation.clients:
        assert (client / "state" / "runs" / f"own-{strategy}").is_dir()


@pytest.mark.parametrize(
    ("strategy", "private"),
    [("fedavg", DP), ("feddm", FEATURE), ("scaffold", GIVEN)],
)
def test_private_runs_are_paid_from_the_clients_own_ledgers(
    strategy: str, private: Mapping[str, object], federation: EdgeFederation, clients: list[Process]
) -> None:
    name = f"private-{strategy}"
    before = charges(federation)
    keys = {**own_keys(strategy, name=name, rounds=1), **private}
    keys.pop("feddm.real-batch", None)  # every example takes part
    run = federation.start_run(keys)
    assert run.wait(PATIENCE_S) == 0, run.text()
    assert outcomes(federation, name) == [["counted"] * 3]
    spent = RunFolder(federation.runs / name).read_json("privacy")["spent"]
    assert 0 < spent["epsilon"] < 91
    assert charges(federation) == [n + 1 for n in before]


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
    keys = own_keys("fedavg", name="straggler", rounds=3)
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
    # Every reply that counts is one to that round's own request.
    assert all(each[2] in ("late", "counted") for each in told[1:])


def test_two_nodes_with_one_partition_are_refused(
    federation: EdgeFederation, clients: list[Process]
) -> None:
    twin = federation.make_client("twin", 1)
    share = (federation.clients[1] / "data" / "train.parquet").read_bytes()
    (twin / "data" / "train.parquet").write_bytes(share)
    federation.register(twin)
    process = federation.start_client(twin)
    try:
        node_id = node_id_of(process)
        run = federation.start_run(own_keys("fedavg", name="twins"))
        run.wait(PATIENCE_S)
        told = ended(federation, "twins")
        assert told["exit_code"] == RunError.exit_code
        assert "two nodes hold partition 1" in told["failure"]
        assert str(node_id) in told["failure"] and told["failure"].count("SHA256:") == 2
        assert outcomes(federation, "twins") == []
    finally:
        assert process.stop() == 0


def test_too_few_clients_end_a_run_within_its_limit(
    federation: EdgeFederation, clients: list[Process]
) -> None:
    keys = {**own_keys("fedavg", name="four", partition__clients=4), "engine.join-timeout-s": 15.0}
    run = federation.start_run(keys)
    run.wait(PATIENCE_S)
    told = ended(federation, "four")
    assert told["exit_code"] == QuorumError.exit_code == 6
    assert "3 of partition.clients=4 clients joined" in told["failure"]


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


def test_other_versions_are_refused_and_both_named(
    federation: EdgeFederation, clients: list[Process], tmp_path: Path
) -> None:
    """The client's numpy says that it is another."""
    metadata = tmp_path / "numpy-0.0.1.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 0.0.1\n")
    assert clients[0].stop() == 0
    usual = federation.environment["PYTHONPATH"]
    federation.environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{usual}"
    old = federation.start_client(federation.clients[0])
    federation.environment["PYTHONPATH"] = usual
    try:
        node_id_of(old)
        run = federation.start_run(own_keys("fedavg", name="versions"))
        run.wait(PATIENCE_S)
        told = ended(federation, "versions")
        assert told["exit_code"] == QuorumError.exit_code
        assert f"numpy is 0.0.1 there and {np.__version__} here" in told["failure"]
    finally:
        assert old.stop() == 0
        clients[0] = federation.start_client(federation.clients[0])
        node_id_of(clients[0])


def test_a_client_with_other_classes_is_refused_before_training(
    federation: EdgeFederation, clients: list[Process]
) -> None:
    file = federation.clients[1] / "data" / "train.parquet"
    usual = file.read_bytes()
    preparation = prepare(parse_config(tiny_keys("fedavg")))
    dataset = image_dataset(preparation.workload.dataset)
    names = ["a cat", *dataset.class_names[1:]]
    file.write_bytes(parquet_of(dataset.train, names))
    try:
        run = federation.start_run(own_keys("fedavg", name="classes"))
        run.wait(PATIENCE_S)
        told = ended(federation, "classes")
        assert told["exit_code"] == QuorumError.exit_code
        assert "'a cat', which the federation does not have" in told["failure"]
        assert outcomes(federation, "classes") == []
    finally:
        file.write_bytes(usual)
