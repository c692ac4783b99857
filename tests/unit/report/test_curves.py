from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from report.curves import curve, trains_on_clients, uploads_no_update
from report.loading import load_run, load_runs
from tests.unit.report.conftest import judged_as

MakeRun = Callable[..., Path]


def test_a_curve_is_the_mean_of_its_seeds(five_methods: list[Path]) -> None:
    runs = load_runs(five_methods[:3])
    points = curve(runs)
    accuracy = np.array(
        [[record.test.primary for record in run.rounds if record.test] for run in runs]
    )
    sent = np.array([[record.bytes_up for record in run.rounds] for run in runs])
    trained = np.array([[r.seconds["client_sum"] for r in run.rounds] for run in runs])
    elapsed = np.array([[r.seconds["elapsed"] for r in run.rounds] for run in runs])
    assert points.rounds == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(points.score, accuracy.mean(axis=0))
    np.testing.assert_allclose(points.std, accuracy.std(axis=0, ddof=1))
    np.testing.assert_allclose(points.lowest, accuracy.min(axis=0))
    np.testing.assert_allclose(points.highest, accuracy.max(axis=0))
    np.testing.assert_allclose(points.bytes_up, sent.cumsum(axis=1).mean(axis=0))
    np.testing.assert_allclose(points.client_s, trained.cumsum(axis=1).mean(axis=0))
    np.testing.assert_allclose(points.elapsed_s, elapsed.mean(axis=0))


def test_one_seed_has_no_spread(make_run: MakeRun) -> None:
    points = curve([load_run(make_run(rounds=2))])
    assert points.std == [0, 0, 0]
    assert points.lowest == points.score == points.highest


def test_a_curve_keeps_to_rounds_that_every_seed_evaluated(make_run: MakeRun) -> None:
    runs = load_runs(
        [make_run("feddm", s, rounds=9, done=d, status="running") for s, d in ((0, 5), (1, 3))]
    )
    assert curve(runs).rounds == [0, 1, 2, 3]


def test_costs_count_the_rounds_between_evaluations(make_run: MakeRun) -> None:
    run = load_run(make_run("fedavg", rounds=5, clients=3, evaluate_every=2))
    points = curve([run])
    assert points.rounds == [0, 2, 4, 5]
    assert points.bytes_up == [612_000 * 3 * r for r in (0, 2, 4, 5)]


def test_a_curve_before_any_evaluation_is_empty(make_run: MakeRun) -> None:
    path = make_run(status="running", done=0)
    (path / "rounds.jsonl").unlink()
    assert curve([load_run(path)]).rounds == []
    assert curve([]).rounds == []


def test_rounds_of_no_cost_are_left_out_together(make_run: MakeRun) -> None:
    points = curve([load_run(make_run("fedavg", rounds=3))])
    kept = points.where_positive(points.bytes_up)
    assert kept.rounds == [1, 2, 3]
    assert kept.score == points.score[1:]
    assert kept.client_s == points.client_s[1:]
    assert points.where_positive([0, 1, 0, 1]).rounds == [1, 3]


@pytest.mark.parametrize(
    ("strategy", "silent"),
    [("feddm", False), ("fedavg", False), ("local", True), ("centralized", True)],
)
def test_metrics_alone_are_no_update(make_run: MakeRun, strategy: str, silent: bool) -> None:
    assert uploads_no_update([load_run(make_run(strategy, rounds=1))]) == silent


def test_clients_that_all_failed_are_not_taken_for_free(make_run: MakeRun) -> None:
    failures = {(r, k): ("failed", "gave up") for r in (1, 2) for k in range(3)}
    path = make_run("fedavg", rounds=2, clients=3, client_failures=failures)
    run = judged_as(path, test=[0.1, 0.1, 0.1], bytes_up=0, client_s=0.0)
    assert not uploads_no_update([run])
    assert trains_on_clients([run])


def test_clients_without_seconds_do_not_train(make_run: MakeRun) -> None:
    path = make_run("centralized", rounds=2)
    assert trains_on_clients([load_run(path)])
    lines = [json.loads(line) for line in (path / "rounds.jsonl").read_text().splitlines()]
    for record in lines:
        record["seconds"]["client_sum"] = 0.0
    (path / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert not trains_on_clients([load_run(path)])
