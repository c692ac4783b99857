"""Run folders: whole files, appended lines, and what damage is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import RecordError
from core.records import ClientRecord, EvaluationRecord, RoundRecord, RunFolder, write_whole


def make_record(number: int) -> RoundRecord:
    judged = EvaluationRecord(
        num_examples=4,
        loss=0.5,
        scores={"accuracy": 0.75, "macro_f1": 0.7},
        per_class_accuracy=[1.0, None],
        confusion=[[3, 1], [0, 0]],
    )
    return RoundRecord(
        round=number,
        validation=judged,
        test=judged,
        client_scores=[0.5, 1.0],
        worst_client_score=0.5,
        bytes_down=10,
        bytes_up=20,
        clients=[ClientRecord(partition_id=0, bytes_down=10, bytes_up=20, metrics={"a": 1.0})],
        server={"displacement": 0.1},
        seconds={"wall": 1.0},
    )


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder.create(tmp_path / "runs", "one", {"rounds": 1})
    made.write_json("config", {"rounds": 1})
    return made


def test_records_are_appended_and_read_back(folder: RunFolder) -> None:
    for number in range(3):
        folder.append_round(make_record(number))
    assert RunFolder.open(folder.path).read_rounds() == [make_record(n) for n in range(3)]


def test_a_line_cut_off_by_a_crash_is_left_out(folder: RunFolder) -> None:
    folder.append_round(make_record(0))
    folder.append_round(make_record(1))
    content = folder.rounds.read_bytes()
    folder.rounds.write_bytes(content[:-30])
    assert folder.read_rounds() == [make_record(0)]


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b"3", b'{"schema": 99}', b'{"schema": 1}', b"\xff\xfe", b""]
)
def test_a_damaged_line_is_refused_with_its_number(folder: RunFolder, line: bytes) -> None:
    folder.append_round(make_record(0))
    folder.rounds.write_bytes(folder.rounds.read_bytes() + line + b"\n")
    with pytest.raises(RecordError, match=r"rounds\.jsonl line 2"):
        folder.read_rounds()


def test_a_run_folder_is_never_reused(folder: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="exists"):
        RunFolder.create(tmp_path / "runs", "one", {"rounds": 1})


def test_only_run_folders_are_opened(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"no config\.json"):
        RunFolder.open(tmp_path)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_whole(path, b"old")
    with pytest.raises(TypeError):
        write_whole(path, "no bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_no_record_holds_nan(folder: RunFolder) -> None:
    with pytest.raises(ValueError, match="JSON"):
        folder.write_json("run", {"loss": float("nan")})
