"""Which Ray the actors run in: one that is started for the run, or a cluster that is joined."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.job_config import JobConfig

from core.config import EngineConfig
from core.errors import RunError
from core.installation import describe_installation
from engine.placement import Machine, WorkerPlan, resolve_workers
from engine.ray_start import SOURCES

PROBE_TIMEOUT_S = 5
"""Seconds that a cluster's address may take to accept a connection; Ray itself retries for 107."""


@dataclass(frozen=True, slots=True)
class Requirements:
    """What a node must have before clients may run on it.

    Attributes:
        installation: As `core.installation.describe_installation` has it here; empty where the node
            is this machine.
        shared_folder: Folder that the node must see, as the configuration names it; None if none.
        token: A file in that folder, which nobody else could have made.
    """

    installation: Mapping[str, str] = field(default_factory=dict)
    shared_folder: Path | None = None
    token: str = ""


class RayInstance(Protocol):
    """A Ray to connect this process to."""

    name: str
    way_out: str

    def start(self, sys_path: Sequence[str]) -> WorkerPlan:
        """Connect, and tell how many actors to start.

        Args:
            sys_path: Where actors import from.

        Raises:
            RunError: There is no Ray to connect to.
            ConfigError: Its nodes cannot hold the actors that are asked for.
        """
        ...

    def requirements(self) -> Requirements:
        """What an actor's node must have; once started."""
        ...

    def stop(self) -> None:
        """Disconnect, and leave nothing behind; may be called twice, and before `start`."""
        ...


class OwnRay:
    """A Ray on this machine that lives as long as the run."""

    name = "Ray"
    way_out = "set engine.kind=in-process to run without it"

    def __init__(self, plan: WorkerPlan) -> None:
        self._plan = plan
        self._folder: str | None = None

    def start(self, sys_path: Sequence[str]) -> WorkerPlan:
        """Start Ray in a folder of its own; see `RayInstance`."""
        try:
            self._folder = tempfile.mkdtemp(prefix="tessera-", dir=_temp_root())
            ray.init(
                address="local",
                num_cpus=self._plan.num_workers * self._plan.cpus_per_worker,
                num_gpus=self._plan.num_gpus,
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
                job_config=JobConfig(_py_driver_sys_path=list(sys_path)),
                _temp_dir=self._folder,
            )
        except (Exception, SystemExit) as error:
            raise RunError(
                f"Ray does not start ({type(error).__name__}: {error}); {self.way_out}"
            ) from error
        return self._plan

    def requirements(self) -> Requirements:
        """Nothing: actors run where this process runs."""
        return Requirements()

    def stop(self) -> None:
        """End Ray and remove its files."""
        if self._folder is not None:
            ray.shutdown()
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


class JoinedRay:
    """A Ray cluster of others, which is used and left as it was.

    Args:
        config: ``ray_address`` and what decides how many actors.
        num_partitions: Clients; no more actors are started.
        shared_folder: Folder that every node must see; a file in it tells whether one does.
    """

    way_out = (
        "every node needs the same environment, code and data and the folder of runs, at the same "
        "paths; or leave engine.ray-address out to run on this machine"
    )

    def __init__(
        self, config: EngineConfig, num_partitions: int, shared_folder: Path | None = None
    ) -> None:
        self.name = f"the Ray cluster at engine.ray-address={config.ray_address}"
        self._config = config
        self._num_partitions = num_partitions
        self._shared_folder = shared_folder
        self._token = f".tessera-{secrets.token_hex(8)}"
        self._connected = False

    def start(self, sys_path: Sequence[str]) -> WorkerPlan:
        """Connect to the cluster's node on this machine; see `RayInstance`."""
        address = self._config.ray_address
        try:
            probe(os.environ.get("RAY_ADDRESS", address) if address == "auto" else address)
            ray.init(
                address=address,
                logging_level=logging.ERROR,
                log_to_driver=False,
                job_config=JobConfig(_py_driver_sys_path=list(sys_path)),
            )
        except (Exception, SystemExit) as error:
            raise RunError(
                f"engine.ray-address={address}: no Ray cluster can be joined there "
                f"({type(error).__name__}: {error}); this machine must be a node of it: start its "
                "head with `ray start --head`, and `ray start --address=HOST:PORT` on every other "
                "machine; or leave engine.ray-address out to run on this machine alone"
            ) from error
        self._connected = True
        if self._shared_folder is not None:
            folder = self._shared_folder.expanduser().resolve()
            folder.mkdir(parents=True, exist_ok=True)
            (folder / self._token).touch()
        return resolve_workers(self._config, self._num_partitions, _nodes())

    def requirements(self) -> Requirements:
        """The installation of this process, and sight of the shared folder."""
        return Requirements(describe_installation(SOURCES), self._shared_folder, self._token)

    def stop(self) -> None:
        """Disconnect: the cluster ends this process's actors and nothing else."""
        if self._connected:
            ray.shutdown()
            self._connected = False
        if self._shared_folder is not None:
            (self._shared_folder.expanduser().resolve() / self._token).unlink(missing_ok=True)


def probe(address: str) -> None:
    """Find out in a few seconds that nobody listens at ``HOST:PORT``; other forms are let pass.

    Raises:
        OSError: Nobody does.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), PROBE_TIMEOUT_S).close()
    except OverflowError as error:
        raise OSError(f"there is no port {port}") from error


def _nodes() -> list[Machine]:
    nodes: Any = ray.nodes
    return [
        Machine(int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0)), True)
        for node in nodes()
        if node["Alive"]
    ]


def _temp_root() -> str:
    """The system's folder for temporary files, or /tmp where that one's path is long.

    Ray's sockets lie 84 characters below, and a socket's path may have 107 in all (103 on macOS).
    """
    root = tempfile.gettempdir()
    return root if len(os.fsencode(root)) <= 107 - 84 else "/tmp"
