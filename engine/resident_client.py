"""Calls of clients within a process that lives on and keeps its imports and latest models."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from engine.client_call import Outcome, call_client, copy_arrays, load_client_app

KEPT_RECORDS = 2
"""Shared ArrayRecords that stay, beyond the calls that need them, where they lie and in clients."""

Part = ArrayRecord | ConfigRecord | MetricRecord


class ResidentClient:
    """The ClientApp in a process of its own.

    Args:
        client_app: ``module:attribute`` of the ClientApp.
        client_threads: torch threads.
        reference: Type of what stands for a shared record; hashable.
        fetch: Gets the record that a reference stands for.

    Raises:
        RunError: `client_app` names none.
    """

    def __init__(
        self,
        client_app: str,
        client_threads: int,
        reference: type,
        fetch: Callable[[Any], ArrayRecord],
    ) -> None:
        import torch  # here: whoever only hands calls out has no use for it

        torch.set_num_threads(client_threads)
        self._app = load_client_app(client_app)
        self._reference = reference
        self._fetch = fetch
        self._records: OrderedDict[Any, ArrayRecord] = OrderedDict()

    def call(self, message: Message, parts: Mapping[str, Any], context: Context) -> Outcome:
        """Put the message together and call the client.

        Args:
            message: The request without its content.
            parts: Its content; in place of shared records what stands for them.
            context: The client's context.
        """
        message.content = RecordDict(
            {
                name: self._shared(part) if isinstance(part, self._reference) else part
                for name, part in parts.items()
            }
        )
        return call_client(self._app, message, context)

    def _shared(self, reference: Any) -> ArrayRecord:
        if reference not in self._records:
            self._records[reference] = self._fetch(reference)
        self._records.move_to_end(reference)
        if len(self._records) > KEPT_RECORDS:
            self._records.popitem(last=False)
        return copy_arrays(self._records[reference])


def array_to_parts(array: Array) -> tuple[Any, ...]:
    """An Array as pickle can carry it without a copy of its bytes; see `array_from_parts`."""
    return array.dtype, array.shape, array.stype, pickle.PickleBuffer(array.data)


def array_from_parts(parts: tuple[Any, ...]) -> Array:
    """The inverse of `array_to_parts`; copies where the buffer is not of bytes."""
    dtype, shape, stype, data = parts
    return Array(dtype, shape, stype, bytes(data))
