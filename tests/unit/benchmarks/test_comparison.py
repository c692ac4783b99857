"""Medians, spreads and ratios, by cases computed by hand."""

from __future__ import annotations

from benchmarks.comparison import Figure, compare, to_markdown
from benchmarks.watch import Watched


def one(round_s: list[float], start_s: float, cpu_s: float = 1.0) -> Watched:
    return Watched(round_s, start_s, cpu_s, start_cpu_s=0.0, total_s=0.0)


def test_a_figure_is_the_median_with_least_and_most() -> None:
    assert Figure.of([4.0, 1.0, 3.0]) == Figure(3.0, 1.0, 4.0)
    assert Figure.of([4.0, 1.0]) == Figure(2.5, 1.0, 4.0)


def test_ratios_are_taken_within_a_turn() -> None:
    # The machine was twice as slow in the second turn, for both: the ratio stays 3.
    rows = compare(
        {
            "ours": [one([1.0, 1.0, 2.0], 10.0, 2.0), one([2.0, 2.0, 2.0], 20.0, 4.0)],
            "theirs": [one([3.0, 3.0, 3.0], 15.0), one([6.0, 5.0, 7.0], 40.0)],
        },
        "ours",
    )
    ours, theirs = rows
    assert ours.round_s == Figure(2.0, 1.0, 2.0)
    assert ours.cpu_s == Figure(3.0, 2.0, 4.0)
    assert ours.round_ratio == ours.start_ratio == Figure(1.0, 1.0, 1.0)
    assert theirs.round_s == Figure(4.0, 3.0, 7.0)
    assert theirs.round_ratio == Figure(3.0, 3.0, 3.0)
    assert theirs.start_ratio == Figure(1.75, 1.5, 2.0)


def test_the_table_has_a_row_for_each() -> None:
    rows = compare({"ours": [one([1.0], 2.0)], "theirs": [one([3.0], 5.0)]}, "ours")
    last = to_markdown(rows, "ours").splitlines()[-1]
    assert last.startswith("| theirs | 3.00 (3.00-3.00) |")
    assert last.endswith("| 3.00 (3.00-3.00) | 2.50 (2.50-2.50) |")
