"""Clients called by resident Ray actors, on this machine or on a cluster's."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import ray
from flwr.app import Context, Error, Message
from ray.exceptions import RayError

from core.errors import RunError
from engine import ray_start
from engine.client_call import Outcome
from engine.flwr_seam import CLIENT_CRASHED
from engine.placement import WorkerPlan
from engine.ray_client import Ref, ship_arrays_as_buffers
from engine.ray_instance import RayInstance, Requirements
from engine.record_store import Call, RecordStore

START_TIMEOUT_S = 300
"""Seconds that actors may take to find room and to import the client app."""

START_ATTEMPTS = 3
"""Starts of actors in a row that may fail."""


class RayWorkers:
    """Calls clients on actors that live as long as this object.

    Ray starts in the background: what the server does before it hands out work costs no time. An
    actor works on one call at a time. One that dies, alone or with its node, costs its call and is
    replaced where there is room.

    Args:
        client_app: ``module:attribute`` of the ClientApp; actors import it with this process's
            ``sys.path`` and working directory.
        instance: Where the actors run, and how many; closed with this object.
        client_threads: torch threads of each actor.

    Raises:
        RunError: Ray already runs in this process. That it cannot start is told by the first
            `submit`.
    """

    def __init__(self, client_app: str, instance: RayInstance, *, client_threads: int = 1) -> None:
        if ray.is_initialized():
            raise RunError(
                "Ray already runs in this process, and the engine connects it anew: "
                "call ray.shutdown() before, or set engine.kind=in-process"
            )
        self._client_app = client_app
        self._client_threads = client_threads
        self._instance = instance
        self._plan = WorkerPlan(0)
        self._requirements = Requirements()
        self._actor_class: Any = None
        self._sys_path = [str(Path(entry).resolve()) for entry in sys.path]
        self._starting: dict[Ref, Any] = {}
        self._failed_starts = 0
        self._idle: deque[Any] = deque()
        self._queue: deque[Call] = deque()
        self._running: dict[Ref, tuple[Any, Call]] = {}
        self._store = RecordStore(lambda record: ray.put(record))
        self._closed = False
        # Where the kernel can, Ray has it end Ray's processes with the thread that started them:
        # this thread must live until `close`.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ray")
        self._started = self._thread.submit(self._start)

    def submit(self, message: Message, context: Context) -> None:
        """Queue one call, its large records in the object store.

        Raises:
            RunError: Ray cannot start or be joined, or an actor's node is unfit.
            ConfigError: The actors that are asked for have no room there.
        """
        self._started.result()
        _take_back_sigterm()
        assert not self._closed, "closed: Ray would start anew at the next call"
        self._queue.append(self._store.call(message, context))
        self._hand_out()

    def next_reply(self, timeout: float | None) -> Outcome | None:
        """Wait for the next finished call; see `engine.grid.Workers`.

        Raises:
            RunError: No actor is left, and none can be started; or one was started on a node that
                is unfit.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._running or (self._queue and self._starting):
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not self._running:
                left = START_TIMEOUT_S if left is None else min(left, START_TIMEOUT_S)
            finished, _ = ray.wait([*self._running, *self._starting], timeout=left)
            if not finished:
                if left == START_TIMEOUT_S:
                    raise self._no_room()
                return None
            if finished[0] in self._starting:
                self._welcome(finished[0])
                self._hand_out()
                continue
            actor, call = self._running.pop(finished[0])
            try:
                outcome: Outcome = ray.get(finished[0])
                self._idle.append(actor)
            except RayError as error:
                self._replace(actor)
                reason = f"{type(error).__name__}: {error}"
                reply = Message(Error(CLIENT_CRASHED, reason), reply_to=call.message)
                outcome = Outcome(reply, None)
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
                self._replace(actor)
        self._hand_out()

    def close(self) -> None:
        """End the actors, and with them Ray where it is the run's own."""
        wait([self._started])
        self._closed = True
        # Handles and references that outlive their Ray instance would speak to the next one.
        self._starting.clear()
        self._running.clear()
        self._queue.clear()
        self._idle.clear()
        self._store = RecordStore(lambda record: ray.put(record))
        self._instance.stop()
        self._thread.shutdown()

    def _start(self) -> None:
        self._plan = self._instance.start(self._sys_path)
        self._requirements = self._instance.requirements()
        ship_arrays_as_buffers()
        ship_by_value: Any = ray.cloudpickle.register_pickle_by_value
        ship_by_value(ray_start)
        # SPREAD: Ray would else fill one node before it takes the next.
        self._actor_class = ray.remote(
            num_cpus=self._plan.cpus_per_worker,
            num_gpus=self._plan.gpus_per_worker,
            scheduling_strategy="SPREAD",
        )(ray_start.ClientActor)
        for _ in range(self._plan.num_workers):
            self._start_actor()
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._starting:
            left = max(0.0, deadline - time.monotonic())
            started, _ = ray.wait(list(self._starting), timeout=left)
            if not started:
                raise self._no_room()
            self._welcome(started[0])

    def _start_actor(self) -> None:
        actor = self._actor_class.remote(
            self._client_app,
            self._sys_path,
            str(Path.cwd()),
            self._client_threads,
            dict(self._requirements.installation),
            self._requirements.shared_folder,
            self._requirements.token,
        )
        self._starting[actor.ready.remote()] = actor

    def _welcome(self, ready: Ref) -> None:
        """Take on an actor that has started, or start another in place of one that has not.

        Raises:
            RunError: Its node is unfit, or too many starts in a row failed.
        """
        actor = self._starting.pop(ready)
        try:
            node, problems = ray.get(ready)
        except RayError as error:
            self._failed_starts += 1
            if self._failed_starts == START_ATTEMPTS:
                raise RunError(
                    f"{self._instance.name}: {START_ATTEMPTS} starts of actors in a row failed, "
                    f"the last with {type(error).__name__}: {error}; {self._instance.way_out}"
                ) from error
            self._replace(actor)
            return
        if problems:
            ray.kill(actor)
            raise RunError(
                f"{self._instance.name}: no client can run on node {node}: "
                f"{'; '.join(problems)}; {self._instance.way_out}"
            )
        self._failed_starts = 0
        self._idle.append(actor)

    def _replace(self, actor: Any) -> None:
        ray.kill(actor)
        self._start_actor()

    def _no_room(self) -> RunError:
        there = self._plan.num_workers - len(self._starting)
        return RunError(
            f"{self._instance.name}: {there} of {self._plan.num_workers} actors are there, and no "
            f"other could be started within {START_TIMEOUT_S} s; other work may hold what they "
            f"need: wait for it or set engine.workers lower; {self._instance.way_out}"
        )

    def _hand_out(self) -> None:
        while self._queue and self._idle:
            call, actor = self._queue.popleft(), self._idle.popleft()
            # A reference nested in an argument is not fetched by Ray: the actor may have it.
            self._running[actor.call.remote(*call.request())] = (actor, call)


def _take_back_sigterm() -> None:
    """Undo Ray's native handler of SIGTERM, which aborts the process three seconds later."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
