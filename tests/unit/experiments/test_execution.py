"""Running a suite: what is done, in which order, after every kind of accident."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from core.config import RunConfig
from core.errors import BusyError, ConfigError, DivergedError, RecordError, RunError
from core.records import RoundRecord, RunFolder
from core.scores import Score, Scores
from experiments.execution import Step, SuiteResult, run_suite
from experiments.suite import parse_suite
from report.loading import load_run
from server.progress import PlainProgress
from tests.unit.experiments.conftest import FakeRuns

DIVERGED = DivergedError("the model diverged in round 1")
DM_IID = ("iid", "dm")
SKEWED = {"label": "skewed", "partition.alpha": 0.1}


class Listening(PlainProgress):
    """Keeps the records that it is told of."""

    def __init__(self, records: list[RoundRecord]) -> None:
        super().__init__()
        self._records = records

    def round_ended(self, record: RoundRecord) -> None:
        self._records.append(record)


class Study:
    """A suite in a folder of its own: `avg` with two candidates, and `dm` without a grid."""

    def __init__(self, root: Path, fake: FakeRuns) -> None:
        self.root = root
        self.folder = root / "s"
        self.fake = fake
        self.steps: list[Step] = []
        self.records: list[RoundRecord] = []

    def base(self, **keys: object) -> dict[str, object]:
        return {"runs": str(self.root), "rounds": 1, **keys}

    def value(self, **tables: object) -> dict[str, object]:
        return {
            "name": "s",
            "seeds": [0, 1],
            "base": self.base(),
            "settings": [{"label": "iid", "partition.scheme": "iid"}, SKEWED],
            "tuning": {"setting": "skewed", "seeds": [1]},
            "methods": [
                {"label": "dm", "strategy": "feddm"},
                {
                    "label": "avg",
                    "strategy": "fedavg",
                    "grid": {"train.learning-rate": [0.1, 0.2]},
                },
            ],
            **tables,
        }

    def run(self, max_minutes: float | None = None, **tables: object) -> SuiteResult:
        self.steps = []
        return run_suite(
            parse_suite(self.value(**tables)),
            Listening(self.records),
            self.steps.append,
            max_minutes=max_minutes,
            clock=lambda: self.fake.seconds,
        )

    @property
    def actions(self) -> dict[str, str]:
        return {step.run.name: step.action for step in self.steps}

    @property
    def folders(self) -> set[str]:
        found = [p.parent for p in self.folder.glob("**/run.json")]
        return {str(path.relative_to(self.folder)) for path in found}


@pytest.fixture
def study(tmp_path: Path, fake_runs: FakeRuns) -> Study:
    fake_runs.figures = by_rate({0.1: (0.5, 0.9), 0.2: (0.6, 0.3)})
    return Study(tmp_path, fake_runs)


def by_rate(figures: Mapping[float, tuple[float, float]]) -> Any:
    def of(config: RunConfig) -> tuple[float, float]:
        return figures.get(config.train.learning_rate, (0.5, 0.5))

    return of


TRIALS = [f"run avg-skewed-learning-rate{rate}-seed1" for rate in (0.1, 0.2)]
FINALS = [
    "run dm-iid-seed0",
    "run avg-iid-seed0",
    "run dm-skewed-seed0",
    "run avg-skewed-seed0",
    "run dm-iid-seed1",
    "run avg-iid-seed1",
    "run dm-skewed-seed1",
]
"""All but the one that tuning runs: avg under skewed on seed 1."""


def test_candidates_first_then_everything_with_the_winners_keys(study: Study) -> None:
    result = study.run()
    assert study.fake.took() == TRIALS + FINALS
    (tuned,) = result.tuned
    assert tuned.winner is not None
    assert tuned.winner.candidate.keys == {"train.learning-rate": 0.2}
    for run, loaded in result.runs:
        if run.method == "avg":
            assert loaded.config["train.learning-rate"] == 0.2
    assert len(result.runs) == 8
    assert (result.failures, result.num_left) == ((), 0)
    value = json.loads((study.folder / "tuning.json").read_text())
    assert value["tunings"][0]["winner"] == "learning-rate0.2"
    assert result.comparison == (study.folder / "comparison.md",)
    assert result.report == study.folder / "report.html"
    assert "tuning" not in result.report.read_text()
    assert [(e.setting, e.label, len(e.runs), e.num_seeds) for e in study.fake.compared] == [
        (setting, method, 2, 2) for setting in ("iid", "skewed") for method in ("dm", "avg")
    ]
    assert study.fake.notes[0].startswith("avg was tuned under skewed on seed 1")
    assert [step.number for step in study.steps] == list(range(1, 11))
    assert {step.total for step in study.steps} == {10}


def test_test_figures_have_no_part_in_the_choice(study: Study) -> None:
    """The orders by validation and by test disagree; each way, validation wins."""
    study.fake.figures = by_rate({0.1: (0.9, 0.1), 0.2: (0.2, 1.0)})
    (tuned,) = study.run().tuned
    assert tuned.winner is not None
    assert tuned.winner.candidate.keys == {"train.learning-rate": 0.1}


def test_test_figures_of_candidates_are_not_told(study: Study) -> None:
    study.run()
    trials, finals = study.records[:2], study.records[2:]
    assert [record.validation and record.validation.primary for record in trials] == [0.5, 0.6]
    for record in trials:
        assert (record.test, record.client_scores, record.worst_client_score) == (None,) * 3
    assert all(record.test is not None for record in finals)
    told = (study.folder / "tuning.json").read_text()
    assert "0.3" not in told
    assert "0.9" not in told


def test_what_tuning_has_run_is_copied_and_stands_on_its_own(study: Study) -> None:
    study.run()
    assert study.actions["avg-skewed-seed1"] == "tuned"
    trial = study.folder / "tuning" / "avg-skewed-learning-rate0.2-seed1"
    made = load_run(study.folder / "avg-skewed-seed1")
    assert made.rounds == load_run(trial).rounds
    assert (made.name, made.config["name"]) == ("avg-skewed-seed1", "avg-skewed-seed1")
    assert made.config["runs"] == str(study.folder)
    assert RunFolder(trial).read_json("run")["name"] == trial.name
    assert not list(study.folder.glob("**/*.part"))


def test_a_finished_suite_runs_nothing(study: Study) -> None:
    study.run()
    study.fake.took()
    study.fake.planned.clear()
    result = study.run()
    assert study.fake.took() == []
    assert study.fake.planned == []
    assert set(study.actions.values()) == {"done"}
    assert len(result.runs) == 8


@pytest.mark.parametrize("position", range(9))
def test_interrupted_anywhere_the_same_call_ends_with_the_same(study: Study, position: int) -> None:
    name = [*TRIALS, *FINALS][position].removeprefix("run ")
    study.fake.raises[name] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        study.run()
    before = study.fake.took()
    assert before == [*TRIALS, *FINALS][: position + 1]
    study.fake.raises.clear()
    result = study.run()
    assert study.fake.took() == [f"resume {name}", *[*TRIALS, *FINALS][position + 1 :]]
    assert study.actions[("tuning/" if position < 2 else "") + name] == "incomplete"
    assert len(result.runs) == 8
    (tuned,) = result.tuned
    assert tuned.winner is not None
    assert tuned.winner.candidate.keys == {"train.learning-rate": 0.2}
    assert study.folders == {
        *(f"tuning/{trial.removeprefix('run ')}" for trial in TRIALS),
        *(final.removeprefix("run ") for final in FINALS),
        "avg-skewed-seed1",
    }


@pytest.mark.parametrize("name", [TRIALS[0][4:], FINALS[0][4:]])
def test_what_cannot_go_on_is_moved_aside_and_run_anew(study: Study, name: str) -> None:
    study.fake.raises[name] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        study.run()
    study.fake.raises.clear()
    study.fake.took()
    study.fake.cannot_go_on.add(name)
    study.run()
    assert study.fake.took()[:2] == [f"resume {name}", f"run {name}"]
    (told,) = [step for step in study.steps if step.action == "damaged"]
    assert told.run.config.name == name
    assert "torn" in told.reason
    moved = [folder for folder in study.folders if folder.endswith(f"{name}.incomplete-1")]
    assert len(moved) == 1


def test_what_holds_no_record_is_moved_aside(study: Study) -> None:
    (study.folder / "dm-iid-seed0").mkdir(parents=True)
    (study.folder / "dm-iid-seed0" / "mine.txt").write_text("kept")
    study.run()
    assert (study.folder / "dm-iid-seed0.damaged-1" / "mine.txt").read_text() == "kept"
    assert [step.reason for step in study.steps if step.action == "damaged"] != [""]


def test_a_changed_key_makes_its_runs_outdated(study: Study) -> None:
    study.run()
    study.fake.took()
    methods = study.value()["methods"]
    assert isinstance(methods, list)
    changed = [{**methods[0], "feddm.iterations": 5}, methods[1]]
    study.run(methods=changed)
    assert study.fake.took() == [name for name in FINALS if "dm-" in name]
    for name in ("dm-iid-seed0", "dm-skewed-seed1"):
        assert study.actions[name] == "outdated"
        assert f"{name}.outdated-1" in study.folders
    assert study.actions["avg-iid-seed0"] == "done"


def test_a_new_winner_moves_the_old_ones_runs_aside_and_keeps_its_trials(study: Study) -> None:
    study.run()
    study.fake.took()
    study.fake.figures = by_rate({0.4: (0.9, 0.1), 0.1: (0.5, 0.9), 0.2: (0.6, 0.3)})
    methods = study.value()["methods"]
    assert isinstance(methods, list)
    grid = {"train.learning-rate": [0.1, 0.2, 0.4]}
    study.run(methods=[methods[0], {**methods[1], "grid": grid}])
    assert study.fake.took() == [
        "run avg-skewed-learning-rate0.4-seed1",
        *(name for name in FINALS if "avg-" in name),
    ]
    moved = {f"avg-{s}-seed{k}.outdated-1" for s in ("iid", "skewed") for k in (0, 1)}
    assert moved < study.folders
    assert load_run(study.folder / "avg-skewed-seed1").config["train.learning-rate"] == 0.4
    study.run(methods=[methods[0], {**methods[1], "grid": grid}])
    assert study.fake.took() == []


def test_a_candidate_that_diverges_loses_and_is_left_at_that(study: Study) -> None:
    study.fake.raises[TRIALS[1][4:]] = DIVERGED
    result = study.run()
    (tuned,) = result.tuned
    assert tuned.winner is not None
    assert tuned.winner.candidate.keys == {"train.learning-rate": 0.1}
    assert tuned.tried[1].failure == f"DivergedError: {DIVERGED}"
    assert result.failures == ()
    assert len(result.runs) == 8
    study.fake.took()
    again = study.run()
    assert study.fake.took() == []
    assert study.actions[f"tuning/{TRIALS[1][4:]}"] == "failed"
    assert again.tuned == result.tuned


def test_a_candidate_that_fails_on_one_seed_is_not_run_on_the_others(study: Study) -> None:
    name = "avg-skewed-learning-rate0.1-seed0"
    study.fake.raises[name] = DIVERGED
    result = study.run(tuning={"setting": "skewed"})
    assert study.fake.took()[:3] == [
        f"run {name}",
        "run avg-skewed-learning-rate0.2-seed0",
        "run avg-skewed-learning-rate0.2-seed1",
    ]
    assert len(result.runs) == 8
    assert study.steps[-1].number == study.steps[-1].total == 12


def test_a_candidate_that_the_machine_failed_is_tried_again(study: Study) -> None:
    name = TRIALS[1][4:]
    study.fake.raises[name] = MemoryError("full")
    (tuned,) = study.run().tuned
    assert (tuned.tried[1].failure, tuned.tried[1].mishap) == (None, "MemoryError: full")
    study.fake.raises.clear()
    study.fake.took()
    (tuned,) = study.run().tuned
    assert study.fake.took()[0] == f"resume {name}"
    assert tuned.winner is not None
    assert tuned.winner.candidate.keys == {"train.learning-rate": 0.2}


@pytest.mark.parametrize(
    "error", [OSError("disk full"), RunError("MLflow cannot be opened"), MemoryError("full")]
)
def test_where_a_candidate_fails_without_diverging_its_method_waits(
    study: Study, error: Exception
) -> None:
    """The candidate that failed here is the one that wins in the end."""
    name = TRIALS[1][4:]
    study.fake.raises[name] = error
    result = study.run()
    assert study.fake.took() == TRIALS + [run for run in FINALS if "dm-" in run]
    assert [(run.name, why) for run, why in result.failures] == [(f"tuning/{name}", error)]
    assert (result.tuned[0].winner, result.tuned[0].failed) == (None, False)
    assert (result.num_left, result.time_is_up) == (3, False)
    reason = f"{type(error).__name__}: {error}"
    assert f"learning-rate=0.2: {reason}" in study.fake.notes[0]
    (told,) = json.loads((study.folder / "tuning.json").read_text())["tunings"]
    assert (told["settled"], told["candidates"][1]["mishap"]) == (False, reason)
    study.fake.raises.clear()
    result = study.run()
    assert study.fake.took() == [f"resume {name}", *(run for run in FINALS if "avg-" in run)]
    assert (result.failures, result.num_left, len(result.runs)) == ((), 0, 8)
    assert result.tuned[0].winner is not None
    assert result.tuned[0].winner.candidate.keys == {"train.learning-rate": 0.2}


def test_a_method_whose_candidates_all_fail_does_not_stop_the_others(study: Study) -> None:
    study.fake.raises = {name[4:]: DIVERGED for name in TRIALS}
    result = study.run()
    assert [run.method for run, _ in result.runs] == ["dm"] * 4
    (tuned,) = result.tuned
    assert tuned.failed
    assert result.num_left == 0
    assert study.steps[-1].number == study.steps[-1].total == 10
    assert [(e.label, len(e.runs)) for e in study.fake.compared] == [("dm", 2), ("avg", 0)] * 2


def test_a_final_run_that_fails_does_not_stop_the_others(study: Study) -> None:
    study.fake.raises["dm-iid-seed0"] = DIVERGED
    result = study.run()
    assert [(run.name, error) for run, error in result.failures] == [("dm-iid-seed0", DIVERGED)]
    assert len(result.runs) == 7


def test_a_final_run_that_diverged_is_left_at_that_until_its_folder_is_gone(study: Study) -> None:
    study.fake.raises["dm-iid-seed0"] = DIVERGED
    study.run()
    study.fake.raises.clear()
    study.fake.took()
    study.fake.planned.clear()
    for _ in range(2):
        ((run, error),) = study.run().failures
        assert study.fake.took() == study.fake.planned == []
        assert (run.name, type(error), str(error)) == ("dm-iid-seed0", DivergedError, str(DIVERGED))
        (step,) = [step for step in study.steps if step.action == "failed"]
        assert step.reason == f"DivergedError: {DIVERGED}"
    (study.folder / "dm-iid-seed0").rename(study.root / "elsewhere")
    result = study.run()
    assert study.fake.took() == ["run dm-iid-seed0"]
    assert (result.failures, len(result.runs)) == ((), 8)


@pytest.mark.parametrize("error", [DIVERGED, MemoryError("full")])
def test_runs_that_failed_are_shown_with_the_others(study: Study, error: Exception) -> None:
    study.fake.raises["dm-iid-seed0"] = error
    result = study.run()
    ((run, loaded),) = result.unfinished
    assert (run.name, loaded.status) == ("dm-iid-seed0", "failed")
    assert loaded.failure == f"{type(error).__name__}: {error}"
    assert loaded in next(e.runs for e in study.fake.compared if (e.setting, e.label) == DM_IID)
    assert result.report is not None
    assert f"{loaded.folder.path}\n" in result.report.read_text()
    assert study.fake.labels[loaded.folder.path] == "dm under iid"
    assert study.fake.labels == result.labels
    assert len(result.labels) == 8


def test_a_run_without_a_folder_is_told_in_the_notes(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = study.fake.run

    def fail(config: RunConfig, progress: Any, *, keep_data: bool) -> Path:
        if config.name == "dm-iid-seed0":
            raise OSError("disk full\nat length")
        return run(config, progress, keep_data=keep_data)

    monkeypatch.setattr("experiments.run.run", fail)
    study.run()
    assert "dm-iid-seed0 could not be run (OSError: disk full)." in study.fake.notes


def test_what_lies_there_of_earlier_results_goes_where_nothing_is_shown(study: Study) -> None:
    figures = study.folder / "comparison"
    figures.mkdir(parents=True)
    for name in ("curves-02-gone.svg", "curves-02-gone.pdf", "mine.txt"):
        (figures / name).write_text("")
    (study.folder / "report.html").write_text("of another day")
    (study.folder / "comparison.md").write_text("of another day")
    study.fake.raises = {
        name[4:]: DIVERGED for name in [*TRIALS, *(run for run in FINALS if "dm-" in run)]
    }
    for name in [run[4:] for run in FINALS if "dm-" in run]:
        study.fake.unmade.add(name)
    result = study.run()
    assert (result.report, result.runs, result.unfinished) == (None, (), ())
    assert not (study.folder / "report.html").exists()
    assert (study.folder / "comparison.md").read_text() != "of another day"
    assert [path.name for path in figures.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("name", [TRIALS[1][4:], FINALS[0][4:], "avg-skewed-seed1"])
def test_a_complete_run_that_is_damaged_is_run_again_and_changes_nothing(
    study: Study, name: str
) -> None:
    first = study.run()
    study.fake.took()
    folder = study.folder / ("tuning" if "learning-rate" in name else "") / name
    lines = (folder / "rounds.jsonl").read_text().splitlines(keepends=True)
    (folder / "rounds.jsonl").write_text(lines[0])
    second = study.run()
    copied = name == "avg-skewed-seed1"
    assert study.fake.took() == ([] if copied else [f"run {name}"])
    if not copied:
        (step,) = [step for step in study.steps if step.action == "damaged"]
        assert step.run.config.name == name
        assert "rounds.jsonl" in step.reason
    moved = folder.with_name(f"{name}.damaged-1")
    assert (moved / "rounds.jsonl").read_text() == lines[0]
    assert second.tuned == first.tuned
    assert [len(loaded.rounds) for _, loaded in second.runs] == [2] * 8


@pytest.mark.parametrize("kind", ["outdated", "damaged"])
def test_what_another_process_writes_is_not_moved_away(study: Study, kind: str) -> None:
    folder = study.folder / "dm-iid-seed0"
    folder.mkdir(parents=True)
    if kind == "outdated":
        RunFolder(folder).write_json("run", {"identity": "another"})
    with FileLock(folder / ".lock", timeout=0):
        before = {path: path.read_bytes() for path in folder.iterdir()}
        result = study.run()
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
    ((run, error),) = result.failures
    assert (run.name, type(error)) == ("dm-iid-seed0", BusyError)
    assert str(folder) in str(error)
    assert len(result.runs) == 7
    assert "run dm-iid-seed0" not in study.fake.took()
    assert study.run().failures == ()
    assert study.fake.took() == ["run dm-iid-seed0"]
    assert folder.with_name(f"dm-iid-seed0.{kind}-1").is_dir()


@pytest.mark.parametrize("cut_off", [False, True])
def test_a_run_that_ends_and_cannot_be_read_is_a_failure(
    study: Study, monkeypatch: pytest.MonkeyPatch, cut_off: bool
) -> None:
    if cut_off:
        study.fake.raises["dm-iid-seed0"] = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            study.run()
        study.fake.raises.clear()
    how = "resume" if cut_off else "run"
    go = getattr(study.fake, how)

    def lose(*args: Any, keep_data: bool) -> Path:
        folder: Path = go(*args, keep_data=keep_data)
        if folder.name == "dm-iid-seed0":
            (folder / "rounds.jsonl").unlink()
        return folder

    monkeypatch.setattr(f"experiments.run.{how}", lose)
    ((failed, error),) = study.run().failures
    assert (failed.name, type(error)) == ("dm-iid-seed0", RecordError)
    assert "rounds.jsonl" in str(error)


def test_sinks_receive_what_tuning_made_under_its_final_name(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[str, str, list[str]]] = []

    def remember(config: RunConfig, folder: RunFolder) -> None:
        status = folder.read_json("run")["status"]
        sent.append((config.name, status, sorted(path.name for path in folder.path.iterdir())))

    trial = study.folder / "tuning" / TRIALS[1][4:]

    def with_sinks(config: RunConfig) -> tuple[float, float]:
        if config.name == trial.name:
            (trial / "wandb").mkdir()
            (trial / "events").mkdir()
            (trial / "sinks.json").write_text("{}")
        return (0.9, 0.9) if config.name == trial.name else (0.1, 0.1)

    study.fake.figures = with_sinks
    monkeypatch.setattr("experiments.execution.replay", remember)
    study.run(base=study.base(**{"sinks.mlflow": True, "sinks.project": "mine"}))
    ((name, status, files),) = sent
    assert (name, status) == ("avg-skewed-seed1", "running")
    assert not {"wandb", "events", "sinks.json"} & {*files}
    made = load_run(study.folder / name)
    assert made.finished
    assert (made.config["sinks.mlflow"], made.config["sinks.project"]) == (True, "mine")
    assert load_run(trial).config["sinks.mlflow"] is False
    assert set(study.fake.planned) >= {name, f"tuning/{trial.name}"}  # for its sinks


@pytest.mark.parametrize("error", [RunError("MLflow cannot be opened"), KeyboardInterrupt()])
def test_a_copy_that_does_not_reach_its_sinks_is_made_again(
    study: Study, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(config: RunConfig, folder: RunFolder) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr("experiments.execution.replay", fail)
        if isinstance(error, RunError):
            assert [why for _, why in study.run().failures] == [error]
        else:
            with pytest.raises(KeyboardInterrupt):
                study.run()
    assert not (study.folder / "avg-skewed-seed1").exists()
    study.fake.took()
    result = study.run()
    assert study.fake.took() == []
    assert study.actions["avg-skewed-seed1"] == "tuned"
    assert len(result.runs) == 8


def test_each_setting_takes_its_own_winner(study: Study) -> None:
    def figures(config: RunConfig) -> tuple[float, float]:
        better = 0.1 if config.partition.scheme == "iid" else 0.2
        return (0.9 if config.train.learning_rate == better else 0.1, 0.5)

    study.fake.figures = figures
    result = study.run(tuning={"setting": "each", "seeds": [0]})
    taken = {
        (run.setting, loaded.config["train.learning-rate"])
        for run, loaded in result.runs
        if run.method == "avg"
    }
    assert taken == {("iid", 0.1), ("skewed", 0.2)}
    assert study.actions["avg-iid-seed0"] == study.actions["avg-skewed-seed0"] == "tuned"


@pytest.mark.parametrize("minutes", [1, 2, 3, 6, 9])
def test_no_run_starts_after_the_time_and_the_same_call_goes_on(study: Study, minutes: int) -> None:
    """A run takes a minute, so `minutes` of them start."""
    result = study.run(max_minutes=minutes)
    assert study.fake.took() == [*TRIALS, *FINALS][:minutes]
    assert result.num_left == 9 - minutes
    assert result.time_is_up == (minutes < 9)
    assert (
        study.fake.notes[-1:] == [f"Not complete: {9 - minutes} of 10 runs are left to run."]
    ) == (minutes < 9)
    if minutes < 2:
        assert result.tuned[0].winner is None
        assert (result.report, result.runs) == (None, ())
        assert [len(entry.runs) for entry in study.fake.compared] == [0] * 4
    result = study.run(max_minutes=100)
    assert study.fake.took() == [*TRIALS, *FINALS][minutes:]
    assert (len(result.runs), result.num_left) == (8, 0)


@pytest.mark.parametrize("minutes", [0, -1, float("nan")])
def test_a_time_that_is_none_is_refused(study: Study, minutes: float) -> None:
    with pytest.raises(ConfigError, match="max-minutes"):
        study.run(max_minutes=minutes)
    assert not study.folder.exists()


def test_what_is_refused_is_told_before_anything_is_written(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(runs: object) -> None:
        raise RunError("no such device")

    monkeypatch.setattr("experiments.execution.plan_suite", refuse)
    with pytest.raises(RunError, match="device"):
        study.run()
    assert study.fake.took() == []
    assert not study.folder.exists()


def test_methods_of_unlike_scores_are_refused_before_anything_is_written(study: Study) -> None:
    videos = Scores([Score("recall_at_1", "R@1", is_percent=True)])
    study.fake.scores["dm-iid-seed0"] = videos
    with pytest.raises(ConfigError, match=r"is judged by .*dm-iid-seed0 by R@1"):
        study.run()
    assert study.fake.took() == []
    assert not study.folder.exists()


def test_what_is_checked_before_the_start(study: Study) -> None:
    """All candidates' runs; of runs that a winner will have elsewhere, the first candidate's."""
    study.run()
    assert sorted(study.fake.planned) == sorted(
        [f"tuning/{name[4:]}" for name in TRIALS] + [name[4:] for name in FINALS]
    )


HOLDS = """
import sys
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_suite_that_another_process_runs_is_refused(study: Study) -> None:
    study.folder.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(study.folder / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="another comparison") as caught:
            study.run()
        assert str(study.folder) in str(caught.value)
        assert study.fake.took() == []
        other.communicate()
    study.run()
    assert len(study.fake.took()) == 9


def test_the_suite_is_held_while_it_runs_and_let_go_whatever_happens(study: Study) -> None:
    held: list[bool] = []

    def figures(config: RunConfig) -> tuple[float, float]:
        lock = FileLock(study.folder / ".lock", timeout=0)
        try:
            lock.acquire()
        except TimeoutError:
            held.append(True)
        else:
            lock.release()
            held.append(False)
        raise KeyboardInterrupt

    study.fake.figures = figures
    with pytest.raises(KeyboardInterrupt):
        study.run()
    assert held == [True]
    with FileLock(study.folder / ".lock", timeout=0):
        pass


def test_where_clients_run_may_change_in_the_middle(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.fake.raises["dm-iid-seed0"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        study.run()
    study.fake.raises.clear()
    changes: list[Mapping[str, object]] = []
    resume = study.fake.resume

    def remember(
        path: Path, progress: Any, given: Mapping[str, object], *, keep_data: bool
    ) -> Path:
        changes.append(given)
        return resume(path, progress, given, keep_data=keep_data)

    monkeypatch.setattr("experiments.run.resume", remember)
    study.run(base=study.base(**{"checkpoint-every": 3}))
    assert [given["checkpoint-every"] for given in changes] == [3]
    assert not {"runs", "name", "rounds"} & changes[0].keys()


def test_a_reference_runs_once_for_all_budgets(tmp_path: Path, fake_runs: FakeRuns) -> None:
    study = Study(tmp_path, fake_runs)
    tables: dict[str, Any] = {
        "seeds": [0],
        "tuning": None,
        "settings": [
            {"label": "e1", "privacy.epsilon": 1.0},
            {"label": "e8", "privacy.epsilon": 8.0},
        ],
        "methods": [
            {"label": "dp", "strategy": "fedavg", "privacy.mechanism": "dp-sgd"},
            {"label": "plain", "strategy": "fedavg"},
        ],
    }
    result = study.run(**tables)
    assert study.actions == {
        "dp-e1-seed0": "todo",
        "plain-e1-seed0": "todo",
        "dp-e8-seed0": "todo",
        "plain-e8-seed0": "same",
    }
    assert study.fake.took() == ["run dp-e1-seed0", "run plain-e1-seed0", "run dp-e8-seed0"]
    assert [run.name for run, _ in result.runs] == list(study.actions)
    assert load_run(study.folder / "plain-e8-seed0").name == "plain-e8-seed0"
    study.run(**tables)
    assert set(study.actions.values()) == {"done"}
    assert study.fake.took() == []
