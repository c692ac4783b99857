"""The result of a suite: mean and deviation over seeds for each method under each setting."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from core.records import RoundRecord
from core.scores import Score, Scores
from experiments import tuning
from experiments.execution import SuiteResult
from experiments.suite import Candidate
from report.loading import LoadedRun
from report.methods import Method, attacks_of, marks_of
from report.milestones import best_round, reached
from report.tables import (
    NONE,
    Row,
    Statistic,
    amount_of_bytes,
    epsilon_text,
    epsilon_title,
    measures,
    result_rows,
    score_text,
    seconds,
    seeds_text,
    target_text,
)


@dataclass(frozen=True, slots=True)
class Target:
    """What it took to reach a score on test.

    Attributes:
        score: In (0, 1] where it is a share.
        seeds: Of the runs that reached it.
        rounds: Until then, over those runs; None where there is none.
        bytes_up: From all clients until then, likewise.
    """

    score: float
    seeds: tuple[int, ...]
    rounds: Statistic | None
    bytes_up: Statistic | None


@dataclass(frozen=True, slots=True)
class Cell:
    """One method under one setting.

    Attributes:
        setting: Label; empty where the suite has no settings.
        method: Label.
        winner: The candidate whose keys it has; None where it was not tuned, or without success.
        runs: Its complete runs, by seed.
        unfinished: Its others that are on record.
        num_seeds: Runs it was to have.
        wanted: The suite's target; None where it gives none.
        scores: What the suite's runs are judged by.
    """

    setting: str
    method: str
    winner: Candidate | None
    runs: tuple[LoadedRun, ...]
    unfinished: tuple[LoadedRun, ...]
    num_seeds: int
    wanted: float | None
    scores: Scores

    @property
    def on_record(self) -> tuple[LoadedRun, ...]:
        """All its runs that there are."""
        return (*self.runs, *self.unfinished)

    @property
    def label(self) -> str:
        """How it is called, with what a reader must know of it."""
        return self.label_without(())

    def label_without(self, told: Collection[str]) -> str:
        """The label where the marks `told` are seen elsewhere."""
        marks = [mark for mark in marks_of(self.on_record) if mark not in told]
        if len(self.runs) < self.num_seeds:
            marks.append(f"{len(self.runs)} of {self.num_seeds} seeds")
        return self.method + (f" ({', '.join(marks)})" if marks else "")

    @property
    def validation(self) -> Statistic | None:
        """Primary score on validation after the last round."""
        finals = [run.final for run in self.runs]
        return Statistic.of(r.validation.primary if r and r.validation else None for r in finals)

    @property
    def best_rounds(self) -> tuple[RoundRecord, ...]:
        """Each run's round of the highest on validation, the earliest of equals."""
        return tuple(best for run in self.runs if (best := best_round(run)) is not None)

    @property
    def row(self) -> Row | None:
        """Test figures and costs; None without runs."""
        if not self.runs:
            return None
        (row,) = result_rows([Method(self.runs[0].strategy, (), True, self.runs)])
        return row

    @property
    def target(self) -> Target | None:
        """What it took to reach the suite's target; None where the suite has none."""
        if self.wanted is None:
            return None
        found = [(run.seed, reached(run, self.wanted)) for run in self.runs]
        spent = [(seed, cost) for seed, cost in found if cost is not None]
        return Target(
            self.wanted,
            tuple(seed for seed, _ in spent),
            Statistic.of(float(cost.round) for _, cost in spent),
            Statistic.of(float(cost.bytes_up) for _, cost in spent),
        )


def summarise(result: SuiteResult) -> list[Cell]:
    """All cells, settings outermost."""
    suite, cells = result.suite, []
    winners = {
        (setting, one.tuning.method): one.winner.candidate
        for one in result.tuned
        if one.winner is not None
        for setting in one.tuning.settings
    }
    for setting in suite.settings:
        for method in suite.methods:
            here = (setting, method)
            complete, unfinished = (
                sorted((r for s, r in found if (s.setting, s.method) == here), key=_seed)
                for found in (result.runs, result.unfinished)
            )
            cells.append(
                Cell(
                    setting,
                    method,
                    winners.get(here),
                    tuple(complete),
                    tuple(unfinished),
                    len(suite.seeds),
                    suite.target.value if suite.target else None,
                    result.scores,
                )
            )
    return cells


def _seed(run: LoadedRun) -> int:
    return run.seed


def _columns(cells: Sequence[Cell], score: Score) -> list[tuple[str, Callable[[Row], str]]]:
    runs = [run for cell in cells for run in cell.on_record]
    columns: list[tuple[str, Callable[[Row], str]]] = [
        (score.heading("test"), lambda row: score_text(row.primary, score)),
        (score.heading("worst client"), lambda row: score_text(row.worst_client, score)),
        ("uploaded", lambda row: amount_of_bytes(row.bytes_up)),
        ("client s", lambda row: seconds(row.client_s)),
    ]
    if runs and not any(run.tells_clients_apart for run in runs):
        del columns[1]
    if title := epsilon_title(runs):
        columns.insert(0, (title.lower(), lambda row: epsilon_text(row.method.runs)))
    return columns


def to_text(result: SuiteResult) -> str:
    """The summary for a terminal: how methods were tuned, then a table per setting."""
    cells = summarise(result)
    score = result.scores.primary
    blocks = [tuning.to_text(result.tuned, score)] if result.tuned else []
    for setting in result.suite.settings:
        block = [cell for cell in cells if cell.setting == setting]
        seeds = sorted({run.seed for cell in block for run in cell.runs})
        over = "mean ± standard deviation over seeds" if len(seeds) > 1 else "seed"
        title = f"{setting}: " if setting else ""
        heading = f"{title}after the last round, {over} {seeds_text(seeds)}"
        told = _shared_attack(block)
        heading = heading if seeds else f"{title}no run is complete"
        lines = [heading, *told, *_table(block, told, score), *_targets(block, score)]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _shared_attack(cells: Sequence[Cell]) -> tuple[str, ...]:
    """The attack that every run is under, told once for them all; empty where none is."""
    attacks = {attacks_of([run]) for cell in cells for run in cell.on_record}
    return next(iter(attacks)) if len(attacks) == 1 else ()


def _table(cells: Sequence[Cell], told: Collection[str], score: Score) -> list[str]:
    columns = _columns(cells, score)
    lines = [("method", *(title for title, _ in columns))]
    for cell in cells:
        row = cell.row
        lines.append(
            (cell.label_without(told), *(show(row) if row else NONE for _, show in columns))
        )
    return _aligned(lines)


def _targets(cells: Sequence[Cell], score: Score) -> list[str]:
    """Rounds and bytes to the target; says how many seeds the means are over if not over all."""
    lines = []
    for cell in cells:
        if (target := cell.target) is not None:
            num_reached, num_runs = len(target.seeds), len(cell.runs)
            part = f" ({num_reached} of {num_runs} runs)" if num_reached < num_runs else ""
            figures = (_rounds(target.rounds), amount_of_bytes(target.bytes_up))
            lines.append((cell.method + part, *figures))
    if not lines:
        return []
    assert cells[0].wanted is not None, "a target is the suite's, and so every cell's"
    head = (f"to {target_text(cells[0].wanted, score)} test {score.label}", "rounds", "uploaded")
    return ["", *_aligned([head, *lines])]


def _rounds(value: Statistic | None) -> str:
    if value is None:
        return NONE
    return f"{value.mean:.1f} ± {value.std:.1f}" if value.std else f"{value.mean:g}"


def _aligned(lines: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns under each other, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))]
        )
        for first, *rest in lines
    ]


def to_json(result: SuiteResult) -> list[dict[str, Any]]:
    """The cells for programs; shares in [0, 1], a figure that is not there is null."""
    return [_cell_json(cell) for cell in summarise(result)]


def _cell_json(cell: Cell) -> dict[str, Any]:
    row, target, primary = cell.row, cell.target, cell.scores.primary.name
    figures = measures(row, cell.scores)
    on_one_machine = {k: v for k, v in figures.items() if not k.startswith("network_")}
    return {
        "setting": cell.setting,
        "method": cell.method,
        "tuned_keys": dict(cell.winner.keys) if cell.winner else None,
        "sends_raw_images": any(run.sends_raw_images for run in cell.on_record),
        "attack": next((run.attack for run in cell.on_record if run.attack), None),
        "seeds": [run.seed for run in cell.runs],
        f"validation_{primary}": _statistic(cell.validation),
        "best_rounds": [record.round for record in cell.best_rounds],
        **{key: _statistic(value) for key, value in on_one_machine.items()},
        "privacy": _privacy_json(cell),
        "target": target
        and {
            f"test_{primary}": target.score,
            "seeds": list(target.seeds),
            "rounds": _statistic(target.rounds),
            "bytes_up": _statistic(target.bytes_up),
        },
    }


def _privacy_json(cell: Cell) -> dict[str, Any] | None:
    """What the epsilon is of; None where no run is private."""
    noised = next((run.noised for run in cell.on_record if run.noised is not None), None)
    if noised is None:
        return None
    return {
        "mechanism": noised.mechanism,
        "unit": noised.unit,
        "delta": noised.delta,
        "budget": noised.budget,
        "noise_multiplier": noised.noise_multiplier,
        "accountant": noised.spent.accountant,
        "note": noised.spent.note,
    }


def _statistic(value: Statistic | None) -> dict[str, float | None] | None:
    return None if value is None else dataclasses.asdict(value)
