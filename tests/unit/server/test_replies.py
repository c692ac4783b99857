import time
from collections.abc import Iterable

import pytest
from flwr.app import Message

from core.wire import Record
from engine.flwr_seam import run_identity, set_message_id
from server.replies import stream_replies
from strategies.flower import to_flower


class SlowGrid:
    """Pulling the reply of node 1 takes as long as it sends; node 0 answers meanwhile."""

    def __init__(self, takes_s: float) -> None:
        self.takes_s = takes_s
        self.requests: list[Message] = []
        self.is_ready = False
        self.left = {"request-0", "request-1"}

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        self.requests = list(messages)
        for number, message in enumerate(self.requests):
            set_message_id(message, f"request-{number}")
        return [f"request-{number}" for number in range(len(self.requests))]

    def pull_messages(self, names: Iterable[str]) -> list[Message]:
        (name,) = names
        number = int(name.removeprefix("request-"))
        if name not in self.left or (number == 0 and not self.is_ready):
            return []
        if number == 1:
            time.sleep(self.takes_s)
            self.is_ready = True
        self.left.remove(name)
        reply = Message(to_flower(Record()), reply_to=self.requests[number])
        reply.metadata.__dict__["_src_node_id"] = number
        return [reply]


@pytest.mark.parametrize("timeout_s", [0.1, 10.0])
def test_a_reply_that_is_sent_slowly_does_not_make_others_late(timeout_s: float) -> None:
    grid, began = SlowGrid(takes_s=0.6), time.monotonic()
    with run_identity(77):

        def request(k: int) -> Message:
            return Message(to_flower(Record()), dst_node_id=k, message_type="train")

        replies = stream_replies(grid, [0, 1], request, timeout_s)  # type: ignore[arg-type]
        found = {k for k, _ in replies}
    assert found == {0, 1}
    assert time.monotonic() - began < 5.0


def test_waiting_ends_with_its_time() -> None:
    grid, began = SlowGrid(takes_s=0.0), time.monotonic()
    grid.left.clear()
    with run_identity(77):

        def request(k: int) -> Message:
            return Message(to_flower(Record()), dst_node_id=k, message_type="train")

        assert list(stream_replies(grid, [0, 1], request, 0.3)) == []  # type: ignore[arg-type]
    assert 0.3 <= time.monotonic() - began < 2.0
