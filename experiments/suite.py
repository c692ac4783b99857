"""A suite: methods x settings x seeds, and the grids that methods are tuned over, from a TOML file.

.. code-block:: toml

    seeds = [0, 1, 2]            # optional; [0] where left out
    name = "digits"              # optional in a file; its stem where left out
    target-accuracy = 0.9        # optional: rounds and bytes to reach it are told; target-score
                                 # for a workload that is judged by another score first

    [base]                       # optional: keys of every run
    rounds = 5

    [[settings]]                 # optional: each method runs under each
    label = "alpha0.1"
    partition.alpha = 0.1

    [tuning]                     # needed where a method has a grid
    setting = "alpha0.1"         # where candidates are tried; "each" tunes under every setting on
                                 # its own; left out where the suite has no settings
    seeds = [0]                  # optional; all of the suite's where left out

    [[methods]]
    label = "feddm"
    strategy = "feddm"

    [[methods]]
    label = "fedavg"
    strategy = "fedavg"
    [methods.grid]               # optional: every combination is a candidate
    train.learning-rate = [0.01, 0.1]
    train.local-epochs = [1, 5]

A method's or setting's key takes the place of the base's. In ``start-from`` each ``{seed}`` stands
for the run's seed, so that runs start from the weights of another suite's run of their own seed.
A method that is not private takes none of the ``privacy`` keys that base and settings give, so that
it can stand beside private ones as a reference. All private methods of a suite protect the same
unit at the same delta.

Candidates run first, in ``<runs>/<suite>/tuning/<method>-<setting>-<keys>-seed<k>``.
`experiments.tuning` chooses one, whose keys join the method's; its runs lie in
``<runs>/<suite>/<method>-<setting>-seed<k>``.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import itertools
import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeGuard

from core.config import PrivacyConfig, RunConfig, SinksConfig
from core.errors import (
    ConfigError,
    DataError,
    DivergedError,
    Problem,
    RecordError,
    RunError,
    TesseraError,
)
from core.records import RunFolder, scores_of
from core.scores import ACCURACY, Score, Scores, shared_scores
from experiments.plan import Plan, plan
from experiments.settings import flat_settings
from pairing.configuration import parse_config
from report.loading import LoadedRun, load_run
from report.methods import NOT_PRIVATE
from report.tables import joined
from server.app import run_folder_of
from server.preparation import forget_preparation
from strategies.table import strategy_class

State = Literal["done", "todo", "incomplete", "outdated", "damaged", "failed"]
"""What lies in a run's folder.

Nothing (``todo``), this run to its end or not, one of another configuration (``outdated``), what
cannot be read as a run (``damaged``), or this run up to where it diverged and would again
(``failed``).
"""

START = "start-from"
"""Key of which ``{seed}`` in the value stands for the run's seed."""

EACH = "each"
"""In place of a setting's label: tune under every setting on its own."""

_TOP_LEVEL = (
    "name", "seeds", "target-accuracy", "target-score", "base", "settings", "tuning", "methods",
)  # fmt: skip
_LABEL = re.compile(r"[A-Za-z0-9_=+-][A-Za-z0-9_.=+-]*")
_LABEL_RULE = "must be letters, digits and . _ = + - (it names folders), and not start with a dot"
_SEEDS_RULE = "must be a list of distinct whole numbers"
_LONGEST_NAME = 200  # bytes; what the key `name` allows
_LONGEST_CANDIDATE = 80
_SET_BY_SUITE = {"seed": "comes from the suite's seeds", "name": "is made of the labels"}
_MOVED_ASIDE = re.compile(r"\.(incomplete|outdated|damaged)-\d+$")


@dataclass(frozen=True, slots=True)
class Found:
    """What lies in a run's folder.

    Attributes:
        state: In one word.
        reason: Why it is damaged or failed, or what it stopped at; else empty.
        run: Its records where it is done; else None.
    """

    state: State
    reason: str = ""
    run: LoadedRun | None = None


@dataclass(frozen=True, slots=True)
class SuiteRun:
    """One run of a suite.

    Attributes:
        method: Label of its method.
        setting: Label of its setting; empty where the suite has none.
        config: Its whole configuration; ``runs`` and ``name`` make its folder.
        tunes: Whether it is a candidate's run, of which the test figures are not for looking at.
    """

    method: str
    setting: str
    config: RunConfig
    tunes: bool = False

    @property
    def folder(self) -> Path:
        """Where it is recorded."""
        return run_folder_of(self.config.runs, self.config.name)

    @property
    def name(self) -> str:
        """Its folder, from the suite's on."""
        return f"tuning/{self.config.name}" if self.tunes else self.config.name

    @property
    def title(self) -> str:
        """Its name, marked where clients send real images."""
        raw = strategy_class(self.config.strategy).images_sent == "raw"
        return f"{self.name} ({NOT_PRIVATE})" if raw else self.name

    def look(self) -> Found:
        """Look into its folder; a run that says it is complete is read whole."""
        if not self.folder.exists():
            return Found("todo")
        try:
            record = RunFolder(self.folder).read_json("run")
            if record.get("identity") != self.config.identity():
                return Found("outdated")
            if record.get("status") == "complete":
                return Found("done", run=self._load())
        except (TesseraError, OSError) as error:
            return Found("damaged", str(error))
        if record.get("status") != "failed":
            return Found("incomplete")
        failure = str(record.get("failure"))
        diverged = failure.startswith(f"{DivergedError.__name__}: ")
        return Found("failed" if diverged else "incomplete", failure)

    def state(self) -> State:
        """What lies in its folder, in one word."""
        return self.look().state

    def scores(self) -> Scores | None:
        """What it is judged by as far as it is on record; None where nothing can be read of it."""
        try:
            folder = RunFolder(self.folder)
            record = folder.read_json("run")
            is_this = record.get("identity") == self.config.identity()
            return scores_of(record, folder.path / "run.json") if is_this else None
        except RecordError:
            return None

    def _load(self) -> LoadedRun:
        run = load_run(self.folder)
        if self.tunes and last_validation(run) is None:
            raise RecordError(f"{run.folder.rounds} holds no round that was judged on validation")
        return run


def last_validation(run: LoadedRun) -> float | None:
    """The primary score on validation in the last round that tells one."""
    judged = (r.validation.primary for r in reversed(run.rounds) if r.validation is not None)
    return next(judged, None)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One combination of a method's grid.

    Attributes:
        label: Unique among the method's, for folders.
        keys: The combination.
        trials: Its runs, one for each of the tuning's seeds.
        finals: The runs that the method has if this one wins.
    """

    label: str
    keys: Mapping[str, object]
    trials: tuple[SuiteRun, ...]
    finals: tuple[SuiteRun, ...]

    @property
    def values(self) -> Mapping[str, str]:
        """The combination for readers, keys without their sections where they stay distinct."""
        return {short: _value_text(value) for short, value in _short(self.keys).items()}

    @property
    def text(self) -> str:
        """For readers: ``learning-rate=0.1 local-epochs=5``."""
        return " ".join(f"{key}={value}" for key, value in self.values.items())


@dataclass(frozen=True, slots=True)
class Tuning:
    """A method's grid, and where it is tried.

    Attributes:
        method: Label.
        setting: Label of the setting that candidates run under; empty where the suite has none.
        settings: Labels of those under which the winner runs.
        seeds: Of the candidates' runs.
        candidates: In the order of the grid, its first key outermost.
    """

    method: str
    setting: str
    settings: tuple[str, ...]
    seeds: tuple[int, ...]
    candidates: tuple[Candidate, ...]

    @property
    def num_trials(self) -> int:
        """Runs of all candidates."""
        return sum(len(candidate.trials) for candidate in self.candidates)

    @property
    def num_finals(self) -> int:
        """Runs of the winner."""
        return len(self.candidates[0].finals)


@dataclass(frozen=True, slots=True)
class Target:
    """A score that runs are to reach.

    Attributes:
        key: By which the suite gives it.
        value: Not multiplied by 100 where the score is a share.
    """

    key: str
    value: float

    def problem(self, score: Score) -> Problem | None:
        """Why runs that are judged by `score` first cannot be held to it; None if they can."""
        if self.key == _TARGET_ACCURACY and score != ACCURACY:
            rule = f"the runs are judged by {score.label}; give {_TARGET_SCORE}"
        elif score.is_percent and not 0 < self.value <= 1:
            rule = f"{score.label} is a share: must be above 0 and at most 1, such as 0.9"
        else:
            return None
        return Problem(self.key, f"{self.value:g}", rule)


@dataclass(frozen=True, slots=True)
class Suite:
    """Methods x settings x seeds, checked.

    Attributes:
        name: Name of the folder of its runs.
        folder: That folder.
        seeds: As in the file.
        methods: Labels in the order of the file.
        settings: Labels in the order of the file; one empty label where there are none.
        runs: Of the methods without a grid, seeds outermost.
        tunings: One for each method with a grid, or for each of those under each setting.
        target: Primary score on test whose cost is told; None where none was given.
    """

    name: str
    folder: Path
    seeds: tuple[int, ...]
    methods: tuple[str, ...]
    settings: tuple[str, ...]
    runs: tuple[SuiteRun, ...]
    tunings: tuple[Tuning, ...]
    target: Target | None

    @property
    def num_runs(self) -> int:
        """All runs, candidates' and winners' included."""
        return len(self.runs) + sum(t.num_trials + t.num_finals for t in self.tunings)

    def final_runs(self, winners: Iterable[Candidate]) -> list[SuiteRun]:
        """Every run but the candidates', seeds outermost: the first seed of everything is first.

        Args:
            winners: At most one for each tuning; methods that lack theirs are left out.
        """
        runs = [*self.runs, *(run for winner in winners for run in winner.finals)]
        found = {(run.config.seed, run.setting, run.method): run for run in runs}
        slots = itertools.product(self.seeds, self.settings, self.methods)
        return [found[slot] for slot in slots if slot in found]


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
    """Check a suite and every run in it, those of all candidates included.

    Args:
        value: As in the module's example.

    Raises:
        ConfigError: Every problem of the suite and of all its runs, each key with the table that
            gives it.
    """
    name, seeds = value.get("name", ""), value.get("seeds", [0])
    problems = list(_problems_of_form(name, seeds, value.keys()))
    target = _parse_target(value, problems)
    base = _Table("base", _keys("base", value.get("base", {}), problems))
    methods = _tables("methods", value.get("methods", []), problems)
    settings = _tables("settings", value.get("settings", []), problems)
    if not value.get("methods"):
        problems.append(Problem("methods", "", "a suite needs at least one [[methods]] table"))
    for method, setting in itertools.product(methods, settings):
        for table in (method, *method.grid[:1]):
            for key in table.keys.keys() & setting.keys.keys():
                rule = f"{setting.place} gives it too; give it in one of them"
                problems.append(Problem(f"{table.place}.{key}", str(table.keys[key]), rule))
    known_seeds = tuple(seeds) if _are_seeds(seeds) else (0,)
    where = _parse_tuning(value.get("tuning"), methods, settings, known_seeds, problems)
    under = settings or [_Table("", {})]
    configs = _parse_configs(
        [
            _Combination(base, setting, method, candidate)
            for setting in under
            for method in methods
            for candidate in method.grid or (_Table("", {}),)
        ],
        known_seeds,
        problems,
    )
    problems += _unread_privacy([base, *settings], configs)
    if problems := [*problems, *_unlike_privacy(configs)]:
        raise ConfigError(problems)
    suite = _build(_Source(str(name), known_seeds, methods, under, where, configs), target)
    if clashes := list(_problems_of_names(suite)):
        raise ConfigError(clashes)
    return suite


@dataclass(frozen=True, slots=True)
class _Table:
    """Keys, and where they stand in the file.

    Attributes:
        place: Of the table.
        keys: Flat.
        label: Empty for one that has none.
        has_grid: Whether a method gives a grid, be it one that is refused.
        grid: A method's candidates.
    """

    place: str
    keys: Mapping[str, object]
    label: str = ""
    has_grid: bool = False
    grid: tuple[_Table, ...] = ()


@dataclass(frozen=True, slots=True)
class _Combination:
    """The tables that make a run, but for its seed."""

    base: _Table
    setting: _Table
    method: _Table
    candidate: _Table

    @property
    def tables(self) -> tuple[_Table, ...]:
        """The one that a key is taken from first comes first."""
        return (self.candidate, self.method, self.setting, self.base)

    @property
    def labels(self) -> tuple[str, str, str]:
        """Of method, setting and candidate."""
        return (self.method.label, self.setting.label, self.candidate.label)

    def flat(self) -> dict[str, object]:
        """All keys."""
        found = {k: value for table in reversed(self.tables) for k, value in table.keys.items()}
        if found.get("privacy.mechanism", "none") != "none":
            return found
        own = self.candidate.keys.keys() | self.method.keys.keys()
        return {k: v for k, v in found.items() if k in own or k not in _PRIVACY_KEYS}

    def place_of(self, key: str) -> str:
        """The table that gives `key`; empty where none does."""
        return next((table.place for table in self.tables if key in table.keys), "")

    def agrees(self, other: _Combination, key: str) -> bool:
        """Whether `key` has the same value from the same table as in `other`."""
        same_place = self.place_of(key) == other.place_of(key)
        return same_place and self.flat().get(key) == other.flat().get(key)


_PRIVACY_KEYS = frozenset(
    f"privacy.{field.name.replace('_', '-')}" for field in dataclasses.fields(PrivacyConfig)
)
"""What a method without noise takes neither from base nor from settings; a key that is misspelt is
not among them, and so is refused."""

_Configs = Mapping[tuple[str, str, str, int], RunConfig]
"""By labels of method, setting and candidate, and seed."""


@dataclass(frozen=True, slots=True)
class _Source:
    """A suite without problems, before its folders are named."""

    name: str
    seeds: tuple[int, ...]
    methods: Sequence[_Table]
    settings: Sequence[_Table]
    tuned: tuple[str, tuple[int, ...]]
    configs: _Configs

    def folder(self) -> Path:
        """Of all runs."""
        return Path(next(iter(self.configs.values())).runs) / self.name

    def run(self, method: str, setting: str, seed: int, candidate: str = "") -> SuiteRun:
        """A run in its final place."""
        return self._named(method, setting, seed, candidate, "")

    def trial(self, method: str, setting: str, seed: int, candidate: str) -> SuiteRun:
        """A candidate's run."""
        return self._named(method, setting, seed, candidate, candidate)

    def _named(self, method: str, setting: str, seed: int, candidate: str, told: str) -> SuiteRun:
        name = "-".join([label for label in (method, setting, told) if label] + [f"seed{seed}"])
        folder = self.folder() / "tuning" if told else self.folder()
        config = self.configs[method, setting, candidate, seed]
        named = dataclasses.replace(config, runs=str(folder), name=name)
        if told:  # sinks would show test figures of candidates
            named = dataclasses.replace(named, sinks=SinksConfig())
        return SuiteRun(method, setting, named, tunes=bool(told))


def _build(source: _Source, target: Target | None) -> Suite:
    settings = tuple(setting.label for setting in source.settings)
    runs = [
        source.run(method.label, setting, seed)
        for seed in source.seeds
        for setting in settings
        for method in source.methods
        if not method.grid
    ]
    setting, seeds = source.tuned
    parts = [((s,), s) for s in settings] if setting == EACH else [(settings, setting)]
    return Suite(
        name=source.name,
        folder=source.folder().expanduser().resolve(),
        seeds=source.seeds,
        methods=tuple(method.label for method in source.methods),
        settings=settings,
        runs=tuple(runs),
        tunings=tuple(
            _tuning(source, method, under, tried, seeds)
            for method in source.methods
            if method.grid
            for under, tried in parts
        ),
        target=target,
    )


def _tuning(
    source: _Source, method: _Table, settings: tuple[str, ...], tried: str, seeds: tuple[int, ...]
) -> Tuning:
    label = method.label
    return Tuning(
        label,
        tried,
        settings,
        seeds,
        tuple(
            Candidate(
                combination.label,
                combination.keys,
                tuple(source.trial(label, tried, seed, combination.label) for seed in seeds),
                tuple(
                    source.run(label, setting, seed, combination.label)
                    for seed in source.seeds
                    for setting in settings
                ),
            )
            for combination in method.grid
        ),
    )


def _unread_privacy(tables: Iterable[_Table], configs: _Configs) -> Iterator[Problem]:
    """Privacy keys for all methods of a suite in which no method is private."""
    if configs and not any(config.privacy.is_private for config in configs.values()):
        for table in tables:
            for key in sorted(_PRIVACY_KEYS & table.keys.keys()):
                rule = (
                    "no method of the suite is private; give methods privacy.mechanism, or leave "
                    "it out"
                )
                yield Problem(f"{table.place}.{key}", str(table.keys[key]), rule)


def _unlike_privacy(configs: _Configs) -> Iterator[Problem]:
    """Private methods whose epsilons would not compare."""
    units: dict[str, list[str]] = {}
    deltas: dict[str, list[str]] = {}
    for (method, _, _, _), config in configs.items():
        privacy = config.privacy
        if privacy.is_private:
            unit = "one example" if privacy.is_example_level else "one client"
            units.setdefault(unit, []).append(method)
            deltas.setdefault(f"{privacy.delta:g}", []).append(method)
    for key, what, found in (
        ("privacy.mechanism", "protect unlike units", units),
        ("privacy.delta", "have unlike deltas", deltas),
    ):
        if len(found) > 1:
            told = "; ".join(
                f"{value}: {joined(_distinct(names))}" for value, names in found.items()
            )
            rule = (
                f"the suite's methods {what} ({told}), and their epsilons do not compare; split "
                "the suite into one for each"
            )
            yield Problem(key, "", rule)


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _problems_of_names(suite: Suite) -> Iterator[Problem]:
    """Runs that would share a folder, folders that cannot be, and candidates that are the same."""
    finals = suite.final_runs(tuning.candidates[0] for tuning in suite.tunings)
    trials = [t for tuning in suite.tunings for c in tuning.candidates for t in c.trials]
    num_finals = len(suite.runs) + sum(tuning.num_finals for tuning in suite.tunings)
    assert len(finals) == num_finals, "labels are unique"
    seen: set[str] = set()
    for run in (*finals, *trials):
        if run.name.casefold() in seen:
            rule = "two runs would have this name, in whatever case; give other labels"
            yield Problem("label", run.name, rule)
        elif len(run.config.name) > _LONGEST_NAME:
            rule = f"a run's name has at most {_LONGEST_NAME} characters; give shorter labels"
            yield Problem("label", run.name, rule)
        seen.add(run.name.casefold())
    for tuning in suite.tunings:
        same: dict[str, Candidate] = {}
        for candidate in tuning.candidates:
            other = same.setdefault(candidate.trials[0].config.identity(), candidate)
            if other is not candidate:
                rule = f"is the same configuration as {other.text}; leave one out"
                yield Problem(f"methods.{tuning.method}.grid", candidate.text, rule)


_TARGET_ACCURACY, _TARGET_SCORE = "target-accuracy", "target-score"


def _parse_target(value: Mapping[str, object], problems: list[Problem]) -> Target | None:
    """What runs are to reach, under the name that has accuracy in it or under the general one."""
    given = [key for key in (_TARGET_ACCURACY, _TARGET_SCORE) if value.get(key) is not None]
    if not given:
        return None
    key, wanted = given[0], value[given[0]]
    if len(given) > 1:
        rule = f"{_TARGET_ACCURACY} says the same; give one of them"
        problems.append(Problem(_TARGET_SCORE, str(value[_TARGET_SCORE]), rule))
    is_number = isinstance(wanted, int | float) and not isinstance(wanted, bool)
    if not is_number or not math.isfinite(number := float(wanted)):  # type: ignore[arg-type]
        problems.append(Problem(key, str(wanted), "must be a number, such as 0.9"))
        return None
    target = Target(key, number)
    if key == _TARGET_ACCURACY and (problem := target.problem(ACCURACY)):
        problems.append(problem)
    return target


def _problems_of_form(name: object, seeds: object, keys: Iterable[str]) -> Iterator[Problem]:
    for key in keys:
        if key not in _TOP_LEVEL:
            near = difflib.get_close_matches(key, _TOP_LEVEL, n=1)
            hint = f"did you mean {near[0]}?" if near else "keys of runs belong into [base]"
            yield Problem(key, "", f"a suite has {', '.join(_TOP_LEVEL)}; {hint}")
    if not (isinstance(name, str) and _LABEL.fullmatch(name)):
        yield Problem("name", str(name), _LABEL_RULE)
    if not _are_seeds(seeds):
        yield Problem("seeds", str(seeds), _SEEDS_RULE)


def _are_seeds(value: object) -> TypeGuard[list[int]]:
    if not isinstance(value, list) or not all(type(seed) is int for seed in value):
        return False
    return 0 < len(value) == len({*value})


def _parse_tuning(
    value: object,
    methods: Sequence[_Table],
    settings: Sequence[_Table],
    seeds: tuple[int, ...],
    problems: list[Problem],
) -> tuple[str, tuple[int, ...]]:
    """The setting (or `EACH`, or empty) and the seeds that candidates run under."""
    labels = [setting.label for setting in settings]
    grids = [method.label for method in methods if method.has_grid]
    if value is None:
        if grids:
            rule = (
                f"{', '.join(grids)} has a grid; say where its candidates are tried: [tuning]"
                + (
                    f' with setting = "{labels[0]}", one of the other settings, or "{EACH}"'
                    if labels
                    else ", if only with seeds = [...]"
                )
            )
            problems.append(Problem("tuning", "", rule))
        return "", seeds
    if not isinstance(value, Mapping):
        problems.append(Problem("tuning", str(value), "must be a table [tuning]"))
        return "", seeds
    found: list[Problem] = []
    if not grids:
        found.append(Problem("tuning", "", "no method has a grid; leave it out"))
    for key in value.keys() - {"setting", "seeds"}:
        found.append(Problem(f"tuning.{key}", str(value[key]), "[tuning] has setting and seeds"))
    setting, own_seeds = value.get("setting", ""), value.get("seeds", list(seeds))
    if labels and setting not in (*labels, EACH):
        rule = f"must be one of {', '.join(labels)}, or {EACH}"
        found.append(Problem("tuning.setting", str(setting), rule))
    elif setting and not labels:
        rule = "the suite has no [[settings]]; leave it out"
        found.append(Problem("tuning.setting", str(setting), rule))
    if EACH in labels:
        rule = f'[tuning] with setting = "{EACH}" means all of them; give another label'
        found.append(Problem("settings: label", EACH, rule))
    if not _are_seeds(own_seeds) or not {*own_seeds} <= {*seeds}:
        rule = f"{_SEEDS_RULE}, each one of the suite's: {', '.join(map(str, seeds))}"
        found.append(Problem("tuning.seeds", str(own_seeds), rule))
    problems += found
    return ("", seeds) if found else (str(setting), tuple(own_seeds))


def _tables(title: str, values: object, problems: list[Problem]) -> list[_Table]:
    """The tables of methods or settings."""
    if not isinstance(values, list | tuple):
        problems.append(Problem(title, str(values), f"write each as a table [[{title}]]"))
        return []
    found: list[_Table] = []
    for number, value in enumerate(values, start=1):
        table = value if isinstance(value, Mapping) else {}
        label = table.get("label", "")
        place = f"{title}.{label}" if label else f"{title} number {number}"
        taken = {other.label.casefold(): other.label for other in found}
        if not (isinstance(label, str) and _LABEL.fullmatch(label)):
            problems.append(Problem(f"{place}: label", str(label), _LABEL_RULE))
        elif label in taken.values():
            problems.append(Problem(f"{place}: label", label, "is given twice"))
        elif label.casefold() in taken:
            rule = (
                f"differs from {taken[label.casefold()]} in case alone, which not every disk tells "
                "apart; give another label"
            )
            problems.append(Problem(f"{place}: label", label, rule))
        own = {"label", "grid"} if title == "methods" else {"label"}
        rest = {key: item for key, item in table.items() if key not in own}
        keys = _keys(place, rest if isinstance(value, Mapping) else value, problems)
        has_grid = "grid" in own & {*table}
        grid = _grid(f"{place}.grid", table["grid"], keys, problems) if has_grid else ()
        found.append(_Table(place, keys, str(label), has_grid, grid))
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
    if "runs" in keys and place != "base":
        rule = "all runs of a suite lie in one folder; give it in [base]"
        problems.append(Problem(f"{place}.runs", str(keys["runs"]), rule))
    return keys


def _grid(
    place: str, table: object, fixed: Mapping[str, object], problems: list[Problem]
) -> tuple[_Table, ...]:
    """The candidates of one method."""
    before = len(problems)
    keys = _keys(place, table, problems)
    for key, values in keys.items():
        if not isinstance(values, list) or not values:
            rule = "must be a list of the values to try, such as [0.01, 0.1]"
            problems.append(Problem(f"{place}.{key}", str(values), rule))
        if key in fixed:
            rule = "the method gives it too; give it in one of them"
            problems.append(Problem(f"{place}.{key}", str(values), rule))
    if not keys and len(problems) == before:
        problems.append(Problem(place, "", "is empty; give lists of values, or leave it out"))
    if len(problems) > before:
        return ()
    combinations = [
        dict(zip(keys, values, strict=True))
        for values in itertools.product(*(v for v in keys.values() if isinstance(v, list)))
    ]
    labels = [_candidate_label(keys) for keys in combinations]
    folded = [label.casefold() for label in labels]
    return tuple(
        _Table(place, keys, label if folded.count(fold) == 1 else _with_hash(label, keys))
        for keys, label, fold in zip(combinations, labels, folded, strict=True)
    )


def _candidate_label(keys: Mapping[str, object]) -> str:
    """A name for folders.

    Values that no folder can be named by, and long lists of keys, are told apart by a hash; so are
    names that differ in case alone.

    >>> _candidate_label({"train.learning-rate": 0.1, "train.local-epochs": 5})
    'learning-rate0.1-local-epochs5'
    """
    text = "-".join(f"{short}{_value_text(value)}" for short, value in _short(keys).items())
    legal = re.sub(r"[^A-Za-z0-9_.=+-]", "_", text)
    if legal == text and len(text) <= _LONGEST_CANDIDATE:
        return text
    return _with_hash(legal, keys)


def _with_hash(label: str, keys: Mapping[str, object]) -> str:
    digest = hashlib.sha256(repr(keys).encode()).hexdigest()[:8]
    return f"{label[: _LONGEST_CANDIDATE - 9]}-{digest}"


def _short(keys: Mapping[str, object]) -> dict[str, object]:
    """Keys without their sections where that leaves them distinct."""
    tails = [key.rpartition(".")[2] for key in keys]
    return {
        tail if tails.count(tail) == 1 else key: value
        for (key, value), tail in zip(keys.items(), tails, strict=True)
    }


def _value_text(value: object) -> str:
    """A scalar as short as it can be told, such as 0.1, 1e+06 or true."""
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _parse_configs(
    combinations: Sequence[_Combination], seeds: Sequence[int], problems: list[Problem]
) -> _Configs:
    """Parse every combination under every seed."""
    configs: dict[tuple[str, str, str, int], RunConfig] = {}
    affected: dict[tuple[str, Problem], list[_Combination]] = {}
    for seed, combination in itertools.product(seeds, combinations):
        try:
            parsed = parse_config({**_seeded(combination.flat(), seed), "seed": seed})
            configs[(*combination.labels, seed)] = parsed
        except ConfigError as error:
            for problem in error.problems:
                among = affected.setdefault((combination.place_of(problem.key), problem), [])
                among += [] if combination in among else [combination]
    for (place, problem), among in affected.items():
        concerned = [c for c in combinations if c.agrees(among[0], problem.key)]
        names = ", ".join("-".join(filter(None, combination.labels)) for combination in among)
        rule = problem.rule if among == concerned else f"{problem.rule} (in {names})"
        key = f"{place}.{problem.key}" if place else problem.key
        problems.append(dataclasses.replace(problem, key=key, rule=rule))
    return configs


def _seeded(flat: Mapping[str, object], seed: int) -> dict[str, object]:
    """Keys of one seed's run: a run may start from the weights of another one of its seed."""
    start = flat.get(START)
    return dict(flat) | (
        {START: start.replace("{seed}", str(seed))} if isinstance(start, str) else {}
    )


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
    lines = [f"{', '.join(r.name for r in errors[text])}: {text}" for text in kinds]
    kind = DataError if any(isinstance(e, DataError) for e in kinds.values()) else RunError
    raise kind("\n".join(lines))


def judged_by(suite: Suite, runs: Sequence[SuiteRun], plans: Sequence[Plan]) -> Scores:
    """What the runs of a suite are judged by.

    Args:
        suite: Its target must fit.
        runs: Those that were planned; what is on record of all others is looked at too.
        plans: Of `runs`.

    Raises:
        ConfigError: The primary scores of two runs differ, or the target is not of theirs.
    """
    planned = {run.name: plan.scores for run, plan in zip(runs, plans, strict=True)}
    candidates = [candidate for one in suite.tunings for candidate in one.candidates]
    every = [*suite.runs, *(r for c in candidates for r in (*c.trials, *c.finals))]
    recorded = {r.name: s for r in every if r.name not in planned and (s := r.scores()) is not None}
    try:
        scores = shared_scores({**planned, **recorded}.items())
    except ValueError as error:
        raise ConfigError([Problem("methods", "", str(error))]) from error
    if suite.target is not None and (problem := suite.target.problem(scores.primary)):
        raise ConfigError([problem])
    return scores


def run_folders(path: Path) -> list[Path]:
    """The run folder at `path`, or the run folders in it, but for those moved aside."""
    if (path / "config.json").is_file() or not path.is_dir():
        return [path]
    found = sorted(entry.parent for entry in path.glob("*/config.json"))
    return [entry for entry in found if not _MOVED_ASIDE.search(entry.name)] or [path]
