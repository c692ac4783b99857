"""Run folders: whole files, appended lines, and what damage is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import RecordError
from core.records import (
    ClientRecord,
    EvaluationRecord,
    RoundRecord,
    RunFolder,
    scores_of,
    write_whole,
)
from core.scores import CLASSIFICATION, Score, Scores


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


def older_line(schema: int) -> dict[str, Any]:
    """A line as earlier versions wrote it; 1 told no outcome of a client."""
    judged = {
        "num_examples": 4,
        "loss": 0.5,
        "accuracy": 0.75,
        "macro_f1": 0.7,
        "per_class_accuracy": [1.0, None],
        "confusion": [[3, 1], [0, 0]],
    }
    client: dict[str, Any] = {"partition_id": 0, "bytes_down": 10, "bytes_up": 20, "failure": None}
    client |= {"metrics": {"a": 1.0}} | ({"outcome": "counted"} if schema == 2 else {})
    return {
        "round": 0,
        "validation": judged,
        "test": judged,
        "client_accuracy": [0.5, 1.0],
        "worst_client_accuracy": 0.5,
        "bytes_down": 10,
        "bytes_up": 20,
        "clients": [client],
        "server": {"displacement": 0.1},
        "seconds": {"wall": 1.0},
        "schema": schema,
    }


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder.create(tmp_path / "runs", "one", {"rounds": 1})
    made.write_json("config", {"rounds": 1})
    return made


def test_records_are_appended_and_read_back(folder: RunFolder) -> None:
    for number in range(3):
        folder.append_round(make_record(number))
    assert RunFolder.open(folder.path).read_rounds() == [make_record(n) for n in range(3)]


@pytest.mark.parametrize("schema", [1, 2])
def test_a_line_of_an_older_schema_is_brought_up_to_this_one(
    schema: int, folder: RunFolder
) -> None:
    folder.rounds.write_text(json.dumps(older_line(schema)) + "\n")
    (record,) = folder.read_rounds()
    assert record == make_record(0)
    assert record.schema == 3
    assert record.test is not None and record.test.primary == 0.75
    assert list(record.to_json()["test"]["scores"]) == ["accuracy", "macro_f1"]


def test_lines_of_several_schemas_stand_in_one_file(folder: RunFolder) -> None:
    """As where a run that an earlier version began goes on."""
    folder.rounds.write_text(json.dumps(older_line(2)) + "\n")
    folder.append_round(make_record(1))
    assert folder.read_rounds() == [make_record(0), make_record(1)]


def test_a_record_without_classes_is_read_back(folder: RunFolder) -> None:
    judged = EvaluationRecord(
        num_examples=8,
        loss=1.5,
        scores={"recall_at_1": 0.25, "median_rank": 3.0},
        per_class_accuracy=None,
        confusion=None,
    )
    record = dataclasses.replace(
        make_record(0), validation=judged, test=judged, client_scores=None, worst_client_score=None
    )
    folder.append_round(record)
    (found,) = folder.read_rounds()
    assert found == record
    assert found.test is not None and found.test.primary == 0.25


@pytest.mark.parametrize("scores", [None, {}, 0.5, [0.5]])
def test_an_evaluation_without_any_score_is_refused(scores: Any, folder: RunFolder) -> None:
    line = make_record(0).to_json()
    line["test"]["scores"] = scores
    folder.rounds.write_text(json.dumps(line) + "\n")
    with pytest.raises(RecordError, match=r"line 1.*object of at least one score"):
        folder.read_rounds()


def test_a_run_that_names_no_scores_was_of_classification(tmp_path: Path) -> None:
    assert scores_of({}, tmp_path) == CLASSIFICATION
    own = Scores([Score("recall_at_1", "R@1", is_percent=True)])
    assert scores_of({"scores": own.to_json()}, tmp_path) == own
    with pytest.raises(RecordError, match=r"run\.json has scores .* no list"):
        scores_of({"scores": 3}, tmp_path / "run.json")


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
