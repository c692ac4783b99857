"""Client state: committed by acknowledgement, and by nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from core.client_state import ClientStore
from core.errors import RecordError


def state(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((2,), value), "steps": torch.tensor(3)}


def store_in(folder: Path, partition_id: int = 0, identity: str = "a run") -> ClientStore:
    return ClientStore(folder, partition_id, identity)


def rounds_kept(folder: Path) -> list[int]:
    return sorted(int(path.stem.rpartition("-")[2]) for path in folder.iterdir())


def own_folder(folder: Path, partition_id: int = 0) -> Path:
    return folder / f"partition-{partition_id:05d}"


def test_the_round_asked_for_is_read(tmp_path: Path) -> None:
    store = store_in(tmp_path / "clients", 4)
    assert store.read(0) is None
    store.write(1, state(1.0))
    store.write(2, state(2.0))
    returned = store.read(1)
    assert returned is not None
    assert returned["w"].tolist() == [1.0, 1.0]
    assert returned["steps"].dtype == torch.int64


def test_what_was_never_acknowledged_goes(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    for number in (1, 2):
        store.write(number, state(float(number)))
    store.forget(1, 1)
    with pytest.raises(RecordError, match=r"round-00002.* is missing"):
        store.read(2)


def test_what_a_checkpoint_may_lead_back_to_is_kept(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    for number in range(1, 6):
        store.write(number, state(float(number)))
    store.forget(3, 5)
    assert rounds_kept(own_folder(tmp_path)) == [3, 4, 5]
    store.forget(3, 3)  # the run went on from round 3
    assert rounds_kept(own_folder(tmp_path)) == [3]
    returned = store.read(3)
    assert returned is not None
    assert returned["w"].tolist() == [3.0, 3.0]


def test_other_clients_files_stay(tmp_path: Path) -> None:
    store, other = store_in(tmp_path, 1), store_in(tmp_path, 10)
    other.write(1, state(9.0))
    store.write(1, state(1.0))
    store.forget(2, 2)
    assert other.read(1) is not None
    assert rounds_kept(own_folder(tmp_path, 1)) == []


@pytest.mark.parametrize("position", [0, 9, -1])
def test_a_damaged_file_is_named(position: int, tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store.write(1, state(1.0))
    (path,) = own_folder(tmp_path).iterdir()
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(RecordError, match=r"partition-00000/round-00001.*damaged"):
        store.read(1)


def test_a_file_in_anothers_place_is_refused(tmp_path: Path) -> None:
    store_in(tmp_path, 0).write(1, state(1.0))
    (path,) = own_folder(tmp_path).iterdir()
    own_folder(tmp_path, 1).mkdir()
    for name in ("partition-00001/round-00001", "partition-00000/round-00002"):
        shutil.copy(path, tmp_path / f"{name}.safetensors")
    with pytest.raises(RecordError, match="partition_id 0, not 1"):
        store_in(tmp_path, 1).read(1)
    with pytest.raises(RecordError, match="round 1, not 2"):
        store_in(tmp_path, 0).read(2)
    with pytest.raises(RecordError, match="identity a run, not another"):
        store_in(tmp_path, 0, "another").read(1)
