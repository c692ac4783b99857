"""The result of a suite: mean and deviation over seeds for each method under each setting.

Methods that share a value of ``choose`` are candidates of which one is taken: the one of highest
mean validation accuracy after the last round. Test figures are given of that one only, so that the
test set has no part in the choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from experiments.suite import SuiteResult
from report.loading import LoadedRun
from report.methods import NOT_PRIVATE, Method
from report.tables import (
    NONE,
    Row,
    Statistic,
    amount_of_bytes,
    percent,
    result_rows,
    seconds,
    seeds_text,
)

Role = Literal["method", "chosen", "candidate"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One method under one setting.

    Attributes:
        setting: Label; empty where the suite has no settings.
        method: Label.
        group: What its tuning group is called; empty where it is no candidate.
        role: A method of its own, the candidate that validation chose, or one it did not.
        runs: Its complete runs, by seed.
        num_seeds: Runs it was to have.
    """

    setting: str
    method: str
    group: str
    role: Role
    runs: tuple[LoadedRun, ...]
    num_seeds: int

    @property
    def label(self) -> str:
        """How it is called, with what a reader must know of it."""
        marks = [NOT_PRIVATE] if any(run.sends_raw_images for run in self.runs) else []
        if len(self.runs) < self.num_seeds:
            marks.append(f"{len(self.runs)} of {self.num_seeds} seeds")
        return self.method + (f" ({', '.join(marks)})" if marks else "")

    @property
    def validation(self) -> Statistic | None:
        """Validation accuracy after the last round."""
        finals = [run.final for run in self.runs]
        return Statistic.of(r.validation.accuracy if r and r.validation else None for r in finals)

    @property
    def row(self) -> Row | None:
        """Test figures and costs; None of a candidate that was not chosen, or without runs."""
        if self.role == "candidate" or not self.runs:
            return None
        (row,) = result_rows([Method(self.runs[0].strategy, (), True, self.runs)])
        return row


def summarise(result: SuiteResult) -> list[Cell]:
    """All cells, settings outermost.

    A candidate that lacks a seed is not chosen; of equals, the first in the suite is.
    """
    suite, cells = result.suite, []
    for setting in suite.settings:
        for method in suite.methods:
            here = (setting, method)
            runs = tuple(run for s, run in result.runs if (s.setting, s.method) == here)
            num_seeds = sum((s.setting, s.method) == here for s in suite.runs)
            group = suite.choices.get(method, "")
            role: Role = "candidate" if group else "method"
            cells.append(Cell(setting, method, group, role, runs, num_seeds))
    best: dict[tuple[str, str], tuple[float, int]] = {}
    for index, cell in enumerate(cells):
        if cell.group and cell.validation and len(cell.runs) == cell.num_seeds:
            slot, reached = (cell.setting, cell.group), cell.validation.mean
            if slot not in best or reached > best[slot][0]:
                best[slot] = (reached, index)
    for _, index in best.values():
        cells[index] = dataclasses.replace(cells[index], role="chosen")
    return cells


_COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("test, %", lambda row: percent(row.test_accuracy)),
    ("worst client, %", lambda row: percent(row.worst_client_accuracy)),
    ("uploaded", lambda row: amount_of_bytes(row.bytes_up)),
    ("client s", lambda row: seconds(row.client_s)),
)


def to_text(cells: Sequence[Cell]) -> str:
    """The summary for a terminal: a table per setting, tuning candidates below it."""
    blocks = []
    for setting in dict.fromkeys(cell.setting for cell in cells):
        block = [cell for cell in cells if cell.setting == setting]
        seeds = sorted({run.seed for cell in block for run in cell.runs})
        over = "mean ± standard deviation over seeds" if len(seeds) > 1 else "seed"
        title = f"{setting}: " if setting else ""
        heading = f"{title}after the last round, {over} {seeds_text(seeds)}"
        blocks.append("\n".join([heading, *_table(block), *_candidates(block)]) + "\n")
    return "\n".join(blocks)


def _table(cells: Sequence[Cell]) -> list[str]:
    lines = [("method", *(title for title, _ in _COLUMNS))]
    for cell in cells:
        if cell.role != "candidate":
            row = cell.row
            figures = [show(row) if row else NONE for _, show in _COLUMNS]
            lines.append((cell.label, *figures))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))]
        )
        for first, *rest in lines
    ]


def _candidates(cells: Sequence[Cell]) -> list[str]:
    lines = []
    for group in dict.fromkeys(cell.group for cell in cells if cell.group):
        members = [cell for cell in cells if cell.group == group]
        chosen = next((cell.method for cell in members if cell.role == "chosen"), None)
        taken = f"{chosen} is chosen" if chosen else "none is chosen, as none has all its seeds"
        lines.append(f"{group}: {taken}; test figures are of the chosen candidate only")
        lines += [
            f"  {cell.label}: validation {percent(cell.validation)} %"
            + (" (chosen)" if cell.role == "chosen" else "")
            for cell in members
        ]
    return lines


def to_json(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """The summary for programs; accuracies in [0, 1], a figure that is not there is null."""
    return [
        {
            "setting": cell.setting,
            "method": cell.method,
            "group": cell.group or None,
            "role": cell.role,
            "sends_raw_images": any(run.sends_raw_images for run in cell.runs),
            "seeds": [run.seed for run in cell.runs],
            "validation_accuracy": _statistic(cell.validation),
            "test_accuracy": _statistic(row.test_accuracy if (row := cell.row) else None),
            "worst_client_accuracy": _statistic(row.worst_client_accuracy if row else None),
            "macro_f1": _statistic(row.macro_f1 if row else None),
            "bytes_up": _statistic(row.bytes_up if row else None),
            "bytes_down": _statistic(row.bytes_down if row else None),
            "client_s": _statistic(row.client_s if row else None),
            "server_s": _statistic(row.server_s if row else None),
        }
        for cell in cells
    ]


def _statistic(value: Statistic | None) -> dict[str, float | None] | None:
    return None if value is None else dataclasses.asdict(value)
