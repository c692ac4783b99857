"""Requests out, replies in, over any of Flower's grids: one by one, each once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from flwr.app import Message
from flwr.serverapp import Grid

POLL_S = 0.2
"""Between two looks for replies on a grid that does not wait for them itself."""


def stream_replies(
    grid: Grid, requests: Mapping[int, Message], timeout_s: float | None
) -> Iterator[tuple[int, Message]]:
    """Send requests and yield each one's reply as it comes.

    A reply is known by the request that it answers and the node that was asked. A second reply to
    the same request, one from another node, and one to a request that is not among these are passed
    over.

    Args:
        grid: Tessera's own streams replies itself; any other is asked again and again.
        requests: By partition id, in the order in which work is to be handed out.
        timeout_s: Seconds after which what is missing is given up; None waits for all.

    Yields:
        Partition id and reply, in order of arrival.
    """
    arriving = _streamed if getattr(grid, "node_is_partition", False) else _polled
    waiting: dict[str, int] = {}
    for message in arriving(grid, requests, timeout_s, waiting):
        partition_id = waiting.get(message.metadata.reply_to_message_id)
        if partition_id is None or not _is_from(message, requests[partition_id]):
            continue
        del waiting[message.metadata.reply_to_message_id]
        yield partition_id, message
        if not waiting:
            return


def _is_from(reply: Message, request: Message) -> bool:
    """Whether the node that was asked sent it; that a node is gone is told by the SuperLink."""
    return reply.has_error() or reply.metadata.src_node_id == request.metadata.dst_node_id


def _streamed(
    grid: Grid, requests: Mapping[int, Message], timeout_s: float | None, waiting: dict[str, int]
) -> Iterator[Message]:
    replies = grid.send_and_receive(list(requests.values()), timeout=timeout_s)
    waiting |= {message.metadata.message_id: k for k, message in requests.items()}
    yield from replies


def _polled(
    grid: Grid, requests: Mapping[int, Message], timeout_s: float | None, waiting: dict[str, int]
) -> Iterator[Message]:
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    names = grid.push_messages(list(requests.values()))
    waiting |= dict(zip(names, requests, strict=True))
    while deadline is None or time.monotonic() < deadline:
        yield from grid.pull_messages(list(waiting))
        time.sleep(POLL_S)
