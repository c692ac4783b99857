"""Clients called by resident Ray actors, which keep their imports and the latest models."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from copy import copy, deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import ray
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from ray.exceptions import RayError
from ray.job_config import JobConfig
from ray.util import register_serializer

from core.errors import RunError
from engine.client_call import Outcome, call_client, copy_arrays, load_client_app
from engine.flwr_seam import CLIENT_CRASHED

SHARED_FROM_BYTES = 64_000
"""An ArrayRecord of at least this size goes through the object store; a smaller one inline."""

KEPT_RECORDS = 2
"""Shared ArrayRecords that stay, beyond the calls that need them, in the store and in actors."""

START_TIMEOUT_S = 300
"""Seconds that actors may take to import the client app."""

_Record = ArrayRecord | ConfigRecord | MetricRecord
_Ref = ray.ObjectRef[Any]


class RayWorkers:
    """Calls clients on actors that live as long as this object, in a Ray instance of its own.

    Ray starts in the background: what the server does before it hands out work costs no time. An
    actor works on one call at a time. One that dies costs its call and is replaced.

    Args:
        client_app: ``module:attribute`` of the ClientApp; actors import it with this process's
            ``sys.path`` and working directory.
        num_workers: Number of actors.
        num_gpus: GPUs that the actors share.
        gpus_per_worker: Share of a GPU per actor.
        client_threads: torch threads of each actor.

    Raises:
        RunError: Ray already runs in this process. That it cannot start is told by the first
            `submit`.
    """

    def __init__(
        self,
        client_app: str,
        *,
        num_workers: int,
        num_gpus: int = 0,
        gpus_per_worker: float = 0.0,
        client_threads: int = 1,
    ) -> None:
        if ray.is_initialized():
            raise RunError(
                "Ray already runs in this process, and the engine starts its own: "
                "call ray.shutdown() before, or set engine.kind=in-process"
            )
        self._num_workers = num_workers
        self._num_gpus = num_gpus
        self._gpus_per_worker = gpus_per_worker
        self._sys_path = [str(Path(entry).resolve()) for entry in sys.path]
        self._actor_args = (client_app, self._sys_path, Path.cwd(), client_threads)
        self._idle: deque[Any] = deque()
        self._queue: deque[_Call] = deque()
        self._running: dict[_Ref, tuple[Any, _Call]] = {}
        self._store = _RecordStore()
        self._folder: str | None = None
        # Where the kernel can, Ray has it end Ray's processes with the thread that started them:
        # this thread must live until `close`.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ray")
        self._started = self._thread.submit(self._start)

    def submit(self, message: Message, context: Context) -> None:
        """Queue one call, its large records in the object store.

        Raises:
            RunError: Ray cannot start, or the actors cannot import the client app.
        """
        self._started.result()
        _take_back_sigterm()
        assert self._folder is not None, "closed: Ray would start anew at the next call"
        shell = copy(message)
        shell.content = RecordDict()
        parts = {name: self._store.part(record) for name, record in message.content.items()}
        self._queue.append(_Call(shell, parts, context))
        self._hand_out()

    def next_reply(self, timeout: float | None) -> Outcome | None:
        """Wait for the next finished call; see `engine.grid.Workers`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._running:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            finished, _ = ray.wait(list(self._running), timeout=left)
            if not finished:
                return None
            actor, call = self._running.pop(finished[0])
            try:
                outcome: Outcome = ray.get(finished[0])
            except RayError as error:
                ray.kill(actor)
                actor = self._new_actor()
                reason = f"{type(error).__name__}: {error}"
                reply = Message(Error(CLIENT_CRASHED, reason), reply_to=call.message)
                outcome = Outcome(reply, None)
            self._idle.append(actor)
            self._hand_out()
            return outcome
        return None

    def cancel(self, message_ids: Collection[str]) -> None:
        """Take these calls out of the queue, and put other actors in the place of those at work.

        A client that hangs would otherwise keep its actor for ever.
        """
        self._queue = deque(call for call in self._queue if call.message_id not in message_ids)
        for result, (actor, call) in list(self._running.items()):
            if call.message_id in message_ids:
                del self._running[result]
                ray.kill(actor)
                self._idle.append(self._new_actor())
        self._hand_out()

    def close(self) -> None:
        """End Ray and remove its files."""
        wait([self._started])
        if self._folder is not None:
            # Handles and references that outlive their Ray instance would speak to the next one.
            self._running.clear()
            self._queue.clear()
            self._idle.clear()
            self._store = _RecordStore()
            ray.shutdown()
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        self._thread.shutdown()

    def _start(self) -> None:
        try:
            self._folder = tempfile.mkdtemp(prefix="tessera-", dir=_temp_root())
            ray.init(
                address="local",
                num_cpus=self._num_workers,
                num_gpus=self._num_gpus,
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
                job_config=JobConfig(_py_driver_sys_path=self._sys_path),
                _temp_dir=self._folder,
            )
        except (Exception, SystemExit) as error:
            raise RunError(
                f"Ray does not start ({type(error).__name__}: {error}); "
                "set engine.kind=in-process to run without it"
            ) from error
        register_serializer(Array, serializer=_array_to_parts, deserializer=_array_from_parts)
        self._idle.extend(self._new_actor() for _ in range(self._num_workers))
        try:
            ray.get([actor.ready.remote() for actor in self._idle], timeout=START_TIMEOUT_S)
        except RayError as error:
            raise RunError(
                f"the Ray actors do not start ({type(error).__name__}: {error}); "
                "set engine.kind=in-process to run without them"
            ) from error

    def _new_actor(self) -> Any:
        actor_class: Any = ray.remote(num_cpus=1, num_gpus=self._gpus_per_worker)(_ClientActor)
        return actor_class.remote(*self._actor_args)

    def _hand_out(self) -> None:
        while self._queue and self._idle:
            call, actor = self._queue.popleft(), self._idle.popleft()
            parts = {
                name: part.ref if isinstance(part, _Shared) else part
                for name, part in call.parts.items()
            }
            # A reference nested in an argument is not fetched by Ray: the actor may have it.
            self._running[actor.call.remote(call.message, parts, call.context)] = (actor, call)


class _ClientActor:
    """One resident process; runs under Ray."""

    def __init__(
        self, client_app: str, sys_path: list[str], folder: Path, client_threads: int
    ) -> None:
        sys.path[:] = sys_path
        os.chdir(folder)
        torch.set_num_threads(client_threads)
        register_serializer(Array, serializer=_array_to_parts, deserializer=_array_from_parts)
        self._app = load_client_app(client_app)
        self._records: OrderedDict[_Ref, ArrayRecord] = OrderedDict()

    def ready(self) -> None:
        """Return once the actor has started."""

    def call(
        self, message: Message, parts: Mapping[str, _Record | _Ref], context: Context
    ) -> Outcome:
        """Put the message together and call the client."""
        message.content = RecordDict(
            {
                name: self._fetch(part) if isinstance(part, ray.ObjectRef) else part
                for name, part in parts.items()
            }
        )
        return call_client(self._app, message, context)

    def _fetch(self, reference: _Ref) -> ArrayRecord:
        if reference not in self._records:
            self._records[reference] = ray.get(reference)
        self._records.move_to_end(reference)
        if len(self._records) > KEPT_RECORDS:
            self._records.popitem(last=False)
        return copy_arrays(self._records[reference])


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class _Shared:
    """A record in the object store.

    Attributes:
        ref: Its reference; the store frees it with the last one.
        content: The bytes of its arrays, held so that no others can get their ids.
    """

    ref: _Ref
    content: tuple[bytes, ...]


@dataclass(frozen=True, eq=False, slots=True)
class _Call:
    """A call of a client; the message's content is apart, in `parts`."""

    message: Message
    parts: Mapping[str, _Record | _Shared]
    context: Context

    @property
    def message_id(self) -> str:
        return self.message.metadata.message_id


class _RecordStore:
    """Puts each large ArrayRecord into the object store once, however many messages hold it.

    Bytes are immutable: a record whose arrays hold the same bytes objects has the same content,
    and one that was changed in place has others.
    """

    def __init__(self) -> None:
        self._by_identity: WeakValueDictionary[tuple[Any, ...], _Shared] = WeakValueDictionary()
        self._recent: deque[_Shared] = deque(maxlen=KEPT_RECORDS)

    def part(self, record: _Record) -> _Record | _Shared:
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
            shared = _Shared(ray.put(record), tuple(array.data for array in record.values()))
            self._by_identity[identity] = shared
        if shared not in self._recent:
            self._recent.append(shared)
        return shared


def _array_to_parts(array: Array) -> tuple[Any, ...]:
    return array.dtype, array.shape, array.stype, pickle.PickleBuffer(array.data)


def _array_from_parts(parts: tuple[Any, ...]) -> Array:
    dtype, shape, stype, data = parts
    return Array(dtype, shape, stype, bytes(data))


def _take_back_sigterm() -> None:
    """Undo Ray's native handler of SIGTERM, which aborts the process three seconds later."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _temp_root() -> str:
    """The system's folder for temporary files, or /tmp where that one's path is long.

    Ray's sockets lie 84 characters below, and a socket's path may have 107 in all (103 on macOS).
    """
    root = tempfile.gettempdir()
    return root if len(os.fsencode(root)) <= 107 - 84 else "/tmp"
