import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)

from core.errors import RunError
from engine.flwr_seam import run_identity
from engine.placement import WorkerPlan
from engine.ray_instance import OwnRay, _temp_root
from engine.ray_workers import RayWorkers
from engine.record_store import SHARED_FROM_BYTES, RecordStore


class Puts:
    """Stands in for the object store."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, record: ArrayRecord) -> int:
        self.count += 1
        return self.count


@pytest.fixture
def puts() -> Puts:
    return Puts()


def large(value: float = 0.0) -> ArrayRecord:
    return ArrayRecord({"w": Array(np.full(SHARED_FROM_BYTES, value, dtype=np.uint8))})


def test_a_large_record_is_put_once_for_all_messages(puts: Puts) -> None:
    store, record = RecordStore(puts), large()
    parts = [store.part(record) for _ in range(5)]
    assert puts.count == 1
    assert all(part is parts[0] for part in parts)


def test_a_record_made_of_the_same_arrays_is_the_same(puts: Puts) -> None:
    store, record = RecordStore(puts), large()
    assert store.part(record) is store.part(ArrayRecord(dict(record.items())))
    assert store.part(record) is not store.part(ArrayRecord({"v": record["w"]}))


def test_equal_content_in_other_bytes_and_changes_in_place_are_put_anew(puts: Puts) -> None:
    store, record = RecordStore(puts), large()
    store.part(record)
    store.part(large())
    record["w"] = Array(np.ones(SHARED_FROM_BYTES, dtype=np.uint8))
    store.part(record)
    assert puts.count == 3


def test_records_in_use_and_the_last_two_stay(puts: Puts) -> None:
    store = RecordStore(puts)
    records = [large(value) for value in range(4)]
    in_use = store.part(records[0])
    for record in records[1:]:
        store.part(record)
    assert store.part(records[0]) is in_use
    assert puts.count == 4
    store.part(records[3])
    assert puts.count == 4
    store.part(records[1])
    assert puts.count == 5


@pytest.mark.parametrize(
    "record",
    [
        ArrayRecord({"w": Array(np.zeros(8))}),
        MetricRecord({"values": [1.0, 2.0]}),
        ConfigRecord({"names": ["a"]}),
    ],
)
def test_small_records_travel_as_copies(
    puts: Puts, record: ArrayRecord | MetricRecord | ConfigRecord
) -> None:
    part = RecordStore(puts).part(record)
    assert part == record and part is not record
    assert puts.count == 0


def test_ray_that_does_not_start_is_told_at_the_first_call(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(**options: object) -> None:
        raise ConnectionError("no ports left")

    monkeypatch.setattr("engine.ray_instance.ray.init", fail)
    monkeypatch.setattr("engine.ray_instance._temp_root", lambda: tmp_path)
    workers = RayWorkers("client.app:app", OwnRay(WorkerPlan(1)))
    with run_identity(7):
        message = Message(RecordDict(), 2, "train")
    try:
        with pytest.raises(RunError, match=r"no ports left.*engine\.kind=in-process"):
            workers.submit(message, Context(7, 2, {}, RecordDict(), {}))
        assert len(list(tmp_path.iterdir())) == 1
    finally:
        workers.close()
    workers.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("root", ["/tmp", "/var/folders/zz/zyxvpxvq6csfxvn_n0000000000000/T"])
def test_rays_sockets_fit_into_107_bytes(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", root)
    session = "session_2026-11-21_04-03-18_463181_4194304"
    socket = f"{_temp_root()}/tessera-{'x' * 8}/{session}/sockets/plasma_store"
    assert len(os.fsencode(socket)) <= 107
