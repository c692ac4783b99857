"""A deployment's containers, by ``docker-compose`` or ``docker compose``, whichever is there."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.errors import RunError
from engine.edge.deployment import Deployment, read_env

CALL_TIMEOUT_S = 60.0
"""For a question to the engine. Builds and starts may take as long as they take."""

SERVER_SERVICES = ("superlink", "gateway")


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """A container of the deployment.

    Attributes:
        name: As docker-compose.yml has it.
        container: The engine's id.
        state: Such as ``running``, ``restarting`` or ``exited``.
        status: The engine's words, such as ``Up 5 minutes (healthy)``.
    """

    name: str
    container: str
    state: str
    status: str

    @property
    def healthy(self) -> bool:
        """Whether its health check passes."""
        return self.state == "running" and "(healthy)" in self.status

    @property
    def ended(self) -> bool:
        """Whether its process is gone, or goes again and again."""
        return self.state in ("exited", "dead", "restarting")


def checkout() -> Path:
    """The source tree, which images and bundles are made from.

    Raises:
        RunError: Tessera was installed without it.
    """
    root = Path(__file__).resolve().parents[2]
    if not all((root / name).is_file() for name in ("docker-compose.yml", "pyproject.toml")):
        raise RunError(
            "images and bundles are made from Tessera's source tree, and this one is installed "
            "without it; run this in a checkout"
        )
    return root


def engine_answers() -> str | None:
    """Why no container can be run here; None if one can."""
    if shutil.which("docker") is None:
        return "there is no command docker: install Docker Engine with Compose"
    try:
        asked = _output(["docker", "version", "--format", "{{.Server.Version}}"])
    except RunError as error:
        return str(error)
    if asked.returncode:
        return f"no Docker engine answers ({_last_line(asked.stderr)}): start it, or join its group"
    return None


def compose_command() -> list[str]:
    """The command that stands for Compose.

    Raises:
        RunError: There is none, or no engine.
    """
    if reason := engine_answers():
        raise RunError(reason)
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    if _output(["docker", "compose", "version"]).returncode == 0:
        return ["docker", "compose"]
    raise RunError("Docker is here and Compose is not: install docker-compose")


@dataclass(frozen=True, slots=True)
class Compose:
    """Drives the containers of one deployment."""

    deployment: Deployment

    def build(self, services: Sequence[str]) -> None:
        """Build the images of `services`; prints what the builder prints.

        Raises:
            RunError: The build failed.
        """
        self._do("build", *services, to_stderr=True)

    def up(self, services: Sequence[str]) -> None:
        """Start `services` and nothing they depend on, anew where what they are made of changed.

        Raises:
            RunError: The engine refused.
        """
        self._do("up", "-d", "--no-build", "--no-deps", *services, to_stderr=True)

    def down(self) -> None:
        """Stop and remove all containers and networks; state stays.

        Raises:
            RunError: The engine refused.
        """
        self._do("down", "--remove-orphans", to_stderr=True)

    def services(self) -> list[Service]:
        """Every container of the deployment, by name.

        Raises:
            RunError: The engine does not answer.
        """
        label = f"label=com.docker.compose.project={self.deployment.project}"
        form = '{{.Label "com.docker.compose.service"}}\t{{.ID}}\t{{.State}}\t{{.Status}}'
        asked = _output(["docker", "ps", "--all", "--filter", label, "--format", form])
        if asked.returncode:
            raise RunError(f"docker ps failed: {_last_line(asked.stderr)}")
        rows = (line.split("\t") for line in asked.stdout.splitlines() if line)
        found = (
            Service(name=name, container=container, state=state, status=status)
            for name, container, state, status in rows
        )
        return sorted(found, key=lambda service: service.name)

    def logs(self, services: Sequence[str], tail: int) -> str:
        """The last `tail` lines of each of `services`, of all where none is named.

        Raises:
            RunError: The engine refused.
        """
        words = ["logs", "--no-color", f"--tail={tail}", *services]
        done = subprocess.run(
            self._words(*words), env=self._environment(), capture_output=True, text=True
        )
        if done.returncode:
            raise RunError(f"logs cannot be read: {_last_line(done.stderr)}")
        return done.stdout

    def follow_logs(self, services: Sequence[str], tail: int) -> None:
        """Print logs as they come, until interrupted."""
        subprocess.run(
            self._words("logs", "--follow", f"--tail={tail}", *services), env=self._environment()
        )

    def _do(self, *words: str, to_stderr: bool) -> None:
        out = sys.stderr if to_stderr else None
        done = subprocess.run(self._words(*words), env=self._environment(), stdout=out)
        if done.returncode:
            raise RunError(
                f"{' '.join(words[:1])} failed with code {done.returncode}, as told above"
            )

    def _words(self, *words: str) -> list[str]:
        root = checkout()
        return [
            *compose_command(),
            *("--project-name", self.deployment.project, "--project-directory", str(root)),
            *("--file", str(root / "docker-compose.yml")),
            *("--env-file", str(self.deployment.compose_env)),
            *words,
        ]

    def _environment(self) -> dict[str, str]:
        """This process's, but that the deployment's file counts, and pip's index is told."""
        told = {key: value for key, value in os.environ.items() if key != "COMPOSE_FILE"}
        for key in read_env(self.deployment.compose_env):
            told.pop(key, None)
        if not told.get("PIP_INDEX_URL") and (index := _pip_index()):
            told["PIP_INDEX_URL"] = index
        if "DOCKER_BUILDKIT" not in told and _output(["docker", "buildx", "version"]).returncode:
            told["DOCKER_BUILDKIT"] = "0"  # newer commands ask for a part that is not installed
        return told


def refuse_taken_ports(deployment: Deployment, running: Sequence[Service]) -> None:
    """Refuse a port that another program has, which the engine would tell late and in its words.

    Raises:
        RunError: Names the port and the way out.
    """
    up = {service.name for service in running if service.state == "running"}
    listen = read_env(deployment.compose_env).get("TESSERA_LISTEN", "127.0.0.1")
    ports = (
        ("superlink", "127.0.0.1", deployment.control_port, "--control-port"),
        ("gateway", listen, deployment.port, "--port"),
    )
    for service, address, port, option in ports:
        if service in up:
            continue
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind((address, port))
            except OSError as error:
                raise RunError(
                    f"port {port} at {address} cannot be had ({error.strerror}): end the program "
                    f"that has it, or take another: tessera deploy init {option} N"
                ) from error


def _pip_index() -> str:
    """The index that this machine's pip is configured to use; empty where it is the usual one."""
    asked = _output([sys.executable, "-m", "pip", "config", "get", "global.index-url"])
    return asked.stdout.strip() if asked.returncode == 0 else ""


def _output(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=CALL_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise RunError(f"{words[0]} does not answer within {CALL_TIMEOUT_S:.0f} s") from error


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no reason")
