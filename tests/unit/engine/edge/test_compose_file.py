"""The compose file, the Dockerfile and what they are filled in with, without an engine."""

import importlib.util
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.edge.compose import checkout
from engine.edge.deployment import COMPOSE_CLIENTS, initialise, read_env

ROOT = checkout()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
CLIENTS = [f"client-{number}" for number in range(COMPOSE_CLIENTS)]


def _schemas() -> list[Path]:
    """The Compose specification's schema, where a package that brings it is installed."""
    found = [Path("/usr/lib/python3/dist-packages/compose/config/compose_spec.json")]
    if (spec := importlib.util.find_spec("check_jsonschema")) and spec.origin:
        folder = Path(spec.origin).parent / "builtin_schemas" / "vendor"
        found.append(folder / "compose-spec.json")
    return [path for path in found if path.is_file()]


@pytest.mark.parametrize("schema", _schemas(), ids=str)
def test_it_is_valid_by_the_compose_specification(schema: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(COMPOSE, json.loads(schema.read_text()))


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="no docker-compose here")
def test_docker_compose_takes_it(tmp_path: Path) -> None:
    deployment = initialise(tmp_path).deployment
    words = ["docker-compose", "--env-file", str(deployment.compose_env), "config"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "not set" not in done.stderr
    assert str(tmp_path / "server") in done.stdout


def test_every_variable_is_written_by_init_or_has_a_default(tmp_path: Path) -> None:
    told = read_env(initialise(tmp_path).deployment.compose_env)
    used = re.findall(r"\$\{(\w+)(:[-?])?", (ROOT / "docker-compose.yml").read_text())
    assert {name for name, default in used if default != ":-"} <= set(told)


def test_services_are_the_server_s_and_three_clients() -> None:
    assert list(COMPOSE["services"]) == ["superlink", "gateway", *CLIENTS]


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_service_is_hardened(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] and service["init"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service["user"].startswith(("0", "root"))
    assert service["restart"] and service["healthcheck"]["test"]
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert service["mem_limit"] and service["pids_limit"]
    assert not {"privileged", "cap_add", "devices", "pid", "network_mode"} & service.keys()
    assert not any("docker.sock" in volume for volume in service["volumes"])


def test_the_control_api_is_published_on_loopback_alone() -> None:
    assert COMPOSE["services"]["superlink"]["ports"] == [
        "127.0.0.1:${TESSERA_CONTROL_PORT:-8444}:9000"
    ]


def test_clients_share_no_network_with_the_superlink_and_have_no_way_out() -> None:
    for name in CLIENTS:
        assert COMPOSE["services"][name]["networks"] == ["edge"]
        assert "ports" not in COMPOSE["services"][name]
    assert COMPOSE["networks"]["edge"] == {"internal": True}
    assert COMPOSE["services"]["superlink"]["networks"] == ["control"]


@pytest.mark.parametrize("number", range(COMPOSE_CLIENTS))
def test_a_client_is_given_its_own_data_and_key_alone(number: int) -> None:
    assert COMPOSE["services"][f"client-{number}"]["volumes"] == [
        f"${{TESSERA_DEPLOY}}/clients/client-{number}:/credentials:ro",
        f"${{TESSERA_CLIENT_{number}_DATA}}:/data:ro",
        f"${{TESSERA_DEPLOY}}/state/client-{number}:/state",
    ]


def test_the_authority_s_key_is_mounted_nowhere() -> None:
    volumes = [v for s in COMPOSE["services"].values() for v in s["volumes"]]
    assert not any("/ca" in volume or volume.startswith("${TESSERA_DEPLOY}:") for volume in volumes)


def test_images_hold_packages_of_the_project_at_pinned_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[\[<>=]", line)[0] for line in project["dependencies"]}
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").open()}
    for name in ("client.txt", "server.txt"):
        listed = [
            line.strip() for line in (ROOT / "deploy" / name).open() if not line.startswith("#")
        ]
        assert set(listed) <= declared
        assert {one.lower() for one in listed} <= pinned


def test_the_images_final_stages_see_no_build_argument_and_no_certificate() -> None:
    stages = re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.M)[1:]
    names = [stage.splitlines()[0].split(" AS ")[1] for stage in stages]
    bodies = dict(zip(names, stages, strict=True))
    for name in ("runtime", "server", "client"):
        assert "ARG" not in bodies[name] and "extra-ca" not in bodies[name]
        assert "pip install" not in bodies[name]
    assert "USER 49999:49999" in bodies["runtime"]
