"""A checkpoint gives back what was put in, or is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import RecordError
from server.checkpoint import Checkpoint
from strategies.base import ServerState


@pytest.fixture
def checkpoint() -> Checkpoint:
    weights = {"w": torch.randn(3, 4), "steps": torch.tensor(7), "empty": torch.zeros(0)}
    slots = {"second-moment/w": torch.rand(3, 4, dtype=torch.float64)}
    return Checkpoint(12, ServerState(weights, slots), {0: 12, 3: 4}, 1)


def test_it_reads_back_bit_for_bit(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "round-0012.safetensors"
    checkpoint.write(path, "abc")
    back = Checkpoint.read(path, "abc")
    assert (back.round, back.acknowledged, back.empty_rounds) == (12, {0: 12, 3: 4}, 1)
    for before, after in (
        (checkpoint.state.weights, back.state.weights),
        (checkpoint.state.slots, back.state.slots),
    ):
        assert before.keys() == after.keys()
        for name, value in before.items():
            assert torch.equal(value, after[name])
            assert value.dtype == after[name].dtype


def test_one_of_no_replies_reads_back(checkpoint: Checkpoint, tmp_path: Path) -> None:
    Checkpoint(0, checkpoint.state, {}, 0).write(tmp_path / "c", "abc")
    assert Checkpoint.read(tmp_path / "c", "abc").acknowledged == {}


@pytest.mark.parametrize("position", [0, 8, 40, -1, -9, -60])
def test_a_flipped_bit_is_found_wherever_it_is(
    position: int, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    path = tmp_path / "round-0012.safetensors"
    checkpoint.write(path, "abc")
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(RecordError, match=r"round-0012\.safetensors .*; remove it to go on"):
        Checkpoint.read(path, "abc")


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_cut_file_is_refused(length: int, checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "c"
    checkpoint.write(path, "abc")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(RecordError, match="is damaged"):
        Checkpoint.read(path, "abc")


def test_a_foreign_one_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "c", "abc")
    with pytest.raises(RecordError, match=r"identity is abc, this run's is abd"):
        Checkpoint.read(tmp_path / "c", "abd")


@pytest.mark.parametrize(
    ("schema", "reason"), [("1", "an earlier version"), ("9", "another version")]
)
def test_another_schema_is_refused_by_name(
    schema: str, reason: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    checkpoint.write(tmp_path / "c", "abc")
    save_file(load_file(tmp_path / "c"), tmp_path / "d", {"schema": schema, "identity": "abc"})
    with pytest.raises(RecordError, match=rf"d has schema {schema}, of {reason}"):
        Checkpoint.read(tmp_path / "d", "abc")


def test_a_missing_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="nowhere"):
        Checkpoint.read(tmp_path / "nowhere", "abc")
