"""Requests out, replies in, over any of Flower's grids: one by one, each once.

Tessera's own grid is given work in lots, two at a time, so that neither requests nor early replies
grow with the cohort: a client that takes long can be overtaken by two lots and no more.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import httpx
from flwr.app import Message
from flwr.serverapp import Grid

from core.wire import Record
from strategies.flower import to_flower

POLL_S, LONGEST_POLL_S = 0.2, 1.0
"""Between two looks for replies on a grid that does not wait for them itself: the longer the wait
has been, the longer. A look costs the SuperLink a query of its database for each reply."""

LONGEST_REST_S = 30.0
"""After a look that took long itself."""

LOT = 64
"""Clients that Tessera's own grid is given at once; as many actors always have work."""

PROBE, PROBE_S = "query.alive", 30.0
"""Message that asks for a sign of life, and seconds between two looks for who needs one."""

PROBE_AGAIN_S = 300.0
"""Seconds after which it is asked for again: a client that works answers when it is done."""

LOST = "the client was started anew and has lost the request"
UNSENT = "the request was not taken: the node is not registered any more"

FORGED = "says that it answers another request"

_REASON = 500
"""Characters that are told of why a reply cannot be read."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """In place of a reply whose bytes are no message, or that will not come."""

    why: str


_Request = Callable[[int], Message]
_Asked = tuple[int, int]
"""Partition id and node id."""


def stream_replies(
    grid: Grid, clients: Sequence[int], request: _Request, timeout_s: float | None
) -> Iterator[tuple[int, Message | Unreadable]]:
    """Send each client a request and yield its reply as it comes, of one lot after the other.

    A reply is known by the request that it answers and the node that was asked. A second reply to
    the same request, one from another node, and one to a request that is not among these are passed
    over; what a reply itself says that it answers is not believed.

    Args:
        grid: Tessera's own streams replies itself; any other is asked again and again.
        clients: Partition ids, in the order in which work is to be handed out.
        request: Makes a client's request.
        timeout_s: Seconds after which what is missing is given up; None waits for all.

    Yields:
        Partition id and reply, or why it is none, in order of arrival.
    """
    arriving = _streamed if getattr(grid, "node_is_partition", False) else _polled
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    waiting: dict[str, _Asked] = {}
    for name, reply in arriving(grid, clients, request, deadline, waiting):
        asked = waiting.get(name)
        if asked is None or not _answers(reply, asked[1]):
            continue
        del waiting[name]
        yield asked[0], reply
        if not waiting:
            return


def _answers(reply: Message | Unreadable, node_id: int) -> bool:
    """Whether it is from the node that was asked; that one is gone is told by the SuperLink."""
    if isinstance(reply, Unreadable) or reply.has_error():
        return True
    return bool(reply.metadata.src_node_id == node_id)


def _streamed(
    grid: Grid,
    clients: Sequence[int],
    request: _Request,
    deadline: float | None,
    waiting: dict[str, _Asked],
) -> Iterator[tuple[str, Message]]:
    lots: deque[Iterator[Message]] = deque()
    for start in range(0, len(clients), LOT):
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if left == 0 and start:
            break
        messages = {k: request(k) for k in clients[start : start + LOT]}
        lots.append(iter(grid.send_and_receive(messages.values(), timeout=left)))
        waiting |= {m.metadata.message_id: (k, m.metadata.dst_node_id) for k, m in messages.items()}
        if len(lots) > 1:
            yield from _named(lots.popleft())
    for lot in lots:
        yield from _named(lot)


def _named(replies: Iterator[Message]) -> Iterator[tuple[str, Message]]:
    return ((message.metadata.reply_to_message_id, message) for message in replies)


def _polled(
    grid: Grid,
    clients: Sequence[int],
    request: _Request,
    deadline: float | None,
    waiting: dict[str, _Asked],
) -> Iterator[tuple[str, Message | Unreadable]]:
    messages = [request(k) for k in clients]
    asked = [(k, m.metadata.dst_node_id) for k, m in zip(clients, messages, strict=True)]
    names = grid.push_messages(messages)
    unsent = {}
    for number, (name, one) in enumerate(zip_longest(names, asked)):
        if name:
            waiting[name] = one
        else:  # nobody answers it
            unsent[f"unsent {number}"] = one
    del messages
    waiting |= unsent
    for name in unsent:
        yield name, Unreadable(UNSENT)
    probes, began = _Probes(grid), time.monotonic()
    while waiting:
        looked = time.monotonic()
        yield from pull_each(grid, list(waiting))
        yield from probes.lost(waiting)
        now = time.monotonic()
        # One that sends slowly holds up a look; what came meanwhile is seen in one more.
        if deadline is not None and looked >= deadline:
            return
        # Of many clients a look takes long; the SuperLink has other work to do.
        rest = min(LONGEST_REST_S, 3 * (now - looked))
        pause = max(min(LONGEST_POLL_S, max(POLL_S, (now - began) / 10)), rest)
        time.sleep(pause if deadline is None else max(0.0, min(pause, deadline - now)))


class _Probes:
    """Finds requests that were lost with the process that had taken them.

    A node is given its messages one after the other. One that is restarted in the middle of a
    message is not given it again, and nobody says so. It is therefore asked for a sign of life: if
    that comes, and no reply to the request before it, there will be none.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._sent: dict[str, tuple[str, float]] = {}
        self._next = time.monotonic() + PROBE_S

    def lost(self, waiting: Mapping[str, _Asked]) -> Iterator[tuple[str, Message | Unreadable]]:
        """Requests in `waiting` that nobody works on any more."""
        for probe, _ in pull_each(self._grid, list(self._sent)):
            name, _ = self._sent.pop(probe, ("", 0.0))
            if name in waiting:
                # Between the last look and the sign of life the reply may have come.
                yield from list(pull_each(self._grid, [name])) or [(name, Unreadable(LOST))]
        now = time.monotonic()
        if now > self._next:
            self._next = now + PROBE_S
            # A process that took the question for a sign of life may be lost as well.
            self._sent = {p: s for p, s in self._sent.items() if now - s[1] < PROBE_AGAIN_S}
            asked = {name for name, _ in self._sent.values()}
            names = [name for name in waiting if name not in asked]
            probes = [
                Message(to_flower(Record()), dst_node_id=waiting[n][1], message_type=PROBE)
                for n in names
            ]
            if probes:
                sent = zip(self._grid.push_messages(probes), names, strict=False)
                self._sent |= {probe: (name, now) for probe, name in sent if probe}


def pull_each(grid: Grid, names: Sequence[str]) -> Iterator[tuple[str, Message | Unreadable]]:
    """Replies that are there to the requests of these names, each with its request's.

    Each is pulled alone: one whose bytes make no sense raises in Flower, and would take those with
    it that were pulled beside it. The SuperLink keeps replies by the request that it was told of;
    one that names another inside is a node's own making.
    """
    for name in names:
        try:
            replies = list(grid.pull_messages([name]))
        except (httpx.HTTPError, OSError):  # the network, which Flower has tried again and again
            raise
        except Exception as error:
            yield name, Unreadable(f"cannot be read: {type(error).__name__}: {error}"[:_REASON])
            continue
        for message in replies:
            answers = message.metadata.reply_to_message_id
            yield name, message if answers == name else Unreadable(FORGED)


def printable(text: str, longest: int) -> str:
    """A client's text as it may go on record and to a terminal, `longest` characters of it."""
    cut = text if len(text) <= longest else text[:longest] + " ... (cut)"
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in cut)
