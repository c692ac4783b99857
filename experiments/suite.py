"""A suite: methods x settings x seeds, one run after another, from a TOML file or a mapping.

.. code-block:: toml

    seeds = [0, 1, 2]            # optional; [0] where left out
    name = "digits"              # optional in a file; its stem where left out

    [base]                       # optional: keys of every run
    rounds = 5
    partition.alpha = 0.01

    [[methods]]
    label = "feddm"
    strategy = "feddm"

    [[methods]]
    label = "fedavg-lr0.1"
    choose = "fedavg"            # optional: of all with this value, validation chooses one
    strategy = "fedavg"
    train.learning-rate = 0.1

    [[settings]]                 # optional: each method runs under each
    label = "alpha0.01"
    partition.alpha = 0.01

A method's or setting's key takes the place of the base's. A run lies in
``<runs>/<suite>/<method>-<setting>-seed<k>``. One that is complete under the same configuration is
not run again; anything else in its place is moved aside, never deleted.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core.config import RunConfig
from core.errors import ConfigError, DataError, Problem, RunError, TesseraError
from core.records import RunFolder
from experiments.plan import Plan, plan
from experiments.run import run
from experiments.settings import flat_settings
from report.html import write_report
from report.loading import LoadedRun, load_run
from report.methods import NOT_PRIVATE
from server.app import run_folder_of
from server.preparation import forget_preparation
from server.progress import Progress
from strategies.table import parse_config, strategy_class

State = Literal["done", "todo", "incomplete", "outdated"]

_TOP_LEVEL = ("name", "seeds", "base", "methods", "settings")
_LABEL = re.compile(r"[A-Za-z0-9_=+-][A-Za-z0-9_.=+-]*")
_LABEL_RULE = "must be letters, digits and . _ = + - (it names folders), and not start with a dot"
_SET_BY_SUITE = {"seed": "comes from the suite's seeds", "name": "is made of the labels"}
_MOVED_ASIDE = re.compile(r"\.(incomplete|outdated)-\d+$")


@dataclass(frozen=True, slots=True)
class SuiteRun:
    """One run of a suite.

    Attributes:
        method: Label of its method.
        setting: Label of its setting; empty where the suite has none.
        config: Its whole configuration; ``runs`` and ``name`` make its folder.
    """

    method: str
    setting: str
    config: RunConfig

    @property
    def folder(self) -> Path:
        """Where it is recorded."""
        return run_folder_of(self.config.runs, self.config.name)

    @property
    def title(self) -> str:
        """Its name, marked where clients send real images."""
        raw = strategy_class(self.config.strategy).images_sent == "raw"
        return f"{self.config.name} ({NOT_PRIVATE})" if raw else self.config.name

    def state(self) -> State:
        """What lies in its folder: nothing, this run complete or not, or one configured else."""
        if not self.folder.exists():
            return "todo"
        try:
            record = RunFolder(self.folder).read_json("run")
        except TesseraError:
            return "incomplete"
        if record.get("status") != "complete":
            return "incomplete"
        return "done" if record.get("identity") == self.config.identity() else "outdated"


@dataclass(frozen=True, slots=True)
class Suite:
    """Methods x settings x seeds, checked.

    Attributes:
        name: Name of the folder of its runs.
        folder: That folder.
        runs: Every run, seeds outermost: the first seed of everything is there first.
        choices: For each method that is a tuning candidate, by label: what its group is called.
    """

    name: str
    folder: Path
    runs: tuple[SuiteRun, ...]
    choices: Mapping[str, str]

    @property
    def methods(self) -> list[str]:
        """Labels in the order of the file."""
        return list(dict.fromkeys(run.method for run in self.runs))

    @property
    def settings(self) -> list[str]:
        """Labels in the order of the file; one empty label where there are none."""
        return list(dict.fromkeys(run.setting for run in self.runs))


@dataclass(frozen=True, slots=True)
class SuiteResult:
    """What a suite came to.

    Attributes:
        suite: As run.
        runs: Every complete run, loaded, in the suite's order.
        failures: The others, each with what it raised.
        report: The HTML report over all complete runs; None where there is none.
    """

    suite: Suite
    runs: tuple[tuple[SuiteRun, LoadedRun], ...]
    failures: tuple[tuple[SuiteRun, Exception], ...]
    report: Path | None


def read_suite(path: Path) -> Suite:
    """Read a suite from a TOML file.

    Raises:
        ConfigError: There is no such file, it is not TOML, or it holds problems; see `parse_suite`.
    """
    try:
        value = tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ConfigError([Problem(str(path), "", f"cannot be read: {error.strerror}")]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([Problem(str(path), "", f"is not TOML: {error}")]) from error
    return parse_suite({"name": Path(path).stem, **value})


def parse_suite(value: Mapping[str, object]) -> Suite:
    """Check a suite and every run in it.

    Args:
        value: As in the module's example.

    Raises:
        ConfigError: Every problem of the suite and of all its runs, each key with the table that
            gives it.
    """
    name, seeds = value.get("name", ""), value.get("seeds", [0])
    problems = list(_problems_of_form(name, seeds, value.keys()))
    base = _Table("base", _keys("base", value.get("base", {}), problems))
    methods = _tables("methods", value.get("methods", []), problems)
    settings = _tables("settings", value.get("settings", []), problems)
    if not value.get("methods"):
        problems.append(Problem("methods", "", "a suite needs at least one [[methods]] table"))
    for method, setting in itertools.product(methods, settings):
        for key in method.keys.keys() & setting.keys.keys():
            rule = f"{setting.place} gives it too; give it in one of them"
            problems.append(Problem(f"{method.place}.{key}", str(method.keys[key]), rule))
    runs = _parse_runs(
        [
            _Combination(base, setting, method)
            for setting in settings or [_Table("", {})]
            for method in methods
        ],
        seeds if isinstance(seeds, list) and seeds else [0],
        str(name),
        problems,
    )
    if problems:
        raise ConfigError(problems)
    choices = {method.label: method.choose for method in methods if method.choose}
    return Suite(str(name), runs[0].folder.parent, tuple(runs), choices)


@dataclass(frozen=True, slots=True)
class _Table:
    """Keys, and where they stand in the file."""

    place: str
    keys: Mapping[str, object]
    label: str = ""
    choose: str = ""


@dataclass(frozen=True, slots=True)
class _Combination:
    """The tables that make a run, but for its seed."""

    base: _Table
    setting: _Table
    method: _Table

    @property
    def tables(self) -> tuple[_Table, _Table, _Table]:
        """The one that a key is taken from first comes first."""
        return (self.method, self.setting, self.base)

    @property
    def labels(self) -> list[str]:
        """Of method and setting."""
        return [table.label for table in (self.method, self.setting) if table.label]

    def flat(self) -> dict[str, object]:
        """All keys."""
        return {**self.base.keys, **self.setting.keys, **self.method.keys}

    def place_of(self, key: str) -> str:
        """The table that gives `key`; empty where none does."""
        return next((table.place for table in self.tables if key in table.keys), "")


def _problems_of_form(name: object, seeds: object, keys: Iterable[str]) -> Iterator[Problem]:
    for key in keys:
        if key not in _TOP_LEVEL:
            near = difflib.get_close_matches(key, _TOP_LEVEL, n=1)
            hint = f"did you mean {near[0]}?" if near else "keys of runs belong into [base]"
            yield Problem(key, "", f"a suite has {', '.join(_TOP_LEVEL)}; {hint}")
    if not (isinstance(name, str) and _LABEL.fullmatch(name)):
        yield Problem("name", str(name), _LABEL_RULE)
    whole = isinstance(seeds, list) and all(type(seed) is int for seed in seeds)
    if not (isinstance(seeds, list) and whole and seeds and len({*seeds}) == len(seeds)):
        yield Problem("seeds", str(seeds), "must be a list of distinct whole numbers")


def _tables(title: str, values: object, problems: list[Problem]) -> list[_Table]:
    """The tables of methods or settings."""
    if not isinstance(values, list | tuple):
        problems.append(Problem(title, str(values), f"write each as a table [[{title}]]"))
        return []
    found: list[_Table] = []
    for number, value in enumerate(values, start=1):
        table = value if isinstance(value, Mapping) else {}
        label, choose = table.get("label", ""), table.get("choose", "")
        place = f"{title}.{label}" if label else f"{title} number {number}"
        if not (isinstance(label, str) and _LABEL.fullmatch(label)):
            problems.append(Problem(f"{place}: label", str(label), _LABEL_RULE))
        elif label in {other.label for other in found}:
            problems.append(Problem(f"{place}: label", label, "is given twice"))
        own = {"label", "choose"} if title == "methods" else {"label"}
        if title == "methods" and not isinstance(choose, str):
            problems.append(Problem(f"{place}.choose", str(choose), "must be a text"))
        rest = {key: item for key, item in table.items() if key not in own}
        keys = _keys(place, rest if isinstance(value, Mapping) else value, problems)
        if "runs" in keys:
            rule = "all runs of a suite lie in one folder; give it in [base]"
            problems.append(Problem(f"{place}.runs", str(keys["runs"]), rule))
        found.append(_Table(place, keys, str(label), str(choose)))
    return found


def _keys(place: str, table: object, problems: list[Problem]) -> dict[str, object]:
    """The flat keys of one table."""
    if not isinstance(table, Mapping):
        problems.append(Problem(place, str(table), "must be a table of keys"))
        return {}
    try:
        keys = flat_settings(table)
    except ConfigError as error:
        problems += [dataclasses.replace(p, key=f"{place}.{p.key}") for p in error.problems]
        return {}
    for key, reason in _SET_BY_SUITE.items():
        if key in keys:
            rule = f"{reason}; leave it out"
            problems.append(Problem(f"{place}.{key}", str(keys[key]), rule))
    return keys


def _parse_runs(
    combinations: Sequence[_Combination],
    seeds: Sequence[object],
    suite: str,
    problems: list[Problem],
) -> list[SuiteRun]:
    """Parse every combination under every seed."""
    runs: dict[str, SuiteRun] = {}
    clashes: list[Problem] = []
    affected: dict[tuple[str, Problem], list[_Combination]] = {}
    for seed, combination in itertools.product(seeds, combinations):
        name = "-".join([*combination.labels, f"seed{seed}"])
        try:
            config = parse_config({**combination.flat(), "seed": seed})
        except ConfigError as error:
            for problem in error.problems:
                among = affected.setdefault((combination.place_of(problem.key), problem), [])
                among += [] if combination in among else [combination]
            continue
        folder = str(Path(config.runs) / suite)
        parsed = dataclasses.replace(config, runs=folder, name=name)
        if name in runs:
            rule = "two runs would have this name; give other labels"
            clashes.append(Problem("label", name, rule))
        runs[name] = SuiteRun(combination.method.label, combination.setting.label, parsed)
    problems += [] if problems else clashes  # labels given twice are told of already
    for (place, problem), among in affected.items():
        concerned = [c for c in combinations if place in ("", *(t.place for t in c.tables))]
        names = ", ".join("-".join(combination.labels) for combination in among)
        rule = problem.rule if among == concerned else f"{problem.rule} (in {names})"
        key = f"{place}.{problem.key}" if place else problem.key
        problems.append(dataclasses.replace(problem, key=key, rule=rule))
    return list(runs.values())


def plan_suite(runs: Iterable[SuiteRun]) -> list[Plan]:
    """Prepare every run without starting one.

    Raises:
        ConfigError: All that any run's configuration is refused for.
        DataError: What is wrong with the data, where nothing is with a configuration.
        RunError: Likewise, with this machine.
    """
    plans: list[Plan] = []
    errors: dict[str, list[SuiteRun]] = {}
    kinds: dict[str, TesseraError] = {}
    for suite_run in runs:
        try:
            plans.append(plan(suite_run.config))
        except TesseraError as error:
            kinds.setdefault(str(error), error)
            errors.setdefault(str(error), []).append(suite_run)
    forget_preparation()
    if not kinds:
        return plans
    refused = [error for error in kinds.values() if isinstance(error, ConfigError)]
    if refused:
        raise ConfigError(list(dict.fromkeys(p for error in refused for p in error.problems)))
    lines = [f"{', '.join(r.config.name for r in errors[text])}: {text}" for text in kinds]
    kind = DataError if any(isinstance(e, DataError) for e in kinds.values()) else RunError
    raise kind("\n".join(lines))


def run_suite(
    suite: Suite, progress: Progress, on_run: Callable[[int, SuiteRun, State], None]
) -> SuiteResult:
    """Run what is left to run of a suite, and report on all of it.

    A run that fails is left as it is, and the others go on.

    Args:
        suite: What to run.
        progress: Told how each run goes.
        on_run: Called for each run before it starts, or is passed over because it is done, with
            its number from 1.

    Raises:
        TesseraError: A run is refused before it could start; nothing was started.
    """
    plan_suite(run for run in suite.runs if run.state() != "done")
    runs: list[tuple[SuiteRun, LoadedRun]] = []
    failures: list[tuple[SuiteRun, Exception]] = []
    for number, suite_run in enumerate(suite.runs, start=1):
        state = suite_run.state()
        on_run(number, suite_run, state)
        try:
            if state != "done":
                if state != "todo":
                    _move_aside(suite_run.folder, state)
                run(suite_run.config, progress)
            runs.append((suite_run, load_run(suite_run.folder)))
        except Exception as error:
            failures.append((suite_run, error))
    folders = [loaded.folder.path for _, loaded in runs]
    report = write_report(folders, suite.folder / "report.html") if folders else None
    return SuiteResult(suite, tuple(runs), tuple(failures), report)


def _move_aside(folder: Path, state: State) -> None:
    names = (folder.with_name(f"{folder.name}.{state}-{n}") for n in itertools.count(1))
    folder.rename(next(path for path in names if not path.exists()))


def run_folders(path: Path) -> list[Path]:
    """The run folder at `path`, or the run folders in it, but for those moved aside."""
    if (path / "config.json").is_file() or not path.is_dir():
        return [path]
    found = sorted(entry.parent for entry in path.glob("*/config.json"))
    return [entry for entry in found if not _MOVED_ASIDE.search(entry.name)] or [path]
