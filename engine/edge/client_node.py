"""An edge client: joins a federation, answers its messages, and stays in it until told to leave."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout
from flwr.app import Error, Message

from core.errors import ConfigError, Problem, RunError
from core.records import write_whole
from engine.client_call import Outcome
from engine.edge.credentials import Credentials
from engine.edge.flwr_seam import APP_REFUSED, Fleet, HeldTask, RuntimeApiError
from engine.edge.server import ServerAddress, UnreachableError, check_server
from engine.edge.supernode import SuperNode
from engine.flwr_seam import CLIENT_CRASHED
from engine.process_workers import ProcessWorkers

CLIENT_APP = "client.app:app"
APP_NAME = "tessera/tessera-fl"
"""``publisher/name`` of the one app that a client takes part in."""

POLL_S = 0.3
"""Seconds between questions to the SuperNode, which itself asks the server every 3 s."""

REJOIN_PAUSE_S = 4.0
"""Seconds offline before a client joins again. The server looks for replies every 3 s, and sees
that what it had asked before will not be answered."""

STILL_ONLINE_S = 75.0
"""How long a client that was killed may count as online: two heartbeats of 30 s, and some."""

LEAVE_S = 5.0
"""For the server to hear that a client leaves."""

MAX_BACK_OFF_S = 60.0
SETTLED_S = 60.0
"""After so many seconds in the federation, earlier failures are forgotten."""


@dataclass(frozen=True, slots=True)
class EdgeClient:
    """What makes an edge client.

    Attributes:
        server: Where the server is.
        credentials: By what the client proves itself.
        partition_id: Which of the federation's partitions it holds.
        data: Where its own data lie: a path, or FORMAT:PATH.
        state: The folder of what it keeps between runs.
        max_epsilon: Privacy budget that it never exceeds; None where it sets none.
        max_delta: At this delta, or a run's own where that is less; None for 1e-5.
        health: HOST:PORT of a health server, if one is wanted.
        max_retries: Attempts in a row to reach the server before it gives up; None for no end.
    """

    server: ServerAddress
    credentials: Credentials
    partition_id: int
    data: str
    state: Path
    max_epsilon: float | None = None
    max_delta: float | None = None
    health: str | None = None
    max_retries: int | None = None

    def node_config(self) -> dict[str, str | int | float]:
        """What the ClientApp finds in ``context.node_config``."""
        config: dict[str, str | int | float] = {
            "partition-id": self.partition_id,
            "data": self.data,
            "state": str(self.state),
            "key": self.credentials.fingerprint,
        }
        if self.max_epsilon is not None:
            config["max-epsilon"] = self.max_epsilon
        if self.max_delta is not None:
            config["max-delta"] = self.max_delta
        return config


def run_client(
    client: EdgeClient, say: Callable[[str], None], *, client_app: str = CLIENT_APP
) -> None:
    """Take part in a federation until SIGTERM or SIGINT.

    Messages are answered by the ClientApp that is installed here. The code that a server hands out
    with a run is neither installed nor read.

    Args:
        client: Who joins what.
        say: Told what happens, a line at a time.
        client_app: ``module:attribute`` of the ClientApp.

    Raises:
        ConfigError: The state folder cannot be written to.
        RunError: The server is not who it should be or refuses the client, gives no answer after
            `max_retries`, or the ClientApp cannot be imported.
    """
    with _own(client.state):
        _Runner(client, say, client_app).run()


class _StoppedError(Exception):
    """Told to leave."""


class _Runner:
    def __init__(self, client: EdgeClient, say: Callable[[str], None], client_app: str) -> None:
        self._client = client
        self._say = say
        self._client_app = client_app
        self._fleet = Fleet(
            str(client.server), client.credentials.ca.read_bytes(), client.credentials.key
        )
        self._remembered = client.state / "node.json"
        self._node: SuperNode | None = None
        self._joined_as: int | None = None
        self._stopped = False

    def run(self) -> None:
        before = {s: signal.signal(s, self._stop) for s in (signal.SIGTERM, signal.SIGINT)}
        workers = None
        try:
            self._reach()
            workers = ProcessWorkers(self._client_app, num_workers=1)
            workers.await_first_worker()
            self._take_part(workers)
        except _StoppedError:
            self._leave()
            self._say("left the federation")
        finally:
            if workers is not None:
                workers.close()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopped = True
        if self._node is not None:  # whatever waits for it sees that it is gone
            self._node.signal_stop()

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._check_stopped()
            time.sleep(min(left, 0.1))
        self._check_stopped()

    def _check_stopped(self) -> None:
        if self._stopped:
            raise _StoppedError

    def _reach(self) -> None:
        """Wait until the server answers, is the right one and knows the key."""
        for attempt in _attempts():
            self._check_stopped()
            try:
                check_server(self._client.server, self._client.credentials)
            except UnreachableError as error:
                if attempt.number > _limit(self._client.max_retries):
                    raise RunError(
                        f"{error}; given up after --max-retries={self._client.max_retries}"
                    ) from error
                self._say(f"{error}; trying again in {attempt.pause_s:.0f} s")
                self._wait(attempt.pause_s)
            else:
                return

    def _take_part(self, workers: ProcessWorkers) -> None:
        attempts, refused_since = _attempts(), None
        while True:
            self._sign_off()
            started = time.monotonic()
            node = self._node = self._start_node()
            try:
                self._check_stopped()
                self._answer_all(node, workers)
            finally:
                self._node = None
                node.close()
            self._check_stopped()
            if node.refused and node.node_id is None:
                refused_since = refused_since or started
                self._await_offline(refused_since)
            else:
                refused_since = None
                if time.monotonic() - started > SETTLED_S:
                    attempts = _attempts()
                attempt = next(attempts)
                why = f"the SuperNode ended with exit code {node.exit_code()}: {node.last_line}"
                if attempt.number > _limit(self._client.max_retries):
                    raise RunError(
                        f"{why}; given up after --max-retries={self._client.max_retries}"
                    )
                self._say(f"{why}; starting another in {attempt.pause_s:.0f} s")
                self._wait(attempt.pause_s)
            self._reach()

    def _start_node(self) -> SuperNode:
        client = self._client
        return SuperNode(
            superlink=str(client.server),
            root_certificates=client.credentials.ca,
            private_key=client.credentials.path,
            node_config=client.node_config(),
            max_retries=client.max_retries,
            health=client.health,
            folder=client.state / ".supernode",
            log=lambda line: self._say(f"flower: {line}"),
        )

    def _leave(self) -> None:
        """Sign off, which the SuperNode does not get to where its machine is busy."""
        if self._joined_as is None:
            return
        call = threading.Thread(
            target=self._fleet.deactivate, args=(self._joined_as,), name="sign-off", daemon=True
        )
        call.start()
        call.join(LEAVE_S)

    def _sign_off(self) -> None:
        """Take the node offline that this client was before, which may not have done so itself."""
        try:
            told = json.loads(self._remembered.read_bytes())
            known = told["key"] == self._client.credentials.fingerprint
            node_id = int(told["node_id"])
        except (OSError, ValueError, KeyError, TypeError):
            return
        if known:
            if self._fleet.deactivate(node_id):
                self._say(f"was not signed off as node {node_id}; done")
            self._wait(REJOIN_PAUSE_S)

    def _await_offline(self, since: float) -> None:
        """The key is registered and the node may not join: it counts as online."""
        credentials = self._client.credentials
        if time.monotonic() - since > STILL_ONLINE_S:
            raise RunError(
                f"--key={credentials.path}: a client with this key, {credentials.fingerprint}, is "
                f"in the federation already; a key is for one client: end the other, or register "
                "a key for this one"
            )
        self._say(
            "a client with this key counts as online; if it was killed, that lasts a minute: "
            "trying again"
        )
        self._wait(REJOIN_PAUSE_S)

    def _answer_all(self, node: SuperNode, workers: ProcessWorkers) -> None:
        """Answer messages until the SuperNode is gone."""
        announced = False
        while node.exit_code() is None:
            self._check_stopped()
            if not announced and node.node_id is not None:
                announced = True
                self._joined_as = node.node_id
                self._remember(node.node_id)
                self._say(
                    f"joined {self._client.server} as node {node.node_id} with partition "
                    f"{self._client.partition_id}"
                )
            try:
                task = node.api.acquire()
            except RuntimeApiError:
                task = None  # it is still starting, or ends
            if task is None:
                time.sleep(POLL_S)
                continue
            try:
                with task:
                    self._answer(task, node, workers)
            except RuntimeApiError as error:
                # Without a reply the SuperNode would wait for one for ever.
                self._check_stopped()
                self._say(f"{error}; starting the SuperNode anew")
                return

    def _answer(self, task: HeldTask, node: SuperNode, workers: ProcessWorkers) -> None:
        given = task.pull()
        started = time.monotonic()
        message = given.message
        if given.app != APP_NAME:
            reason = (
                f"AppRefused: this client takes part in {APP_NAME}, which is installed here, and "
                f"not in {given.app!r}"
            )
            outcome = Outcome(Message(Error(APP_REFUSED, reason), reply_to=message), None)
        else:
            try:
                workers.submit(message, given.context)
            except RunError as error:
                reason = f"RunError: {error}"
                outcome = Outcome(Message(Error(CLIENT_CRASHED, reason), reply_to=message), None)
            else:
                outcome = self._await(message, node, workers)
        task.push(outcome.reply, outcome.state)
        what = f"{message.metadata.message_type} of run {message.metadata.run_id}"
        took = f"{time.monotonic() - started:.1f} s"
        if outcome.reply.has_error():
            self._say(f"answered {what} with an error after {took}: {outcome.reply.error.reason}")
        else:
            self._say(f"answered {what} in {took}")

    def _await(self, message: Message, node: SuperNode, workers: ProcessWorkers) -> Outcome:
        while True:
            outcome = workers.next_reply(POLL_S)
            if outcome is not None:
                return outcome
            self._check_stopped()
            if node.exit_code() is not None:
                workers.cancel([message.metadata.message_id])
                raise RuntimeApiError("the SuperNode is gone, and with it what was to be answered")

    def _remember(self, node_id: int) -> None:
        told = {"key": self._client.credentials.fingerprint, "node_id": str(node_id)}
        write_whole(self._remembered, json.dumps(told).encode())


@dataclass(frozen=True, slots=True)
class _Attempt:
    number: int
    pause_s: float


def _attempts() -> Iterator[_Attempt]:
    """Attempts without end, each with a longer pause after it."""
    number = 0
    while True:
        number += 1
        yield _Attempt(number, min(MAX_BACK_OFF_S, 2.0 ** (number - 1)))


def _limit(max_retries: int | None) -> float:
    return float("inf") if max_retries is None else max_retries


@contextlib.contextmanager
def _own(state: Path) -> Iterator[None]:
    """Be the one process that uses this state folder."""
    lock = FileLock(state / ".lock", timeout=0)
    try:
        state.mkdir(parents=True, exist_ok=True)
        if not os.access(state, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        lock.acquire()
    except Timeout:
        rule = "another client uses this folder; end it, or give this one --state DIR of its own"
        raise ConfigError([Problem("--state", str(state), rule)]) from None
    except OSError as error:
        rule = f"cannot be written to: {error.strerror}; name another folder with --state DIR"
        raise ConfigError([Problem("--state", str(state), rule)]) from error
    with lock:
        try:
            yield
        finally:
            lock.release()
