"""Runs what is left of a suite: candidates first, then the methods with the keys that won.

A run that is complete, or that diverged, is not run again; one that was cut off goes on where it
stopped; what lies in its place otherwise is moved aside, never deleted, and not while another
process writes to it. So the same command, given again, goes on whatever stopped it.
"""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from core.config import NOT_SETTINGS, Scalar, SinksConfig
from core.errors import BusyError, ConfigError, DivergedError, Problem, RecordError, RunError
from core.records import ClientRecord, RoundRecord, RunFolder, write_whole
from core.scores import Scores
from experiments import run as running
from experiments import tuning
from experiments.suite import Candidate, State, Suite, SuiteRun, judged_by, plan_suite
from experiments.tuning import Trial, Tried, Tuned
from report.comparison import FIGURES, Entry, write_comparison
from report.html import write_report
from report.loading import LoadedRun, load_run
from server.progress import Progress
from server.sinks import replay
from workloads.table import forget_data

Action = Literal[State, "tuned", "same"]
"""What is done about a run, by what lies in its folder.

Besides the states: ``tuned``, a run that the winner's tuning has made already, and ``same``, one
that is made already under another setting, of which it takes nothing. A copy is kept of both.
"""


@dataclass(frozen=True, slots=True)
class Step:
    """What is about to be done.

    Attributes:
        number: Of the run, from 1.
        total: Runs of the suite.
        run: Which.
        action: What.
        reason: Why what lies there cannot go on, where it is damaged or failed; else empty.
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
        scores: What its runs are judged by.
        tuned: What came of each tuning, in the suite's order.
        runs: Every complete run but the candidates', loaded, in the suite's order.
        unfinished: Those that are on record and not complete, likewise.
        failures: Runs that were tried, or diverged before, each with what it raised; of candidates'
            runs those that did not diverge and are tried again by the next call.
        num_left: Runs that were not tried.
        time_is_up: Whether for want of time; otherwise they wait for a tuning that `failures` tells
            why it is not settled.
        report: The HTML report over all runs on record; None where there is none.
        comparison: The comparison as Markdown, LaTeX and figures.
    """

    suite: Suite
    scores: Scores
    tuned: tuple[Tuned, ...]
    runs: tuple[tuple[SuiteRun, LoadedRun], ...]
    unfinished: tuple[tuple[SuiteRun, LoadedRun], ...]
    failures: tuple[tuple[SuiteRun, Exception], ...]
    num_left: int
    time_is_up: bool
    report: Path | None
    comparison: tuple[Path, ...]

    @property
    def labels(self) -> dict[Path, str]:
        """By folder of a run on record, what its method is called where settings are mixed."""
        return _labels((*self.runs, *self.unfinished))


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
    diverge, or one of them fails otherwise.

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
    to_check = [run for run in runs_to_check(suite) if run.state() not in NOTHING_TO_RUN]
    scores = judged_by(suite, to_check, plan_suite(to_check))
    with _alone_in(suite.folder):
        execution = _Execution(
            suite,
            scores,
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


NOTHING_TO_RUN: tuple[State, ...] = ("done", "failed")


def runs_to_check(suite: Suite) -> list[SuiteRun]:
    """Runs that tell before the start whether all will be accepted, candidates' first.

    In the settings and under the seeds that are not tried, the first candidate of a grid stands for
    the winner while that is not known.
    """
    trials = [run for one in suite.tunings for c in one.candidates for run in c.trials]
    tried = {_what_is_checked(run) for run in trials}
    tuned = [tuning.read_tuned(one) for one in suite.tunings]
    winners = [(one.winner or one.tried[0]).candidate for one in tuned if not one.failed]
    finals = suite.final_runs(winners)
    return trials + [run for run in finals if _what_is_checked(run) not in tried]


def _what_is_checked(run: SuiteRun) -> tuple[str, str, SinksConfig]:
    return (run.method, run.config.identity(), run.config.sinks)


Placeless = tuple[str, tuple[tuple[str, Scalar], ...]]


def placeless(run: SuiteRun) -> Placeless:
    """What a run is but for its place: twins under two settings share it."""
    return run.method, tuple(replace(run.config, name="", runs="").flat().items())


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
        scores: Scores,
        progress: Progress,
        on_step: Callable[[Step], None],
        may_start: Callable[[], bool],
    ) -> None:
        self._suite = suite
        self._scores = scores
        self._progress = progress
        self._on_step = on_step
        self._may_start = may_start
        self._number = 0
        self._num_left = 0
        self._time_is_up = False
        self._loaded: list[tuple[SuiteRun, LoadedRun]] = []
        self._failures: list[tuple[SuiteRun, Exception]] = []

    def tune_all(self) -> list[Tuned]:
        """Try every candidate; ``tuning.json`` tells the choices made so far."""
        tuned: list[Tuned] = []
        for one in self._suite.tunings:
            tuned.append(Tuned(one, tuple(self._try(candidate) for candidate in one.candidates)))
            tunings = tuning.to_json(tuned, self._scores.primary)
            value = {"suite": self._suite.name, "tunings": tunings}
            content = json.dumps(value, indent=2, allow_nan=False) + "\n"
            write_whole(self._suite.folder / "tuning.json", content.encode())
        return tuned

    def _try(self, candidate: Candidate) -> Tried:
        """Run a candidate under every seed, or up to the first that diverges."""
        trials: list[Trial] = []
        for run in candidate.trials:
            self._number += 1
            lost = any(trial.failure is not None for trial in trials)
            trials.append(Trial() if lost else self._try_once(run))
        return Tried(candidate, tuple(trials))

    def _try_once(self, run: SuiteRun) -> Trial:
        try:
            self._compute(run, _WithoutTest(self._progress))
        except DivergedError as error:
            return Trial(failure=f"{type(error).__name__}: {error}")
        except Exception as error:
            self._failures.append((run, error))
            return Trial(mishap=f"{type(error).__name__}: {error}")
        return tuning.read_trial(run)

    def run_all(self, tuned: Sequence[Tuned]) -> None:
        """Run every method, with what its tuning found; those without a winner are left out."""
        winners = [one.winner.candidate for one in tuned if one.winner is not None]
        trials = {(t.method, t.config.identity()): t for w in winners for t in w.trials}
        self._num_left += sum(
            one.tuning.num_finals - len(one.tuning.seeds) for one in tuned if not one.settled
        )
        self._number += sum(one.tuning.num_finals for one in tuned if one.winner is None)
        twins: dict[Placeless, SuiteRun] = {}
        for run in self._suite.final_runs(winners):
            self._number += 1
            twin = twins.setdefault(placeless(run), run)
            try:
                made = twin if twin is not run else None
                self._make(run, trials.get((run.method, run.config.identity()), made))
            except Exception as error:
                self._failures.append((run, error))
            self._load(run)

    def _load(self, run: SuiteRun) -> None:
        """Keep what is on record of a run, however far it came."""
        found = run.look()
        if found.run is not None:
            self._loaded.append((run, found.run))
        elif found.state in ("incomplete", "failed"):
            with suppress(RecordError, OSError):  # what keeps a run from its end is told elsewhere
                self._loaded.append((run, load_run(run.folder)))

    def _make(self, run: SuiteRun, trial: SuiteRun | None) -> None:
        """Run it, or take what its tuning, or its twin under another setting, made."""
        state = run.state()
        if trial is None or state in NOTHING_TO_RUN or trial.state() != "done":
            self._compute(run, self._progress)
            return
        self._tell(run, "tuned" if trial.tunes else "same")
        _move_aside(run, state)
        _copy(trial, run)

    def _compute(self, run: SuiteRun, progress: Progress) -> None:
        """Bring a run to its end from whatever lies in its folder, if time is left.

        Raises:
            DivergedError: It diverged, now or when it was run before.
            BusyError: Another process writes to its folder.
            RecordError: It came to its end, and its records cannot be read all the same.
        """
        found = run.look()
        if found.state not in NOTHING_TO_RUN and not self._may_start():
            self._num_left += 1
            self._time_is_up = True
            return
        told = found.reason if found.state in ("damaged", "failed") else ""
        self._tell(run, found.state, told)
        if found.state == "done":
            return
        if found.state == "failed":
            raise DivergedError(found.reason.removeprefix(f"{DivergedError.__name__}: "))
        if found.state == "incomplete":
            changes = {key: v for key, v in run.config.flat().items() if key in _MAY_CHANGE}
            try:
                running.resume(run.folder, progress, changes, keep_data=True)
            except BusyError:
                raise
            except RecordError as error:
                self._tell(run, "damaged", str(error))
            else:
                _refuse_unreadable(run)
                return
        _move_aside(run, found.state)
        running.run(run.config, progress, keep_data=True)
        _refuse_unreadable(run)

    def _tell(self, run: SuiteRun, action: Action, reason: str = "") -> None:
        self._on_step(Step(self._number, self._suite.num_runs, run, action, reason))

    def _notes(self, tuned: Sequence[Tuned]) -> list[str]:
        """What readers of the comparison must know."""
        notes = tuning.sentences(self._suite, tuned, self._scores.primary)
        on_record = {run.name for run, _ in self._loaded}
        for run, error in self._failures:  # the comparison tells how runs on record ended
            if not run.tunes and run.name not in on_record:
                reason = tuning.first_line(f"{type(error).__name__}: {error}")
                notes.append(f"{run.name} could not be run ({reason}).")
        if self._num_left:
            total = self._suite.num_runs
            notes.append(f"Not complete: {self._num_left} of {total} runs are left to run.")
        return notes

    def result(self, tuned: Sequence[Tuned]) -> SuiteResult:
        """Write what readers get, and tell it all."""
        suite, loaded = self._suite, self._loaded
        comparison = write_comparison(
            _entries(suite, loaded),
            suite.folder,
            title=suite.name,
            scores=self._scores,
            target=suite.target.value if suite.target else None,
            notes=self._notes(tuned),
        )
        _remove_other_figures(suite.folder / FIGURES, comparison)
        page = suite.folder / "report.html"
        if loaded:
            folders = [found.folder.path for _, found in loaded]
            write_report(folders, page, _labels(loaded))
        else:
            page.unlink(missing_ok=True)
        return SuiteResult(
            suite,
            self._scores,
            tuple(tuned),
            runs=tuple((run, found) for run, found in loaded if found.finished),
            unfinished=tuple((run, found) for run, found in loaded if not found.finished),
            failures=tuple(self._failures),
            num_left=self._num_left,
            time_is_up=self._time_is_up,
            report=page if loaded else None,
            comparison=tuple(comparison),
        )


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


def _labels(runs: Iterable[tuple[SuiteRun, LoadedRun]]) -> dict[Path, str]:
    return {
        loaded.folder.path: f"{run.method} under {run.setting}" if run.setting else run.method
        for run, loaded in runs
    }


def _remove_other_figures(folder: Path, written: Collection[Path]) -> None:
    """Remove figures of settings that the suite no longer has."""
    for path in (*folder.glob("*.svg"), *folder.glob("*.pdf")):
        if path not in written:
            path.unlink()


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold what lies in a run's place against other writers.

    Raises:
        BusyError: Another process writes to it.
    """
    if not path.is_dir():
        yield
        return
    lock = FileLock(RunFolder(path).lock, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise BusyError(
            f"run folder {path} is being written to by another process; it is left as it is; wait "
            "for it, or end it first"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _refuse_unreadable(run: SuiteRun) -> None:
    found = run.look()
    if found.state != "done":
        raise RecordError(
            f"{run.folder} has run to its end and is {found.state}: {found.reason}; the same "
            "command runs it again"
        )


def _move_aside(run: SuiteRun, state: State) -> None:
    """Give way to `run`, under a name that tells what lay there."""
    if state == "todo":
        return
    names = (run.folder.with_name(f"{run.folder.name}.{state}-{n}") for n in itertools.count(1))
    with _held(run.folder):
        run.folder.rename(next(path for path in names if not path.exists()))


def _copy(trial: SuiteRun, run: SuiteRun) -> None:
    """Make `run` of another run of the same configuration, whole or not at all.

    The run's own sinks receive it; until they have, its record says that it still runs.
    """
    part = trial.folder.with_name(f".{run.config.name}.part")
    if part.exists():  # left by a comparison that was killed here
        shutil.rmtree(part)
    shutil.copytree(trial.folder, part, ignore=_left_behind(trial.folder))
    made, own = RunFolder(part), {k: v for k, v in run.config.flat().items() if k in _OF_THE_PLACE}
    made.write_json("config", {**made.read_json("config"), **own})
    record = {**made.read_json("run"), "name": run.config.name}
    made.write_json("run", {**record, "status": "running"})
    part.rename(run.folder)
    folder = RunFolder(run.folder)
    with _held(folder.path):
        try:
            replay(run.config, folder)
            folder.write_json("run", record)
        except BaseException:
            shutil.rmtree(folder.path)  # no more than a copy
            raise


def _left_behind(folder: Path) -> Callable[[str, list[str]], set[str]]:
    """What a copy of a run folder must not have: what ties it to the original's sinks."""
    told = {"sinks.json", "wandb", RunFolder(folder).events.name}
    return lambda place, names: told & {*names} if Path(place) == folder else set()


_OF_THE_PLACE = frozenset(
    key for key in NOT_SETTINGS if key in {"runs", "name"} or key.startswith("sinks.")
)


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
        untold = replace(record, test=None, client_scores=None, worst_client_score=None)
        self._progress.round_ended(untold)

    def run_ended(self, status: str) -> None:
        self._progress.run_ended(status)
