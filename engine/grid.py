"""Flower's Grid over resident workers: files messages and replies, streams them, keeps state."""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Protocol

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid

from core.config import Scalar
from engine.client_call import Outcome
from engine.flwr_seam import SUPERLINK_NODE_ID, Run, set_message_id

FIRST_NODE_ID = SUPERLINK_NODE_ID + 1


class Workers(Protocol):
    """What calls the clients. Work starts in the order in which it was submitted."""

    def submit(self, message: Message, context: Context) -> None:
        """Take on one call of a client; later changes to `message` and `context` must not reach it.

        Args:
            message: The request, with its id set.
            context: The client's context; its state belongs to this call.
        """
        ...

    def next_reply(self, timeout: float | None) -> Outcome | None:
        """The next finished call in order of arrival.

        Args:
            timeout: Seconds to wait; None waits as long as work is left.

        Returns:
            None where no work is left, or no call finished in time.
        """
        ...

    def cancel(self, message_ids: Collection[str]) -> None:
        """Forget these calls: those queued never start, those running leave no trace."""
        ...

    def close(self) -> None:
        """End every process and remove every file that the workers made; may be called twice."""
        ...


class ResidentGrid(Grid):
    """A Grid whose nodes are the partitions ``0 .. num_partitions - 1``.

    The node at position p of `get_node_ids` holds partition p. Each node works on one message at a
    time; its ``context.state`` is kept here between messages, and is what it was before a call
    that failed or came too late.

    Attributes:
        node_is_partition: Always True: node ids tell the partition, no query round is needed.
    """

    node_is_partition = True

    def __init__(
        self,
        workers: Workers,
        *,
        num_partitions: int,
        run_config: Mapping[str, Scalar],
        run: Run,
    ) -> None:
        self._workers = workers
        self._num_partitions = num_partitions
        self._run_config = run_config
        self._run = run
        self._message_ids = itertools.count(1)
        self._states: dict[int, RecordDict] = {}
        self._backlogs: dict[int, dict[str, Message]] = {}
        self._outstanding: dict[str, int] = {}
        self._replies: dict[str, Message] = {}
        self._seconds: dict[str, float] = {}

    @staticmethod
    def node_of(partition_id: int) -> int:
        """The id of the node that holds partition `partition_id`."""
        return partition_id + FIRST_NODE_ID

    @staticmethod
    def partition_of(node_id: int) -> int:
        """The partition that node `node_id` holds."""
        return node_id - FIRST_NODE_ID

    def set_run(self, run: Run) -> None:
        """Set the run; only Flower's own engines call this."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run whose messages this grid carries."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Deprecated by Flower: make a ``Message`` instead."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """All node ids, in the order of their partitions."""
        return [self.node_of(partition_id) for partition_id in range(self._num_partitions)]

    def seconds_of(self, message_id: str) -> float:
        """How long the call took that answered this request; told once."""
        return self._seconds.pop(message_id, 0.0)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Hand out work, in the order given.

        Args:
            messages: Requests; several may share one ArrayRecord.

        Returns:
            One id per message, to pull its reply with.

        Raises:
            ValueError: A message is for a node that does not exist.
        """
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Take the replies that are there; waits for one where none is and some are to come."""
        wanted = dict.fromkeys(message_ids)
        while not self._replies.keys() & wanted and self._outstanding.keys() & wanted:
            self._collect(None)
        return [self._replies.pop(name) for name in wanted if name in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Hand out work at once, and yield replies one by one as they come.

        Replies that have not come in time, or are still to come when the iterator is closed, are
        dropped and the work queued for them is cancelled.

        Args:
            messages: Requests.
            timeout: Seconds to wait once all work is handed out; None waits for all replies.
        """
        awaited = dict.fromkeys(self.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        return self._stream(awaited, deadline)

    def _stream(self, awaited: dict[str, None], deadline: float | None) -> Iterator[Message]:
        try:
            while awaited:
                arrived = next((name for name in self._replies if name in awaited), None)
                if arrived is not None:
                    del awaited[arrived]
                    yield self._replies.pop(arrived)
                    continue
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if not self._collect(left):
                    return
        finally:
            self._drop(awaited)

    def _push(self, message: Message) -> str:
        node_id = message.metadata.dst_node_id
        if not 0 <= self.partition_of(node_id) < self._num_partitions:
            raise ValueError(
                f"there is no node {node_id}: node ids go from {FIRST_NODE_ID} "
                f"to {self.node_of(self._num_partitions - 1)}, one per partition"
            )
        message_id = str(next(self._message_ids))
        set_message_id(message, message_id)
        self._outstanding[message_id] = node_id
        backlog = self._backlogs.setdefault(node_id, {})
        backlog[message_id] = message
        if len(backlog) == 1:
            self._submit(message)
        return message_id

    def _submit(self, message: Message) -> None:
        node_id = message.metadata.dst_node_id
        context = Context(
            run_id=self._run.run_id,
            node_id=node_id,
            node_config={
                "partition-id": self.partition_of(node_id),
                "num-partitions": self._num_partitions,
            },
            state=self._states.get(node_id, RecordDict()),
            run_config=dict(self._run_config),
        )
        self._workers.submit(message, context)

    def _collect(self, timeout: float | None) -> bool:
        outcome = self._workers.next_reply(timeout)
        if outcome is None:
            return False
        message_id = outcome.reply.metadata.reply_to_message_id
        if outcome.state is not None:
            self._states[self._outstanding[message_id]] = outcome.state
        self._replies[message_id] = outcome.reply
        self._seconds[message_id] = outcome.seconds
        self._retire(message_id)
        return True

    def _drop(self, message_ids: dict[str, None]) -> None:
        self._workers.cancel(message_ids.keys())
        # Last first, so that no message moves up in its node's backlog only to be dropped too.
        for message_id in reversed(message_ids):
            if message_id in self._outstanding:
                self._retire(message_id)
            self._replies.pop(message_id, None)
            self._seconds.pop(message_id, None)

    def _retire(self, message_id: str) -> None:
        backlog = self._backlogs[self._outstanding.pop(message_id)]
        at_work = next(iter(backlog)) == message_id
        del backlog[message_id]
        if at_work and backlog:
            self._submit(next(iter(backlog.values())))
