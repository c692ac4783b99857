"""Medians, spreads and ratios of runs that took turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.watch import Watched


@dataclass(frozen=True, slots=True)
class Figure:
    """A median and how far the values spread.

    Attributes:
        median: Of all values.
        least: Of all values.
        most: Of all values.
    """

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """Of at least one value."""
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Row:
    """One contender.

    Attributes:
        name: What it is called.
        round_s: Seconds of a round after the first, over all rounds of all runs.
        cpu_s: CPU seconds of such a round, over runs.
        start_s: Seconds from the command to the end of round 1, over runs.
        start_cpu_s: CPU seconds likewise.
        round_ratio: `round_s` of a run over the reference's in the same turn, over turns: above 1
            where the reference is faster. A run's own figure is the median of its rounds.
        start_ratio: Likewise of `start_s`.
        num_runs: Runs.
    """

    name: str
    round_s: Figure
    cpu_s: Figure
    start_s: Figure
    start_cpu_s: Figure
    round_ratio: Figure
    start_ratio: Figure
    num_runs: int


def compare(runs: Mapping[str, Sequence[Watched]], reference: str) -> list[Row]:
    """One row per contender, in the order given.

    Args:
        runs: By contender, one run per turn, in the order of the turns. Ratios are taken within a
            turn, so that what slows down the machine for a while slows down both.
        reference: The contender that others are divided by.
    """
    rows = []
    for name, own in runs.items():
        pairs = list(zip(own, runs[reference], strict=True))
        rows.append(
            Row(
                name=name,
                round_s=Figure.of([s for run in own for s in run.round_s]),
                cpu_s=Figure.of([run.cpu_s_per_round for run in own]),
                start_s=Figure.of([run.start_to_round_1_s for run in own]),
                start_cpu_s=Figure.of([run.start_cpu_s for run in own]),
                round_ratio=Figure.of([median(a.round_s) / median(b.round_s) for a, b in pairs]),
                start_ratio=Figure.of(
                    [a.start_to_round_1_s / b.start_to_round_1_s for a, b in pairs]
                ),
                num_runs=len(own),
            )
        )
    return rows


def to_markdown(rows: Sequence[Row], reference: str) -> str:
    """The rows as a table; each figure with its least and most in brackets."""
    heads = (
        "contender",
        "s/round after the first",
        "CPU s/round",
        "command to end of round 1, s",
        "CPU s to there",
        f"s/round / {reference}",
        f"to round 1 / {reference}",
    )
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        figures = (
            row.round_s,
            row.cpu_s,
            row.start_s,
            row.start_cpu_s,
            row.round_ratio,
            row.start_ratio,
        )
        lines.append(f"| {' | '.join([row.name, *map(_told, figures)])} |")
    return "\n".join(lines) + "\n"


def _told(figure: Figure) -> str:
    return f"{figure.median:.2f} ({figure.least:.2f}-{figure.most:.2f})"
