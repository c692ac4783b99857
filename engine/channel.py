"""Objects between two processes of one machine, the bytes of Arrays by way of files in memory."""

from __future__ import annotations

import io
import os
import pickle
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord

from engine.record_store import SHARED_FROM_BYTES
from engine.resident_client import array_from_parts, array_to_parts

_AT_ONCE = 1 << 30
"""Bytes that one call of the system reads at most."""


@dataclass(frozen=True, slots=True)
class Packed:
    """An object as it came.

    Attributes:
        pickled: Without the bytes of its arrays.
        file: Where those lie; empty where they are in `inline`.
        sizes: Bytes of each.
        inline: The bytes.
    """

    pickled: bytes
    file: str
    sizes: list[int]
    inline: tuple[bytes, ...]


class Channel:
    """One end of a connection over which objects are sent whole.

    Either end writes large content into two files of its own, in turn.

    Args:
        connection: To the peer.
        folder: Where both ends keep their files; in memory where there is such a place.
        name: Of this end's files.
    """

    def __init__(self, connection: Connection, folder: Path, name: str) -> None:
        self.connection = connection
        self._folder = folder
        self.name = name
        self._num_sent = 0
        self._own: dict[int, int] = {}
        self._peers: dict[str, int] = {}

    def send(self, thing: Any) -> None:
        """Send an object.

        Raises:
            OSError: The peer is gone.
        """
        stream, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
        _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(thing)
        parts = [buffer.raw() for buffer in buffers]
        sizes = [len(part) for part in parts]
        file = ""
        if sum(sizes) >= SHARED_FROM_BYTES:
            file = f"{self.name}-{self._num_sent % 2}"
            self._write(self._num_sent % 2, parts)
            self._num_sent += 1
        self.connection.send_bytes(pickle.dumps((file, sizes, stream.getvalue())))
        if not file:
            for part in parts:
                self.connection.send_bytes(part)

    def receive(self) -> Any:
        """Wait for an object.

        Raises:
            EOFError, OSError: The peer is gone.
        """
        return self.unpack(self.receive_packed())

    def receive_packed(self) -> Packed:
        """Wait for an object, of which large content stays where it is until `unpack`.

        Raises:
            EOFError, OSError: The peer is gone.
        """
        file, sizes, pickled = pickle.loads(self.connection.recv_bytes())
        inline = () if file else tuple(self.connection.recv_bytes() for _ in sizes)
        return Packed(pickled, file, sizes, inline)

    def unpack(self, packed: Packed) -> Any:
        """The object itself; before the peer sends the second one after it."""
        if not packed.file:
            return pickle.loads(packed.pickled, buffers=packed.inline)
        if packed.file not in self._peers:
            self._peers[packed.file] = os.open(self._folder / packed.file, os.O_RDONLY)
        buffers = _read(self._peers[packed.file], packed.sizes)
        return pickle.loads(packed.pickled, buffers=buffers)

    def close(self) -> None:
        """Hang up."""
        self.connection.close()
        for descriptor in (*self._own.values(), *self._peers.values()):
            os.close(descriptor)
        self._own, self._peers = {}, {}

    def _write(self, which: int, parts: Sequence[memoryview]) -> None:
        if which not in self._own:
            flags = os.O_CREAT | os.O_RDWR | os.O_TRUNC
            self._own[which] = os.open(self._folder / f"{self.name}-{which}", flags, 0o600)
        _write(self._own[which], parts)


@dataclass(frozen=True, slots=True)
class RecordFile:
    """Stands for an ArrayRecord in a file.

    Attributes:
        path: The file, which holds the bytes of its arrays, one after another.
        number: Tells it from other records that were in the file before, or will be.
        arrays: Name, dtype, shape, serialisation and number of bytes of each.
    """

    path: str
    number: int
    arrays: tuple[tuple[str, str, tuple[int, ...], str, int], ...]


def write_record(record: ArrayRecord, path: Path, number: int) -> RecordFile:
    """Put `record` into the file `path`, over what is there: its pages need not be made anew."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        os.ftruncate(descriptor, _write(descriptor, [memoryview(a.data) for a in record.values()]))
    finally:
        os.close(descriptor)
    return RecordFile(
        str(path),
        number,
        tuple((name, a.dtype, tuple(a.shape), a.stype, len(a.data)) for name, a in record.items()),
    )


def read_record(stored: RecordFile) -> ArrayRecord:
    """The inverse of `write_record`."""
    descriptor = os.open(stored.path, os.O_RDONLY)
    try:
        parts = _read(descriptor, [size for *_, size in stored.arrays])
    finally:
        os.close(descriptor)
    return ArrayRecord(
        {
            name: Array(dtype, shape, stype, data)
            for (name, dtype, shape, stype, _), data in zip(stored.arrays, parts, strict=True)
        }
    )


def folder_in_memory() -> Path:
    """A new folder for what processes exchange, on a file system in memory where there is one."""
    root = "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None
    return Path(tempfile.mkdtemp(prefix="tessera-", dir=root))


class _Pickler(pickle.Pickler):
    def reducer_override(self, thing: Any) -> Any:
        if isinstance(thing, Array):
            return array_from_parts, (array_to_parts(thing),)
        return NotImplemented


def _write(descriptor: int, parts: Sequence[memoryview]) -> int:
    """Write parts one after another from the file's start; returns their bytes."""
    offset = 0
    for part in parts:
        while len(part):
            written = os.pwrite(descriptor, part[:_AT_ONCE], offset)
            part, offset = part[written:], offset + written
    return offset


def _read(descriptor: int, sizes: Sequence[int]) -> list[bytes]:
    parts, offset = [], 0
    for size in sizes:
        pieces = []
        for start in range(0, size, _AT_ONCE):
            pieces.append(os.pread(descriptor, min(_AT_ONCE, size - start), offset + start))
        parts.append(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        offset += size
    return parts
