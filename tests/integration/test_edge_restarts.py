"""A server that is killed and comes back, and a client whose parts are killed one by one."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from core.records import RunFolder
from tests.conftest import tiny_keys
from tests.integration.edge_federation import (
    PATIENCE_S,
    EdgeFederation,
    descendants,
    is_alive,
    kill,
    node_id_of,
    parent_of,
    wait_until,
    worker_of,
)

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeFederation]:
    with EdgeFederation(tmp_path_factory.mktemp("restarts"), num_clients=1) as federation:
        yield federation


def test_clients_stay_themselves_when_the_server_and_their_parts_are_killed(
    federation: EdgeFederation,
) -> None:
    [client] = federation.start_clients()
    node_id = node_id_of(client)

    federation.superlink.kill()
    client.wait_for("Connection attempt failed, retrying")
    federation.superlink = federation.start_superlink()
    client.wait_for("Connection successful after")

    worker = worker_of(client)
    [supernode] = [
        pid
        for pid in descendants(client.pid)
        if parent_of(pid) == client.pid and pid != parent_of(worker)
    ]
    kill(supernode)
    client.wait_for("the SuperNode ended with exit code -9: .*; starting another in 1 s")
    client.wait_for(rf"joined \S+ as node {node_id} ", count=2)
    assert worker_of(client) == worker

    [node] = federation.nodes()
    assert (node["node-id"], node["status"]) == (str(node_id), "online")
    keys = tiny_keys("fedavg", name="after", partition__clients=1, rounds=1)
    run = federation.start_run(keys)
    assert run.wait(PATIENCE_S) == 0, run.text()
    assert [r.round for r in RunFolder.open(federation.runs / "after").read_rounds()] == [0, 1]
    children = descendants(client.pid)
    client.kill()
    wait_until(
        lambda: None if any(map(is_alive, children)) else True, 20, lambda: "children live on"
    )
