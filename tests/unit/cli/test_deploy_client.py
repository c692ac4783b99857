from collections.abc import Callable
from pathlib import Path

import pytest

from cli.main import app
from engine.edge.client_node import EdgeClient
from tests.integration.edge_federation import Authority, make_client_folder


@pytest.fixture
def client(tmp_path: Path) -> Path:
    return make_client_folder(
        tmp_path / "client-3", 3, Authority(tmp_path / "authority").certificate
    )


Deploy = Callable[..., tuple[int, str]]


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[EdgeClient]:
    """What would have joined."""
    found: list[EdgeClient] = []
    monkeypatch.setattr("engine.edge.client_node.run_client", lambda c, say: found.append(c))
    return found


@pytest.fixture
def deploy(client: Path, capsys: pytest.CaptureFixture[str]) -> Deploy:
    def deploy(*options: str, key: Path = client) -> tuple[int, str]:
        words = ["deploy", "client", "--server", "fl.example.org", "--data", str(client / "data")]
        with pytest.raises(SystemExit) as ended:
            app([*words, "--key", str(key), *options])
        return int(ended.value.code or 0), capsys.readouterr().err

    return deploy


def test_folder_tells_all_but_the_server(
    client: Path, deploy: Deploy, joined: list[EdgeClient]
) -> None:
    assert deploy() == (0, "")
    [found] = joined
    assert str(found.server) == "fl.example.org:8443"
    assert found.node_config() == {
        "partition-id": 3,
        "data": str(client / "data"),
        "state": str(client / "state"),
        "key": found.credentials.fingerprint,
    }
    assert found.credentials.fingerprint.startswith("SHA256:")


def test_data_of_a_named_format_keep_its_name_and_get_their_whole_path(
    client: Path, deploy: Deploy, joined: list[EdgeClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a folder whose name looks like one is a folder."""
    monkeypatch.chdir(client)
    assert deploy("--data", "coin:data") == (0, "")
    (client / "coin:data").mkdir()
    assert deploy("--data", "coin:data") == (0, "")
    found = [one.node_config()["data"] for one in joined]
    assert found == [f"coin:{client / 'data'}", str(client / "coin:data")]
    code, told = deploy("--data", "coin:nowhere")
    assert code == 3 and "--data=coin:nowhere" in told and "No such file" in told


def test_budget_and_state_are_the_operators(
    tmp_path: Path, deploy: Deploy, joined: list[EdgeClient]
) -> None:
    assert deploy("--max-epsilon", "2.5", "--state", str(tmp_path / "s")) == (0, "")
    config = joined[0].node_config()
    assert (config["max-epsilon"], config["state"]) == (2.5, str(tmp_path / "s"))


@pytest.mark.parametrize("budget", ["0", "-1", "inf", "nan"])
def test_a_budget_that_is_none_is_refused(
    budget: str, deploy: Deploy, joined: list[EdgeClient]
) -> None:
    code, told = deploy("--max-epsilon", budget)
    assert code == 2 and f"--max-epsilon={budget}: must be more than 0" in told
    assert joined == []


def test_partition_is_the_keys(client: Path, deploy: Deploy, joined: list[EdgeClient]) -> None:
    code, told = deploy("--partition", "4")
    assert code == 2 and "--partition=4: must be 3" in told
    (client / "client.json").unlink()
    code, told = deploy()
    assert code == 2 and "give --partition N" in told
    assert joined == []
    assert deploy("--partition", "4")[0] == 0
    assert joined[0].partition_id == 4


def test_key_that_is_missing_or_open_is_refused(
    client: Path, deploy: Deploy, joined: list[EdgeClient]
) -> None:
    (client / "key").chmod(0o644)
    code, told = deploy()
    assert code == 2 and "has mode 0644" in told and f"chmod 600 {client / 'key'}" in told
    code, told = deploy(key=client / "nothing")
    assert code == 2 and "cannot be read: No such file" in told
    assert joined == []


def test_data_that_is_missing_is_refused(
    client: Path, deploy: Deploy, joined: list[EdgeClient]
) -> None:
    (client / "data").rmdir()
    code, told = deploy()
    assert code == 3 and "--data=" in told and "No such file" in told
    assert joined == []
