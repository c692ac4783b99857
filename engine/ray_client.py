"""Clients in an actor's process: records come out of Ray's object store."""

from __future__ import annotations

from typing import Any

import ray
from flwr.app import Array
from ray.util import register_serializer

from engine.resident_client import ResidentClient, array_from_parts, array_to_parts

Ref = ray.ObjectRef[Any]


def client_in_actor(client_app: str, client_threads: int) -> ResidentClient:
    """The client of one actor; see `ResidentClient`."""
    ship_arrays_as_buffers()
    return ResidentClient(client_app, client_threads, ray.ObjectRef, ray.get)


def ship_arrays_as_buffers() -> None:
    """Let Ray carry the bytes of Flower's Arrays as they are; both ends need it, once Ray is up."""
    register_serializer(Array, serializer=array_to_parts, deserializer=array_from_parts)
