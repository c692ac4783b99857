"""What a workload measured round by round: metrics that are named ``family/member``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from report.curves import Course, course
from report.loading import LoadedRun
from report.tables import Statistic


@dataclass(frozen=True, slots=True)
class Family:
    """Metrics that belong into one plot, such as ``sensitivity/rotation`` and ``sensitivity/crop``.

    Attributes:
        name: Such as ``sensitivity``.
        members: Such as ``rotation``, in the order in which records first name them.
        courses: For each method, by member: its mean over the method's runs, round by round.
            Without the members that its runs share no round of.
    """

    name: str
    members: tuple[str, ...]
    courses: tuple[Mapping[str, Course], ...]

    def last(
        self, runs: Sequence[LoadedRun], courses: Mapping[str, Course], member: str
    ) -> Statistic | None:
        """What a member came to in the last round of its course, over the runs of one method.

        Args:
            runs: Of the method.
            courses: The method's own.
            member: Which; None is returned of one that is not in `courses`.
        """
        if member not in courses:
            return None
        last = courses[member].rounds[-1]
        records = [record for run in runs for record in run.rounds if record.round == last]
        return Statistic.of(record.server[f"{self.name}/{member}"] for record in records)

    @property
    def label(self) -> str:
        """The name for readers."""
        return readable(self.name)


def families(methods: Sequence[Sequence[LoadedRun]]) -> list[Family]:
    """Every family that any run has on record, in the order in which records first name them.

    Args:
        methods: The runs of each method.
    """
    found: dict[str, dict[str, None]] = {}
    for runs in methods:
        for name, member in _named(runs):
            found.setdefault(name, {})[member] = None
    return [
        Family(
            name, tuple(members), tuple(_courses(runs, name, tuple(members)) for runs in methods)
        )
        for name, members in found.items()
    ]


def readable(name: str) -> str:
    """A name from records for readers: ``color_jitter`` is told as ``color jitter``."""
    return name.replace("_", " ")


def _named(runs: Iterable[LoadedRun]) -> Iterable[tuple[str, str]]:
    for run in runs:
        for record in run.rounds:
            for metric in record.server:
                name, _, member = metric.partition("/")
                if name and member:
                    yield name, member


def _courses(runs: Sequence[LoadedRun], family: str, members: Iterable[str]) -> dict[str, Course]:
    drawn = {member: course(runs, f"{family}/{member}") for member in members} if runs else {}
    return {member: found for member, found in drawn.items() if found.rounds}
