"""Which runs belong together: those of one label, or that differ in nothing but their seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from core.config import NOT_SETTINGS, Scalar
from core.errors import RecordError
from core.plugins import is_plugin
from core.scores import Scores, shared_scores
from report.loading import LoadedRun

NOT_PRIVATE = "not private"

_TASK_SECTIONS = (
    "data",
    "partition",
    "model",
    "rounds",
    "cohort",
    "faults",
    "attack",
    "canaries",
)

_Key = tuple[tuple[str, Scalar], ...]
_Group = str | _Key


@dataclass(frozen=True, slots=True)
class Method:
    """Runs that differ only in their seed.

    Attributes:
        strategy: The strategy as configured; a user's own by file and class name.
        settings: Those that tell it from the other methods shown, as ``(short key, value)``.
        finished: Whether its runs are complete; unfinished ones form a method of their own, so
            that no mean mixes rounds reached with rounds planned.
        runs: Ascending by seed, one per seed.
        given_name: What it is called instead of by strategy and settings; None where nobody named
            it.
    """

    strategy: str
    settings: tuple[tuple[str, Scalar], ...]
    finished: bool
    runs: tuple[LoadedRun, ...]
    given_name: str | None = None

    @property
    def sends_raw_images(self) -> bool:
        """Whether clients send real images as they are."""
        return any(run.sends_raw_images for run in self.runs)

    @property
    def attack(self) -> str | None:
        """What malicious clients do; None where all are honest."""
        return self.runs[0].attack

    @property
    def name(self) -> str:
        """The name given, or strategy and telling settings."""
        if self.given_name is not None:
            return self.given_name
        return " ".join([self.strategy, *(f"{key}={value}" for key, value in self.settings)])

    @property
    def marks(self) -> tuple[str, ...]:
        """What must be seen wherever the method is named."""
        return (*marks_of(self.runs), *(() if self.finished else ("unfinished",)))

    @property
    def label(self) -> str:
        """How the method is called in every table and plot: its name and its marks."""
        return f"{self.name} ({', '.join(self.marks)})" if self.marks else self.name

    @property
    def class_names(self) -> tuple[str, ...]:
        """In label order; empty where no run got far enough to know them."""
        return next((run.class_names for run in self.runs if run.class_names), ())

    @property
    def seeds(self) -> tuple[int, ...]:
        """Ascending."""
        return tuple(run.seed for run in self.runs)


def marks_of(runs: Sequence[LoadedRun]) -> tuple[str, ...]:
    """What must be seen wherever runs are named: raw images, canaries, and attacks."""
    raw = (NOT_PRIVATE,) if any(run.sends_raw_images for run in runs) else ()
    canaries = ("with canaries",) if any(run.has_canaries for run in runs) else ()
    return (*raw, *canaries, *attacks_of(runs))


def attacks_of(runs: Sequence[LoadedRun]) -> tuple[str, ...]:
    """Marks of the attacks that runs are under, each once."""
    return tuple(dict.fromkeys(f"attack: {run.attack}" for run in runs if run.attack))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs grouped into methods.

    Attributes:
        methods: In the order in which the runs were given.
        superseded: Pairs (run left out, run kept) of one method and seed. The complete one is kept,
            and of two the one that started later.
        scores: What the runs are judged by.
    """

    methods: tuple[Method, ...]
    superseded: tuple[tuple[LoadedRun, LoadedRun], ...]
    scores: Scores

    @property
    def runs(self) -> tuple[LoadedRun, ...]:
        """Every run shown."""
        return tuple(run for method in self.methods for run in method.runs)

    @property
    def task_differences(self) -> tuple[str, ...]:
        """Keys of the task, `_TASK_SECTIONS`, in which the methods differ."""
        groups = [dict(_settings(method.runs[0])) for method in self.methods]
        return tuple(key for key in _task_keys(groups) if _differs(key, groups))


def compare(
    runs: Sequence[LoadedRun], labels: Mapping[Path, str] = MappingProxyType({})
) -> Comparison:
    """Group `runs` into methods.

    Args:
        runs: In the order in which their methods are shown.
        labels: By absolute path of a run folder, what its method is called. Runs of one label are
            one method; those without any are where they differ in nothing but their seed.

    Raises:
        RecordError: The primary scores of two runs differ.
    """
    scores = judged_by(runs)
    kept: dict[tuple[_Group, int], LoadedRun] = {}
    superseded = []
    for run in runs:
        slot = (labels.get(run.folder.path, _settings(run)), run.seed)
        rival = kept.setdefault(slot, run)
        if rival is not run:
            older, newer = sorted((rival, run), key=lambda r: (r.finished, r.started))
            kept[slot] = newer
            superseded.append((older, newer))
    groups: dict[tuple[_Group, bool], list[LoadedRun]] = {}
    for (group, _), run in kept.items():
        groups.setdefault((group, run.finished), []).append(run)
    told_by = _telling_keys([dict(group) for group, _ in groups if not isinstance(group, str)])
    names = short_names(value for run in runs for value in run.config.values())
    methods = []
    for (group, finished), members in groups.items():
        ordered = tuple(sorted(members, key=lambda run: run.seed))
        strategy = ordered[0].strategy
        name = names.get(strategy, strategy)
        if isinstance(group, str):
            methods.append(Method(name, (), finished, ordered, group))
            continue
        values = dict(group)
        telling = tuple(
            (short, names.get(values[key], values[key]))
            for key, short in told_by[strategy].items()
            if key in values
        )
        methods.append(Method(name, telling, finished, ordered))
    return Comparison(tuple(methods), tuple(superseded), scores)


def judged_by(runs: Iterable[LoadedRun]) -> Scores:
    """What `runs`, at least one, are judged by.

    Raises:
        RecordError: The primary scores of two of them differ.
    """
    try:
        return shared_scores((run.name, run.scores) for run in runs)
    except ValueError as error:
        raise RecordError(str(error)) from error


def task_of(run: LoadedRun) -> _Key:
    """Settings of the task, which a comparison of methods is expected to hold equal."""
    return tuple((k, v) for k, v in _settings(run) if k.partition(".")[0] in _TASK_SECTIONS)


def short_names(values: Iterable[Scalar]) -> Mapping[Scalar, str]:
    """Shorter names of users' own objects: ``FILE.py:NAME`` without the folder of the file.

    Those that would then be one name are left out, and so is every value of another form.

    >>> short_names(["fedavg", "/home/me/mine.py:Mine"])
    {'/home/me/mine.py:Mine': 'mine.py:Mine'}
    >>> short_names(["a/mine.py:Mine", "b/mine.py:Mine"])
    {}
    """
    own = {value for value in values if isinstance(value, str) and is_plugin(value)}
    short: dict[Scalar, str] = {value: Path(value).name for value in own}
    users = Counter(short.values())
    return {value: name for value, name in short.items() if users[name] == 1}


def _settings(run: LoadedRun) -> _Key:
    return tuple(
        sorted((k, v) for k, v in run.config.items() if k != "seed" and k not in NOT_SETTINGS)
    )


def _telling_keys(groups: Sequence[Mapping[str, Scalar]]) -> dict[str, dict[str, str]]:
    """For each strategy the keys to name in its label, each with a short spelling.

    A key is named where groups of one strategy differ in it, and where it belongs to the task,
    which a comparison of strategies is expected to hold equal. An attack is told by its mark.
    """
    told_by: dict[str, dict[str, str]] = {}
    for strategy in dict.fromkeys(str(group["strategy"]) for group in groups):
        own = [group for group in groups if group["strategy"] == strategy]
        named = [key for key in _all_keys(own) if key != "strategy" and _differs(key, own)]
        named += [key for key in _task_keys(groups) if key not in named and _differs(key, groups)]
        named = [key for key in named if not key.startswith("attack.")]
        tails = [key.rpartition(".")[2] for key in named]
        told_by[strategy] = {
            key: tail if tails.count(tail) == 1 else key
            for key, tail in zip(named, tails, strict=True)
        }
    return told_by


def _all_keys(groups: Sequence[Mapping[str, Scalar]]) -> list[str]:
    return sorted({key for group in groups for key in group})


def _task_keys(groups: Sequence[Mapping[str, Scalar]]) -> list[str]:
    return [key for key in _all_keys(groups) if key.partition(".")[0] in _TASK_SECTIONS]


def _differs(key: str, groups: Sequence[Mapping[str, Scalar]]) -> bool:
    return len({group.get(key) for group in groups}) > 1
