"""What a round's line says of privacy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from core.records import EvaluationRecord, RoundRecord, RunFolder
from core.scores import ACCURACY, Score, Scores
from server.progress import PlainProgress, epsilon_told, round_line

RECORD = RoundRecord(
    round=2,
    validation=None,
    test=None,
    client_scores=None,
    worst_client_score=None,
    bytes_down=10,
    bytes_up=20,
    clients=[],
    server={"epsilon": 1.2345},
    seconds={"wall": 1.5},
)


def folder(path: Path, **statement: Any) -> Path:
    RunFolder(path).write_json("privacy", statement)
    RunFolder(path).write_json("run", {})
    return path


@pytest.mark.parametrize(
    ("statement", "server", "told"),
    [
        ({"mechanism": "dp-sgd", "budget": 4.0}, {"epsilon": 1.2345}, "epsilon 1.234 of 4"),
        ({"mechanism": "client", "budget": None}, {"epsilon": 85.1}, "epsilon 85.1"),
        (
            {"mechanism": "dp-sgd", "budget": 4.0, "spent": {"note": "refused: seeded noise"}},
            {},
            "epsilon refused: seeded noise",
        ),
        ({"mechanism": "dp-sgd", "budget": 4.0}, {}, "epsilon unknown"),
        ({"guarantee": "none"}, {}, ""),
    ],
)
def test_what_has_been_spent(
    statement: dict[str, Any], server: dict[str, float], told: str, tmp_path: Path
) -> None:
    record = dataclasses.replace(RECORD, server=server)
    assert epsilon_told(record, folder(tmp_path, **statement)) == told


def test_before_the_first_round_and_without_a_statement_nothing_is_said(tmp_path: Path) -> None:
    assert epsilon_told(RECORD, tmp_path) == ""
    first = dataclasses.replace(RECORD, round=0)
    assert epsilon_told(first, folder(tmp_path, mechanism="dp-sgd", budget=1.0)) == ""


def test_the_line_of_a_round_holds_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress = PlainProgress()
    progress.run_started(folder(tmp_path, mechanism="dp-sgd", budget=4.0), 5, 0)
    progress.round_ended(RECORD)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == "round 2/5  not evaluated  epsilon 1.234 of 4  up 20 B  down 10 B  1.5 s"
    assert "epsilon" not in round_line(RECORD, 5, ACCURACY)


def test_the_line_of_a_round_tells_the_primary_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recall = Score("recall_at_1", "R@1", is_percent=True)
    rank = Score("median_rank", "median rank", is_percent=False, higher_is_better=False)
    run = {"scores": Scores([recall, rank]).to_json()}
    RunFolder(tmp_path).write_json("run", run)
    judged = EvaluationRecord(
        num_examples=8,
        loss=1.0,
        scores={"recall_at_1": 0.0625, "median_rank": 4.0},
        per_class_accuracy=None,
        confusion=None,
    )
    progress = PlainProgress()
    progress.run_started(tmp_path, 5, 0)
    progress.round_ended(dataclasses.replace(RECORD, test=judged, validation=judged))
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("round 2/5  test R@1  6.25%  validation  6.25%  up 20 B")
    noise = Score("psnr", "PSNR", is_percent=False)
    louder = dataclasses.replace(judged, scores={"psnr": 31.25})
    line = round_line(dataclasses.replace(RECORD, test=louder), 5, noise)
    assert line.startswith("round 2/5  test PSNR  31.25  up 20 B")
