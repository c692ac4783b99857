from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.records import ClientRecord, ReplyOutcome, RoundRecord
from report.failures import (
    FailureRow,
    Occurrence,
    _groups,
    failure_rows,
    left_out_of_costs,
    outcome_counts,
)
from report.loading import OUTCOMES, load_run, load_runs
from report.methods import compare
from report.tables import seeds_text

MakeRun = Callable[..., Path]
Failures = Mapping[tuple[int, int], tuple[ReplyOutcome, str]]


def rows_of(make_run: MakeRun, failures: Failures, **options: object) -> list[FailureRow]:
    path = make_run("fedavg", client_failures=failures, **options)
    return failure_rows(compare(load_runs([path])).methods)


def told(rows: list[FailureRow]) -> list[tuple[str, str, str, int, str]]:
    return [(row.clients, row.rounds, row.outcome, row.count, row.reason) for row in rows]


def test_few_failures_are_told_in_full(make_run: MakeRun) -> None:
    failures: Failures = {
        (1, 2): ("late", "no reply"),
        (1, 5): ("late", "no reply"),
        (2, 4): ("refused", "NaN"),
        (3, 2): ("failed", "gave up"),
    }
    assert told(rows_of(make_run, failures, rounds=3)) == [
        ("2, 5", "1", "late", 2, "no reply"),
        ("4", "2", "refused", 1, "NaN"),
        ("2", "3", "failed", 1, "gave up"),
    ]


def test_surplus_and_counted_replies_are_no_failures(make_run: MakeRun) -> None:
    failures: Failures = {(1, 2): ("surplus", "the round had closed"), (2, 3): ("dropped", "out")}
    assert told(rows_of(make_run, failures, rounds=2)) == [("3", "2", "dropped", 1, "out")]
    assert rows_of(make_run, {(1, 2): ("surplus", "closed")}, rounds=1) == []


def test_many_failures_are_summed_up_per_client_and_reason(make_run: MakeRun) -> None:
    failures: Failures = {
        (r, 3): ("late", f"delay of {r / 7:.1f} s, after the deadline") for r in range(1, 21)
    }
    (row,) = rows_of(make_run, failures, rounds=20)
    assert (row.clients, row.rounds, row.count, row.alike) == ("3", "1 to 20", 20, True)
    assert row.reason == "delay of 0.1 s, after the deadline"


def test_more_are_summed_up_per_reason(make_run: MakeRun) -> None:
    drops = np.random.default_rng(0).random((40, 40)) < 0.15
    drops[:, 1::2] = False
    failures: Failures = {
        (int(r) + 1, int(c)): ("dropped", "dropped out") for r, c in np.argwhere(drops)
    }
    (row,) = rows_of(make_run, failures, rounds=40, clients=40)
    times = drops.sum(axis=0)
    most = sorted(range(40), key=lambda client: (-times[client], client))[:3]
    assert row.clients == f"{(times > 0).sum()} clients, most often {', '.join(map(str, most))}"
    assert row.rounds == seeds_text((np.flatnonzero(drops.any(axis=1)) + 1).tolist())
    assert (row.count, row.alike) == (drops.sum(), False)


def test_scattered_rounds_are_counted(make_run: MakeRun) -> None:
    failures: Failures = {(r, 1): ("dropped", "out") for r in range(2, 32, 2)}
    (row,) = rows_of(make_run, failures, rounds=31)
    assert row.rounds == "15 rounds from 2 to 30"


def test_outcomes_are_counted_over_all_seeds(make_run: MakeRun) -> None:
    failures: Failures = {
        (1, 0): ("surplus", "closed"),
        (2, 0): ("late", "x"),
        (2, 1): ("late", "y"),
    }
    paths = [make_run("fedavg", s, rounds=2, clients=4, client_failures=failures) for s in (0, 1)]
    (tally,) = outcome_counts(compare(load_runs(paths)).methods)
    assert tally.asked == 16
    assert dict(zip(OUTCOMES, tally.counts, strict=True)) == {
        "counted": 10, "refused": 0, "failed": 0, "dropped": 0, "late": 4, "surplus": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("outcomes", "sentence"),
    [
        ([], ""),
        (["dropped"], ""),
        (["refused"], "Client seconds leave out replies that were refused."),
        (["failed"], "Client seconds leave out clients that failed."),
        (
            ["surplus", "dropped"],
            "Client seconds leave out replies that were surplus; uploads leave out those that were "
            "surplus.",
        ),
        (
            ["surplus", "late", "failed", "refused"],
            "Client seconds leave out clients that failed and replies that were refused, late or "
            "surplus; uploads leave out those that were late or surplus.",
        ),
    ],
)
def test_what_costs_leave_out_is_told_where_it_happened(
    make_run: MakeRun, outcomes: list[ReplyOutcome], sentence: str
) -> None:
    failures: Failures = {(1, k): (outcome, "why") for k, outcome in enumerate(outcomes)}
    runs = load_runs([make_run("fedavg", 0, rounds=1), make_run("fedavg", 1, rounds=1,
                     client_failures=failures)])  # fmt: skip
    assert left_out_of_costs(runs) == sentence


_NUMBERS = re.compile(r"[\d.]+")

occurrences = st.lists(
    st.builds(
        Occurrence,
        round=st.integers(1, 30),
        partition_id=st.integers(0, 30),
        outcome=st.sampled_from(["failed", "late"]),
        reason=st.sampled_from(["late by 3.2 s", "late by 4 s", "client 1 gave up", "no reply"]),
    ),
    unique_by=lambda failure: (failure.round, failure.partition_id),
    max_size=80,
).map(lambda found: sorted(found, key=lambda f: (f.round, f.partition_id)))


@given(occurrences)
def test_every_failure_is_in_one_row_and_rows_are_few(failures: list[Occurrence]) -> None:
    groups = _groups(failures)
    shared = [failure for group in groups for failure in group]
    assert sorted(shared, key=lambda f: (f.round, f.partition_id)) == failures
    assert len(groups) <= 12  # two outcomes and three reasons but for their numbers
    for group in groups:
        assert len({failure.outcome for failure in group}) == 1
        assert len({_NUMBERS.sub("", failure.reason) for failure in group}) == 1


def test_a_failure_without_a_reason_says_so(make_run: MakeRun) -> None:
    run = load_run(make_run("fedavg", rounds=1))
    record = run.rounds[1]
    silent = ClientRecord(partition_id=0, bytes_down=1, bytes_up=0, outcome="failed")
    changed: RoundRecord = dataclasses.replace(record, clients=[silent])
    method = compare([dataclasses.replace(run, rounds=(changed,))]).methods
    assert failure_rows(method)[0].reason == "no reason on record"
