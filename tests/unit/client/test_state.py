"""Client state: committed by acknowledgement, and by nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from client.state import ClientStore
from core.errors import RunError


def state(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((2,), value), "steps": torch.tensor(3)}


def test_only_the_acknowledged_round_is_read(tmp_path: Path) -> None:
    store = ClientStore(tmp_path / "clients", 4)
    assert store.read(0) is None
    store.write(1, state(1.0))
    assert store.read(1) is not None
    store.write(2, state(2.0))
    returned = store.read(1)
    assert returned is not None
    assert returned["w"].tolist() == [1.0, 1.0]
    assert returned["steps"].dtype == torch.int64
    with pytest.raises(RunError, match=r"round-00002.*cannot be read"):
        store.read(2)  # it was never acknowledged, and went when round 1 was read


def test_what_a_checkpoint_may_lead_back_to_is_kept(tmp_path: Path) -> None:
    store = ClientStore(tmp_path, 0)
    for number in range(1, 6):
        store.write(number, state(float(number)))
    assert store.read(5, retained_round=3) is not None
    assert sorted(path.name.split("-")[-1][:5] for path in tmp_path.iterdir()) == [
        "00003",
        "00004",
        "00005",
    ]
    returned = store.read(3, retained_round=3)
    assert returned is not None
    assert returned["w"].tolist() == [3.0, 3.0]
    assert len(list(tmp_path.iterdir())) == 1, "rounds 4 and 5 are to be done again"


def test_a_superseded_round_is_removed(tmp_path: Path) -> None:
    store = ClientStore(tmp_path, 0)
    other = ClientStore(tmp_path, 10)
    other.write(1, state(9.0))
    store.write(1, state(1.0))
    store.write(2, state(2.0))
    assert store.read(2, retained_round=2) is not None
    assert len(list(tmp_path.iterdir())) == 2
    assert other.read(1) is not None


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    store = ClientStore(tmp_path, 0)
    store.write(1, state(1.0))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(RunError, match=r"partition-00000\.round-00001"):
        store.read(1)
