import json
import sys
from pathlib import Path

import pytest

from core.errors import RunError
from engine.edge import control
from engine.edge.control import Control, NotReachableError
from engine.edge.deployment import Deployment, initialise

PROGRAM = """
import json, os, sys, tomllib
words = sys.argv[1:]
if "--run-config" in words:
    with open(words[words.index("--run-config") + 1], "rb") as file:
        words.append(tomllib.load(file))
with open(os.environ["FLWR_HOME"] + "/asked.json", "w") as file:
    json.dump({"words": words, "telemetry": os.environ["FLWR_TELEMETRY_ENABLED"]}, file)
print("Using SuperLink {tessera}")
print(open(os.environ["FLWR_HOME"] + "/answer").read())
"""


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    monkeypatch.setattr(control, "flwr_command", lambda: [sys.executable, "-c", PROGRAM])
    return initialise(tmp_path / "d").deployment


def _answers(deployment: Deployment, answer: object) -> Control:
    text = answer if isinstance(answer, str) else json.dumps(answer, indent=2)
    (deployment.flwr_home / "answer").write_text(text)
    return Control(deployment)


def _asked(deployment: Deployment) -> list[object]:
    told = json.loads((deployment.flwr_home / "asked.json").read_text())
    assert told["telemetry"] == "0"
    return list(told["words"])


def test_a_run_s_keys_go_as_toml_whatever_their_characters(deployment: Deployment) -> None:
    asking = _answers(deployment, {"success": True, "run-id": "42"})
    given: dict[str, bool | int | float | str] = {
        "name": """a "b" 'c' = d""",
        "rounds": 3,
        "train.learning-rate": 0.1,
        "partition.clients": 2,
        "partition.file": "",
    }
    assert asking.start(Path("/app"), given) == "42"
    words = _asked(deployment)
    assert words[:3] == ["run", "/app", "tessera"]
    assert words[-1] == {
        "name": """a "b" 'c' = d""",
        "rounds": 3,
        "train": {"learning-rate": 0.1},
        "partition": {"clients": 2, "file": ""},
    }


def test_nodes_are_read(deployment: Deployment) -> None:
    node = {"node-id": "1", "status": "online", "online-at": "now", "offline-at": "N/A"}
    (found,) = _answers(deployment, {"success": True, "nodes": [node]}).nodes()
    assert (found.node_id, found.status, found.since) == ("1", "online", "now")


def test_traffic_is_read_from_the_server_s_side(deployment: Deployment) -> None:
    told = {
        "run-id": "7",
        "status": "finished:completed",
        "status-details": "",
        "network-traffic": {"inbound-bytes": 1, "outbound-bytes": 2},
        "compute-time": {"serverapp-seconds": 3.0, "clientapp-seconds": 4.0},
    }
    found = _answers(deployment, {"success": True, "runs": [told]}).run("7")
    assert (found.bytes_up, found.bytes_down, found.server_s, found.client_s) == (1, 2, 3.0, 4.0)
    assert found.finished


def test_a_key_that_is_known_is_no_error(deployment: Deployment) -> None:
    refused = {"success": False, "error-message": "Public key already in use."}
    assert _answers(deployment, refused).register(Path("key.pub")) is None


@pytest.mark.parametrize(
    "message", ["Connection to the SuperLink is unavailable.", "connection refused"]
)
def test_a_superlink_that_is_away_is_told_apart(deployment: Deployment, message: str) -> None:
    with pytest.raises(NotReachableError, match="tessera deploy up"):
        _answers(deployment, {"success": False, "error-message": f"Hello\n{message}"}).nodes()


@pytest.mark.parametrize("text", ["", "{", "no JSON", '{"success": false}'])
def test_an_answer_that_is_none_is_an_error(deployment: Deployment, text: str) -> None:
    with pytest.raises(RunError, match="flwr ls failed"):
        _answers(deployment, text).runs()


def test_a_program_that_hangs_is_given_up(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(control, "flwr_command", lambda: hangs)
    monkeypatch.setattr(control, "CALL_TIMEOUT_S", 0.5)
    with pytest.raises(NotReachableError, match="timed out"):
        Control(deployment).runs()


def test_flower_knows_the_commands_and_options_that_are_used() -> None:
    """Against Flower's own command line, so that a new version that changes them is noticed."""
    import inspect

    from flwr.cli.ls import ls
    from flwr.cli.run.run import run
    from flwr.cli.stop import stop
    from flwr.cli.supernode.ls import ls as list_nodes
    from flwr.cli.supernode.register import register

    for command, options in (
        (run, {"run_config_overrides", "output_format"}),
        (ls, {"run_id", "output_format"}),
        (stop, {"run_id", "superlink", "output_format"}),
        (list_nodes, {"superlink", "output_format"}),
        (register, {"public_key", "superlink", "output_format"}),
    ):
        assert options <= set(inspect.signature(command).parameters)
