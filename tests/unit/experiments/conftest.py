"""Run folders in place of federations, with figures and accidents of a test's choosing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from core.config import RunConfig
from core.errors import RecordError
from core.records import SCHEMA_VERSION, EvaluationRecord, RoundRecord, RunFolder
from core.scores import CLASSIFICATION, Scores
from data.partition import Partition
from experiments import execution
from experiments import run as running
from experiments.suite import SuiteRun
from report.comparison import Entry
from server.app import run_folder_of
from server.progress import Progress

Figures = Callable[[RunConfig], tuple[float, float]]
"""Validation and test accuracy of a run."""


def evaluation(accuracy: float) -> EvaluationRecord:
    return EvaluationRecord(
        num_examples=10,
        loss=1.0,
        scores={"accuracy": accuracy, "macro_f1": accuracy},
        per_class_accuracy=[accuracy, accuracy],
        confusion=[[5, 0], [0, 5]],
    )


def round_record(
    round: int, validation: float | None, test: float | None, bytes_up: int = 2000
) -> RoundRecord:
    return RoundRecord(
        round=round,
        validation=None if validation is None else evaluation(validation),
        test=None if test is None else evaluation(test),
        client_scores=None if test is None else [test],
        worst_client_score=test,
        bytes_down=1000,
        bytes_up=bytes_up,
        clients=[],
        server={},
        seconds={"client_sum": 1.0, "server": 1.0, "elapsed": 2.0, "wall": 1.0},
    )


def start_run(config: RunConfig) -> RunFolder:
    """A run folder of which nothing is on record yet."""
    folder = RunFolder.create(config.runs, config.name, config.flat())
    folder.write_json("config", config.flat())
    folder.write_json("environment", {"python": "3"})
    folder.write_json("privacy", {"guarantee": "none", "images_sent": "none", "text": "none"})
    Partition(
        scheme={"scheme": "iid"},
        source="digits",
        num_examples=2,
        seed=0,
        failed_attempts=(),
        clients=(np.arange(2),),
        class_counts=np.array([[1, 1]]),
    ).write(folder.partition)
    end_run(folder, config, "running")
    return folder


def end_run(folder: RunFolder, config: RunConfig, status: str, failure: str | None = None) -> None:
    folder.write_json(
        "run",
        {
            "schema": SCHEMA_VERSION,
            "name": config.name,
            "status": status,
            "failure": failure,
            "command": "",
            "identity": config.identity(),
            "class_names": ["0", "1"],
            "started": "2026-01-01T00:00:00+00:00",
            "rounds_done": max(len(folder.read_rounds()) - 1, 0),
        },
    )


class FakeRuns:
    """In place of `experiments.run`.

    Attributes:
        figures: What each run comes to.
        raises: By the run's name: what it raises, as often as it is tried.
        unmade: Names of runs that raise before they have a folder.
        cannot_go_on: Names of runs that `resume` refuses.
        calls: What was done, such as "run a-seed0" and "resume a-seed0".
        planned: Names of the runs that were checked before the start.
        scores: By name, what such a run would be judged by; the others by those of classification.
        compared: What the comparison was last written of.
        notes: Its notes.
        labels: What the report was last told to call methods.
        seconds: What the clock shows; each run takes a minute.
    """

    def __init__(self) -> None:
        self.figures: Figures = lambda config: (0.5, 0.5)
        self.raises: dict[str, BaseException] = {}
        self.unmade: set[str] = set()
        self.cannot_go_on: set[str] = set()
        self.calls: list[str] = []
        self.planned: list[str] = []
        self.scores: dict[str, Scores] = {}
        self.compared: Sequence[Entry] = ()
        self.notes: Sequence[str] = ()
        self.labels: Mapping[Path, str] = {}
        self.seconds = 0.0
        self._configs: dict[Path, RunConfig] = {}

    def plan(self, runs: Iterable[SuiteRun]) -> list[Any]:
        """In place of `experiments.suite.plan_suite`."""
        names = [run.name for run in runs]
        self.planned += names
        return [SimpleNamespace(scores=self.scores.get(name, CLASSIFICATION)) for name in names]

    def run(self, config: RunConfig, progress: Progress, *, keep_data: bool = False) -> Path:
        self.calls.append(f"run {config.name}")
        if config.name in self.unmade:
            raise self.raises[config.name]
        return self._go_on(start_run(config), config, progress)

    def resume(
        self,
        path: Path,
        progress: Progress,
        changes: Mapping[str, object] | None = None,
        *,
        keep_data: bool = False,
    ) -> Path:
        self.calls.append(f"resume {path.name}")
        if path.name in self.cannot_go_on:
            raise RecordError(f"{path}/checkpoints: torn")
        folder, config = RunFolder(path), self._configs[path]
        return self._go_on(folder, config, progress)

    def _go_on(self, folder: RunFolder, config: RunConfig, progress: Progress) -> Path:
        self._configs[folder.path] = config
        self.seconds += 60
        if error := self.raises.get(config.name):
            interrupted = isinstance(error, KeyboardInterrupt)
            failure = None if interrupted else f"{type(error).__name__}: {error}"
            end_run(folder, config, "interrupted" if interrupted else "failed", failure)
            raise error
        recorded = len(folder.read_rounds())
        for number in range(recorded, config.rounds):
            folder.append_round(round_record(number, 0.1, 0.1))
        record = round_record(config.rounds, *self.figures(config))
        folder.append_round(record)
        progress.round_ended(record)
        end_run(folder, config, "complete")
        return run_folder_of(config.runs, config.name)

    def took(self) -> list[str]:
        """The calls since this was last asked."""
        calls, self.calls = self.calls, []
        return calls


@pytest.fixture
def fake_runs(monkeypatch: pytest.MonkeyPatch) -> FakeRuns:
    fake = FakeRuns()

    def write_comparison(
        entries: Sequence[Entry],
        folder: Path,
        *,
        notes: Sequence[str],
        scores: Scores,
        **options: Any,
    ) -> list[Path]:
        fake.compared, fake.notes = entries, notes
        (folder / "comparison.md").write_text(json.dumps([scores.names, options]))
        return [folder / "comparison.md"]

    def write_report(runs: Sequence[Path], out: Path, labels: Mapping[Path, str]) -> Path:
        fake.labels = labels
        out.write_text("".join(f"{run}\n" for run in runs))
        return out

    monkeypatch.setattr(running, "run", fake.run)
    monkeypatch.setattr(running, "resume", fake.resume)
    monkeypatch.setattr(execution, "plan_suite", fake.plan)
    monkeypatch.setattr(execution, "write_comparison", write_comparison)
    monkeypatch.setattr(execution, "write_report", write_report)
    return fake
