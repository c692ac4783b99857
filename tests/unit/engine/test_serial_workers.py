from collections.abc import Iterator

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

import engine.serial_workers
from engine.flwr_seam import Run, run_identity
from engine.grid import ResidentGrid
from engine.serial_workers import SerialWorkers
from tests.unit.engine.counting_client import app as counting_app


class Clock:
    """Stands in for the time module; time passes when a client says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def run() -> Iterator[Run]:
    with run_identity(7) as run:
        yield run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(engine.serial_workers, "time", clock)
    monkeypatch.setattr(engine.grid, "time", clock)
    return clock


def make_grid(run: Run, app: ClientApp, client_threads: int = 1) -> ResidentGrid:
    return ResidentGrid(
        SerialWorkers(app, client_threads=client_threads),
        num_partitions=3,
        run_config={"factor": 2.0},
        run=run,
    )


def requests(grid: ResidentGrid, content: RecordDict, kind: str = "train") -> list[Message]:
    return [Message(content, node_id, kind) for node_id in grid.get_node_ids()]


def weights(message: Message) -> list[float]:
    arrays = message.content["arrays"]
    assert isinstance(arrays, ArrayRecord)
    return list(arrays["w"].numpy().tolist())


def test_a_client_that_changes_what_it_received_reaches_no_other(run: Run) -> None:
    grid = make_grid(run, counting_app)
    content = RecordDict({"arrays": ArrayRecord({"w": Array(np.array([1.0, 2.0]))})})
    replies = list(grid.send_and_receive(requests(grid, content)))
    assert [weights(reply) for reply in replies] == [[2.0, 4.0], [3.0, 5.0], [4.0, 6.0]]
    sent = content["arrays"]
    assert isinstance(sent, ArrayRecord)
    assert list(sent) == ["w"] and sent["w"].numpy().tolist() == [1.0, 2.0]


def test_what_the_server_changes_after_sending_reaches_no_client(run: Run) -> None:
    grid = make_grid(run, counting_app)
    arrays = ArrayRecord({"w": Array(np.array([1.0]))})
    replies = grid.send_and_receive(requests(grid, RecordDict({"arrays": arrays})))
    arrays["w"] = Array(np.array([50.0]))
    assert [weights(reply) for reply in replies] == [[2.0], [3.0], [4.0]]


def test_a_reply_and_the_clients_state_share_nothing(run: Run) -> None:
    app = ClientApp()

    @app.train()
    def keep(message: Message, context: Context) -> Message:
        context.state.setdefault("kept", ConfigRecord({"names": ["client"]}))
        return Message(context.state, reply_to=message)

    grid = make_grid(run, app)
    for _ in range(2):
        for reply in grid.send_and_receive(requests(grid, RecordDict())):
            assert reply.content["kept"] == ConfigRecord({"names": ["client"]})
            names = reply.content["kept"]["names"]
            assert isinstance(names, list)
            names.append("server")  # type: ignore[arg-type]


@pytest.mark.parametrize("client_threads", [1, 2])
def test_torch_threads_are_set_for_the_client_and_put_back(run: Run, client_threads: int) -> None:
    seen = []
    app = ClientApp()

    @app.train()
    def look(message: Message, context: Context) -> Message:
        seen.append(torch.get_num_threads())
        if context.node_config["partition-id"] == 1:
            raise ValueError("no luck")
        return Message(RecordDict(), reply_to=message)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        grid = make_grid(run, app, client_threads)
        for _ in grid.send_and_receive(requests(grid, RecordDict())):
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen == [client_threads] * 3


def slow_app(clock: Clock, called: list[int], seconds: float) -> ClientApp:
    app = ClientApp()

    @app.train()
    def work(message: Message, context: Context) -> Message:
        called.append(int(context.node_config["partition-id"]))
        clock.now += seconds
        return Message(RecordDict({"calls": ConfigRecord()}), reply_to=message)

    return app


def test_timeout_drops_the_late_reply_and_cancels_the_rest(run: Run, clock: Clock) -> None:
    called: list[int] = []
    grid = make_grid(run, slow_app(clock, called, seconds=2.0))
    first = list(grid.send_and_receive(requests(grid, RecordDict()), timeout=3.0))
    assert [grid.partition_of(reply.metadata.src_node_id) for reply in first] == [0]
    assert called == [0, 1]
    second = list(grid.send_and_receive(requests(grid, RecordDict()), timeout=6.0))
    assert [grid.partition_of(reply.metadata.src_node_id) for reply in second] == [0, 1, 2]
    assert called == [0, 1, 0, 1, 2]


def test_a_late_reply_that_nobody_dropped_is_still_to_be_had(run: Run, clock: Clock) -> None:
    grid = make_grid(run, slow_app(clock, [], seconds=2.0))
    message, *others = requests(grid, RecordDict())
    pushed = grid.push_messages([message])
    assert list(grid.send_and_receive(others, timeout=1.0)) == []
    assert len(grid.pull_messages(pushed)) == 1


def test_a_server_that_uses_up_the_time_gets_no_more_replies(run: Run, clock: Clock) -> None:
    called: list[int] = []
    grid = make_grid(run, slow_app(clock, called, seconds=0.0))
    replies = grid.send_and_receive(requests(grid, RecordDict()), timeout=3.0)
    next(replies)
    clock.now += 4.0
    assert list(replies) == []
    assert called == [0]
