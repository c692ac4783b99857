from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from core.scores import ACCURACY, Score
from report.loading import LoadedRun, load_run
from report.methods import compare
from report.privacy import (
    PRIVACY_COLUMNS,
    EpsilonPoint,
    epsilon_course,
    epsilon_point,
    epsilon_ticks,
    family,
    privacy_rows,
    signal_course,
    unlike_terms,
)
from report.tables import Statistic, columns_of, result_rows, to_csv
from tests.unit.report.conftest import judged_as, make_private

MakeRun = Callable[..., Path]


def test_the_point_is_what_is_on_record_and_not_the_budget(make_run: MakeRun) -> None:
    runs = []
    for seed, accuracy, epsilon in ((0, 0.6, 3.5), (1, 0.8, 3.7)):
        path = make_run("fedavg", seed, rounds=1)
        judged_as(path, test=[0.1, accuracy])
        runs.append(load_run(make_private(path, [0, epsilon], budget=4.0)))
    point = epsilon_point(runs)
    assert point is not None
    assert point.epsilon == pytest.approx(3.6)
    assert point.score.mean == pytest.approx(0.7)
    assert point.score.std == pytest.approx(0.1 * 2**0.5)
    assert (point.lowest, point.highest, point.budget) == (0.6, 0.8, 4.0)


def test_no_point_without_noise_or_where_epsilon_is_refused(make_run: MakeRun) -> None:
    plain = load_run(make_run("fedavg", rounds=1, name="plain"))
    path = make_run("fedavg", rounds=1, name="seeded")
    refused = load_run(make_private(path, [None, None], note="refused: seeded noise"))
    private = load_run(make_private(make_run("fedavg", rounds=1, name="x"), [0, 1.0]))
    assert epsilon_point([plain]) is None
    assert epsilon_point([refused]) is None
    assert epsilon_point([private, plain]) is None
    assert epsilon_point([private, refused]) is None


def test_unlike_units_and_deltas_do_not_compare(make_run: MakeRun) -> None:
    def run(name: str, unit: str, delta: float) -> tuple[str, list[LoadedRun]]:
        path = make_run("fedavg", rounds=1, name=name)
        return name, [load_run(make_private(path, [0, 1.0], unit=unit, delta=delta))]

    a, b = run("A", "example", 1e-5), run("B", "example", 1e-5)
    client, other = run("Client", "client", 1e-5), run("Other", "example", 1e-4)
    plain = ("plain", [load_run(make_run("fedavg", rounds=1, name="plain"))])
    assert unlike_terms([a, b, plain], ACCURACY) == ""
    told = unlike_terms([a, client, b], ACCURACY)
    assert told.startswith("Accuracy is not drawn against epsilon, because these epsilons")
    assert "that for one example at delta 1e-05 of A and B; that for one client" in told
    recall = Score("recall_at_1", "R@1", is_percent=True)
    told = unlike_terms([a, other], recall)
    assert told.startswith("R@1 is not drawn against epsilon")
    assert "that for one example at delta 0.0001 of Other" in told


def test_the_course_is_the_largest_client_and_one_never_asked_spends_nothing(
    make_run: MakeRun,
) -> None:
    path = make_run("fedavg", rounds=3, clients=4)
    all_asked = epsilon_course([load_run(make_private(path, [0, 1.0, 1.5, 2.0]))])
    assert all_asked.rounds == [0, 1, 2, 3]
    assert all_asked.value == all_asked.least == [0, 1.0, 1.5, 2.0]
    path = make_run("fedavg", 1, rounds=3, clients=4)
    one_left_out = load_run(make_private(path, [0, 1.1, 1.6, 2.1], laggard=2))
    course = epsilon_course([load_run(make_run("fedavg", rounds=3, name="p"))])
    assert course.rounds == []
    course = epsilon_course([one_left_out])
    assert course.value == [0, 1.1, 1.6, 2.1]
    assert course.least == [0, 0, 0, 0]


def test_over_seeds_the_course_is_the_worst_seed(make_run: MakeRun) -> None:
    runs = [
        load_run(make_private(make_run("fedavg", seed, rounds=1), [0, epsilon], snr=snr))
        for seed, epsilon, snr in ((0, 1.0, 0.25), (1, 3.0, 0.75))
    ]
    course = epsilon_course(runs)
    assert (course.value, course.least) == ([0, 3.0], [0, 1.0])
    signal = signal_course(runs)
    assert (signal.rounds, signal.value) == ([1], [0.5])
    assert (signal.least, signal.most) == ([0.25], [0.75])


def test_a_family_differs_in_its_budget_alone(make_run: MakeRun) -> None:
    runs = [
        load_run(make_private(make_run("fedavg", rounds=1, name=f"r{b}"), [0, b], budget=b))
        for b in (1.0, 4.0)
    ]
    other = load_run(
        make_private(
            make_run("fedavg", rounds=1, name="o", settings={"train.learning-rate": 9.0}), [0, 1.0]
        )
    )
    assert family(runs[:1]) == family(runs[1:]) != family([other])


def test_ticks_are_budgets_and_the_epsilon_itself_without_one() -> None:
    def point(epsilon: float, budget: float | None) -> EpsilonPoint:
        return EpsilonPoint(epsilon, Statistic(0.5, None), 0.5, 0.5, budget)

    points = [point(0.995, 1.0), point(3.99, 4.0), point(3.98, 4.0), point(14.05, None)]
    assert epsilon_ticks(points) == [1.0, 4.0, 14.05]
    assert epsilon_ticks([point(5.0, None), point(5.1, None)]) == [5.0]


def test_the_table_tells_one_round_and_the_whole_run_apart(make_run: MakeRun) -> None:
    private = make_private(make_run("fedavg", rounds=1), [0, 3.25], all_runs=5.5)
    plain = make_run("fedprox", rounds=1)
    methods = compare([load_run(private), load_run(plain)]).methods
    ((method, cells),) = privacy_rows(methods)
    told = dict(zip(PRIVACY_COLUMNS, cells, strict=True))
    assert method is methods[0]
    assert told["Epsilon of one round"] == "0.625"
    assert told["Epsilon of the whole run"] == "3.25 (all runs on the same data: 5.5)"
    assert told["By RDP: round, run"] == "0.875, 4.625"
    assert told["Accountant"] == "PRV"
    assert (told["Sigma"], told["Clip"], told["Sampling rate"]) == ("1.25", "0.75", "0.0625")
    assert (told["Steps a round"], told["Budget"], told["Delta"]) == ("17", "4", "1e-05")
    assert (told["Mechanism"], told["Protects one"]) == ("dp-sgd", "example")
    assert told["Signal to noise"] == "0.5"


def test_refused_stands_in_place_of_an_epsilon(make_run: MakeRun) -> None:
    path = make_run("fedavg", rounds=1)
    run = load_run(make_private(path, [None, None], note="refused: seeded noise"))
    methods = compare([run]).methods
    ((_, cells),) = privacy_rows(methods)
    told = dict(zip(PRIVACY_COLUMNS, cells, strict=True))
    assert told["Epsilon of the whole run"] == "refused: seeded noise"
    assert (told["Epsilon of one round"], told["By RDP: round, run"]) == ("—", "—, —")
    (row,) = result_rows(methods)
    assert row.epsilon is None
    assert columns_of([row])[1].cell(row) == "refused: seeded noise"


def test_the_table_of_results_gains_epsilon_where_any_run_is_private(make_run: MakeRun) -> None:
    plain = load_run(make_run("fedprox", rounds=1))
    private = load_run(make_private(make_run("fedavg", rounds=1), [0, 3.25]))
    client = load_run(
        make_private(
            make_run("fedavg", rounds=1, name="c"), [0, 2.0], unit="client", mechanism="client"
        )
    )
    without = result_rows(compare([plain]).methods)
    assert not any(column.title.startswith("Epsilon") for column in columns_of(without))
    rows = result_rows(compare([private, plain]).methods)
    column = columns_of(rows)[1]
    assert column.title == "Epsilon per example"
    assert [column.cell(row) for row in rows] == ["3.25", "no noise"]
    mixed = result_rows(compare([private, client]).methods)
    column = columns_of(mixed)[1]
    assert column.title == "Epsilon"
    assert {column.cell(row) for row in mixed} == {
        "3.25 (example, delta 1e-05)", "2 (client, delta 1e-05)",
    }  # fmt: skip
    head, first, second = to_csv(rows).splitlines()
    assert head.endswith("privacy_unit,privacy_delta")
    assert first.endswith(",example,1e-05") and ",3.25," in first
    assert second.endswith(",none,")
