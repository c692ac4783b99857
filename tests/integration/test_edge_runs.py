"""Runs over a federation of real processes, and clients that are lost in the middle of one."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from core.records import RunFolder
from tests.conftest import Federate, tiny_keys
from tests.integration.edge_federation import (
    PATIENCE_S,
    EdgeFederation,
    Process,
    descendants,
    freeze,
    is_alive,
    kill,
    node_id_of,
    parent_of,
    wait_until,
    worker_of,
)
from tests.integration.test_engines_agree import assert_same_run

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.timeout(900),
]

RUN_S = PATIENCE_S
"""How long a tiny run may take on a busy machine."""


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeFederation]:
    folder = tmp_path_factory.mktemp("it's an edge ")
    with EdgeFederation(folder, num_clients=3) as federation:
        yield federation


@pytest.fixture(scope="module")
def clients(federation: EdgeFederation) -> list[Process]:
    """One process per client; a test that ends one puts another in its place."""
    return federation.start_clients()


def failures_of(path: Path) -> list[tuple[int, int, str]]:
    """Round, partition and first words of all that was not counted."""
    return [
        (record.round, client.partition_id, (client.failure or "").split(":")[0])
        for record in RunFolder.open(path).read_rounds()
        for client in record.clients
        if client.outcome != "counted"
    ]


def test_same_weights_as_in_one_process(
    federation: EdgeFederation, clients: list[Process], federate: Federate
) -> None:
    run = federation.start_run(tiny_keys("fedavg", name="fedavg"))
    assert run.wait(RUN_S) == 0, run.text()
    assert_same_run(federate(tiny_keys("fedavg")), federation.runs / "fedavg")


def test_a_client_stays_itself_when_the_server_and_its_supernode_are_killed(
    federation: EdgeFederation, clients: list[Process]
) -> None:
    """Between two runs; it takes part in the next."""
    client = clients[0]
    node_id, worker = node_id_of(client), worker_of(client)

    federation.kill_server()
    client.wait_for("Connection attempt failed, retrying")
    federation.superlink = federation.start_superlink()
    client.wait_for("Connection successful after")

    [supernode] = [
        pid
        for pid in descendants(client.pid)
        if parent_of(pid) == client.pid and pid != parent_of(worker)
    ]
    kill(supernode)
    client.wait_for("the SuperNode ended with exit code -9: .*; starting another in 1 s")
    client.wait_for(rf"joined \S+ as node {node_id} ", count=2)
    assert worker_of(client) == worker
    online = {node["node-id"]: node["status"] for node in federation.nodes()}
    assert online[str(node_id)] == "online"


def test_what_is_killed_in_a_round_costs_what_it_had_not_yet_answered(
    federation: EdgeFederation, clients: list[Process]
) -> None:
    """The worker of the first client, the whole of the second, and the third, once the run has
    taken its reply: the SuperLink hands over none of a node that is off-line, as one is for a
    moment that comes back. Clients come back as themselves; the first holds the round open."""
    frozen, at_work, done = clients
    num_sent = done.text().count("Sent successfully")
    num_answered = done.text().count("answered train")
    run = _freeze_in_round_1(federation, [frozen, at_work], "killed")

    done.wait_for("answered train", RUN_S, count=num_answered + 1)
    done.wait_for("Sent successfully", RUN_S, count=num_sent + 2)
    wait_until(
        lambda: True if federation.num_untaken(node_id_of(done)) == 0 else None,
        RUN_S,
        lambda: f"the run has not taken the reply:\n{run.text()}",
    )
    for k in (1, 2):
        _kill_and_start_anew(federation, clients, k)

    kill(worker_of(frozen))
    killed = time.monotonic()
    frozen.wait_for("answered train of run .* with an error after .*: WorkerDied", 60)
    assert time.monotonic() - killed < 60  # a claim would time out after that
    clients[1].wait_for("answered train of run", RUN_S)
    assert run.wait(RUN_S) == 0, run.text()
    failures = failures_of(federation.runs / "killed")
    assert failures[0] == (1, 0, "WorkerDied")
    assert [(r, partition_id) for r, partition_id, _ in failures] == [(1, 0), (1, 1)]


def test_client_leaves_when_told_and_takes_all_its_processes(
    federation: EdgeFederation, clients: list[Process]
) -> None:
    client = clients[0]
    children = descendants(client.pid)
    assert len(children) == 3
    started = time.monotonic()
    assert client.stop() == 0
    assert time.monotonic() - started < 20
    assert "left the federation" in client.text()
    assert not any(map(is_alive, children))
    online = {node["node-id"]: node["status"] for node in federation.nodes()}
    assert online[str(node_id_of(client))] == "offline"


def _kill_and_start_anew(federation: EdgeFederation, clients: list[Process], k: int) -> None:
    """Nothing of client k lives on, and it is the same node again."""
    client = clients[k]
    node_id, children = node_id_of(client), descendants(client.pid)
    client.kill()
    wait_until(lambda: None if any(map(is_alive, children)) else True, 20, lambda: "children live")
    back = clients[k] = federation.start_client(federation.clients[k])
    assert node_id_of(back) == node_id
    assert f"was not signed off as node {node_id}" in back.text()


def _freeze_in_round_1(federation: EdgeFederation, frozen: Sequence[Process], name: str) -> Process:
    """Start a run, and stop workers after the query, before they are given their part of round 1.

    Returns when they have been given it.
    """
    queries = {client: client.text().count("answered query") for client in frozen}
    received = {client: client.text().count("Received successfully") for client in frozen}
    run = federation.start_run(tiny_keys("fedavg", name=name))
    for client in frozen:
        client.wait_for("answered query", RUN_S, count=queries[client] + 1)
        freeze(worker_of(client))
    for client in frozen:
        client.wait_for("Received successfully", RUN_S, count=received[client] + 2)
    return run
