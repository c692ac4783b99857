"""The summary of a suite: means over seeds, what was tuned, and the cost of the target."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from core.records import EvaluationRecord, RoundRecord, RunFolder
from core.scores import CLASSIFICATION, Score, Scores
from experiments.execution import SuiteResult
from experiments.suite import SuiteRun, parse_suite
from experiments.summary import Cell, summarise, to_json, to_text
from experiments.tuning import Trial, Tried, Tuned
from report.loading import LoadedRun, NoisedPrivacy, PrivacyStatement, SpentPrivacy
from tests.unit.experiments.conftest import round_record

RETRIEVAL = Scores(
    [
        Score("recall_at_1", "R@1", is_percent=True),
        Score("median_rank", "median rank", is_percent=False, higher_is_better=False),
    ]
)

Tests = Mapping[tuple[str, int], tuple[float, ...]]
"""Test accuracy of a method's run under a seed, by round from 1; validation is 0.01 less."""


def loaded(
    run: SuiteRun, tests: tuple[float, ...], status: str = "complete", **config: Any
) -> LoadedRun:
    rounds: list[RoundRecord] = [
        round_record(number, test - 0.01, test, bytes_up=1000 * number)
        for number, test in enumerate(tests, start=1)
    ]
    return LoadedRun(
        folder=RunFolder(Path(run.config.name)),
        name=run.config.name,
        status=status,
        failure=None,
        command="",
        started=datetime(2026, 1, 1, tzinfo=UTC),
        config={**run.config.flat(), **config},
        environment={},
        partition=None,
        privacy=None,
        rounds=tuple(rounds),
        class_names=("0", "1"),
        scores=CLASSIFICATION,
    )


def result(tests: Tests, **tables: object) -> SuiteResult:
    """A plain method, one that sends raw images, and one of which the second candidate won."""
    suite = parse_suite(
        {
            "name": "s",
            "seeds": [0, 1],
            "tuning": {"seeds": [1]},
            "methods": [
                {"label": "dm", "strategy": "feddm"},
                {"label": "raw", "strategy": "real-images"},
                {"label": "avg", "strategy": "fedavg", "grid": {"train.learning-rate": [1, 2]}},
            ],
            **tables,
        }
    )
    (tuning,) = suite.tunings
    tried = [
        Tried(candidate, (Trial(validation),))
        for candidate, validation in zip(tuning.candidates, (0.7, 0.8), strict=True)
    ]
    runs = [
        (run, loaded(run, tests[run.method, run.config.seed]))
        for run in suite.final_runs([tuning.candidates[1]])
        if (run.method, run.config.seed) in tests
    ]
    return SuiteResult(
        suite,
        CLASSIFICATION,
        (Tuned(tuning, tuple(tried)),),
        runs=tuple((run, one) for run, one in runs if one.finished),
        unfinished=tuple((run, one) for run, one in runs if not one.finished),
        failures=(),
        num_left=0,
        time_is_up=False,
        report=None,
        comparison=(),
    )


COMPLETE: Tests = {
    ("dm", 0): (0.3, 0.40),
    ("dm", 1): (0.3, 0.44),
    ("raw", 0): (0.3, 0.3),
    ("raw", 1): (0.3, 0.3),
    ("avg", 0): (0.2, 0.123),
    ("avg", 1): (0.2, 0.125),
}


def by_method(cells: list[Cell]) -> dict[str, Cell]:
    return {cell.method: cell for cell in cells}


def json_by_method(found: SuiteResult) -> dict[str, dict[str, Any]]:
    return {value["method"]: value for value in to_json(found)}


def test_figures_are_mean_and_sample_deviation_over_seeds() -> None:
    row = by_method(summarise(result(COMPLETE)))["dm"].row
    assert row is not None
    assert row.primary is not None
    assert row.primary.mean == pytest.approx(0.42)
    assert row.primary.std == pytest.approx(0.04 / 2**0.5)
    assert row.bytes_up is not None
    assert (row.bytes_up.mean, row.bytes_up.std) == (3000, 0)


def test_what_was_tuned_is_told() -> None:
    found = result(COMPLETE)
    text, values = to_text(found), json_by_method(found)
    assert "avg, tuned on seed 1: validation accuracy after the last round, %" in text
    assert "learning-rate=2  80.00  taken" in text
    assert "learning-rate=1  70.00\n" in text
    assert values["avg"]["tuned_keys"] == {"train.learning-rate": 2}
    assert values["dm"]["tuned_keys"] is None
    assert values["avg"]["test_accuracy"]["mean"] == pytest.approx(0.124)
    assert values["avg"]["validation_accuracy"]["mean"] == pytest.approx(0.114)
    json.dumps(values, allow_nan=False)


def as_retrieval(run: LoadedRun) -> LoadedRun:
    """The same run of a workload without classes, whose median rank is 1 by its R@1."""

    def judged(record: EvaluationRecord | None) -> EvaluationRecord | None:
        if record is None:
            return None
        scores = {"recall_at_1": record.primary, "median_rank": 1 / record.primary}
        return dataclasses.replace(record, scores=scores, per_class_accuracy=None, confusion=None)

    rounds = tuple(
        dataclasses.replace(
            record,
            validation=judged(record.validation),
            test=judged(record.test),
            client_scores=None,
            worst_client_score=None,
        )
        for record in run.rounds
    )
    return dataclasses.replace(run, scores=RETRIEVAL, rounds=rounds)


def test_another_workload_is_summed_up_by_its_own_scores() -> None:
    found = result(COMPLETE, **{"target-score": 0.4})
    runs = tuple((run, as_retrieval(one)) for run, one in found.runs)
    found = dataclasses.replace(found, scores=RETRIEVAL, runs=runs)
    text, value = to_text(found), json_by_method(found)["dm"]
    assert "accurac" not in text + json.dumps(value)
    assert "avg, tuned on seed 1: validation R@1 after the last round, %" in text
    head = next(line for line in text.splitlines() if line.startswith("method"))
    assert head.split() == ["method", "test,", "%", "uploaded", "client", "s"]
    (row,) = [line for line in text.splitlines() if line.startswith("dm  ")][:1]
    assert row.split()[1:4] == ["42.00", "±", "2.83"]
    assert "to 40% test R@1" in text
    assert value["test_recall_at_1"]["mean"] == pytest.approx(0.42)
    assert value["test_median_rank"]["mean"] == pytest.approx((1 / 0.40 + 1 / 0.44) / 2)
    assert value["validation_recall_at_1"]["mean"] == pytest.approx(0.41)
    assert value["recall_at_1_at_best_validation"]["mean"] == pytest.approx(0.42)
    assert value["worst_client_recall_at_1"] is None
    assert value["target"]["test_recall_at_1"] == 0.4


def test_the_keys_of_classification_are_what_they_were() -> None:
    found = json_by_method(result(COMPLETE, **{"target-accuracy": 0.4}))["dm"]
    assert found.keys() >= {
        "validation_accuracy", "test_accuracy", "accuracy_at_best_validation", "best_rounds",
        "worst_client_accuracy", "macro_f1", "bytes_up", "bytes_down", "client_s", "server_s",
        "epsilon",
    }  # fmt: skip
    assert found["target"].keys() == {"test_accuracy", "seeds", "rounds", "bytes_up"}


def test_the_cost_of_the_target_is_that_of_the_first_round_at_or_above_it() -> None:
    """Bytes of round r are 1000 r: to round 1 they are 1000, to round 2 3000."""
    tests: Tests = {
        **COMPLETE,
        ("dm", 0): (0.3, 0.5, 0.2),
        ("dm", 1): (0.6, 0.4, 0.2),
        ("raw", 0): (0.5, 0.5, 0.5),
        ("raw", 1): (0.4, 0.49, 0.4999),
    }
    found = result(tests, **{"target-accuracy": 0.5})
    cells, values = by_method(summarise(found)), json_by_method(found)
    target = cells["dm"].target
    assert target is not None
    assert target.seeds == (0, 1)
    assert target.rounds is not None
    assert target.bytes_up is not None
    assert (target.rounds.mean, target.bytes_up.mean) == (1.5, 2000)
    assert target.bytes_up.std == pytest.approx(1000 * 2**0.5)
    assert values["raw"]["target"] == {
        "test_accuracy": 0.5,
        "seeds": [0],
        "rounds": {"mean": 1.0, "std": None},
        "bytes_up": {"mean": 1000.0, "std": None},
    }
    assert values["avg"]["target"]["rounds"] is None
    lines = [line.split() for line in to_text(found).splitlines()]
    assert ["to", "50%", "test", "accuracy", "rounds", "uploaded"] in lines
    assert ["raw", "(1", "of", "2", "runs)", "1", "1.00", "kB"] in lines
    assert ["avg", "(0", "of", "2", "runs)", "—", "—"] in lines


def test_without_a_target_none_is_told() -> None:
    found = result(COMPLETE)
    assert all(cell.target is None for cell in summarise(found))
    assert all(value["target"] is None for value in to_json(found))
    assert "rounds" not in to_text(found)


def test_a_table_for_each_setting() -> None:
    settings = [{"label": "a"}, {"label": "b", "partition.alpha": 0.1}]
    found = result(COMPLETE, settings=settings, tuning={"setting": "b", "seeds": [1]})
    text = to_text(found)
    assert "a: after the last round" in text
    assert "b: after the last round" in text
    assert [(cell.setting, cell.method) for cell in summarise(found)] == [
        (setting, method) for setting in ("a", "b") for method in ("dm", "raw", "avg")
    ]
    assert all(len(cell.runs) == 2 for cell in summarise(found))


def test_a_method_that_sends_raw_images_is_marked() -> None:
    found = result(COMPLETE)
    assert by_method(summarise(found))["raw"].label == "raw (not private)"
    assert "raw (not private)" in to_text(found)
    assert {value["method"] for value in to_json(found) if value["sends_raw_images"]} == {"raw"}


def test_an_attack_is_marked_where_not_all_are_under_it() -> None:
    methods = [
        {"label": "calm", "strategy": "fedavg"},
        {"label": "hit", "strategy": "fedavg", "attack.kind": "sign-flip", "attack.fraction": 0.2},
        {"label": "avg", "strategy": "fedavg", "grid": {"train.learning-rate": [1, 2]}},
    ]
    tests = {("calm", 0): (0.5,), ("hit", 0): (0.4,), ("avg", 0): (0.6,)}
    found = result(tests, methods=methods, seeds=[0], tuning={})
    mark = "attack: sign-flip, 20% of clients"
    assert by_method(summarise(found))["hit"].label == f"hit ({mark})"
    assert next(line for line in to_text(found).splitlines() if mark in line).startswith("hit (")
    values = json_by_method(found)
    assert values["hit"]["attack"] == "sign-flip, 20% of clients"
    assert (values["calm"]["attack"], values["avg"]["attack"]) == (None, None)


def test_an_attack_on_all_is_told_once_above_the_table() -> None:
    attacked = {"base": {"attack.kind": "sign-flip", "attack.fraction": 0.2}}
    methods = [
        {"label": "dm", "strategy": "fedavg"},
        {"label": "avg", "strategy": "fedavg", "grid": {"train.learning-rate": [1, 2]}},
    ]
    found = result(COMPLETE, methods=methods, **attacked)
    lines = to_text(found).splitlines()
    assert lines.count("attack: sign-flip, 20% of clients") == 1
    assert sum("attack" in line for line in lines) == 1
    assert {value["attack"] for value in to_json(found)} == {"sign-flip, 20% of clients"}
    assert max(map(len, lines)) <= 80


def test_the_best_rounds_are_those_of_highest_validation_accuracy() -> None:
    """Validation is the test accuracy less 0.01, so both are best in the same round."""
    tests: Tests = {**COMPLETE, ("dm", 0): (0.5, 0.7, 0.7), ("dm", 1): (0.6, 0.2, 0.3)}
    value = json_by_method(result(tests))["dm"]
    assert value["best_rounds"] == [2, 1]
    assert value["accuracy_at_best_validation"]["mean"] == pytest.approx(0.65)
    assert value["test_accuracy"]["mean"] == pytest.approx(0.5)


def test_unfinished_runs_mark_their_method_and_have_no_part_in_its_figures() -> None:
    found = result(COMPLETE)
    raw = next(run for run, _ in found.runs if run.method == "raw")
    cut = loaded(raw, (0.9,), "failed")
    found = dataclasses.replace(
        found, runs=tuple(pair for pair in found.runs if pair[0] != raw), unfinished=((raw, cut),)
    )
    cell = by_method(summarise(found))["raw"]
    assert (cell.unfinished, [run.seed for run in cell.runs]) == ((cut,), [1])
    assert cell.label == "raw (not private, 1 of 2 seeds)"
    assert json_by_method(found)["raw"]["test_accuracy"]["mean"] == 0.3


def test_missing_seeds_are_marked() -> None:
    found = result({slot: value for slot, value in COMPLETE.items() if slot != ("dm", 1)})
    assert by_method(summarise(found))["dm"].label == "dm (1 of 2 seeds)"
    assert json_by_method(found)["dm"]["seeds"] == [0]


def test_a_method_whose_runs_all_failed_has_a_row_of_dashes() -> None:
    found = result({slot: value for slot, value in COMPLETE.items() if slot[0] != "dm"})
    (line,) = [line for line in to_text(found).splitlines() if line.startswith("dm")]
    assert line.split() == ["dm", "(0", "of", "2", "seeds)", "—", "—", "—", "—"]
    assert "no run is complete" in to_text(result({}))


def test_a_table_fits_eighty_columns() -> None:
    found = result(COMPLETE, **{"target-accuracy": 0.9})
    assert max(map(len, to_text(found).splitlines())) <= 80


def spent(run: LoadedRun, epsilon: float | None, note: str = "") -> LoadedRun:
    noised = NoisedPrivacy(
        unit="example", mechanism="dp-sgd", delta=1e-5, noise_multiplier=1.5, clip=1.0,
        sampling_rate=0.1, steps_per_round=5, rounds=2, accountant="prv", budget=4.0,
        epsilon_per_round=2.0, epsilon_whole_run=3.995, rdp_epsilon_per_round=2.5,
        rdp_epsilon_whole_run=4.5,
        spent=SpentPrivacy(epsilon, "prv", note, {0: epsilon}, epsilon),
    )  # fmt: skip
    return dataclasses.replace(run, privacy=PrivacyStatement("words", "none", "words", noised))


def test_rows_gain_epsilon_where_any_run_is_private() -> None:
    found = result(COMPLETE)
    assert "epsilon" not in to_text(found)
    runs = tuple((run, spent(one, 3.5) if run.method == "avg" else one) for run, one in found.runs)
    private = dataclasses.replace(found, runs=runs)
    _, _, table = to_text(private).partition("\nmethod")
    head, *rows = table.splitlines()
    assert "epsilon per example" in head
    by_label = {row.split()[0]: row for row in rows if row}
    assert " 3.5 " in by_label["avg"] and " no noise " in by_label["dm"]
    told = json_by_method(private)
    assert told["avg"]["epsilon"] == {"mean": 3.5, "std": 0.0}
    assert told["avg"]["privacy"] == {
        "mechanism": "dp-sgd", "unit": "example", "delta": 1e-5, "budget": 4.0,
        "noise_multiplier": 1.5, "accountant": "prv", "note": "",
    }  # fmt: skip
    assert told["dm"]["epsilon"] is told["dm"]["privacy"] is None


def test_a_refused_epsilon_is_no_number_in_the_summary() -> None:
    found = result(COMPLETE)
    runs = tuple(
        (run, spent(one, None, "refused: seeded noise") if run.method == "avg" else one)
        for run, one in found.runs
    )
    refused = dataclasses.replace(found, runs=runs)
    assert "refused: seeded noise" in to_text(refused)
    assert json_by_method(refused)["avg"]["epsilon"] is None
