"""Calls of clients as they wait to be handed out, and the large records that many of them share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary, finalize

from flwr.app import ArrayRecord, Context, Message, RecordDict

from engine.client_call import copy_arrays
from engine.resident_client import KEPT_RECORDS, Part

SHARED_FROM_BYTES = 64_000
"""An ArrayRecord of at least this size is stored once for all; a smaller one travels inline."""


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Shared:
    """A record that is stored.

    Attributes:
        ref: Stands for it on the way to a client; what is stored is freed with the last one.
        content: The bytes of its arrays, held so that no others can get their ids.
    """

    ref: Any
    content: tuple[bytes, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """A call of a client; the message's content is apart, in `parts`."""

    message: Message
    parts: Mapping[str, Part | Shared]
    context: Context

    @property
    def message_id(self) -> str:
        """The request's."""
        return self.message.metadata.message_id

    def request(self) -> tuple[Message, dict[str, Any], Context]:
        """What `engine.resident_client.ResidentClient.call` is called with."""
        parts = {
            name: part.ref if isinstance(part, Shared) else part
            for name, part in self.parts.items()
        }
        return self.message, parts, self.context


class RecordStore:
    """Puts each large ArrayRecord into a store once, however many messages hold it.

    Bytes are immutable: a record whose arrays hold the same bytes objects has the same content,
    and one that was changed in place has others.

    Args:
        put: Stores a record, and returns what stands for it.
        free: Called with that once nothing refers to it any more.
    """

    def __init__(
        self, put: Callable[[ArrayRecord], Any], free: Callable[[Any], object] = lambda ref: None
    ) -> None:
        self._put, self._free = put, free
        self._by_identity: WeakValueDictionary[tuple[Any, ...], Shared] = WeakValueDictionary()
        self._recent: deque[Shared] = deque(maxlen=KEPT_RECORDS)

    def call(self, message: Message, context: Context) -> Call:
        """`message`, with its records as they travel."""
        shell = copy(message)
        shell.content = RecordDict()
        parts = {name: self.part(record) for name, record in message.content.items()}
        return Call(shell, parts, context)

    def part(self, record: Part) -> Part | Shared:
        """`record` as it travels: shared where it is large, a copy where it is small."""
        if not isinstance(record, ArrayRecord):
            return deepcopy(record)
        if record.count_bytes() < SHARED_FROM_BYTES:
            return copy_arrays(record)
        identity = tuple(
            (name, id(a.data), a.dtype, a.shape, a.stype) for name, a in record.items()
        )
        shared = self._by_identity.get(identity)
        if shared is None:
            shared = Shared(self._put(record), tuple(array.data for array in record.values()))
            finalize(shared, self._free, shared.ref).atexit = False
            self._by_identity[identity] = shared
        if shared not in self._recent:
            self._recent.append(shared)
        return shared
