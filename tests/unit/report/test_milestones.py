from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from report.loading import load_run
from report.milestones import Spent, best_round, reached, spending, total_spent
from tests.unit.report.conftest import judged_as

MakeRun = Callable[..., Path]


def test_costs_are_summed_round_by_round(make_run: MakeRun) -> None:
    run = judged_as(make_run(rounds=3), test=[0.1, None, 0.3, 0.4])
    assert spending(run) == [
        Spent(round=r, bytes_up=10 * r, bytes_down=30 * r, client_s=2.0 * r, server_s=0.5 * r)
        for r in range(4)
    ]
    assert total_spent(run) == spending(run)[-1]


def test_nothing_is_spent_before_any_round(make_run: MakeRun) -> None:
    path = make_run(status="running", done=0)
    (path / "rounds.jsonl").unlink()
    run = load_run(path)
    assert (spending(run), total_spent(run), best_round(run), reached(run, 0.5)) == (
        [], None, None, None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("validation", "expected"),
    [
        ([0.1, 0.8, 0.5, 0.8, 0.7], 1),  # a tie: the earliest
        ([0.9, 0.8, 0.5, 0.8, 0.7], 0),  # the initial model may be the best
        ([0.1, None, 0.5, None, 0.7], 4),  # every second round is evaluated
        ([0.1, 0.2, 0.3, 0.4, 0.5], 4),
    ],
)
def test_the_best_round_is_chosen_on_validation_alone(
    make_run: MakeRun, validation: list[float | None], expected: int
) -> None:
    falling = [None if v is None else 0.9 - 0.1 * r for r, v in enumerate(validation)]
    run = judged_as(make_run(rounds=4), test=falling, validation=validation)
    best = best_round(run)
    assert best is not None and best.round == expected


def test_a_round_without_a_test_accuracy_is_never_the_best(make_run: MakeRun) -> None:
    run = judged_as(make_run(rounds=2), test=[0.1, None, 0.2], validation=[0.1, 0.9, 0.2])
    best = best_round(run)
    assert best is not None and best.round == 2


@pytest.mark.parametrize(
    ("test", "target", "expected"),
    [
        ([0.1, 0.4, 0.6, 0.7, 0.9], 0.6, 2),  # reached exactly
        ([0.1, 0.4, 0.6, 0.5, 0.9], 0.55, 2),  # reached once is reached
        ([0.1, None, 0.5, None, 0.9], 0.6, 4),  # only evaluated rounds can reach it
        ([0.7, 0.4, 0.6, 0.7, 0.9], 0.6, 0),  # by the initial model, for nothing
        ([0.1, 0.4, 0.6, 0.7, 0.9], 0.91, None),
    ],
)
def test_the_first_evaluated_round_at_the_target_reaches_it(
    make_run: MakeRun, test: list[float | None], target: float, expected: int | None
) -> None:
    cost = reached(judged_as(make_run(rounds=4), test=test), target)
    if expected is None:
        assert cost is None
    else:
        assert cost is not None
        assert (cost.round, cost.bytes_up, cost.client_s) == (expected, 10 * expected, 2 * expected)
