"""The summary of a suite: means over seeds, and a choice that sees validation only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from core.records import EvaluationRecord, RoundRecord, RunFolder
from experiments.suite import SuiteResult, SuiteRun, parse_suite
from experiments.summary import Cell, summarise, to_json, to_text
from report.loading import LoadedRun

Accuracies = Mapping[tuple[str, int], tuple[float, float]]
"""Validation and test accuracy of a method's run under a seed."""


def evaluation(accuracy: float) -> EvaluationRecord:
    return EvaluationRecord(
        num_examples=10,
        loss=1.0,
        accuracy=accuracy,
        macro_f1=accuracy,
        per_class_accuracy=[accuracy, accuracy],
        confusion=[[5, 0], [0, 5]],
    )


def loaded(run: SuiteRun, validation: float, test: float) -> LoadedRun:
    record = RoundRecord(
        round=1,
        validation=evaluation(validation),
        test=evaluation(test),
        client_accuracy=[test],
        worst_client_accuracy=test,
        bytes_down=1000,
        bytes_up=2000,
        clients=[],
        server={},
        seconds={"client_sum": 1.0, "server": 1.0, "elapsed": 2.0},
    )
    return LoadedRun(
        folder=RunFolder(Path(run.config.name)),
        name=run.config.name,
        status="complete",
        failure=None,
        command="",
        started=datetime(2026, 1, 1, tzinfo=UTC),
        config=run.config.flat(),
        environment={},
        partition=None,
        privacy=None,
        rounds=(record,),
        class_names=("0", "1"),
    )


def result(accuracies: Accuracies) -> SuiteResult:
    """A suite of one plain method, one that sends raw images and three candidates."""
    suite = parse_suite(
        {
            "name": "s",
            "seeds": [0, 1],
            "methods": [
                {"label": "dm", "strategy": "feddm"},
                {"label": "raw", "strategy": "real-images"},
                *(
                    {"label": f"avg{n}", "strategy": "fedavg", "choose": "avg", "rounds": n}
                    for n in (1, 2, 3)
                ),
            ],
        }
    )
    runs = [
        (run, loaded(run, *accuracies[run.method, run.config.seed]))
        for run in suite.runs
        if (run.method, run.config.seed) in accuracies
    ]
    return SuiteResult(suite, tuple(runs), (), None)


COMPLETE: Accuracies = {
    ("dm", 0): (0.5, 0.40),
    ("dm", 1): (0.5, 0.44),
    ("raw", 0): (0.5, 0.3),
    ("raw", 1): (0.5, 0.3),
    ("avg1", 0): (0.70, 0.99),  # best on test, and it must not matter
    ("avg1", 1): (0.70, 0.99),
    ("avg2", 0): (0.90, 0.123),
    ("avg2", 1): (0.80, 0.125),
    ("avg3", 0): (0.80, 0.55),
    ("avg3", 1): (0.85, 0.55),
}


def by_method(cells: list[Cell]) -> dict[str, Cell]:
    return {cell.method: cell for cell in cells}


def test_the_best_mean_validation_accuracy_is_chosen() -> None:
    cells = by_method(summarise(result(COMPLETE)))
    roles = {method: cell.role for method, cell in cells.items()}
    assert roles == {
        "dm": "method",
        "raw": "method",
        "avg1": "candidate",
        "avg2": "chosen",
        "avg3": "candidate",
    }


def test_figures_are_mean_and_sample_deviation_over_seeds() -> None:
    row = by_method(summarise(result(COMPLETE)))["dm"].row
    assert row is not None
    assert row.test_accuracy is not None
    assert row.test_accuracy.mean == pytest.approx(0.42)
    assert row.test_accuracy.std == pytest.approx(0.04 / 2**0.5)
    assert row.bytes_up is not None
    assert (row.bytes_up.mean, row.bytes_up.std) == (2000, 0)


def test_test_figures_are_shown_of_the_chosen_candidate_only() -> None:
    cells = summarise(result(COMPLETE))
    text, values = to_text(cells), {value["method"]: value for value in to_json(cells)}
    assert "12.40" in text
    assert "99.00" not in text
    assert "55.00" not in text
    assert "avg2 is chosen; test figures are of the chosen candidate only" in text
    for figure in ("test_accuracy", "worst_client_accuracy", "macro_f1"):
        assert values["avg1"][figure] is None
        assert values["avg2"][figure] is not None
    assert values["avg1"]["validation_accuracy"]["mean"] == pytest.approx(0.7)
    json.dumps(values, allow_nan=False)


def test_a_candidate_without_all_seeds_is_not_chosen() -> None:
    without = {slot: value for slot, value in COMPLETE.items() if slot != ("avg2", 1)}
    cells = by_method(summarise(result(without)))
    assert (cells["avg2"].role, cells["avg3"].role) == ("candidate", "chosen")
    assert cells["avg2"].label == "avg2 (1 of 2 seeds)"


def test_no_candidate_with_all_seeds_is_said() -> None:
    without = {slot: value for slot, value in COMPLETE.items() if slot[1] == 0}
    text = to_text(summarise(result(without)))
    assert "avg: none is chosen, as none has all its seeds" in text


def test_of_equal_candidates_the_first_is_chosen() -> None:
    equal = {**COMPLETE, ("avg3", 0): (0.90, 0.5), ("avg3", 1): (0.80, 0.5)}
    cells = by_method(summarise(result(equal)))
    assert (cells["avg2"].role, cells["avg3"].role) == ("chosen", "candidate")


def test_a_method_that_sends_raw_images_is_marked() -> None:
    cells = summarise(result(COMPLETE))
    assert by_method(cells)["raw"].label == "raw (not private)"
    assert "raw (not private)" in to_text(cells)
    assert {value["method"] for value in to_json(cells) if value["sends_raw_images"]} == {"raw"}


def test_a_method_whose_runs_all_failed_has_a_row_of_dashes() -> None:
    without = {slot: value for slot, value in COMPLETE.items() if slot[0] != "dm"}
    (line,) = [line for line in to_text(summarise(result(without))).splitlines() if "dm" in line]
    assert line.split() == ["dm", "(0", "of", "2", "seeds)", "—", "—", "—", "—"]


def test_a_table_fits_eighty_columns() -> None:
    assert max(map(len, to_text(summarise(result(COMPLETE))).splitlines())) <= 80
