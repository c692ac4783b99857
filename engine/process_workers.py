"""Clients called by processes of this machine, without Ray: quick to start, for processors."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path

from flwr.app import ArrayRecord, Context, Error, Message

from core.errors import RunError
from engine.channel import Channel, RecordFile, folder_in_memory, write_record
from engine.client_call import Outcome
from engine.client_process import NAME_BYTES
from engine.flwr_seam import CLIENT_CRASHED
from engine.record_store import Call, RecordStore

START_TIMEOUT_S = 300
"""Seconds that the ClientApp's imports may take."""

SPARE_FILES = 1
"""Files of records that nobody needs any more, kept to be written over."""

START_ATTEMPTS = 3
"""Starts of workers in a row that may fail."""

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from engine.client_process import serve; "
    "serve(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5])"
)


class ProcessWorkers:
    """Calls clients in forked processes that live as long as this object.

    They start in the background: what the server does before it hands out work costs no time. A
    worker works on one call at a time. One that dies costs its call and is replaced.

    Args:
        client_app: ``module:attribute`` of the ClientApp; imported with this process's ``sys.path``
            and working directory.
        num_workers: Number of processes.
        client_threads: torch threads of each.

    Attributes:
        folder: Where what is exchanged lies; removed by `close`.
    """

    def __init__(self, client_app: str, *, num_workers: int, client_threads: int = 1) -> None:
        self.folder = folder_in_memory()
        self._errors = self.folder / "errors.txt"
        self._names = itertools.count()
        self._spare_files: deque[str] = deque()
        self._store = RecordStore(self._put, partial(_set_aside, self._spare_files))
        self._control, theirs = socket.socketpair()
        sys_path = [str(Path(entry).resolve()) for entry in sys.path]
        with theirs, self._errors.open("wb") as errors:
            arguments = [json.dumps(sys_path), str(theirs.fileno()), client_app]
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, *arguments, str(client_threads), str(self.folder)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,  # ^C is for this process to handle
            )
        self._starting: set[Channel] = set()
        self._failed_starts = 0
        self._pids: dict[Channel, int] = {}
        self._idle: deque[Channel] = deque()
        self._queue: deque[Call] = deque()
        self._running: dict[Channel, Call] = {}
        self._closed = False
        for _ in range(num_workers):
            self._start_worker()

    def submit(self, message: Message, context: Context) -> None:
        """Queue one call, its large records in files that all workers read.

        Waits for the first worker at the first call, so that no round's timeout pays for imports.

        Raises:
            RunError: The ClientApp cannot be imported, no worker can be started, or there is no
                room for the files.
        """
        assert not self._closed
        self.await_first_worker()
        self._queue.append(self._store.call(message, context))
        self._hand_out()

    def await_first_worker(self) -> None:
        """Wait until the ClientApp has been imported and a worker is there.

        Raises:
            RunError: That failed.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._pids:
            channels = {channel.connection: channel for channel in self._starting}
            ready = wait(list(channels), max(0.0, deadline - time.monotonic()))
            if not ready:
                raise self._no_start(f"nothing came of it within {START_TIMEOUT_S} s")
            self._welcome(channels[ready[0]])  # type: ignore[index]

    def next_reply(self, timeout: float | None) -> Outcome | None:
        """Wait for the next finished call; see `engine.grid.Workers`.

        Raises:
            RunError: The ClientApp cannot be imported, or no worker can be started.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._running or (self._queue and self._starting):
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not self._running:
                left = START_TIMEOUT_S if left is None else min(left, START_TIMEOUT_S)
            channels = {c.connection: c for c in (*self._running, *self._starting)}
            ready = wait(list(channels), left)
            if not ready:
                if left == START_TIMEOUT_S:
                    raise self._no_start(f"nothing came of it within {START_TIMEOUT_S} s")
                return None
            connection = ready[0]
            assert isinstance(connection, Connection)
            channel = channels[connection]
            if channel in self._starting:
                self._welcome(channel)
                self._hand_out()
                continue
            return self._finish(channel)
        return None

    def cancel(self, message_ids: Collection[str]) -> None:
        """Take these calls out of the queue, and put others in the place of workers at them.

        A client that hangs would otherwise keep its worker for ever.
        """
        self._queue = deque(call for call in self._queue if call.message_id not in message_ids)
        for channel, call in list(self._running.items()):
            if call.message_id in message_ids:
                del self._running[channel]
                with suppress(ProcessLookupError):
                    os.kill(self._pids.pop(channel), signal.SIGKILL)
                self._give_up(channel)
                self._start_worker()
        self._hand_out()

    def close(self) -> None:
        """End the processes and remove their files."""
        if self._closed:
            return
        self._closed = True
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._control.close()
        for channel in (*self._starting, *self._pids):
            channel.close()
        self._starting.clear()
        self._pids.clear()
        self._idle.clear()
        self._running.clear()
        self._queue.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _put(self, record: ArrayRecord) -> RecordFile:
        number = next(self._names)
        try:
            path = self._spare_files.pop()
        except IndexError:
            path = str(self.folder / f"record-{number}")
        try:
            return write_record(record, Path(path), number)
        except OSError as error:
            Path(path).unlink(missing_ok=True)
            raise self._no_room(error) from error

    def _start_worker(self) -> None:
        name = f"worker-{next(self._names)}"
        ours, theirs = socket.socketpair()
        with theirs, suppress(OSError):  # whoever forks is gone: the worker never says hello
            socket.send_fds(self._control, [name.encode().ljust(NAME_BYTES)], [theirs.fileno()])
        self._starting.add(Channel(Connection(ours.detach()), self.folder, f"to-{name}"))

    def _welcome(self, channel: Channel) -> None:
        """Take on a worker that has started, or start another in place of one that has not."""
        self._starting.remove(channel)
        try:
            self._pids[channel] = channel.receive()
        except (EOFError, OSError):
            channel.close()
            self._failed_starts += 1
            if self._process.poll() is not None or self._failed_starts == START_ATTEMPTS:
                raise self._no_start(self._reason()) from None
            self._start_worker()
            return
        self._failed_starts = 0
        self._idle.append(channel)

    def _finish(self, channel: Channel) -> Outcome:
        call = self._running.pop(channel)
        try:
            packed = channel.receive_packed()
        except (EOFError, OSError):
            del self._pids[channel]
            self._give_up(channel)
            self._start_worker()
            self._hand_out()
            reason = (
                "WorkerDied: the process that called the client ended in mid-call; it may have "
                f"run out of memory, or {self.folder} of room"
            )
            return Outcome(Message(Error(CLIENT_CRASHED, reason), reply_to=call.message), None)
        # The next call goes out first: the worker's reply to it will lie in its other file.
        self._idle.append(channel)
        self._hand_out()
        outcome: Outcome = channel.unpack(packed)
        return outcome

    def _give_up(self, channel: Channel) -> None:
        """Hang up on a worker that is gone, and remove the files of both ends."""
        channel.close()
        for end in (channel.name, channel.name.removeprefix("to-")):
            for which in (0, 1):
                (self.folder / f"{end}-{which}").unlink(missing_ok=True)

    def _hand_out(self) -> None:
        while self._queue and self._idle:
            call, channel = self._queue.popleft(), self._idle.popleft()
            try:
                channel.send(call.request())
            except ConnectionError:
                pass  # it has died: that is told where its reply is awaited
            except OSError as error:
                raise self._no_room(error) from error
            self._running[channel] = call

    def _reason(self) -> str:
        self._control.setblocking(False)
        with suppress(OSError):
            if told := self._control.recv(10_000):
                return told.decode(errors="replace").strip()
        last = self._errors.read_text(errors="replace").strip().splitlines()[-1:]
        return last[0] if last else f"it ended with exit code {self._process.poll()}"

    def _no_room(self, error: OSError) -> RunError:
        return RunError(
            f"what clients are sent cannot be written to {self.folder}: {error.strerror}; give it "
            "more room, or set engine.kind=in-process or ray"
        )

    def _no_start(self, reason: str) -> RunError:
        return RunError(
            f"the clients' processes do not start ({reason}); set engine.kind=in-process to run "
            "without them"
        )


def _set_aside(spare_files: deque[str], stored: RecordFile) -> None:
    """No call needs `stored` any more: its file is for another record to be written over."""
    spare_files.append(stored.path)
    if len(spare_files) > SPARE_FILES:
        Path(spare_files.popleft()).unlink(missing_ok=True)
