"""What an edge client relies on in Flower, named; the rest is in the tests of real processes."""

import inspect
import re
import threading
from pathlib import Path

import httpx
import pytest
import uvicorn
from flwr.common.config import parse_config_args
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, HEARTBEAT_PATIENCE
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.grid import http_grid
from flwr.superlink.servicer.fleet import fleet_handlers
from flwr.supernode import start_client_internal
from flwr.supernode.cli.flower_supernode import (
    _parse_args_run_supernode,
    _start_supernode_http_api,
)
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory

from engine.edge import client_node
from engine.edge.flwr_seam import (
    HEARTBEAT_S,
    RuntimeApi,
    RuntimeApiError,
    is_of_note,
    joined_as,
    node_config_toml,
    plain,
    says_refused,
    supernode_arguments,
)
from engine.edge.supernode import free_port


def test_node_config_comes_through_with_any_path(tmp_path: Path) -> None:
    given: dict[str, str | int | float] = {
        "partition-id": 0,
        "data": '/a b/it\'s "own" \\ x=1 # ü 🌸.toml',
        "key": "SHA256:a+b/c",
        "max-epsilon": 2.0,
    }
    file = tmp_path / "node.toml"
    file.write_text(node_config_toml(given))
    assert parse_config_args([str(file)]) == given
    with pytest.raises(ValueError, match="control character"):
        node_config_toml({"data": "a\nmax-epsilon = 9"})


def test_supernode_takes_the_arguments() -> None:
    arguments = supernode_arguments(
        superlink="host:1",
        root_certificates=Path("ca.crt"),
        private_key=Path("key"),
        node_config=Path("node.toml"),
        runtime_port=2,
        secret=Path("secret"),
        max_retries=3,
        health="127.0.0.1:4",
    )
    parsed = _parse_args_run_supernode().parse_args(arguments)
    assert parsed.superlink == "host:1" and not parsed.insecure
    assert (parsed.root_certificates, parsed.auth_supernode_private_key) == ("ca.crt", "key")
    assert (parsed.isolation, parsed.host, parsed.port) == ("process", "127.0.0.1", 2)
    assert parsed.superexec_auth_secret_file == "secret"
    assert (parsed.max_retries, parsed.health_server_address) == (3, "127.0.0.1:4")
    assert parsed.runtime_dependency_install is False


def test_what_a_supernode_logs() -> None:
    source = inspect.getsource(start_client_internal)
    assert 'log(INFO, "SuperNode ID: %s", node_id)' in source
    line = plain("\x1b[92mINFO \x1b[0m:      SuperNode ID: 18364758544493064720\n")
    assert line == "INFO :      SuperNode ID: 18364758544493064720"
    assert joined_as(line) == 18364758544493064720
    assert joined_as("anything else") is None
    assert is_of_note(line) and is_of_note("ERROR :     Exit Code: 305")
    for noise in ("", "INFO :", "INFO:     Started server process [7]", "INFO :  FastAPI lifespan"):
        assert not is_of_note(noise)
    assert says_refused("[code: 2004] Failed to activate SuperNode.")
    assert not says_refused("[code: 2005] Failed")


def test_a_key_is_looked_up_before_the_interval_is_judged() -> None:
    """So that asking with an interval that is refused tells whether a key is registered."""
    source = inspect.getsource(fleet_handlers.activate_node)
    order = [
        source.index(step)
        for step in (
            "get_node_id_by_public_key(",
            "_validate_heartbeat_interval(",
            "activate_node(node_id",
        )
    ]
    assert order == sorted(order)


def test_intervals_that_pauses_are_derived_from() -> None:
    assert HEARTBEAT_S * 2 < HEARTBEAT_DEFAULT_INTERVAL
    assert client_node.STILL_ONLINE_S > HEARTBEAT_PATIENCE * HEARTBEAT_DEFAULT_INTERVAL
    grid = inspect.getsource(http_grid)
    seconds = [float(s) for s in re.findall(r"time\.sleep\((\d+)\)", grid)]
    assert seconds and max(seconds) < client_node.REJOIN_PAUSE_S


def test_only_who_knows_the_secret_gets_messages() -> None:
    state = NodeStateFactory(objectstore_factory=ObjectStoreFactory())
    port = free_port()
    app = create_app(state_factory=state, superexec_auth_secret=b"secret")
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            thread.join(0.05)
        address = f"127.0.0.1:{port}"
        assert RuntimeApi(address, b"secret").acquire() is None
        with pytest.raises(RuntimeApiError, match="401"):
            RuntimeApi(address, b"guess").acquire()
        bare = httpx.post(f"http://{address}/v1/runtime/acquire-task", content=b"")
        assert bare.status_code >= 400
    finally:
        server.should_exit = True
        thread.join(10)
    with pytest.raises(RuntimeApiError):
        RuntimeApi(address, b"secret").acquire()


def test_supernode_leaves_threads_behind_when_its_loop_ends() -> None:
    """Why the process is ended by us: this thread is no daemon."""
    source = inspect.getsource(_start_supernode_http_api)
    assert "daemon" not in source
