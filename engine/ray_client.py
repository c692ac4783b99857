"""Calls of clients within an actor, which keeps its imports and the latest models."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import ray
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from ray.util import register_serializer

from engine.client_call import Outcome, call_client, copy_arrays, load_client_app

KEPT_RECORDS = 2
"""Shared ArrayRecords that stay, beyond the calls that need them, in the store and in actors."""

Part = ArrayRecord | ConfigRecord | MetricRecord
Ref = ray.ObjectRef[Any]


class ResidentClient:
    """The ClientApp in an actor's process.

    Args:
        client_app: ``module:attribute`` of the ClientApp.
        client_threads: torch threads.

    Raises:
        RunError: `client_app` names none.
    """

    def __init__(self, client_app: str, client_threads: int) -> None:
        torch.set_num_threads(client_threads)
        ship_arrays_as_buffers()
        self._app = load_client_app(client_app)
        self._records: OrderedDict[Ref, ArrayRecord] = OrderedDict()

    def call(self, message: Message, parts: Mapping[str, Part | Ref], context: Context) -> Outcome:
        """Put the message together and call the client.

        Args:
            message: The request without its content.
            parts: Its content; large records as references into the object store.
            context: The client's context.
        """
        message.content = RecordDict(
            {
                name: self._fetch(part) if isinstance(part, ray.ObjectRef) else part
                for name, part in parts.items()
            }
        )
        return call_client(self._app, message, context)

    def _fetch(self, reference: Ref) -> ArrayRecord:
        if reference not in self._records:
            self._records[reference] = ray.get(reference)
        self._records.move_to_end(reference)
        if len(self._records) > KEPT_RECORDS:
            self._records.popitem(last=False)
        return copy_arrays(self._records[reference])


def ship_arrays_as_buffers() -> None:
    """Let Ray carry the bytes of Flower's Arrays as they are; both ends need it, once Ray is up."""
    register_serializer(Array, serializer=_array_to_parts, deserializer=_array_from_parts)


def _array_to_parts(array: Array) -> tuple[Any, ...]:
    return array.dtype, array.shape, array.stype, pickle.PickleBuffer(array.data)


def _array_from_parts(parts: tuple[Any, ...]) -> Array:
    dtype, shape, stype, data = parts
    return Array(dtype, shape, stype, bytes(data))
