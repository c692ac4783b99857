"""A network in one process: Flower's Grid as a SuperLink gives it, with faults where a test asks.

Node ids say nothing of partitions, each node has its own configuration, messages are objects whose
bytes went through Flower's own serialisation, and a reply is handed out once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from client.app import app as client_app
from client.app import forget_run
from engine.flwr_seam import set_message_id

Fault = Callable[[int, Message, Message], Iterable[Message | Exception]]
"""Told a node, a request and its reply, gives what the network makes of the reply."""


@dataclass
class Node:
    """One node: its configuration, whether it is there, and what it does to its replies."""

    config: Mapping[str, object]
    is_present: bool = True
    fault: Fault | None = None
    loses_requests: bool = False
    silent: bool = False


@dataclass
class NetworkGrid(Grid):
    """Nodes by id, in one process."""

    run_config: Mapping[str, object]
    nodes: dict[int, Node]
    run_id: int = 77
    sent: list[Message] = field(default_factory=list)
    asked_of: dict[str, int] = field(default_factory=dict)
    replies: dict[str, list[Message | Exception]] = field(default_factory=dict)
    before_push: Callable[[list[Message]], None] | None = None
    _names: Iterable[int] = field(default_factory=lambda: itertools.count(1))

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(self, *args: object, **kwargs: object) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return [node_id for node_id, node in self.nodes.items() if node.is_present]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        listed = list(messages)
        if self.before_push is not None:
            self.before_push(listed)
        return [self._deliver(message) for message in listed]

    def _deliver(self, message: Message) -> str:
        name = f"request-{next(iter(self._names))}"
        set_message_id(message, name)
        node_id = message.metadata.dst_node_id
        node = self.nodes.get(node_id)
        if node is None:  # as the SuperLink answers for one that is not registered any more
            return ""
        self.sent.append(message)
        self.asked_of[name] = node_id
        self.replies[name] = []
        if not node.is_present:
            gone = Error(ErrorCode.NODE_UNAVAILABLE, "Node Unavailable")
            self.replies[name].append(Message(gone, reply_to=message))
        elif not (
            node.silent or (node.loses_requests and message.metadata.message_type == "train")
        ):
            reply = self._answer(node_id, node, message)
            answer: Iterable[Message | Exception] = [reply]
            if node.fault is not None:
                answer = node.fault(node_id, message, reply)
            self.replies[name].extend(answer)
        return name

    def _answer(self, node_id: int, node: Node, message: Message) -> Message:
        forget_run()
        context = Context(
            self.run_id,
            node_id,
            dict(node.config),  # type: ignore[arg-type]
            RecordDict(),
            dict(self.run_config),  # type: ignore[arg-type]
        )
        try:
            reply = client_app(message, context)
        except Exception as error:
            text = f"{type(error)}:<'{error}'>"
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, text), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = node_id
        return reply

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = []
        for name in message_ids:
            waiting = self.replies.get(name, [])
            while waiting:
                one = waiting.pop(0)
                if isinstance(one, Exception):
                    raise one
                found.append(one)
        return found

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        raise NotImplementedError("the server waits itself")
