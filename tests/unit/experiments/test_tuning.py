"""The choice between candidates: by validation alone, and what is told of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from core.records import RoundRecord
from core.scores import ACCURACY
from experiments import tuning
from experiments.suite import Suite, Tuning, parse_suite
from experiments.tuning import Trial, Tried, Tuned, read_trial, sentences, to_json, to_text
from tests.unit.experiments.conftest import end_run, round_record, start_run

RATES = (0.01, 0.1, 1.0)


GRID = {"label": "avg", "strategy": "fedavg", "grid": {"train.learning-rate": [*RATES]}}


def value_of(tmp_path: Path) -> dict[str, object]:
    return {
        "name": "s",
        "seeds": [0, 1],
        "base": {"runs": str(tmp_path), "rounds": 3},
        "tuning": {},
        "methods": [GRID, {"label": "dm", "strategy": "feddm"}],
    }


def a_suite(tmp_path: Path) -> Suite:
    return parse_suite(value_of(tmp_path))


def tuned_to(one: Tuning, *outcomes: Sequence[float | str | None]) -> Tuned:
    """Each candidate's trials: an accuracy, why it failed, or not known yet."""
    tried = [
        Tried(
            candidate,
            tuple(Trial(failure=x) if isinstance(x, str) else Trial(x) for x in trials),
        )
        for candidate, trials in zip(one.candidates, outcomes, strict=True)
    ]
    return Tuned(one, tuple(tried))


@pytest.mark.parametrize(
    ("outcomes", "winner"),
    [
        ([(0.7, 0.7), (0.9, 0.6), (0.8, 0.6)], 1),  # means 0.70, 0.75, 0.70
        ([(0.7, 0.7), (0.9, 0.4), (0.6, 0.8)], 0),  # the first of equals, not the best seed
        ([("DivergedError: diverged", None), (0.1, 0.1), (0.2, 0.1)], 2),
        ([(0.9, "DivergedError: diverged"), (0.1, 0.1), (0.0, 0.1)], 1),
        ([(0.7, 0.7), (0.9, None), (0.8, 0.6)], None),
        ([(None, None), ("DivergedError: diverged", None), (0.8, 0.6)], None),
        ([("no", None)] * 3, None),
    ],
)
def test_the_highest_mean_validation_accuracy_wins(
    tmp_path: Path, outcomes: list[tuple[float | str | None, ...]], winner: int | None
) -> None:
    (one,) = a_suite(tmp_path).tunings
    tuned = tuned_to(one, *outcomes)
    taken = tuned.winner.candidate if tuned.winner else None
    assert taken == (None if winner is None else one.candidates[winner])


def test_settled_and_failed(tmp_path: Path) -> None:
    (one,) = a_suite(tmp_path).tunings
    lost = ("DivergedError: diverged", None)
    for outcomes, settled, failed in (
        ([lost, lost, lost], True, True),
        ([lost, (0.5, 0.5), lost], True, False),
        ([lost, (0.5, None), lost], False, False),
    ):
        tuned = tuned_to(one, *outcomes)
        assert (tuned.settled, tuned.failed) == (settled, failed)


def test_a_trial_counts_by_validation_in_the_last_evaluated_round(tmp_path: Path) -> None:
    (run, _) = a_suite(tmp_path).tunings[0].candidates[0].trials
    assert read_trial(run) == Trial()
    folder = start_run(run.config)
    for record in (
        round_record(0, 0.1, 0.1),
        round_record(1, 0.9, 0.1),
        round_record(2, 0.6, 0.99),
        round_record(3, None, None),
    ):
        folder.append_round(record)
    assert read_trial(run) == Trial()
    end_run(folder, run.config, "complete")
    assert read_trial(run) == Trial(0.6)


def test_what_the_machine_did_is_tried_again_and_what_the_method_did_is_not(
    tmp_path: Path,
) -> None:
    (run, _) = a_suite(tmp_path).tunings[0].candidates[0].trials
    folder = start_run(run.config)
    for status, failure, trial in (
        ("running", None, Trial()),
        ("interrupted", None, Trial()),
        ("failed", "MemoryError: ", Trial(mishap="MemoryError: ")),
        ("failed", "RunError: no client", Trial(mishap="RunError: no client")),
        ("failed", "DivergedErrorOfMine: no", Trial(mishap="DivergedErrorOfMine: no")),
        ("failed", "DivergedError: in round 1", Trial(failure="DivergedError: in round 1")),
    ):
        end_run(folder, run.config, status, failure)
        assert read_trial(run) == trial


@pytest.mark.parametrize(
    "records",
    [
        [round_record(0, 0.5, 0.5), round_record(1, 0.5, 0.5)],  # of three rounds
        [round_record(k, None, 0.5) for k in range(4)],
    ],
)
def test_a_complete_trial_that_cannot_be_read_is_no_verdict(
    tmp_path: Path, records: list[RoundRecord]
) -> None:
    (run, _) = a_suite(tmp_path).tunings[0].candidates[0].trials
    folder = start_run(run.config)
    for record in records:
        folder.append_round(record)
    end_run(folder, run.config, "complete")
    assert read_trial(run) == Trial()
    found = run.look()
    assert found.state == "damaged"
    assert "rounds.jsonl" in found.reason


def test_a_mishap_settles_nothing_and_is_told(tmp_path: Path) -> None:
    suite = a_suite(tmp_path)
    (one,) = suite.tunings
    full, ready = Trial(mishap="OSError: disk full\ntrace"), Trial(0.5)
    stuck = Tried(one.candidates[0], (ready, full))
    tuned = Tuned(one, (stuck, *(Tried(c, (ready, ready)) for c in one.candidates[1:])))
    assert (stuck.settled, tuned.settled, tuned.failed, tuned.winner) == (False,) * 3 + (None,)
    assert "learning-rate=0.01  —  to be tried again: OSError: disk full\n" in to_text(
        [tuned], ACCURACY
    )
    (told, _) = sentences(suite, [tuned], ACCURACY)
    assert told.endswith("not all been tried (learning-rate=0.01: OSError: disk full).")
    (value,) = to_json([tuned], ACCURACY)
    assert [c["mishap"] for c in value["candidates"]] == ["OSError: disk full\ntrace", None, None]
    lost = Tried(one.candidates[0], (Trial(failure="DivergedError: no"), full))
    assert lost.settled, "it has lost whatever becomes of the other seed"
    assert lost.mishap is None


def test_methods_that_are_not_tuned_are_listed(tmp_path: Path) -> None:
    plain: list[object] = [{"label": label, "strategy": "fedavg"} for label in "abc"]
    suite = parse_suite({**value_of(tmp_path), "methods": [*plain, GRID]})
    tuned = tuned_to(suite.tunings[0], *[(0.5,)] * 3)
    assert sentences(suite, [tuned], ACCURACY)[-1] == "a, b, c were not tuned."


def test_what_is_told_of_the_choice(tmp_path: Path) -> None:
    suite = a_suite(tmp_path)
    (one,) = suite.tunings
    tuned = tuned_to(one, (0.5, 0.7), (0.81, 0.83), ("DivergedError: it diverged\nso it did", None))
    text = to_text([tuned], ACCURACY)
    assert text.splitlines() == [
        "avg, tuned on seeds 0, 1: validation accuracy after the last round, %",
        "  learning-rate=0.01  60.00 ± 14.14",
        "  learning-rate=0.1   82.00 ± 1.41  taken",
        "  learning-rate=1     failed: DivergedError: it diverged",
    ]
    assert sentences(suite, [tuned], ACCURACY) == [
        "avg was tuned on seeds 0, 1 over 3 candidates (learning-rate 0.01, 0.1, 1): "
        "learning-rate=0.1 has the highest validation accuracy after the last round, "
        "82.00 ± 1.41 %. 1 of them failed.",
        "dm was not tuned.",
    ]
    (value,) = to_json([tuned], ACCURACY)
    json.dumps(value, allow_nan=False)
    assert (value["method"], value["setting"], value["seeds"]) == ("avg", None, [0, 1])
    assert (value["winner"], value["keys"]) == ("learning-rate0.1", {"train.learning-rate": 0.1})
    first, _, last = value["candidates"]
    assert first["validation_accuracies"] == [0.5, 0.7]
    assert first["validation_accuracy"]["mean"] == pytest.approx(0.6)
    assert first["runs"] == [f"tuning/avg-learning-rate0.01-seed{seed}" for seed in (0, 1)]
    assert last["failure"] == "DivergedError: it diverged\nso it did"
    assert last["validation_accuracy"] is None


def test_what_is_told_where_there_is_no_choice(tmp_path: Path) -> None:
    suite = a_suite(tmp_path)
    (one,) = suite.tunings
    lost = tuned_to(one, *[("DivergedError: no", None)] * 3)
    assert to_text([lost], ACCURACY).endswith("avg has no candidate left and is not run\n")
    assert "all 3 candidates failed (DivergedError: no)" in sentences(suite, [lost], ACCURACY)[0]
    waiting = tuned_to(one, (0.5, 0.7), (None, None), (None, None))
    assert "none is taken yet" in to_text([waiting], ACCURACY)
    assert "not all been tried" in sentences(suite, [waiting], ACCURACY)[0]
    assert tuning.to_json([waiting], ACCURACY)[0]["winner"] is None
    assert sentences(suite, [], ACCURACY) == []
