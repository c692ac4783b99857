"""Who is not let in, who is not believed, and what both are told."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.errors import ConfigError, DataError, RunError
from engine.edge.credentials import read_credentials
from engine.edge.supernode import free_port
from tests.integration.edge_federation import (
    BIN,
    PATIENCE_S,
    Authority,
    EdgeFederation,
    node_id_of,
)
from tests.unit.engine.edge.listeners import listening

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeFederation]:
    with EdgeFederation(tmp_path_factory.mktemp("refusals"), num_clients=1) as federation:
        yield federation


def test_a_key_that_is_not_registered_is_refused(federation: EdgeFederation) -> None:
    stranger = federation.make_client("stranger", 1)
    process = federation.start_client(stranger)
    assert process.wait(PATIENCE_S) == RunError.exit_code
    fingerprint = read_credentials(stranger).fingerprint
    assert "does not know this key" in process.text()
    assert fingerprint in process.text() and "flwr supernode register key.pub" in process.text()
    federation.superlink.wait_for("No SuperNode found with the given public key")
    assert len(federation.nodes()) == 1


def test_a_node_without_a_key_is_refused(federation: EdgeFederation) -> None:
    """Flower's own node, which would register a key that it has just drawn."""
    process = federation.start(
        "keyless",
        [
            *(str(BIN / "flower-supernode"), "--superlink", federation.address),
            *("--root-certificates", str(federation.authority.certificate)),
            *("--port", str(free_port()), "--max-retries", "0"),
        ],
    )
    assert process.wait(PATIENCE_S) == 1
    assert "All SuperNodes must be registered" in process.text()
    assert len(federation.nodes()) == 1


def test_a_second_client_with_the_same_key_is_refused(federation: EdgeFederation) -> None:
    """At once where it uses the same folder, and once the first cannot be a dead one elsewhere."""
    [folder] = federation.clients
    first = federation.start_client(folder)
    node_id = node_id_of(first)
    same_state = federation.start_client(folder)
    assert same_state.wait(PATIENCE_S) == ConfigError.exit_code
    assert "another client uses this folder" in same_state.text()
    elsewhere = federation.start_client(
        folder,
        *("--state", str(federation.folder / "elsewhere")),
        patch="import engine.edge.client_node as node; node.STILL_ONLINE_S = 5.0",
    )
    assert elsewhere.wait(PATIENCE_S) == RunError.exit_code
    assert "is in the federation already" in elsewhere.text()
    [node] = federation.nodes()
    assert (node["node-id"], node["status"]) == (str(node_id), "online")
    assert first.stop() == 0


def test_servers_that_are_not_the_one_meant_are_refused(
    federation: EdgeFederation, tmp_path: Path
) -> None:
    """Each is named, with one exit code, and is sent nothing."""
    [client] = federation.clients
    authority = federation.authority
    cases = [
        (None, "does not speak TLS"),
        (authority.server("expired", days=-1), "has expired"),
        (authority.server("renamed", ["fl.example.org"]), "only for fl.example.org"),
        (Authority(tmp_path / "other").server("server"), "not from the authority"),
    ]
    for server, told in cases:
        with listening(server) as listener:
            process = federation.start_client(client, server=str(listener.address))
            assert process.wait(PATIENCE_S) == RunError.exit_code, process.text()
        assert told in process.text() and "nothing was sent" in process.text()
        assert b"HTTP" not in listener.received


def test_a_server_that_does_not_answer_is_given_up_as_told(federation: EdgeFederation) -> None:
    [client] = federation.clients
    nobody = f"127.0.0.1:{free_port()}"
    process = federation.start_client(client, "--max-retries", "1", server=nobody)
    assert process.wait(PATIENCE_S) == RunError.exit_code
    assert process.text().count("cannot be reached") == 2
    assert "trying again in 1 s" in process.text() and "--max-retries=1" in process.text()


def test_data_that_is_not_there_is_told_first(federation: EdgeFederation) -> None:
    [client] = federation.clients
    (client / "data").rename(client / "moved")
    process = federation.start_client(client, server="no-such-host.invalid")
    assert process.wait(PATIENCE_S) == DataError.exit_code
    assert "--data=" in process.text() and "No such file" in process.text()
    (client / "moved").rename(client / "data")
