"""The Ray engine: one Ray instance for the whole file.

Ray reads its settings when it is imported, so nothing here imports it before the engine does.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from core.errors import RunError
from engine.client_call import load_client_app
from engine.flwr_seam import Run, run_identity
from engine.grid import ResidentGrid
from engine.placement import WorkerPlan
from engine.ray_instance import OwnRay
from engine.ray_workers import RayWorkers
from engine.serial_workers import SerialWorkers
from tests.integration.grid_calls import exchange, large_arrays

CLIENT = "tests.unit.engine.counting_client:app"
NUM_PARTITIONS = 5
NUM_WORKERS = 2


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with run_identity(7) as run:
        yield run


@pytest.fixture(scope="module")
def workers() -> Iterator[RayWorkers]:
    # The GPU is only booked, never used: Ray divides it whether it is there or not.
    plan = WorkerPlan(NUM_WORKERS, num_gpus=1, gpus_per_worker=0.5)
    workers = RayWorkers(CLIENT, OwnRay(plan), client_threads=2)
    try:
        yield workers
    finally:
        workers.close()


@pytest.fixture
def grid(workers: RayWorkers, run: Run) -> ResidentGrid:
    return ResidentGrid(workers, num_partitions=NUM_PARTITIONS, run_config={"factor": 0.5}, run=run)


def processes(grid: ResidentGrid) -> list[ConfigRecord]:
    records = [reply.content["process"] for reply in exchange(grid, kind="query.process").values()]
    return [record for record in records if isinstance(record, ConfigRecord)]


def test_replies_are_those_of_the_in_process_engine(grid: ResidentGrid, run: Run) -> None:
    serial = ResidentGrid(
        SerialWorkers(load_client_app(CLIENT), client_threads=2),
        num_partitions=NUM_PARTITIONS,
        run_config={"factor": 0.5},
        run=run,
    )
    arrays = large_arrays()
    before = arrays["w"]
    for size in (arrays, ArrayRecord({"w": Array(np.arange(3.0))})):
        for config in (ConfigRecord(), ConfigRecord({"raise": 3}), ConfigRecord({"exit": 2})):
            from_ray, in_process = (exchange(each, size, config=config) for each in (grid, serial))
            assert from_ray.keys() == in_process.keys() == set(range(NUM_PARTITIONS))
            for partition_id, reply in in_process.items():
                twin = from_ray[partition_id]
                assert twin.has_error() == reply.has_error()
                if reply.has_error():
                    assert twin.error == reply.error
                else:
                    assert twin.content == reply.content
                    assert list(twin.content) == list(reply.content)
            failed = [p for p, reply in from_ray.items() if reply.has_error()]
            assert failed == [value for name, value in config.items()]
    assert list(arrays) == ["w"] and arrays["w"] is before


def test_a_large_record_is_put_once_a_round(
    grid: ResidentGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    put, records = ray.put, []

    def counting_put(record: ArrayRecord) -> object:
        records.append(record)
        return put(record)

    monkeypatch.setattr(ray, "put", counting_put)
    for _ in range(3):
        arrays = large_arrays()
        replies = exchange(grid, arrays)
        expected = arrays["w"].numpy() * 0.5
        for partition_id, reply in replies.items():
            content = reply.content["arrays"]
            assert isinstance(content, ArrayRecord)
            np.testing.assert_array_equal(content["w"].numpy(), expected + partition_id)
    assert len(records) == 3
    exchange(grid, ArrayRecord({"w": Array(np.zeros(3))}))
    assert len(records) == 3


def test_actors_see_the_drivers_folder_and_divide_the_gpu(grid: ResidentGrid) -> None:
    told = processes(grid)
    assert len(told) == NUM_PARTITIONS
    assert {record["folder"] for record in told} == {str(Path.cwd())}
    assert {record["cuda"] for record in told} == {"0"}
    assert {record["telemetry"] for record in told} == {"0"}
    assert {record["usage"] for record in told} == {"0"}
    pids = {record["pid"] for record in told}
    assert os.getpid() not in pids and len(pids) <= NUM_WORKERS


def test_timeout_drops_late_replies(grid: ResidentGrid, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    config = ConfigRecord({"gate": str(gate)})
    replies = exchange(grid, kind="query.wait", config=config, timeout=3.0)
    assert replies.keys() == {1, 2, 3, 4}
    # Each time one of two actors hangs; were it not replaced, the second time nobody would be left.
    content = RecordDict({"config": config})
    again = [Message(content, node_id, "query.wait") for node_id in grid.get_node_ids()]
    answers = iter(grid.send_and_receive(again, timeout=100))
    others = {grid.partition_of(next(answers).metadata.src_node_id) for _ in range(4)}
    assert others == {1, 2, 3, 4}
    del answers
    gate.touch()
    replies = exchange(grid, kind="query.wait", config=config)
    assert replies.keys() == {0, 1, 2, 3, 4}


def test_a_killed_actor_costs_one_reply_and_is_replaced(
    grid: ResidentGrid, capfd: pytest.CaptureFixture[str]
) -> None:
    arrays = large_arrays()
    exchange(grid, arrays)
    replies = exchange(grid, arrays, config=ConfigRecord({"kill": 1}))
    assert [p for p, reply in replies.items() if reply.has_error()] == [1]
    reason = replies[1].error.reason or ""
    assert reason.startswith("Actor"), reason
    assert replies[1].metadata.src_node_id == grid.node_of(1)
    after = exchange(grid, arrays)
    calls = {p: reply.content["metrics"]["calls"] for p, reply in after.items()}
    assert calls == {0: 3, 1: 2, 2: 3, 3: 3, 4: 3}
    assert capfd.readouterr().out == ""


def test_rays_of_others_are_left_alone(grid: ResidentGrid) -> None:
    import ray

    exchange(grid, kind="query.process")
    with pytest.raises(RunError, match=r"ray\.shutdown\(\)"):
        RayWorkers(CLIENT, OwnRay(WorkerPlan(1)))
    assert ray.is_initialized()
