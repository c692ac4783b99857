"""Requests out, replies in, over any of Flower's grids: one by one, each once.

Tessera's own grid is given work in lots, two at a time, so that neither requests nor early replies
grow with the cohort: a client that takes long can be overtaken by two lots and no more.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

POLL_S = 0.2
"""Between two looks for replies on a grid that does not wait for them itself."""

LOT = 64
"""Clients that Tessera's own grid is given at once; as many actors always have work."""

_Request = Callable[[int], Message]
_Asked = tuple[int, int]
"""Partition id and node id."""


def stream_replies(
    grid: Grid, clients: Sequence[int], request: _Request, timeout_s: float | None
) -> Iterator[tuple[int, Message]]:
    """Send each client a request and yield its reply as it comes, of one lot after the other.

    A reply is known by the request that it answers and the node that was asked. A second reply to
    the same request, one from another node, and one to a request that is not among these are passed
    over.

    Args:
        grid: Tessera's own streams replies itself; any other is asked again and again.
        clients: Partition ids, in the order in which work is to be handed out.
        request: Makes a client's request.
        timeout_s: Seconds after which what is missing is given up; None waits for all.

    Yields:
        Partition id and reply, in order of arrival.
    """
    arriving = _streamed if getattr(grid, "node_is_partition", False) else _polled
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    waiting: dict[str, _Asked] = {}
    for message in arriving(grid, clients, request, deadline, waiting):
        asked = waiting.get(message.metadata.reply_to_message_id)
        # That a node is gone is told by the SuperLink; else the one that was asked must answer.
        if asked is None or not (message.has_error() or message.metadata.src_node_id == asked[1]):
            continue
        del waiting[message.metadata.reply_to_message_id]
        yield asked[0], message
        if not waiting:
            return


def _streamed(
    grid: Grid,
    clients: Sequence[int],
    request: _Request,
    deadline: float | None,
    waiting: dict[str, _Asked],
) -> Iterator[Message]:
    lots: deque[Iterator[Message]] = deque()
    for start in range(0, len(clients), LOT):
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if left == 0 and start:
            break
        messages = {k: request(k) for k in clients[start : start + LOT]}
        lots.append(iter(grid.send_and_receive(messages.values(), timeout=left)))
        waiting |= {m.metadata.message_id: (k, m.metadata.dst_node_id) for k, m in messages.items()}
        if len(lots) > 1:
            yield from lots.popleft()
    for lot in lots:
        yield from lot


def _polled(
    grid: Grid,
    clients: Sequence[int],
    request: _Request,
    deadline: float | None,
    waiting: dict[str, _Asked],
) -> Iterator[Message]:
    messages = [request(k) for k in clients]
    names, nodes = grid.push_messages(messages), [m.metadata.dst_node_id for m in messages]
    waiting |= dict(zip(names, zip(clients, nodes, strict=True), strict=True))
    while deadline is None or time.monotonic() < deadline:
        yield from grid.pull_messages(list(waiting))
        time.sleep(POLL_S)
