"""Flower's command line, driven by programs: what it is asked, and what it answers.

Its commands and their ``--format json`` are Flower's public interface to a SuperLink.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomli_w

from core.errors import RunError
from engine.edge.deployment import CONNECTION, Deployment

CALL_TIMEOUT_S = 120.0
"""For one command. Building a bundle and sending it take seconds."""

NodeStatus = Literal["registered", "online", "offline", "unregistered"]

_NOT_REACHABLE = (
    "connection refused",
    "connect call failed",
    "connection attempt failed",
    "connection error",
    "all connection attempts failed",
    "unavailable",
    "server disconnected",
    "connection reset",
    "timed out",
    "name or service not known",
)


class NotReachableError(RunError):
    """The SuperLink does not answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A registered node.

    Attributes:
        node_id: The SuperLink's, for as long as its database lives.
        status: Whether it is there now.
        since: When that began, UTC; empty where it never was there.
    """

    node_id: str
    status: NodeStatus
    since: str


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkRun:
    """A run as the SuperLink saw it.

    Attributes:
        run_id: The SuperLink's.
        status: Such as ``running`` or ``finished:completed``.
        details: Why it failed, where it did.
        bytes_up: Received from nodes.
        bytes_down: Sent to nodes.
        server_s: Seconds the server's part ran.
        client_s: Seconds that clients' parts ran, added up.
    """

    run_id: str
    status: str
    details: str
    bytes_up: int
    bytes_down: int
    server_s: float
    client_s: float

    @property
    def finished(self) -> bool:
        """Whether it is over, however it went."""
        return self.status.startswith("finished")


@dataclass(frozen=True, slots=True)
class Control:
    """Asks the SuperLink of a deployment."""

    deployment: Deployment

    def nodes(self) -> list[Node]:
        """Every registered node, by when it was registered.

        Raises:
            RunError: The SuperLink does not answer, or refuses.
        """
        listed = self._call("supernode", "list", CONNECTION)["nodes"]
        return [
            Node(
                node_id=str(node["node-id"]),
                status=node["status"],
                since=str(node["online-at" if node["status"] == "online" else "offline-at"]),
            )
            for node in listed
        ]

    def register(self, public_key: Path) -> str | None:
        """Tell the SuperLink of a client's key; returns its node id, or None if it knows the key.

        Raises:
            RunError: The SuperLink does not answer, or refuses.
        """
        try:
            answer = self._call("supernode", "register", str(public_key), CONNECTION)
        except RunError as error:
            if "already in use" in str(error).lower():
                return None
            raise
        return str(answer["node-id"])

    def start(self, app: Path, run_config: Mapping[str, bool | int | float | str]) -> str:
        """Start a run; returns its id.

        Args:
            app: Folder that the bundle is made from.
            run_config: Keys and values.

        Raises:
            RunError: The SuperLink does not answer, or refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "run-config.toml"
            file.write_text(tomli_w.dumps(_nested(run_config)))
            answer = self._call("run", str(app), CONNECTION, "--run-config", str(file))
        return str(answer["run-id"])

    def run(self, run_id: str) -> NetworkRun:
        """How a run stands.

        Raises:
            RunError: The SuperLink does not answer, or knows no such run.
        """
        (found,) = self._call("ls", CONNECTION, "--run-id", run_id)["runs"]
        return _to_run(found)

    def runs(self) -> list[NetworkRun]:
        """All runs, the newest first.

        Raises:
            RunError: The SuperLink does not answer.
        """
        return [_to_run(found) for found in self._call("ls", CONNECTION)["runs"]]

    def log(self, run_id: str) -> str:
        """What a run has printed so far.

        Raises:
            RunError: The SuperLink does not answer.
        """
        return self._output(["log", run_id, CONNECTION, "--show"]).stdout

    def command(self, *words: str) -> str:
        """A command of Flower's as a user would type it."""
        return f"FLWR_HOME={self.deployment.flwr_home} flwr {' '.join(words)}"

    def _call(self, *words: str) -> dict[str, Any]:
        done = self._output([*words, "--format", "json"])
        answer = _last_object(done.stdout)
        if answer is None or not answer.get("success"):
            told = str((answer or {}).get("error-message") or "") or done.stderr or done.stdout
            raise self._error(words, told.strip())
        return answer

    def _output(self, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [*flwr_command(), *words],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=CALL_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired as error:
            raise self._error(words, f"timed out after {CALL_TIMEOUT_S:.0f} s") from error

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "FLWR_HOME": str(self.deployment.flwr_home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "NO_COLOR": "1",
            "COLUMNS": "1000",
        }

    def _error(self, words: Sequence[str], told: str) -> RunError:
        port = self.deployment.control_port
        signs = [line for line in told.splitlines() if _unreachable(line)]
        if signs:
            return NotReachableError(
                f"the SuperLink does not answer at 127.0.0.1:{port}: is it up? "
                f"tessera deploy up starts it, tessera deploy logs superlink tells why it ended "
                f"({signs[0].strip()})"
            )
        return RunError(f"flwr {words[0]} failed: {told or 'it said nothing'}")


def flwr_command() -> list[str]:
    """The command ``flwr`` of this environment."""
    beside = Path(sys.executable).with_name("flwr")
    found = str(beside) if beside.exists() else shutil.which("flwr")
    return [found] if found else [sys.executable, "-c", "from flwr.cli.app import app; app()"]


def _nested(flat: Mapping[str, object]) -> dict[str, Any]:
    """Dotted keys as tables."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *tables, name = key.split(".")
        table = nested
        for one in tables:
            table = table.setdefault(one, {})
        table[name] = value
    return nested


def _last_object(text: str) -> dict[str, Any] | None:
    """The JSON object that a command's output ends with, whatever was printed before it."""
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start != -1:
        try:
            value, end = decoder.raw_decode(text, start)
        except ValueError:
            start = text.find("{", start + 1)
            continue
        if isinstance(value, dict) and not text[end:].strip():
            return value
        start = text.find("{", end)
    return None


def _to_run(found: Mapping[str, Any]) -> NetworkRun:
    traffic, compute = found["network-traffic"], found["compute-time"]
    return NetworkRun(
        run_id=str(found["run-id"]),
        status=str(found["status"]),
        details=str(found.get("status-details") or ""),
        bytes_up=int(traffic["inbound-bytes"]),
        bytes_down=int(traffic["outbound-bytes"]),
        server_s=float(compute["serverapp-seconds"]),
        client_s=float(compute["clientapp-seconds"]),
    )


def _unreachable(line: str) -> bool:
    return any(sign in line.lower() for sign in _NOT_REACHABLE)
