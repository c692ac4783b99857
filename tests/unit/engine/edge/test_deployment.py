import json
import os
import tomllib
from pathlib import Path

import pytest

from core.errors import ConfigError, RecordError
from engine.edge.deployment import (
    COMPOSE_CLIENTS,
    initialise,
    open_deployment,
    read_env,
)


def _private_files(folder: Path) -> dict[Path, bytes]:
    keys = [folder / "ca/ca.key", folder / "server/server.key", *folder.glob("clients/*/key")]
    return {path: path.read_bytes() for path in keys}


def test_what_is_made_is_what_is_read(tmp_path: Path) -> None:
    made = initialise(tmp_path / "d", hosts=["fl.example.org"], clients=2, port=9443)
    assert open_deployment(tmp_path / "d") == made.deployment
    assert made.deployment.control_port == 9444
    assert made.new_clients == ("client-0", "client-1")
    own = tmp_path / "d/clients/client-1"
    assert sorted(path.name for path in own.iterdir()) == [
        "ca.crt",
        "client.json",
        "key",
        "key.pub",
    ]
    told = json.loads((own / "client.json").read_text())
    assert told == {"partition_id": 1, "name": "client-1"}


def test_again_adds_clients_and_hosts_and_keeps_all_else(tmp_path: Path) -> None:
    first = initialise(tmp_path, hosts=["a.example.org"], clients=1, port=9443)
    keys = _private_files(tmp_path)
    second = initialise(tmp_path, hosts=["b.example.org"], clients=3)
    assert second.new_clients == ("client-1", "client-2")
    assert second.new_certificate
    assert second.deployment.hosts == ("a.example.org", "b.example.org")
    assert second.deployment.port == 9443
    assert second.deployment.clients[0] == first.deployment.clients[0]
    assert {path: path.read_bytes() for path in keys} == keys
    third = initialise(tmp_path)
    assert third.deployment == second.deployment
    assert not third.new_clients and not third.new_certificate


def test_fewer_clients_take_none_away(tmp_path: Path) -> None:
    initialise(tmp_path, clients=3)
    assert len(initialise(tmp_path, clients=1).deployment.clients) == 3


def test_a_new_deployment_has_the_clients_that_compose_has(tmp_path: Path) -> None:
    assert len(initialise(tmp_path).deployment.clients) == COMPOSE_CLIENTS


def test_flower_finds_the_one_connection(tmp_path: Path) -> None:
    deployment = initialise(tmp_path, port=9443).deployment
    config = tomllib.loads((deployment.flwr_home / "config.toml").read_text())["superlink"]
    connection = config[config["default"]]
    assert connection["address"] == "127.0.0.1:9444"
    assert Path(connection["root-certificates"]).read_bytes().startswith(b"-----BEGIN CERT")
    assert "insecure" not in connection


def test_what_the_user_set_for_compose_stays(tmp_path: Path) -> None:
    deployment = initialise(tmp_path, torch_index="https://wheels.example.org").deployment
    text = deployment.compose_env.read_text()
    text = text.replace("TESSERA_CLIENT_MEMORY=2g", "TESSERA_CLIENT_MEMORY=1g")
    deployment.compose_env.write_text(text)
    initialise(tmp_path)
    told = read_env(deployment.compose_env)
    assert told["TESSERA_CLIENT_MEMORY"] == "1g"
    assert told["TORCH_INDEX"] == "https://wheels.example.org"
    assert told["TESSERA_UID"] != "0"


def test_only_a_server_with_a_name_listens_to_other_machines(tmp_path: Path) -> None:
    deployment = initialise(tmp_path).deployment
    assert read_env(deployment.compose_env)["TESSERA_LISTEN"] == "127.0.0.1"
    initialise(tmp_path, hosts=["fl.example.org"])
    assert read_env(deployment.compose_env)["TESSERA_LISTEN"] == "0.0.0.0"


def test_every_problem_is_told_and_nothing_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        initialise(tmp_path / "d", hosts=["a:1"], clients=0, port=80, project="A b")
    keys = {problem.key for problem in raised.value.problems}
    assert keys == {"--host", "--clients", "--port", "--control-port", "--project"}
    assert not (tmp_path / "d").exists()


def test_a_lost_key_is_not_made_anew(tmp_path: Path) -> None:
    initialise(tmp_path)
    (tmp_path / "clients/client-1/key").unlink()
    with pytest.raises(RecordError, match="bring the key back"):
        initialise(tmp_path)


def test_a_swapped_key_is_refused(tmp_path: Path) -> None:
    initialise(tmp_path)
    other = (tmp_path / "clients/client-0/key").read_bytes()
    (tmp_path / "clients/client-1/key").write_bytes(other)
    with pytest.raises(RecordError, match="another key"):
        initialise(tmp_path)


def test_no_deployment_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="tessera deploy init"):
        open_deployment(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2}', '{"schema": 1}'])
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "deploy.json").write_text(text)
    with pytest.raises(RecordError):
        open_deployment(tmp_path)


@pytest.mark.skipif(os.getuid() != 0, reason="only root hands files over")
def test_what_a_link_in_a_state_folder_names_keeps_its_owner(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("root's own")
    made = initialise(tmp_path / "deployment").deployment
    (made.server_state / "link").symlink_to(victim)
    initialise(made.folder)
    assert victim.stat().st_uid == 0 != made.server_state.stat().st_uid
