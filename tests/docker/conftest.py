"""Tests in containers; make test-docker runs them, for they take minutes and need an engine."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data.dataset import image_dataset
from data.export import write_shares
from engine.edge.compose import checkout
from engine.edge.deployment import Deployment, open_deployment
from pairing.configuration import parse_config
from server.preparation import prepare
from tests.docker.containers import Tessera

collect_ignore_glob = [] if os.environ.get("TESSERA_TEST_DOCKER") else ["test_*"]

ROOT = checkout()
_AUTHORITIES = Path("/usr/local/share/ca-certificates")


@dataclass(frozen=True)
class Federation:
    """A federation in containers.

    Attributes:
        deployment: Its folder and ports.
        tessera: The command line.
        up_s: Seconds that it took to build and come up.
        token: A secret that was planted beside everything that images and bundles are made of.
    """

    deployment: Deployment
    tessera: Tessera
    up_s: float
    token: str

    def container(self, service: str) -> str:
        """The id of a service's container."""
        words = ["docker", "ps", "--quiet", "--filter"]
        words += [f"label=com.docker.compose.project={self.deployment.project}", "--filter"]
        return output(*words, f"label=com.docker.compose.service={service}").strip()

    def inspect(self, service: str) -> dict[str, Any]:
        """What the engine says of a service's container."""
        import json

        return dict(json.loads(output("docker", "inspect", self.container(service)))[0])

    def python(self, service: str, code: str) -> subprocess.CompletedProcess[str]:
        """Run Python inside a service's container."""
        words = ["docker", "exec", self.container(service), "python", "-c", code]
        return subprocess.run(words, capture_output=True, text=True, timeout=120)


def output(*words: str) -> str:
    """What a command prints."""
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=300).stdout


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A server and three clients, each with its share of the digits; taken down at the end."""
    if sys.platform != "linux":
        pytest.skip("containers are looked into by way of /proc")
    folder = tmp_path_factory.mktemp("federation") / ".deploy"
    token = f"planted-{secrets.token_hex(16)}"
    tessera = Tessera(folder, {"TESSERA_PLANTED": token})
    ports = (f"--port={_free_port()}", f"--control-port={_free_port()}")
    project = f"tessera-test-{secrets.token_hex(3)}"
    tessera("init", *ports, f"--project={project}", "--clients=3")
    deployment = open_deployment(folder)
    env = deployment.compose_env
    env.write_text(env.read_text().replace("CLIENT_MEMORY=2g", "CLIENT_MEMORY=1g"))
    _deal(deployment, token)
    for certificate in _AUTHORITIES.glob("*.crt"):  # this machine's own, for building alone
        shutil.copy(certificate, ROOT / "deploy" / "extra-ca")
    planted = [
        ROOT / "server" / f"{token}.pem",
        ROOT / f"{token}.env",
        ROOT / "data" / f"{token}.key",
    ]
    try:
        for path in planted:
            path.write_text(f"{token}\n")
        up = tessera("up", *(["--no-build"] if os.environ.get("TESSERA_TEST_NO_BUILD") else []))
        yield Federation(deployment, tessera, up.seconds, token)
    finally:
        for path in planted:
            path.unlink(missing_ok=True)
        tessera("down")


def _deal(deployment: Deployment, token: str) -> None:
    """Give every client its share of the digits, readable for whom its container runs as."""
    preparation = prepare(parse_config({"partition.clients": 3, "partition.alpha": 1.0}))
    shares = deployment.folder.parent / "shares"
    write_shares(image_dataset(preparation.workload.dataset), preparation.partition.clients, shares)
    for client in deployment.clients:
        data = deployment.folder / "data" / client.name
        shutil.copy(shares / client.name / "train.parquet", data)
        (data / "train.parquet").chmod(0o644)
        (deployment.client_folder(client) / "planted").write_text(token)
