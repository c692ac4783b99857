"""Clients called one after another in this process, without Ray."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from copy import copy

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from engine.client_call import Outcome, by_value, call_client


class SerialWorkers:
    """Calls a client when its reply is asked for.

    A client cannot be interrupted: one that overruns the timeout runs to its end all the same.

    Args:
        app: The ClientApp.
        client_threads: torch threads while a client runs; what was set before is put back after.
    """

    def __init__(self, app: ClientApp, *, client_threads: int) -> None:
        self._app = app
        self._client_threads = client_threads
        self._queue: deque[tuple[Message, Context]] = deque()
        self._late: list[Outcome] = []

    def submit(self, message: Message, context: Context) -> None:
        """Queue one call, by value: clients in one process must not share what they change."""
        sent = copy(message)
        sent.content = by_value(message.content)
        context.state = by_value(context.state)
        self._queue.append((sent, context))

    def next_reply(self, timeout: float | None) -> Outcome | None:
        """Call the next client in the queue; None where the queue or the time is used up."""
        if self._late:
            return self._late.pop()
        if not self._queue or (timeout is not None and timeout <= 0):
            return None
        started = time.monotonic()
        message, context = self._queue.popleft()
        with _torch_threads(self._client_threads):
            outcome = call_client(self._app, message, context)
        if outcome.reply.has_content():
            outcome.reply.content = by_value(outcome.reply.content)
        if timeout is not None and time.monotonic() - started > timeout:
            self._late.append(outcome)
            return None
        return outcome

    def cancel(self, message_ids: Collection[str]) -> None:
        """Take these calls out of the queue, and the one that came too late out of the replies."""
        self._queue = deque(
            call for call in self._queue if call[0].metadata.message_id not in message_ids
        )
        self._late = [
            outcome
            for outcome in self._late
            if outcome.reply.metadata.reply_to_message_id not in message_ids
        ]

    def close(self) -> None:
        """Nothing to end: this process is not the workers' own."""


@contextmanager
def _torch_threads(num_threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
