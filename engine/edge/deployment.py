"""The folder of a deployment: what ``tessera deploy init`` makes and all other commands read.

Layout, relative to the folder, which only its owner may enter::

    deploy.json                what was asked for, and every client's fingerprint
    ca/                        the authority; its key signs the server's certificate and stays here
    server/                    what the server is given: its key and certificate, the authority's
    clients/NAME/              what a client is given: its key, the authority's certificate, its
                               partition; this folder is copied to its machine
    data/NAME/                 data of clients that run in this machine's containers
    data/server/               the server's own: ``data.root`` of runs that do not name another
    state/server/              the SuperLink's database, and run folders in ``runs/``
    state/NAME/                state of clients that run in this machine's containers
    flwr/config.toml           Flower's configuration (FLWR_HOME): the one connection
    compose.env                what docker-compose.yml is filled in with
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ConfigError, Problem, RecordError
from engine.edge import authority
from engine.edge.authority import private_folder, write_public

SCHEMA = 1
CONNECTION = "tessera"
"""Name of the connection in Flower's configuration."""

DEFAULT_FOLDER = Path(".deploy")
DEFAULT_PORT = 8443
COMPOSE_CLIENTS = 3
"""Clients that docker-compose.yml has services for."""

CONTAINER_UID = 49999
"""Who processes in containers are where the deployment is root's; never root."""

_MAX_CLIENTS = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownClient:
    """A client that the server is told of.

    Attributes:
        name: Such as ``client-0``.
        partition_id: Its share of the federation.
        fingerprint: Of its key, as ``ssh-keygen -lf`` prints it.
    """

    name: str
    partition_id: int
    fingerprint: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """A deployment and where its files are.

    Attributes:
        folder: Absolute.
        project: Name of the compose project.
        port: Where edge machines reach the server.
        control_port: Where this machine reaches the SuperLink, on loopback alone.
        hosts: Names and addresses that edge machines know the server by.
        clients: By partition.
    """

    folder: Path
    project: str
    port: int
    control_port: int
    hosts: tuple[str, ...]
    clients: tuple[KnownClient, ...]

    @property
    def flwr_home(self) -> Path:
        """Flower's own folder."""
        return self.folder / "flwr"

    @property
    def server_state(self) -> Path:
        """What outlives the server's process."""
        return self.folder / "state" / "server"

    @property
    def server_runs(self) -> Path:
        """Where the server makes run folders. Its container sees the same path."""
        return self.server_state / "runs"

    @property
    def server_data(self) -> Path:
        """Where the server looks for data sets. Its container sees the same path."""
        usual = self.folder / "data" / "server"
        return Path(read_env(self.compose_env).get("TESSERA_SERVER_DATA", str(usual)))

    @property
    def compose_env(self) -> Path:
        """What docker-compose.yml is filled in with."""
        return self.folder / "compose.env"

    @property
    def local_clients(self) -> tuple[KnownClient, ...]:
        """Clients that docker-compose.yml has services for."""
        return tuple(c for c in self.clients if c.partition_id < COMPOSE_CLIENTS)

    def client_folder(self, client: KnownClient) -> Path:
        """What a client is given."""
        return self.folder / "clients" / client.name

    def to_json(self) -> dict[str, Any]:
        """A JSON object, without the folder."""
        values = dataclasses.asdict(self)
        del values["folder"]
        return {"schema": SCHEMA, **values}


def open_deployment(folder: Path) -> Deployment:
    """Read a deployment.

    Raises:
        RecordError: There is none, or its file is damaged.
    """
    folder = folder.expanduser().resolve()
    path = folder / "deploy.json"
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise RecordError(
            f"there is no deployment in {folder}; make one: tessera deploy init --dir {folder}"
        ) from error
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} cannot be read: {error}") from error
    try:
        if values["schema"] != SCHEMA:
            raise RecordError(f"{path} has schema {values['schema']!r}; known is {SCHEMA}")
        return Deployment(
            folder=folder,
            project=str(values["project"]),
            port=int(values["port"]),
            control_port=int(values["control_port"]),
            hosts=tuple(map(str, values["hosts"])),
            clients=tuple(KnownClient(**client) for client in values["clients"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, RecordError):
            raise
        raise RecordError(f"{path} is damaged: {type(error).__name__} {error}") from error


@dataclass(frozen=True, slots=True)
class Initialised:
    """What `initialise` made.

    Attributes:
        deployment: As it is now.
        new_clients: Names of clients that had no key before.
        new_certificate: Whether the server was given a new certificate; it is read at a start.
    """

    deployment: Deployment
    new_clients: tuple[str, ...]
    new_certificate: bool


def initialise(
    folder: Path,
    *,
    hosts: Sequence[str] = (),
    clients: int | None = None,
    port: int | None = None,
    control_port: int | None = None,
    project: str | None = None,
    torch_index: str | None = None,
) -> Initialised:
    """Make a deployment, or bring one up to date; no key is ever replaced.

    Args:
        folder: Where it is, or goes.
        hosts: Names and addresses of the server, added to those it has.
        clients: How many clients there are at least; `COMPOSE_CLIENTS` in a new deployment.
        port: Where edge machines reach the server; `DEFAULT_PORT` in a new deployment.
        control_port: Where this machine reaches the SuperLink; in a new deployment, the next.
        project: Name of the compose project; ``tessera`` in a new deployment.
        torch_index: Index of wheels that images take torch from; the registry's where it is empty.

    Raises:
        ConfigError: An argument is refused.
        RecordError: What is there is damaged, or something cannot be written.
    """
    folder = folder.expanduser().resolve()
    there = open_deployment(folder) if (folder / "deploy.json").exists() else None
    given_port = port or (there.port if there else DEFAULT_PORT)
    if control_port is None:
        control_port = there.control_port if there and port is None else given_port + 1
    had = len(there.clients) if there else 0
    count = max(had, COMPOSE_CLIENTS if clients is None and not there else clients or 0)
    names = tuple(dict.fromkeys((*(there.hosts if there else ()), *hosts)))
    project = project or (there.project if there else "tessera")
    _refuse(names, count, given_port, control_port, project)

    private_folder(folder)
    signer = authority.ensure_authority(folder / "ca")
    new_certificate = authority.ensure_server(folder / "server", signer, names)
    known = {client.name: client for client in (there.clients if there else ())}
    new_clients: list[str] = []
    made: list[KnownClient] = []
    for partition in range(count):
        name = f"client-{partition}"
        own = private_folder(folder / "clients" / name)
        if not (own / "key").exists():
            if name in known:
                raise RecordError(
                    f"{own / 'key'} is missing, and the server knows client {name} by it: bring "
                    f"the key back, or give the client a new identity by removing it from "
                    f"{folder / 'deploy.json'}; what it spent of its privacy stays with the old one"
                )
            new_clients.append(name)
        print_ = authority.ensure_client_key(own)
        client = KnownClient(name=name, partition_id=partition, fingerprint=print_)
        if name in known and known[name] != client:
            raise RecordError(
                f"{own / 'key'} is another key than the one that {folder / 'deploy.json'} names, "
                f"{known[name].fingerprint}; bring that one back"
            )
        write_public(own / "ca.crt", (folder / "ca" / "ca.crt").read_bytes())
        _write_json(own / "client.json", {"partition_id": partition, "name": name})
        made.append(client)
    deployment = Deployment(
        folder=folder,
        project=project,
        port=given_port,
        control_port=control_port,
        hosts=names,
        clients=tuple(made),
    )
    _make_folders(deployment)
    _write_flwr_config(deployment)
    _write_compose_env(deployment, torch_index)
    _write_json(folder / "deploy.json", deployment.to_json())
    _hand_over(deployment)
    return Initialised(deployment, tuple(new_clients), new_certificate)


def _refuse(hosts: Sequence[str], clients: int, port: int, control_port: int, project: str) -> None:
    problems = []
    for host in hosts:
        try:
            authority.general_name(host)
        except ValueError:
            rule = "must be a host name or an address, without a port"
            problems.append(Problem("--host", host, rule))
    if not 1 <= clients <= _MAX_CLIENTS:
        rule = f"must be from 1 to {_MAX_CLIENTS:,}"
        problems.append(Problem("--clients", str(clients), rule))
    for option, value in (("--port", port), ("--control-port", control_port)):
        if not 1024 <= value <= 65535:
            rule = "must be from 1024 to 65535, for nothing here runs as root"
            problems.append(Problem(option, str(value), rule))
    if port == control_port:
        rule = "must differ from --port: nodes and this machine come in by different doors"
        problems.append(Problem("--control-port", str(control_port), rule))
    if not (
        project[:1].isalnum()
        and project.replace("-", "").replace("_", "").isalnum()
        and project.islower()
        and project.isascii()
    ):
        rule = "must be lower-case letters, digits, - and _"
        problems.append(Problem("--project", project, rule))
    if problems:
        raise ConfigError(problems)


def _make_folders(deployment: Deployment) -> None:
    for folder in ("clients", "data", "data/server", "state", "state/server", "state/server/runs"):
        private_folder(deployment.folder / folder)
    for client in deployment.local_clients:
        private_folder(deployment.folder / "state" / client.name)
        private_folder(deployment.folder / "data" / client.name)


def _write_flwr_config(deployment: Deployment) -> None:
    private_folder(deployment.flwr_home)
    authority = json.dumps(str(deployment.folder / "server" / "ca.crt"))
    text = (
        f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
        f'address = "127.0.0.1:{deployment.control_port}"\nroot-certificates = {authority}\n'
    )
    write_public(deployment.flwr_home / "config.toml", text.encode())


def _write_compose_env(deployment: Deployment, torch_index: str | None) -> None:
    """Write what the compose file is filled in with; what the user set is left as it is."""
    uid, gid = container_owner()
    listen = "0.0.0.0" if deployment.hosts else "127.0.0.1"
    free = {
        "TESSERA_LISTEN": listen,
        "TORCH_INDEX": "",
        "TESSERA_CLIENT_MEMORY": "2g",
        "TESSERA_SERVER_MEMORY": "4g",
        "TESSERA_SERVER_DATA": str(deployment.folder / "data" / "server"),
    }
    for number in range(COMPOSE_CLIENTS):
        free[f"TESSERA_CLIENT_{number}_DATA"] = str(deployment.folder / f"data/client-{number}")
    kept = {k: v for k, v in read_env(deployment.compose_env).items() if k in free}
    if deployment.hosts and kept.get("TESSERA_LISTEN") == "127.0.0.1":
        del kept["TESSERA_LISTEN"]
    if torch_index is not None:
        kept["TORCH_INDEX"] = torch_index
    fixed = {
        "TESSERA_DEPLOY": str(deployment.folder),
        "TESSERA_UID": str(uid),
        "TESSERA_GID": str(gid),
        "TESSERA_PORT": str(deployment.port),
        "TESSERA_CONTROL_PORT": str(deployment.control_port),
    }
    lines = [
        "# Written by tessera deploy init, from what it was asked for:",
        *(f"{key}={value}" for key, value in fixed.items()),
        "# Kept as they are, so they may be edited here:",
        *(f"{key}={value}" for key, value in (free | kept).items()),
    ]
    write_public(deployment.compose_env, "".join(f"{line}\n" for line in lines).encode())


def read_env(path: Path) -> Mapping[str, str]:
    """Read a file of ``KEY=VALUE`` lines; empty where there is none."""
    if not path.is_file():
        return {}
    lines = path.read_text().splitlines()
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    return {key.strip(): value.strip() for key, value in pairs}


def container_owner() -> tuple[int, int]:
    """User and group of processes in containers: whose files these are, unless that is root."""
    uid, gid = os.getuid(), os.getgid()
    return (uid, gid) if uid else (CONTAINER_UID, CONTAINER_UID)


def _hand_over(deployment: Deployment) -> None:
    """Give root's files that containers read or write to whom they run as."""
    if os.getuid() != 0:
        return
    uid, gid = container_owner()
    for name in ("server", "clients", "state"):
        for path in (top := deployment.folder / name, *top.rglob("*")):
            os.chown(path, uid, gid, follow_symlinks=False)  # containers write some of these
    for name in ("server", *(client.name for client in deployment.local_clients)):
        os.chown(deployment.folder / "data" / name, uid, gid)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_public(path, (json.dumps(values, indent=2) + "\n").encode())
