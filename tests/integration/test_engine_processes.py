"""Clients in forked processes: replies as in one process, and nothing left behind."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from core.errors import RunError
from engine.client_call import load_client_app
from engine.flwr_seam import Run, run_identity
from engine.grid import ResidentGrid
from engine.process_workers import SPARE_FILES, ProcessWorkers
from engine.resident_client import KEPT_RECORDS
from engine.serial_workers import SerialWorkers
from tests.integration.grid_calls import exchange, large_arrays

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

CLIENT = "tests.unit.engine.counting_client:app"
NUM_PARTITIONS = 5
NUM_WORKERS = 2


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with run_identity(7) as run:
        yield run


@pytest.fixture(scope="module")
def workers() -> Iterator[ProcessWorkers]:
    workers = ProcessWorkers(CLIENT, num_workers=NUM_WORKERS, client_threads=2)
    try:
        yield workers
    finally:
        workers.close()


@pytest.fixture
def grid(workers: ProcessWorkers, run: Run) -> ResidentGrid:
    return ResidentGrid(workers, num_partitions=NUM_PARTITIONS, run_config={"factor": 0.5}, run=run)


def process_ids(grid: ResidentGrid) -> set[int]:
    """Of the processes that answer."""
    pids = set()
    for reply in exchange(grid, kind="query.process").values():
        record = reply.content["process"]
        assert isinstance(record, ConfigRecord) and isinstance(record["pid"], int)
        assert record["folder"] == str(Path.cwd())
        pids.add(record["pid"])
    return pids


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{pid}").exists()


def test_replies_are_those_of_the_in_process_engine(grid: ResidentGrid, run: Run) -> None:
    serial = ResidentGrid(
        SerialWorkers(load_client_app(CLIENT), client_threads=2),
        num_partitions=NUM_PARTITIONS,
        run_config={"factor": 0.5},
        run=run,
    )
    arrays = large_arrays()
    before = arrays["w"]
    for size in (arrays, ArrayRecord({"w": Array(np.arange(3.0))}), ArrayRecord({"w": before})):
        for config in (ConfigRecord(), ConfigRecord({"raise": 3}), ConfigRecord({"exit": 2})):
            found, in_process = (exchange(each, size, config=config) for each in (grid, serial))
            assert found.keys() == in_process.keys() == set(range(NUM_PARTITIONS))
            for partition_id, reply in in_process.items():
                twin = found[partition_id]
                assert twin.has_error() == reply.has_error()
                if reply.has_error():
                    assert twin.error == reply.error
                else:
                    assert twin.content == reply.content
                    assert list(twin.content) == list(reply.content)
            failed = [p for p, reply in found.items() if reply.has_error()]
            assert failed == [value for name, value in config.items()]
    assert list(arrays) == ["w"] and arrays["w"] is before


def test_a_large_record_is_written_once_a_round_and_few_files_stay(
    grid: ResidentGrid, workers: ProcessWorkers
) -> None:
    """Of other sizes in turn, for files are written over."""
    names: set[str] = set()
    for value, rows in enumerate((100, 300, 100, 200, 400, 50, 100)):
        arrays = ArrayRecord({"w": Array(np.full((rows, 400), float(value)))})
        for partition_id, reply in exchange(grid, arrays).items():
            content = reply.content["arrays"]
            assert isinstance(content, ArrayRecord)
            expected = np.full((rows, 400), 0.5 * value + partition_id)
            np.testing.assert_array_equal(content["w"].numpy(), expected)
        stored = {path.name: path.stat().st_size for path in workers.folder.glob("record-*")}
        assert len(stored) <= KEPT_RECORDS + SPARE_FILES
        assert arrays.count_bytes() - len("w") in stored.values()
        names |= stored.keys()
    assert len(names) <= KEPT_RECORDS + SPARE_FILES


def test_a_worker_that_was_left_out_reads_a_file_anew(run: Run) -> None:
    """Three workers take turns at one client, and three files hold what it is sent."""
    workers = ProcessWorkers(CLIENT, num_workers=KEPT_RECORDS + SPARE_FILES)
    try:
        grid = ResidentGrid(workers, num_partitions=1, run_config={"factor": 1.0}, run=run)
        for value in range(3 * (KEPT_RECORDS + SPARE_FILES)):
            arrays = ArrayRecord({"w": Array(np.full((100, 400), float(value)))})
            (reply,) = exchange(grid, arrays).values()
            content = reply.content["arrays"]
            assert isinstance(content, ArrayRecord)
            np.testing.assert_array_equal(content["w"].numpy(), np.full((100, 400), float(value)))
    finally:
        workers.close()


def test_the_processes_stay_and_are_others(grid: ResidentGrid) -> None:
    pids = process_ids(grid) | process_ids(grid)
    assert os.getpid() not in pids and len(pids) <= NUM_WORKERS


def test_timeout_drops_late_replies(grid: ResidentGrid, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    config = ConfigRecord({"gate": str(gate)})
    replies = exchange(grid, kind="query.wait", config=config, timeout=3.0)
    assert replies.keys() == {1, 2, 3, 4}
    # Each time one of two workers hangs; were it not replaced, the second time none would be left.
    content = RecordDict({"config": config})
    again = [Message(content, node_id, "query.wait") for node_id in grid.get_node_ids()]
    answers = iter(grid.send_and_receive(again, timeout=100))
    others = {grid.partition_of(next(answers).metadata.src_node_id) for _ in range(4)}
    assert others == {1, 2, 3, 4}
    del answers
    gate.touch()
    replies = exchange(grid, kind="query.wait", config=config)
    assert replies.keys() == {0, 1, 2, 3, 4}


def test_a_killed_worker_costs_one_reply_and_is_replaced(
    grid: ResidentGrid, workers: ProcessWorkers
) -> None:
    arrays = large_arrays()
    exchange(grid, arrays)
    replies = exchange(grid, arrays, config=ConfigRecord({"kill": 1}))
    assert [p for p, reply in replies.items() if reply.has_error()] == [1]
    assert (replies[1].error.reason or "").startswith("WorkerDied")
    assert replies[1].metadata.src_node_id == grid.node_of(1)
    after = exchange(grid, arrays)
    calls = {p: reply.content["metrics"]["calls"] for p, reply in after.items()}
    assert calls == {0: 3, 1: 2, 2: 3, 3: 3, 4: 3}
    names = {path.name.rpartition("-")[0] for path in workers.folder.glob("*worker-*")}
    assert len(names) <= 2 * NUM_WORKERS


def test_a_worker_that_is_killed_while_idle_is_replaced(grid: ResidentGrid) -> None:
    for pid in process_ids(grid):
        os.kill(pid, signal.SIGKILL)
        wait_until_gone(pid)
    replies = exchange(grid, kind="query.process")
    assert sum(reply.has_error() for reply in replies.values()) <= NUM_WORKERS
    assert not any(reply.has_error() for reply in exchange(grid, kind="query.process").values())


def test_a_reply_that_cannot_be_written_is_told_and_the_worker_lives_on(run: Run) -> None:
    workers = ProcessWorkers(CLIENT, num_workers=1)
    try:
        grid = ResidentGrid(workers, num_partitions=2, run_config={"factor": 1.0}, run=run)
        before = process_ids(grid)
        for reply in exchange(grid, large_arrays(), config=ConfigRecord({"full": 1})).values():
            assert reply.has_error()
            assert (reply.error.reason or "").startswith("OSError: the reply cannot be written")
        assert process_ids(grid) == before
    finally:
        workers.close()


def test_a_request_that_cannot_be_written_ends_the_run(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = ProcessWorkers(CLIENT, num_workers=1)
    try:
        grid = ResidentGrid(workers, num_partitions=2, run_config={"factor": 1.0}, run=run)
        process_ids(grid)

        def fail(*arguments: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("engine.process_workers.write_record", fail)
        with pytest.raises(RunError, match=r"No space left on device; give it more room, or set"):
            exchange(grid, large_arrays())
    finally:
        workers.close()


def test_closing_ends_all_and_removes_all(run: Run) -> None:
    workers = ProcessWorkers(CLIENT, num_workers=2)
    grid = ResidentGrid(workers, num_partitions=3, run_config={"factor": 1.0}, run=run)
    pids, folder = process_ids(grid), workers.folder
    assert folder.exists()
    workers.close()
    workers.close()
    assert not folder.exists()
    for pid in pids:
        wait_until_gone(pid)


def test_an_app_that_cannot_be_imported_is_told(run: Run) -> None:
    workers = ProcessWorkers("no_such_module:app", num_workers=2)
    try:
        message = Message(RecordDict(), 2, "train")
        with pytest.raises(RunError, match=r"No module named 'no_such_module'.*in-process"):
            workers.submit(message, Context(7, 2, {}, RecordDict(), {}))
    finally:
        workers.close()
    assert not workers.folder.exists()


PARENT = """
import os, sys
from flwr.app import ConfigRecord, Message, RecordDict
from engine.flwr_seam import run_identity
from engine.grid import ResidentGrid
from engine.process_workers import ProcessWorkers
with run_identity(7) as run:
    workers = ProcessWorkers("tests.unit.engine.counting_client:app", num_workers=2)
    grid = ResidentGrid(workers, num_partitions=2, run_config={}, run=run)
    config = ConfigRecord()
    messages = [Message(RecordDict({"config": config}), n, "query.process") for n in (2, 3)]
    pids = [r.content["process"]["pid"] for r in grid.send_and_receive(messages)]
    print(workers.folder, *pids, flush=True)
    os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_outlives_a_killed_run() -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", PARENT]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=100)
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder, *pids = done.stdout.split()
    for pid in pids:
        wait_until_gone(int(pid))
    assert not Path(folder).exists()
