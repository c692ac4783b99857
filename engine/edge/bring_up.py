"""Bring a deployment's containers up: the server, its clients' keys, then the clients."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.errors import RunError
from engine.edge.authority import write_public
from engine.edge.compose import SERVER_SERVICES, Compose, Service, refuse_taken_ports
from engine.edge.control import Control, Node
from engine.edge.deployment import Deployment, KnownClient

START_TIMEOUT_S = 240.0
"""Until the server is healthy, and again until its clients are online, on a slow machine."""

_LOOK_EVERY_S = 1.0
_ASK_EVERY_S = 3.0
_LOG_LINES = 15

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientStatus:
    """A client of the deployment, as the SuperLink sees it.

    Attributes:
        client: Which.
        node: Its node; None where the SuperLink has not been told of its key, or it is not known
            which of its nodes is this one.
    """

    client: KnownClient
    node: Node | None

    @property
    def word(self) -> str:
        """``online``, ``offline``, ``registered`` or ``unknown``."""
        return self.node.status if self.node else "unknown"


def bring_up(
    deployment: Deployment, clients: Sequence[KnownClient], *, build: bool, say: Say
) -> list[ClientStatus]:
    """Start the server and `clients` of this machine; returns every client's status.

    Safe to call again: what runs and is unchanged is left alone.

    Args:
        deployment: Which.
        clients: Those of this machine to start, of `Deployment.local_clients`.
        build: Whether to build the images first.
        say: Told each step.

    Raises:
        RunError: No engine, a port that is taken, a container that ends, or one that is not ready
            in time.
    """
    compose = Compose(deployment)
    refuse_taken_ports(deployment, compose.services())
    names = [client.name for client in clients]
    if build:
        say("building the images; the first time takes minutes")
        compose.build(["superlink", *names[:1]])
    say("starting the server")
    compose.up(["superlink"])
    _await_healthy(compose, ["superlink"])
    compose.up(["gateway"])
    _await_healthy(compose, SERVER_SERVICES)
    control = Control(deployment)
    register_clients(control, say)
    if names:
        say(f"starting {', '.join(names)}")
        compose.up(names)
        _await_online(compose, control, names)
    return statuses(control)


def register_clients(control: Control, say: Say) -> None:
    """Tell the SuperLink of every client's key that it has not been told of.

    Raises:
        RunError: The SuperLink does not answer, or refuses a key.
    """
    deployment = control.deployment
    known = {node.node_id for node in control.nodes() if node.status != "unregistered"}
    told = _read_nodes(deployment)
    for client in deployment.clients:
        if told.get(client.fingerprint) in known:
            continue
        node_id = control.register(deployment.client_folder(client) / "key.pub")
        if node_id is None:
            say(f"the SuperLink knows the key of {client.name}")
            continue
        say(f"registered {client.name}, {client.fingerprint}")
        told[client.fingerprint] = node_id
        write_public(_nodes_file(deployment), (json.dumps(told, indent=2) + "\n").encode())


def statuses(control: Control) -> list[ClientStatus]:
    """Every client of the deployment, as the SuperLink sees it.

    Raises:
        RunError: The SuperLink does not answer.
    """
    nodes = {node.node_id: node for node in control.nodes()}
    told = _read_nodes(control.deployment)
    return [
        ClientStatus(client=client, node=nodes.get(told.get(client.fingerprint, "")))
        for client in control.deployment.clients
    ]


def _nodes_file(deployment: Deployment) -> Path:
    return deployment.folder / "nodes.json"


def _read_nodes(deployment: Deployment) -> dict[str, str]:
    """Node ids by fingerprint, as the SuperLink gave them."""
    try:
        told = json.loads(_nodes_file(deployment).read_text())
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in told.items()}


def _await_healthy(compose: Compose, names: Sequence[str]) -> None:
    def ready(services: Sequence[Service]) -> bool:
        return {service.name for service in services if service.healthy} >= set(names)

    _await(compose, names, ready, lambda: f"{' and '.join(names)} did not become healthy")


def _await_online(compose: Compose, control: Control, names: Sequence[str]) -> None:
    missing = list(names)
    asked = 0.0

    def ready(services: Sequence[Service]) -> bool:
        nonlocal missing, asked
        if time.monotonic() - asked >= _ASK_EVERY_S:
            online = {one.client.name for one in statuses(control) if one.word == "online"}
            # A key that the SuperLink knew before has no node id here: its container must do.
            unknown = {one.client.name for one in statuses(control) if one.node is None}
            online |= unknown & {service.name for service in services if service.healthy}
            missing = [name for name in names if name not in online]
            asked = time.monotonic()
        return not missing

    _await(compose, names, ready, lambda: f"{', '.join(missing)} did not come online")


def _await(
    compose: Compose,
    names: Sequence[str],
    ready: Callable[[Sequence[Service]], bool],
    late: Callable[[], str],
) -> None:
    began = time.monotonic()
    while True:
        services = compose.services()
        if ready(services):
            return
        ended = [service.name for service in services if service.name in names and service.ended]
        if ended:
            told = compose.logs(ended[:1], _LOG_LINES).rstrip()
            raise RunError(f"{ended[0]} ended soon after its start; its last lines:\n{told}")
        if time.monotonic() - began > START_TIMEOUT_S:
            told = compose.logs(names, _LOG_LINES).rstrip()
            raise RunError(f"{late()} within {START_TIMEOUT_S:.0f} s; last lines:\n{told}")
        time.sleep(_LOOK_EVERY_S)
