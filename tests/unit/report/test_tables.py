from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.scores import ACCURACY, CLASSIFICATION, Score
from report import tables
from report.loading import load_runs
from report.methods import compare
from report.tables import (
    Row,
    Statistic,
    measures,
    result_rows,
    to_csv,
    to_markdown,
    to_text,
)
from tests.unit.report.conftest import RETRIEVAL, make_retrieval

MakeRun = Callable[..., Path]


def rows_of(paths: list[Path]) -> list[Row]:
    return result_rows(compare(load_runs(paths)).methods)


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "rounds.jsonl").read_text().splitlines()]


def by_hand(path: Path) -> dict[str, float]:
    """The table's measures of one run, from nothing but its JSON lines."""
    rounds = records(path)
    best = 0
    for index, record in enumerate(rounds):
        if (
            record["validation"]["scores"]["accuracy"]
            > rounds[best]["validation"]["scores"]["accuracy"]
        ):
            best = index
    return {
        "test_accuracy": rounds[-1]["test"]["scores"]["accuracy"],
        "macro_f1": rounds[-1]["test"]["scores"]["macro_f1"],
        "worst_client_accuracy": rounds[-1]["worst_client_score"],
        "accuracy_at_best_validation": rounds[best]["test"]["scores"]["accuracy"],
        "bytes_up": sum(c["bytes_up"] for record in rounds for c in record["clients"]),
        "bytes_down": sum(c["bytes_down"] for record in rounds for c in record["clients"]),
        "client_s": sum(record["seconds"]["client_sum"] for record in rounds),
        "server_s": sum(record["seconds"]["server"] for record in rounds),
    }


def test_the_figures_are_the_records(three_methods: list[Path]) -> None:
    rows = rows_of(three_methods)
    assert [row.method.strategy for row in rows] == ["feddm", "fedavg", "real-images"]
    groups = [three_methods[:3], three_methods[3:6], three_methods[6:]]
    table = list(csv.DictReader(io.StringIO(to_csv(rows))))
    for row, cells, paths in zip(rows, table, groups, strict=True):
        expected = [by_hand(path) for path in paths]
        found = measures(row, CLASSIFICATION)
        for measure in expected[0]:
            values = np.array([figures[measure] for figures in expected])
            statistic = found[measure]
            assert statistic is not None and statistic.std is not None
            assert statistic.mean == pytest.approx(values.mean(), rel=1e-12)
            assert statistic.std == pytest.approx(values.std(ddof=1), rel=1e-9)
            assert float(cells[f"{measure}_mean"]) == statistic.mean
            assert float(cells[f"{measure}_std"]) == statistic.std
        assert row.rounds == (4, 4, 4)
        assert cells["rounds"] == "4 4 4"


def test_one_seed_has_no_deviation(make_run: MakeRun) -> None:
    path = make_run("fedavg", rounds=3)
    (row,) = rows_of([path])
    figures = by_hand(path)
    assert row.primary == Statistic(figures["test_accuracy"], None)
    table = to_markdown([row])
    assert f" {100 * figures['test_accuracy']:.2f} |" in table
    assert "±" not in table
    (cells,) = csv.DictReader(io.StringIO(to_csv([row])))
    assert cells["test_accuracy_std"] == ""
    assert float(cells["bytes_up_mean"]) == figures["bytes_up"]


def test_of_equal_validation_rounds_the_earliest_is_chosen(make_run: MakeRun) -> None:
    path = make_run("feddm", rounds=3)
    lines = records(path)
    for record, validation, test in zip(lines, (0.1, 0.8, 0.8, 0.7), (1, 2, 3, 4), strict=True):
        record["validation"]["scores"]["accuracy"] = validation
        record["test"]["scores"]["accuracy"] = test / 10
    (path / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (row,) = rows_of([path])
    assert row.at_best_validation == Statistic(0.2, None)
    assert row.primary == Statistic(0.4, None)


def test_a_run_without_records_has_empty_cells(make_run: MakeRun) -> None:
    path = make_run(status="running", done=0, rounds=5)
    (path / "rounds.jsonl").unlink()
    (row,) = rows_of([path])
    assert row.primary is None and row.at_best_validation is None
    text = to_text([row])
    assert "0 of 5" in text
    assert [line.split()[-1] for line in text.splitlines() if "Test accuracy" in line] == ["—"]


def test_another_workload_has_columns_and_keys_of_its_own(make_run: MakeRun) -> None:
    rows = rows_of([make_retrieval(make_run("fedavg", rounds=1), [0.1, 0.25])])
    head, _, row = (line.strip("| ").split(" | ") for line in to_markdown(rows).splitlines())
    assert head[1:6] == ["Seeds", "Test R@1, %", "R@5, %", "Median rank", "At best validation, %"]
    assert row[1:6] == ["0", "25.00", "50.00", "4.00", "25.00"]
    assert [key for key in measures(rows[0], RETRIEVAL) if "_up" not in key][:5] == [
        "test_recall_at_1", "test_recall_at_5", "test_median_rank", "worst_client_recall_at_1",
        "recall_at_1_at_best_validation",
    ]  # fmt: skip
    assert "accurac" not in to_csv(rows) + to_text(rows)


def test_an_unfinished_row_says_how_far_it_got(make_run: MakeRun) -> None:
    paths = [
        make_run("feddm", seed, rounds=9, done=done, status="failed", failure="x")
        for seed, done in ((0, 2), (1, 4))
    ]
    markdown = to_markdown(rows_of(paths))
    assert "| feddm (unfinished) | 0, 1 |" in markdown
    assert "| 2 to 4 of 9 |" in markdown


def test_raw_images_are_marked_in_every_form(make_run: MakeRun) -> None:
    rows = rows_of([make_run("real-images", rounds=1)])
    assert "| real-images (not private) |" in to_markdown(rows)
    assert "real-images (not private),true,true" in to_csv(rows)
    assert "(not private)" in to_text(rows)


def test_markdown_is_one_table_whatever_the_names(make_run: MakeRun) -> None:
    rows = rows_of([make_run("a|b\n<script>.py:X", name="hostile", rounds=1)])
    lines = to_markdown(rows).splitlines()
    assert len(lines) == 3
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert "<script>" not in to_markdown(rows)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_terminal_table_keeps_to_its_width(make_run: MakeRun, width: int) -> None:
    strategies = ("feddm", "fedavg", "real-images", "local", "centralized", "fedprox")
    paths = [make_run(name, seed, rounds=1) for name in strategies for seed in (0, 1)]
    rows = rows_of(paths)
    text = to_text(rows, width)
    assert max(map(len, text.splitlines())) <= width
    for row in rows:
        assert row.method.strategy in text
        assert tables.score_text(row.primary, ACCURACY) in text


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=8))
def test_statistics_agree_with_numpy(values: list[float]) -> None:
    statistic = Statistic.of([*values, None])
    assert statistic is not None
    assert statistic.mean == pytest.approx(np.mean(values))
    if len(values) == 1:
        assert statistic.std is None
    else:
        assert statistic.std == pytest.approx(np.std(values, ddof=1), abs=1e-6)


def test_nothing_known_has_no_statistic() -> None:
    assert Statistic.of([None]) is None


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (12, "12.00 B"), (4_000, "4.00 kB"), (290_000, "290.0 kB"),
     (61_200_000, "61.20 MB"), (1_250_000_000, "1.25 GB"), (2e12, "2.00 TB"), (3e15, "3,000 TB")],
)  # fmt: skip
def test_bytes_are_told_in_decimal_units(count: float, text: str) -> None:
    assert tables.plain_bytes(count) == text


def test_deviations_share_the_unit_of_their_mean() -> None:
    assert tables.amount_of_bytes(Statistic(1_250_000, 10_000)) == "1.25 ± 0.01 MB"
    assert tables.amount_of_bytes(Statistic(1_250_000, 0)) == "1.25 ± 0 MB"
    assert tables.amount_of_bytes(Statistic(1_250_000, None)) == "1.25 MB"
    assert tables.score_text(Statistic(0.9125, 0.0034), ACCURACY) == "91.25 ± 0.34"
    assert tables.seconds(Statistic(123.44, 1.25)) == "123.4 ± 1.2"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "—"),
        (Statistic(12.0, None), "12.00"),
        (Statistic(12.5, 0.7071), "12.50 ± 0.71"),
        (Statistic(1250.0, 3.2), "1,250 ± 3"),
        (Statistic(-3.25, 0.5), "-3.25 ± 0.50"),
        (Statistic(0.0, 0.5), "0.00 ± 0.50"),
    ],
)
def test_a_score_that_is_no_share_is_a_plain_number(value: Statistic | None, text: str) -> None:
    rank = Score("median_rank", "median rank", is_percent=False, higher_is_better=False)
    assert tables.score_text(value, rank) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Statistic(0.004213, 0.000871), "0.0042 ± 0.0009"),
        (Statistic(0.0421, None), "0.042"),
        (Statistic(0.421, 0.1), "0.42 ± 0.10"),
        (Statistic(0.0, 0.0), "0 ± 0"),
        (Statistic(1.0, 0.25), "1.00 ± 0.25"),
        (Statistic(2e-6, None), "0.0000020"),
    ],
)
def test_short_times_keep_significant_digits(value: Statistic, text: str) -> None:
    assert tables.seconds(value) == text


@given(st.floats(1e-9, 1e9))
def test_no_time_is_rounded_to_nothing(value: float) -> None:
    shown = float(tables.seconds(Statistic(value, None)).replace(",", ""))
    assert shown == pytest.approx(value, rel=0.051)


@pytest.mark.parametrize(
    ("seeds", "text"), [((0,), "0"), ((0, 1), "0, 1"), ((0, 1, 2, 5, 7, 8), "0 to 2, 5, 7, 8")]
)
def test_seeds_are_joined(seeds: tuple[int, ...], text: str) -> None:
    assert tables.seeds_text(seeds) == text
