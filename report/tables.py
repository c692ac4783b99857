"""The table of results: one row per method, mean and sample standard deviation over seeds."""

from __future__ import annotations

import csv
import io
import math
import statistics
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from core.scores import MACRO_F1, Score, Scores
from report.loading import LoadedRun
from report.methods import Method, judged_by
from report.milestones import best_round, total_spent

NONE = "—"


@dataclass(frozen=True, slots=True)
class Statistic:
    """A measure over seeds.

    Attributes:
        mean: Arithmetic mean.
        std: Sample standard deviation (n - 1); None for one seed.
    """

    mean: float
    std: float | None

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Statistic | None:
        """The statistic of the values that are there; None where none is.

        >>> Statistic.of([1.0, 3.0])
        Statistic(mean=2.0, std=1.4142135623730951)
        >>> Statistic.of([1.0, None])
        Statistic(mean=1.0, std=None)
        """
        known = [value for value in values if value is not None]
        if not known:
            return None
        std = statistics.stdev(known) if len(known) > 1 else None
        return cls(statistics.fmean(known), std)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one method reached. Shares are in [0, 1], sums are over all rounds of a run.

    Attributes:
        method: The runs behind the row.
        test: By name of each score of its runs, the primary one first: on test, at the last
            evaluated round.
        worst_client: The primary score at the last evaluated round.
        at_best_validation: The primary score on test at each seed's round of the highest on
            validation, the earliest of equals.
        bytes_up: From all clients.
        bytes_down: To all clients.
        network_bytes_up: The same as the network counted it; None where no run was on one.
        network_bytes_down: Likewise.
        client_s: Seconds of training, summed over clients.
        server_s: Seconds of aggregation and server training.
        epsilon: Of the whole run so far, the largest of its clients'; None without noise, and where
            it is refused.
        best_rounds: Those rounds, for each seed that has one.
        rounds: Last round on record of each seed.
    """

    method: Method
    test: Mapping[str, Statistic | None]
    worst_client: Statistic | None
    at_best_validation: Statistic | None
    bytes_up: Statistic | None
    bytes_down: Statistic | None
    network_bytes_up: Statistic | None
    network_bytes_down: Statistic | None
    client_s: Statistic | None
    server_s: Statistic | None
    epsilon: Statistic | None
    best_rounds: tuple[int, ...]
    rounds: tuple[int, ...]

    @property
    def primary(self) -> Statistic | None:
        """The primary score on test."""
        return next(iter(self.test.values()))


def result_rows(methods: Sequence[Method]) -> list[Row]:
    """One row per method."""
    return [_row(method) for method in methods]


def _row(method: Method) -> Row:
    finals = [run.final for run in method.runs]
    tests = [final.test if final else None for final in finals]
    chosen = [best_round(run) for run in method.runs]
    totals = [total_spent(run) for run in method.runs]
    networks = [run.network for run in method.runs]
    return Row(
        method=method,
        test={
            score.name: Statistic.of(
                test.scores.get(score.name) if test else None for test in tests
            )
            for score in judged_by(method.runs)
        },
        worst_client=Statistic.of(final.worst_client_score if final else None for final in finals),
        at_best_validation=Statistic.of(
            best.test.primary if best and best.test else None for best in chosen
        ),
        bytes_up=Statistic.of(total.bytes_up if total else 0 for total in totals),
        bytes_down=Statistic.of(total.bytes_down if total else 0 for total in totals),
        network_bytes_up=Statistic.of(n.bytes_up if n else None for n in networks),
        network_bytes_down=Statistic.of(n.bytes_down if n else None for n in networks),
        client_s=Statistic.of(total.client_s if total else 0 for total in totals),
        server_s=Statistic.of(total.server_s if total else 0 for total in totals),
        epsilon=epsilon_of(method.runs),
        best_rounds=tuple(best.round for best in chosen if best),
        rounds=tuple(run.rounds_done for run in method.runs),
    )


def score_text(value: Statistic | None, score: Score) -> str:
    """A score as its `Score.heading` announces it: a share as percent, ``91.20 ± 0.35``."""
    if score.is_percent:
        return _spread(value, lambda x: f"{100 * x:.2f}")
    return number(value)


def number(value: Statistic | None) -> str:
    """A number of any size and sign: ``3.20 ± 0.01``."""
    scale = max(abs(value.mean), value.std or 0.0) if value else 0.0
    return _spread(value, lambda x: _digits(x, scale))


def brief(value: float, score: Score) -> str:
    """One value of a score in few digits, without its unit, where precision would only distract."""
    return f"{100 * value:.1f}" if score.is_percent else f"{value:.4g}"


def amount_of_bytes(value: Statistic | None) -> str:
    """Bytes in decimal units: ``1.25 ± 0.10 MB``."""
    if value is None:
        return NONE
    if value.std is None:
        return plain_bytes(value.mean)
    unit, scale = _byte_unit(value.mean)
    return f"{_spread(value, lambda x: _digits(x / scale, value.mean / scale))} {unit}"


def plain_bytes(count: float) -> str:
    """One number of bytes: ``1.25 MB``."""
    unit, scale = _byte_unit(count)
    return f"{_digits(count / scale, count / scale)} {unit}"


def seconds(value: Statistic | None) -> str:
    """Seconds: ``12.3 ± 0.4``."""
    return _spread(value, lambda x: _digits(x, value.mean if value else 0))


NO_NOISE = "no noise"


def epsilon_of(runs: Sequence[LoadedRun]) -> Statistic | None:
    """What runs have cost over seeds; None where one of them has no epsilon on record."""
    found = [run.epsilon for run in runs]
    return None if None in found else Statistic.of(found)


def epsilon_text(runs: Sequence[LoadedRun], *, with_terms: bool = False) -> str:
    """What runs have cost, for one cell: ``3.996``, ``no noise``, or why it is refused.

    Args:
        runs: Of one method.
        with_terms: Whether to name unit and delta, where they differ between methods.
    """
    noised = [run.noised for run in runs if run.noised is not None]
    if not noised:
        return NO_NOISE
    terms = f" ({noised[0].unit}, delta {noised[0].delta:g})" if with_terms else ""
    if (value := epsilon_of(runs)) is None:
        return next((one.spent.note for one in noised if one.spent.note), NONE)
    spread = "" if not value.std or value.std < 5e-4 else f" ± {value.std:.2g}"
    return f"{value.mean:.4g}{spread}{terms}"


def epsilon_title(runs: Iterable[LoadedRun]) -> str:
    """Heading of a column of `epsilon_text`; empty where no run is private."""
    units = {run.noised.unit for run in runs if run.noised is not None}
    return f"Epsilon per {units.pop()}" if len(units) == 1 else "Epsilon" if units else ""


def terms_differ(runs: Iterable[LoadedRun]) -> bool:
    """Whether epsilons of `runs` do not compare, for unit or delta differ."""
    return len({run.noised.terms for run in runs if run.noised is not None}) > 1


def _spread(value: Statistic | None, show: Callable[[float], str]) -> str:
    if value is None:
        return NONE
    if value.std is None:
        return show(value.mean)
    return f"{show(value.mean)} ± {show(value.std) if value.std else 0}"


def _digits(value: float, scale: float) -> str:
    """A number with the decimals that become `scale`: up to four digits of it, at least two."""
    if scale == 0 or scale >= 1000:
        decimals = 0
    elif scale >= 1:
        decimals = 1 if scale >= 100 else 2
    else:
        decimals = 1 - math.floor(math.log10(scale))
    return f"{value:,.{decimals}f}"


def _byte_unit(count: float) -> tuple[str, float]:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return unit, scale
    return "B", 1.0


def seeds_text(seeds: Sequence[int]) -> str:
    """Seeds with runs joined.

    >>> seeds_text([0, 1, 2, 5])
    '0 to 2, 5'
    """
    spans: list[list[int]] = []
    for seed in seeds:
        if spans and seed == spans[-1][1] + 1:
            spans[-1][1] = seed
        else:
            spans.append([seed, seed])
    return ", ".join(
        f"{a}" if a == b else f"{a}, {b}" if b == a + 1 else f"{a} to {b}" for a, b in spans
    )


def joined(words: Sequence[str], last: str = "and") -> str:
    """Words as prose lists them.

    >>> joined(["a", "b", "c"])
    'a, b and c'
    >>> joined(["a, 1", "b, 2", "c"])
    'a, 1; b, 2 and c'
    """
    *before, end = words or [""]
    apart = "; " if any("," in word for word in words) else ", "
    return f"{apart.join(before)} {last} {end}" if before else end


def target_text(target: float, score: Score) -> str:
    """A score that runs are to reach, as it was asked for: ``90%``."""
    return f"{score.factor * target:.10g}{score.unit}"


def sentence_case(text: str) -> str:
    """A label as it stands at the beginning of a sentence.

    >>> sentence_case("macro-F1")
    'Macro-F1'
    """
    return text[:1].upper() + text[1:]


def rounds_text(rounds: Sequence[int]) -> str:
    """Round numbers of seeds: the number where all agree, else from the least to the greatest.

    >>> rounds_text([9, 4, 7])
    '4 to 9'
    """
    if not rounds:
        return NONE
    least, most = min(rounds), max(rounds)
    return f"{least}" if least == most else f"{least} to {most}"


def _done_text(row: Row) -> str:
    done = rounds_text(row.rounds)
    return done if row.method.finished else f"{done} of {row.method.runs[0].rounds_planned}"


@dataclass(frozen=True, slots=True)
class Column:
    """One column as readers see it.

    Attributes:
        title: Heading, with the unit.
        cell: A row's text.
    """

    title: str
    cell: Callable[[Row], str]


_SEEDS = Column("Seeds", lambda row: seeds_text(row.method.seeds))
_COSTS = (
    Column("Best round", lambda row: rounds_text(row.best_rounds)),
    Column("Uploaded", lambda row: amount_of_bytes(row.bytes_up)),
    Column("Downloaded", lambda row: amount_of_bytes(row.bytes_down)),
    Column("Client time, s", lambda row: seconds(row.client_s)),
    Column("Server time, s", lambda row: seconds(row.server_s)),
    Column("Rounds", _done_text),
)


def column_heading(score: Score, scores: Scores) -> str:
    """The heading over a score on test: the primary one says so.

    >>> [column_heading(score, CLASSIFICATION) for score in CLASSIFICATION]
    ['Test accuracy, %', 'Macro-F1, %']
    """
    is_primary = score == scores.primary
    return score.heading(f"Test {score.label}" if is_primary else sentence_case(score.label))


def _score_columns(scores: Scores, *, has_worst_client: bool) -> tuple[Column, ...]:
    def on_test(score: Score) -> Column:
        return Column(
            column_heading(score, scores), lambda row: score_text(row.test.get(score.name), score)
        )

    primary = scores.primary
    worst = Column(
        primary.heading("Worst client"), lambda row: score_text(row.worst_client, primary)
    )
    best = Column(
        primary.heading("At best validation"),
        lambda row: score_text(row.at_best_validation, primary),
    )
    return (*map(on_test, scores), *([worst] if has_worst_client else []), best)


NETWORK_COLUMNS: tuple[Column, ...] = (
    Column("Uploaded, network", lambda row: amount_of_bytes(row.network_bytes_up)),
    Column("Downloaded, network", lambda row: amount_of_bytes(row.network_bytes_down)),
)
"""Bytes as the network counted them, beside Tessera's own count."""


def columns_of(rows: Sequence[Row]) -> tuple[Column, ...]:
    """The columns: epsilon where any run is private, a network's bytes where one is."""
    runs = [run for row in rows for run in row.method.runs]
    has_worst_client = any(run.tells_clients_apart for run in runs)
    scores = _score_columns(judged_by(runs), has_worst_client=has_worst_client)
    columns: tuple[Column, ...] = (_SEEDS, *scores, *_COSTS)
    if any(run.network is not None for run in runs):
        end = next(i for i, column in enumerate(columns) if column.title == "Downloaded") + 1
        columns = (*columns[:end], *NETWORK_COLUMNS, *columns[end:])
    if not (title := epsilon_title(runs)):
        return columns
    mixed = terms_differ(runs)
    epsilon = Column(title, lambda row: epsilon_text(row.method.runs, with_terms=mixed))
    return (columns[0], epsilon, *columns[1:])


def key_on_test(name: str) -> str:
    """Where programs find a score on test; macro-F1 under the key that it had before others."""
    return name if name == MACRO_F1.name else f"test_{name}"


def measures(row: Row | None, scores: Scores) -> dict[str, Statistic | None]:
    """A row's figures for programs, by key.

    Args:
        row: Of one method; None for one that has no figures.
        scores: Of all rows beside it, so that they have the same keys.
    """
    test: Mapping[str, Statistic | None] = row.test if row else {}
    primary = scores.primary.name
    return {
        **{key_on_test(score.name): test.get(score.name) for score in scores},
        f"worst_client_{primary}": row.worst_client if row else None,
        f"{primary}_at_best_validation": row.at_best_validation if row else None,
        **{name: getattr(row, name) if row else None for name in _COST_MEASURES},
    }


_COST_MEASURES = (
    "bytes_up",
    "bytes_down",
    "client_s",
    "server_s",
    "epsilon",
    "network_bytes_up",
    "network_bytes_down",
)


def to_markdown(rows: Sequence[Row]) -> str:
    """The table as GitHub-flavoured Markdown."""
    columns = columns_of(rows)
    lines = [
        ["Method", *(column.title for column in columns)],
        ["---", *("---:" for _ in columns)],
        *([markdown_text(r.method.label), *(c.cell(r) for c in columns)] for r in rows),
    ]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def markdown_text(text: str) -> str:
    """Text as a cell of a table shows it: one line, nothing read as a tag or a border."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return " ".join(escaped.split())


def to_csv(rows: Sequence[Row]) -> str:
    """The table as CSV at full precision; a deviation is empty where there is one seed."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    scores = judged_by(run for row in rows for run in row.method.runs)
    figures = [measures(row, scores) for row in rows]
    heads = [f"{name}_{part}" for name in figures[0] for part in ("mean", "std")]
    writer.writerow(
        [
            "method",
            "finished",
            "sends_raw_images",
            "attack",
            "seeds",
            *heads,
            "best_rounds",
            "rounds",
            "privacy_unit",
            "privacy_delta",
        ]
    )
    for row, values in zip(rows, figures, strict=True):
        cells: list[str] = []
        for value in values.values():
            cells.append("" if value is None else repr(value.mean))
            cells.append("" if value is None or value.std is None else repr(value.std))
        method = row.method
        marks = [str(mark).lower() for mark in (method.finished, method.sends_raw_images)]
        writer.writerow(
            [
                method.label,
                *marks,
                method.attack or "none",
                " ".join(map(str, method.seeds)),
                *cells,
                " ".join(map(str, row.best_rounds)),
                " ".join(map(str, row.rounds)),
                *_terms(method),
            ]
        )
    return buffer.getvalue()


def _terms(method: Method) -> tuple[str, str]:
    noised = next((run.noised for run in method.runs if run.noised is not None), None)
    return ("none", "") if noised is None else (noised.unit, repr(noised.delta))


def to_text(rows: Sequence[Row], width: int = 80) -> str:
    """The table for a terminal: a column per method, in as many blocks as `width` asks for.

    Args:
        rows: What to show.
        width: Columns of the terminal.
    """
    heads = columns_of(rows)
    titles = [column.title for column in heads]
    head_width = max(map(len, titles))
    columns = []
    for row in rows:
        cells = [column.cell(row) for column in heads]
        cell_width = max(map(len, cells))
        label = textwrap.wrap(row.method.label, max(cell_width, 14), break_on_hyphens=False)
        columns.append((label, cells, max(cell_width, *map(len, label))))
    blocks: list[list[tuple[list[str], list[str], int]]] = []
    used = width
    for column in columns:
        if used + 2 + column[2] > width:
            blocks.append([])
            used = head_width
        blocks[-1].append(column)
        used += 2 + column[2]
    return "\n".join(_text_block(block, titles) for block in blocks)


def _text_block(block: Sequence[tuple[list[str], list[str], int]], titles: Sequence[str]) -> str:
    head_width = max(map(len, titles))
    height = max(len(label) for label, _, _ in block)
    lines = []
    for index in range(height):
        cells = [
            ([""] * (height - len(label)) + label)[index].rjust(width) for label, _, width in block
        ]
        lines.append("  ".join(["".ljust(head_width), *cells]))
    for index, title in enumerate(titles):
        cells = [texts[index].rjust(width) for _, texts, width in block]
        lines.append("  ".join([title.ljust(head_width), *cells]))
    return "".join(f"{line.rstrip()}\n" for line in lines)
