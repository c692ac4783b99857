"""How an actor starts: whether its node is fit, and if so, what runs in it.

Ray ships this module by value, so that a node without Tessera can say so. At import it needs
nothing but Python.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SOURCES = (
    *("client", "core", "data", "distill", "engine"),
    *("models", "pairing", "privacy", "strategies", "workloads"),
)
"""The packages of Tessera's that a client's process imports."""


class ClientActor:
    """One resident process; runs under Ray.

    Args:
        client_app: ``module:attribute`` of the ClientApp.
        sys_path: Where to import from.
        folder: Working folder.
        client_threads: torch threads.
        installation: What `core.installation` must find; empty checks nothing.
        shared_folder: Folder that must be seen, as the configuration names it; None if none.
        token: A file in it.
    """

    def __init__(
        self,
        client_app: str,
        sys_path: list[str],
        folder: str,
        client_threads: int,
        installation: Mapping[str, str],
        shared_folder: Path | None,
        token: str,
    ) -> None:
        self._problems: list[str] = []
        self._client: Any = None
        try:
            sys.path[:] = sys_path
            os.chdir(folder)
            if installation:
                from core.installation import describe_installation

                found = describe_installation(SOURCES)
                self._problems += [
                    f"{name} is {found[name]} there, and {expected} here"
                    for name, expected in installation.items()
                    if found[name] != expected
                ]
            if shared_folder is not None:
                seen = shared_folder.expanduser().resolve()
                if not (seen / token).exists():
                    self._problems.append(f"{seen} (runs) is not the folder that it is here")
            if not self._problems:
                from engine.ray_client import client_in_actor

                self._client = client_in_actor(client_app, client_threads)
        except Exception as error:
            self._problems.append(f"{type(error).__name__}: {error}")

    def ready(self) -> tuple[str, list[str]]:
        """Once the actor has started: its node's address, and what is wrong with it."""
        import ray

        address: Any = ray.util.get_node_ip_address
        return address(), self._problems

    def call(self, *request: Any) -> Any:
        """See `engine.resident_client.ResidentClient.call`."""
        return self._client.call(*request)
