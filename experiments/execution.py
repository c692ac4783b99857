"""Runs what is left of a suite: candidates first, then the methods with the keys that won.

A run that is complete is not run again, one that was cut off goes on where it stopped, and what
lies in its place otherwise is moved aside, never deleted. So the same command, given again, goes on
whatever stopped it.
"""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from core.config import NOT_SETTINGS
from core.errors import ConfigError, Problem, RecordError, RunError
from core.records import ClientRecord, RoundRecord, RunFolder, write_whole
from experiments import run as running
from experiments import tuning
from experiments.suite import Candidate, State, Suite, SuiteRun, plan_suite
from experiments.tuning import Trial, Tried, Tuned
from report.comparison import Entry, write_comparison
from report.html import write_report
from report.loading import LoadedRun, load_run
from server.progress import Progress
from workloads.vision import forget_data

Action = Literal[State, "failed", "tuned"]
"""What is done about a run, by what lies in its folder.

Besides the states: ``failed``, a candidate that is known to fail and not run again; ``tuned``, a
run that the winner's tuning has made already, and of which a copy is kept.
"""


@dataclass(frozen=True, slots=True)
class Step:
    """What is about to be done.

    Attributes:
        number: Of the run, from 1.
        total: Runs of the suite.
        run: Which.
        action: What.
        reason: Why what lies there cannot go on, where it is damaged; else empty.
    """

    number: int
    total: int
    run: SuiteRun
    action: Action
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SuiteResult:
    """What a suite came to.

    Attributes:
        suite: As run.
        tuned: What came of each tuning, in the suite's order.
        runs: Every complete run but the candidates', loaded, in the suite's order.
        failures: The others that were tried, each with what it raised.
        num_left: Runs that no time was left for.
        report: The HTML report over all complete runs; None where there is none.
        comparison: The comparison as Markdown, LaTeX and figures; empty where there is no run.
    """

    suite: Suite
    tuned: tuple[Tuned, ...]
    runs: tuple[tuple[SuiteRun, LoadedRun], ...]
    failures: tuple[tuple[SuiteRun, Exception], ...]
    num_left: int
    report: Path | None
    comparison: tuple[Path, ...]


def run_suite(
    suite: Suite,
    progress: Progress,
    on_step: Callable[[Step], None],
    *,
    max_minutes: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> SuiteResult:
    """Run what is left to run of a suite, and report on all of it.

    A run that fails is left as it is, and the others go on. So is a method whose candidates all
    fail.

    Args:
        suite: What to run.
        progress: Told how each run goes; of candidates' runs no test figures.
        on_step: Told of each run before it starts, or is passed over because it is done.
        max_minutes: After these, no run is started; None sets no limit.
        clock: Seconds.

    Raises:
        ConfigError, DataError, RunError: A run is refused before it could start; nothing was
            started.
        RunError: Another process runs this suite.
        RecordError: The suite's folder cannot be made.
    """
    if max_minutes is not None and not max_minutes > 0:
        raise ConfigError([Problem("max-minutes", f"{max_minutes:g}", "must be above 0")])
    began = clock()
    plan_suite(run for run in runs_to_check(suite) if run.state() != "done")
    with _alone_in(suite.folder):
        execution = _Execution(
            suite,
            progress,
            on_step,
            lambda: max_minutes is None or clock() - began < 60 * max_minutes,
        )
        try:
            tuned = execution.tune_all()
            execution.run_all(tuned)
        finally:
            forget_data()
        return execution.result(tuned)


def runs_to_check(suite: Suite) -> list[SuiteRun]:
    """Runs that tell before the start whether all will be accepted, candidates' first.

    In the settings and under the seeds that are not tried, the first candidate of a grid stands for
    the winner while that is not known.
    """
    trials = [run for one in suite.tunings for c in one.candidates for run in c.trials]
    tried = {(run.method, run.config.identity()) for run in trials}
    tuned = [tuning.read_tuned(one) for one in suite.tunings]
    winners = [(one.winner or one.tried[0]).candidate for one in tuned if not one.failed]
    finals = suite.final_runs(winners)
    return trials + [r for r in finals if (r.method, r.config.identity()) not in tried]


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the suite's folder; whoever holds it loses it with its process at the latest."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except Timeout as error:
        raise RunError(
            f"{folder} is in use: another comparison runs this suite; wait for its end, or give "
            "this one another name"
        ) from error
    except OSError as error:
        raise RecordError(
            f"{folder} cannot be made or written: {error.strerror}; give another runs=DIR in [base]"
        ) from error
    try:
        yield
    finally:
        lock.release()


class _Execution:
    """One pass over a suite."""

    def __init__(
        self,
        suite: Suite,
        progress: Progress,
        on_step: Callable[[Step], None],
        may_start: Callable[[], bool],
    ) -> None:
        self._suite = suite
        self._progress = progress
        self._on_step = on_step
        self._may_start = may_start
        self._number = 0
        self._num_left = 0
        self._runs: list[tuple[SuiteRun, LoadedRun]] = []
        self._failures: list[tuple[SuiteRun, Exception]] = []

    def tune_all(self) -> list[Tuned]:
        """Try every candidate; ``tuning.json`` tells the choices made so far."""
        tuned: list[Tuned] = []
        for one in self._suite.tunings:
            tuned.append(Tuned(one, tuple(self._try(candidate) for candidate in one.candidates)))
            value = {"suite": self._suite.name, "tunings": tuning.to_json(tuned)}
            content = json.dumps(value, indent=2, allow_nan=False) + "\n"
            write_whole(self._suite.folder / "tuning.json", content.encode())
        return tuned

    def _try(self, candidate: Candidate) -> Tried:
        """Run a candidate under every seed, or up to the first that fails."""
        trials: list[Trial] = []
        for run in candidate.trials:
            if any(trial.failure is not None for trial in trials):
                self._number += 1
                trials.append(Trial())
            else:
                trials.append(self._try_once(run))
        return Tried(candidate, tuple(trials))

    def _try_once(self, run: SuiteRun) -> Trial:
        self._number += 1
        known = tuning.read_trial(run)
        if known.failure is not None:
            self._tell(run, "failed")
            return known
        try:
            if not self._compute(run, _WithoutTest(self._progress)):
                return Trial()
        except Exception as error:
            return Trial(failure=f"{type(error).__name__}: {error}")
        return tuning.read_trial(run)

    def run_all(self, tuned: Sequence[Tuned]) -> None:
        """Run every method, with what its tuning found; those without a winner are left out."""
        winners = [one.winner.candidate for one in tuned if one.winner is not None]
        trials = {(t.method, t.config.identity()): t for w in winners for t in w.trials}
        self._num_left += sum(
            one.tuning.num_finals - len(one.tuning.seeds) for one in tuned if not one.settled
        )
        self._number += sum(one.tuning.num_finals for one in tuned if one.winner is None)
        for run in self._suite.final_runs(winners):
            self._number += 1
            try:
                if self._make(run, trials.get((run.method, run.config.identity()))):
                    self._runs.append((run, load_run(run.folder)))
            except Exception as error:
                self._failures.append((run, error))

    def _make(self, run: SuiteRun, trial: SuiteRun | None) -> bool:
        """Run it, or take what its tuning made; False where no time is left."""
        if trial is None or run.state() == "done" or trial.state() != "done":
            return self._compute(run, self._progress)
        self._tell(run, "tuned")
        _move_aside(run)
        _copy(trial, run)
        return True

    def _compute(self, run: SuiteRun, progress: Progress) -> bool:
        """Bring a run to its end from whatever lies in its folder; False where no time is left."""
        state = run.state()
        if state != "done" and not self._may_start():
            self._num_left += 1
            return False
        self._tell(run, state, "it holds no run.json to read" if state == "damaged" else "")
        if state == "done":
            return True
        if state == "incomplete":
            changes = {key: v for key, v in run.config.flat().items() if key in _MAY_CHANGE}
            try:
                running.resume(run.folder, progress, changes, keep_data=True)
                return True
            except RecordError as error:
                self._tell(run, "damaged", str(error))
        _move_aside(run)
        running.run(run.config, progress, keep_data=True)
        return True

    def _tell(self, run: SuiteRun, action: Action, reason: str = "") -> None:
        self._on_step(Step(self._number, self._suite.num_runs, run, action, reason))

    def _left_to_run(self) -> list[str]:
        if not self._num_left:
            return []
        return [f"Not complete: {self._num_left} of {self._suite.num_runs} runs are left to run."]

    def result(self, tuned: Sequence[Tuned]) -> SuiteResult:
        """Write what readers get, and tell it all."""
        suite, runs = self._suite, tuple(self._runs)
        report: Path | None = None
        comparison: tuple[Path, ...] = ()
        if runs:
            folders = [loaded.folder.path for _, loaded in runs]
            report = write_report(folders, suite.folder / "report.html")
            comparison = tuple(
                write_comparison(
                    _entries(suite, runs),
                    suite.folder,
                    title=suite.name,
                    target_accuracy=suite.target_accuracy,
                    notes=[*tuning.sentences(suite, tuned), *self._left_to_run()],
                )
            )
        failures = tuple(self._failures)
        return SuiteResult(suite, tuple(tuned), runs, failures, self._num_left, report, comparison)


_MAY_CHANGE = NOT_SETTINGS - {"name", "runs"}


def _entries(suite: Suite, runs: Sequence[tuple[SuiteRun, LoadedRun]]) -> list[Entry]:
    """One for each method under each setting, also where none of its runs is complete."""
    found: dict[tuple[str, str], list[LoadedRun]] = {
        slot: [] for slot in itertools.product(suite.settings, suite.methods)
    }
    for run, loaded in runs:
        found[run.setting, run.method].append(loaded)
    return [
        Entry(setting, method, tuple(loaded), len(suite.seeds))
        for (setting, method), loaded in found.items()
    ]


def _move_aside(run: SuiteRun) -> None:
    state = run.state()
    if state == "todo":
        return
    names = (run.folder.with_name(f"{run.folder.name}.{state}-{n}") for n in itertools.count(1))
    run.folder.rename(next(path for path in names if not path.exists()))


def _copy(trial: SuiteRun, run: SuiteRun) -> None:
    """Make `run` of a candidate's run of the same configuration, whole or not at all."""
    part = trial.folder.with_name(f".{run.config.name}.part")
    if part.exists():  # left by a comparison that was killed here
        shutil.rmtree(part)
    shutil.copytree(trial.folder, part)
    folder = RunFolder(part)
    folder.write_json("config", {**folder.read_json("config"), **_place(run)})
    folder.write_json("run", {**folder.read_json("run"), "name": run.config.name})
    part.rename(run.folder)


def _place(run: SuiteRun) -> dict[str, str]:
    return {"runs": run.config.runs, "name": run.config.name}


class _WithoutTest:
    """Tells of a run but for its test figures."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def run_started(self, folder: Path, rounds: int, rounds_done: int) -> None:
        self._progress.run_started(folder, rounds, rounds_done)

    def round_started(self, round: int, clients: int, steps: int) -> None:
        self._progress.round_started(round, clients, steps)

    def client_replied(self, client: ClientRecord) -> None:
        self._progress.client_replied(client)

    def server_started(self) -> None:
        self._progress.server_started()

    def round_ended(self, record: RoundRecord) -> None:
        untold = replace(record, test=None, client_accuracy=None, worst_client_accuracy=None)
        self._progress.round_ended(untold)

    def run_ended(self, status: str) -> None:
        self._progress.run_ended(status)
