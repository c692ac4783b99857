from collections import deque
from collections.abc import Collection, Iterator

import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given
from hypothesis import strategies as st

from engine.client_call import Outcome, call_client
from engine.flwr_seam import SUPERLINK_NODE_ID, Run, run_identity
from engine.grid import ResidentGrid


class ScriptedWorkers:
    """Finishes calls in an order of the test's own; a call that is not in it never ends."""

    def __init__(self, order: list[int]) -> None:
        self.order = deque(order)
        self.submitted: list[int] = []
        self.cancelled: set[str] = set()
        self.at_work: dict[int, tuple[Message, Context]] = {}
        self.app = ClientApp()
        self.app.train()(count)

    def submit(self, message: Message, context: Context) -> None:
        partition_id = int(context.node_config["partition-id"])
        assert partition_id not in self.at_work, "a node works on one message at a time"
        self.submitted.append(partition_id)
        self.at_work[partition_id] = (message, context)

    def next_reply(self, timeout: float | None) -> Outcome | None:
        if not self.order:
            assert timeout is not None or not self.at_work, "this would wait for ever"
            return None
        return call_client(self.app, *self.at_work.pop(self.order.popleft()))

    def cancel(self, message_ids: Collection[str]) -> None:
        self.cancelled |= set(message_ids)
        self.at_work = {
            partition_id: call
            for partition_id, call in self.at_work.items()
            if call[0].metadata.message_id not in message_ids
        }

    def close(self) -> None:
        pass


def count(message: Message, context: Context) -> Message:
    calls = number(context.state, "calls") + 1
    if "fail" in message.content:
        context.state["calls"] = MetricRecord({"value": 100})
        raise ValueError("no luck")
    context.state = RecordDict({"calls": MetricRecord({"value": calls})})
    return Message(RecordDict({"calls": MetricRecord({"value": calls})}), reply_to=message)


def number(content: RecordDict, name: str) -> float:
    record = content.get(name, MetricRecord({"value": 0}))
    assert isinstance(record, MetricRecord)
    value = record["value"]
    assert not isinstance(value, list)
    return value


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with run_identity(7) as run:
        yield run


def make_grid(
    run: Run, order: list[int], num_partitions: int = 4
) -> tuple[ResidentGrid, ScriptedWorkers]:
    workers = ScriptedWorkers(order)
    grid = ResidentGrid(workers, num_partitions=num_partitions, run_config={"factor": 3}, run=run)
    return grid, workers


def requests(*partition_ids: int, content: RecordDict | None = None) -> list[Message]:
    return [
        Message(content or RecordDict(), ResidentGrid.node_of(partition_id), "train")
        for partition_id in partition_ids
    ]


def partitions(messages: list[Message]) -> list[int]:
    return [ResidentGrid.partition_of(message.metadata.src_node_id) for message in messages]


@given(num_partitions=st.integers(1, 50))
def test_nodes_are_partitions(run: Run, num_partitions: int) -> None:
    grid, _ = make_grid(run, [], num_partitions)
    node_ids = grid.get_node_ids()
    assert [grid.partition_of(node_id) for node_id in node_ids] == list(range(num_partitions))
    assert [grid.node_of(p) for p in range(num_partitions)] == node_ids == sorted(node_ids)
    assert SUPERLINK_NODE_ID not in node_ids and 0 not in node_ids
    assert [node.node_id for node in grid.get_nodes()] == node_ids
    assert grid.node_is_partition


def test_clients_context(run: Run) -> None:
    grid, workers = make_grid(run, [])
    grid.push_messages(requests(2))
    _, context = workers.at_work[2]
    assert context.run_id == run.run_id == grid.run.run_id
    assert context.node_id == grid.node_of(2)
    assert context.node_config == {"partition-id": 2, "num-partitions": 4}
    assert context.run_config == {"factor": 3}
    assert context.state == RecordDict()


def test_create_message_makes_what_the_constructor_makes(run: Run) -> None:
    grid, _ = make_grid(run, [])
    message = grid.create_message(RecordDict(), "train", 3, "2", ttl=5.0)
    metadata = message.metadata
    assert (metadata.message_type, metadata.dst_node_id, metadata.group_id) == ("train", 3, "2")
    assert metadata.ttl == 5.0


def test_set_run(run: Run) -> None:
    grid, _ = make_grid(run, [])
    grid.set_run(Run.create_empty(9))
    assert grid.run.run_id == 9


@pytest.mark.parametrize("node_id", [0, SUPERLINK_NODE_ID, ResidentGrid.node_of(4)])
def test_a_message_to_nowhere_is_refused(run: Run, node_id: int) -> None:
    grid, _ = make_grid(run, [])
    with pytest.raises(ValueError, match=f"no node {node_id}: node ids go from 2 to 5"):
        grid.push_messages([Message(RecordDict(), node_id, "train")])


def test_work_is_handed_out_before_the_first_reply_is_asked_for(run: Run) -> None:
    grid, workers = make_grid(run, [1, 3, 0])
    replies = grid.send_and_receive(message for message in requests(3, 0, 1))
    assert workers.submitted == [3, 0, 1]
    assert partitions(list(replies)) == [1, 3, 0]


def test_replies_are_yielded_as_they_come(run: Run) -> None:
    grid, workers = make_grid(run, [1, 0])
    replies = grid.send_and_receive(requests(0, 1))
    assert partitions([next(replies)]) == [1]
    assert list(workers.at_work) == [0]


def test_no_messages_make_no_replies(run: Run) -> None:
    grid, _ = make_grid(run, [])
    assert list(grid.send_and_receive([])) == []
    assert list(grid.pull_messages([])) == []


def test_message_ids_are_distinct_and_replies_refer_to_them(run: Run) -> None:
    grid, _ = make_grid(run, [0, 1, 2])
    messages = requests(0, 1, 2)
    replies = list(grid.send_and_receive(messages))
    sent = [message.metadata.message_id for message in messages]
    assert len(set(sent)) == 3
    assert [reply.metadata.reply_to_message_id for reply in replies] == sent


def test_work_without_a_reply_in_time_is_cancelled_and_forgotten(run: Run) -> None:
    grid, workers = make_grid(run, [2])
    messages = requests(0, 1, 2)
    assert partitions(list(grid.send_and_receive(messages, timeout=5.0))) == [2]
    assert workers.cancelled == {message.metadata.message_id for message in messages[:2]}
    workers.order.extend([0, 1])
    replies = list(grid.send_and_receive(requests(0, 1)))
    assert [number(reply.content, "calls") for reply in replies] == [1, 1]


def test_closing_the_iterator_cancels_the_rest(run: Run) -> None:
    grid, workers = make_grid(run, [1])
    replies = grid.send_and_receive(requests(0, 1))
    next(replies)
    del replies
    assert workers.at_work == {}


def test_state_persists_per_node(run: Run) -> None:
    grid, _ = make_grid(run, [0, 1, 1, 0])
    assert len(list(grid.send_and_receive(requests(0, 1)))) == 2
    second = list(grid.send_and_receive(requests(0, 1)))
    assert [number(reply.content, "calls") for reply in second] == [2, 2]
    grid, _ = make_grid(run, [0])
    (first_of_another_run,) = grid.send_and_receive(requests(0))
    assert number(first_of_another_run.content, "calls") == 1


def test_a_failed_call_is_one_error_reply_and_leaves_the_state(run: Run) -> None:
    grid, _ = make_grid(run, [0, 1, 0])
    bad = RecordDict({"fail": ConfigRecord()})
    failed, good = grid.send_and_receive(requests(0, content=bad) + requests(1))
    assert failed.has_error() and "ValueError: no luck" in (failed.error.reason or "")
    assert good.has_content()
    (after,) = grid.send_and_receive(requests(0))
    assert number(after.content, "calls") == 1


def test_a_node_takes_one_message_after_the_other(run: Run) -> None:
    grid, workers = make_grid(run, [0, 1, 0, 0])
    replies = list(grid.send_and_receive(requests(0, 0, 1, 0)))
    assert workers.submitted == [0, 1, 0, 0]
    assert partitions(replies) == [0, 1, 0, 0]
    calls = [number(reply.content, "calls") for reply in replies if reply.metadata.src_node_id == 2]
    assert calls == [1, 2, 3]


def test_a_nodes_next_message_follows_one_that_was_dropped(run: Run) -> None:
    grid, workers = make_grid(run, [])
    kept = grid.push_messages(requests(1))
    assert list(grid.send_and_receive(requests(0, 0, 1, 1), timeout=1.0)) == []
    assert workers.submitted == [1, 0]
    workers.order.extend([1, 0])
    assert partitions(grid.pull_messages(kept)) == [1]
    assert partitions(list(grid.send_and_receive(requests(0)))) == [0]


def test_pull_waits_for_one_reply_and_takes_those_asked_for(run: Run) -> None:
    grid, workers = make_grid(run, [2, 0])
    first, second, third = grid.push_messages(requests(0, 1, 2))
    assert partitions(grid.pull_messages([first, second])) == [0]
    assert partitions(grid.pull_messages([third, first])) == [2]
    workers.order.append(1)
    assert partitions(grid.pull_messages([second])) == [1]
    assert grid.pull_messages([first, second, third, "unknown"]) == []


def test_two_exchanges_may_overlap(run: Run) -> None:
    grid, _ = make_grid(run, [0, 2, 1, 3])
    outer = grid.send_and_receive(requests(0, 1))
    assert partitions([next(outer)]) == [0]
    assert partitions(list(grid.send_and_receive(requests(2, 3)))) == [2, 3]
    assert partitions(list(outer)) == [1]
