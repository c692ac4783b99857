"""Tessera from Python: the same keys, the same records, for scripts and notebooks."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cli.progress import shown_progress
from core.config import RunConfig
from experiments import execution
from experiments import plan as planning
from experiments import run as running
from experiments import suite as suites
from experiments.execution import Action, Step, SuiteResult
from experiments.plan import Plan
from experiments.settings import flat_settings
from pairing.configuration import parse_config
from report import loading, methods, tables
from report.html import write_report
from report.loading import LoadedRun

Runs = LoadedRun | str | Path | Sequence[LoadedRun | str | Path] | SuiteResult


def config(settings: Mapping[str, object] | None = None, /, **keys: object) -> RunConfig:
    """Check settings and fill in the defaults of all others.

    Args:
        settings: Keys as on the command line, flat or nested.
        **keys: More of them; an underscore stands for a dash.

    Raises:
        ConfigError: Every problem there is.

    >>> config({"strategy": "fedavg", "train.learning-rate": 0.1}, rounds=3).train.learning_rate
    0.1
    >>> config(strategy="fedavg", train={"learning_rate": 0.1}).rounds
    10
    """
    return parse_config(flat_settings({**(settings or {}), **_dashed(keys)}))


def _dashed(keys: Mapping[str, object]) -> dict[str, object]:
    """Flat keys as on the command line."""
    return {key.replace("_", "-"): value for key, value in flat_settings(keys).items()}


def run(settings: Mapping[str, object] | None = None, /, **keys: object) -> LoadedRun:
    """Run one federation on this machine and load what it recorded.

    ``run({"strategy": "fedavg", "train.learning-rate": 0.1}, rounds=3)``. Arguments and problems
    are those of `config`; progress goes to the standard output.

    Raises:
        ConfigError: Bad settings; nothing was started or written.
        DataError: Missing or unfit data; likewise.
        RunError: The run could not go on; its folder says how far it came.
        RecordError: The run folder is there already or cannot be made.
    """
    with shown_progress(sys.stdout) as progress:
        folder = running.run(config(settings, **keys), progress)
    return loading.load_run(folder)


def resume(path: str | Path, /, **changes: object) -> LoadedRun:
    """Go on with a run that was cut off, from its last checkpoint, and load what it recorded.

    ``resume(".runs/NAME", engine={"workers": 4})``. It ends with the weights and records of a run
    that was not cut off, seconds aside. A run that is complete is loaded as it is.

    Args:
        path: The run folder; it may have been moved.
        **changes: Keys that cannot change a result, in the forms of `config`.

    Raises:
        ConfigError: A key in `changes` can change a result, or its value is refused.
        DataError, RunError: As `run`.
        RecordError: There is no run to go on with, or it cannot go on; names file and reason.
    """
    with shown_progress(sys.stdout) as progress:
        folder = running.resume(Path(path), progress, _dashed(changes))
    return loading.load_run(folder)


def plan(settings: Mapping[str, object] | None = None, /, **keys: object) -> Plan:
    """What `run` would do, with every byte it would send; starts and writes nothing.

    >>> plan(strategy="centralized", rounds=1).predicted.total_up
    0
    """
    return planning.plan(config(settings, **keys))


def compare(
    suite: str | Path | Mapping[str, object], *, max_minutes: float | None = None
) -> SuiteResult:
    """Run what is left of a suite (methods x settings x seeds) and report on all of it.

    Args:
        suite: A TOML file, or its content as a mapping with a ``name``; the form is told in
            `experiments.suite`.
        max_minutes: After these, no run is started; the same call goes on with what is left.

    Returns:
        How methods were tuned, runs complete and unfinished, failures and the paths of report and
        comparison. A run that fails stops no other.

    Raises:
        TesseraError: All problems of all runs, or the suite is being run elsewhere; nothing was
            started.
    """
    parsed = (
        suites.parse_suite(suite) if isinstance(suite, Mapping) else suites.read_suite(Path(suite))
    )
    with shown_progress(sys.stdout) as progress:
        return execution.run_suite(parsed, progress, print_step, max_minutes=max_minutes)


def print_step(step: Step) -> None:
    """Say in one line which run of a suite comes, and why."""
    print(f"run {step.number}/{step.total} {step.run.title}{_WHY[step.action]}{step.reason}")


_WHY: Mapping[Action, str] = {
    "todo": "",
    "done": " is done already",
    "incomplete": " goes on where it stopped",
    "outdated": " again; what was run under another configuration is moved aside",
    "damaged": " again; what lies there is moved aside: ",
    "failed": " diverged before and is left at that; to run it again, move its folder away: ",
    "tuned": " is what tuning has run already",
    "same": " is what has run already under another setting",
}


def load_run(path: str | Path) -> LoadedRun:
    """Load a run folder, as far as the run came.

    Raises:
        RecordError: It is no run folder, or one of its files is damaged; names the file.
    """
    return loading.load_run(Path(path))


def report(runs: Runs, out: str | Path) -> Path:
    """Write one self-contained HTML report on runs and return its path.

    Args:
        runs: Loaded runs, run folders or folders of run folders; one or many; or a suite's result.
        out: The HTML file.

    Raises:
        RecordError: There is no run, one is damaged, or `out` cannot be written.
    """
    folders = [run.folder.path for run in _load_all(runs)]
    return write_report(folders, Path(out), _labels(runs))


def table(runs: Runs, width: int = 80) -> str:
    """The results of runs as a text table: mean and standard deviation over seeds.

    Args:
        runs: As for `report`.
        width: Columns to fill.
    """
    found = methods.compare(_load_all(runs), _labels(runs)).methods
    return tables.to_text(tables.result_rows(found), width)


def _labels(runs: Runs) -> Mapping[Path, str]:
    """What methods are called; a suite names its own."""
    return runs.labels if isinstance(runs, SuiteResult) else {}


def _load_all(runs: Runs) -> list[LoadedRun]:
    if isinstance(runs, SuiteResult):
        return [loaded for _, loaded in (*runs.runs, *runs.unfinished)]
    items = [runs] if isinstance(runs, LoadedRun | str | Path) else runs
    loaded: dict[Path, LoadedRun] = {}
    for item in items:
        if isinstance(item, LoadedRun):
            loaded.setdefault(item.folder.path, item)
        else:
            for folder in suites.run_folders(Path(item).expanduser().resolve()):
                loaded.setdefault(folder, loading.load_run(folder))
    return list(loaded.values())
