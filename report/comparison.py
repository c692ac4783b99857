"""The comparison of a suite for papers and READMEs: tables in Markdown and LaTeX, and figures.

Figures lie in ``comparison/`` beside the tables: SVG for Markdown, PDF for LaTeX. Equal records
give equal files.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.errors import RecordError
from core.records import write_whole
from report import latex
from report.curves import trains_on_clients, uploads_no_update
from report.failures import NO_REASON, left_out_of_costs
from report.loading import LoadedRun
from report.methods import NOT_PRIVATE, attacks_of, marks_of, task_of
from report.milestones import Spent, best_round, reached, total_spent
from report.privacy import EpsilonPoint, epsilon_point, noised_of, unlike_terms
from report.static_figures import (
    Against,
    Panel,
    Series,
    draw_against_epsilon,
    draw_curves,
    draw_final_accuracies,
)
from report.tables import (
    NO_NOISE,
    NONE,
    Statistic,
    amount_of_bytes,
    epsilon_text,
    epsilon_title,
    joined,
    markdown_text,
    percent,
    rounds_text,
    seconds,
    seeds_text,
    terms_differ,
)

FIGURES = "comparison"


@dataclass(frozen=True, slots=True)
class Entry:
    """One method under one setting.

    Attributes:
        setting: Label of the setting; empty where the suite has none.
        label: Label of the method.
        runs: Its runs, one a seed. Of those that are not complete no figure is shown, but how far
            they came and why.
        num_seeds: Runs that it was to have.
    """

    setting: str
    label: str
    runs: tuple[LoadedRun, ...]
    num_seeds: int

    @property
    def complete(self) -> tuple[LoadedRun, ...]:
        """The runs that are shown, by seed."""
        return tuple(sorted((r for r in self.runs if r.finished), key=lambda run: run.seed))

    @property
    def is_reference(self) -> bool:
        """Whether it has figures and adds no noise."""
        return bool(self.complete) and all(run.noised is None for run in self.complete)

    @property
    def name(self) -> str:
        """The label with what must be seen beside it."""
        return self.name_without(())

    def name_without(self, told: Sequence[str]) -> str:
        """The name where the marks `told` are seen elsewhere."""
        marks = [mark for mark in marks_of(self.runs) if mark not in told]
        return f"{self.label} ({', '.join(marks)})" if marks else self.label


@dataclass(frozen=True, slots=True)
class _Column:
    """One column of a table: its heading, and an entry's text."""

    title: str
    cell: Callable[[Entry], str]


@dataclass(frozen=True, slots=True)
class _Table:
    """One table, before it is Markdown or LaTeX.

    Attributes:
        caption: What it shows, in full sentences.
        head: Headings.
        rows: Texts of the cells.
    """

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class _Figure:
    """One figure, drawn.

    Attributes:
        stem: Path without its suffix, relative to the tables.
        alt: What it shows in one clause.
        caption: How to read it.
        svg: For Markdown.
        pdf: For LaTeX.
    """

    stem: str
    alt: str
    caption: str
    svg: bytes
    pdf: bytes


@dataclass(frozen=True, slots=True)
class _Part:
    """All that is shown of one setting, or of accuracy against epsilon under several."""

    title: str
    tables: tuple[_Table, ...]
    figure: _Figure | None
    notes: tuple[str, ...]


def write_comparison(
    entries: Sequence[Entry],
    folder: Path,
    *,
    title: str,
    target_accuracy: float | None,
    notes: Sequence[str],
) -> Sequence[Path]:
    """Write ``comparison.md``, ``comparison.tex`` and their figures.

    Args:
        entries: Methods under settings, in the order in which they are shown.
        folder: Where to write; made where it is missing. Files that are there are replaced whole.
        title: Of the whole.
        target_accuracy: Test accuracy in (0, 1] whose cost is compared; None compares totals only.
        notes: Sentences that readers must know, shown below the title.

    Returns:
        The files written, tables first.

    Raises:
        RecordError: A file cannot be written.
    """
    assert entries, "a comparison needs at least one entry"
    assert target_accuracy is None or 0 < target_accuracy <= 1, target_accuracy
    for entry in entries:
        seeds = [run.seed for run in entry.complete]
        assert len(seeds) == len(set(seeds)) <= entry.num_seeds, (entry.label, seeds)
    places = [(entry.setting, entry.label) for entry in entries]
    assert len(places) == len(set(places)), "an entry is given twice"
    parts = [
        _part(number, setting, entries, target_accuracy)
        for number, setting in enumerate(dict.fromkeys(e.setting for e in entries), start=1)
    ]
    parts = [*_against_epsilon(entries), *parts]
    notes = [*notes, *_unlike(entries)]
    overview = _overview(entries)
    contents = {
        folder / "comparison.md": _markdown(title, notes, overview, parts).encode(),
        folder / "comparison.tex": _latex(title, notes, overview, parts).encode(),
    }
    for figure in [overview, *(part.figure for part in parts)]:
        if figure is not None:
            contents[folder / f"{figure.stem}.svg"] = figure.svg
            contents[folder / f"{figure.stem}.pdf"] = figure.pdf
    for path, content in contents.items():
        try:
            write_whole(path, content)
        except OSError as error:
            raise RecordError(
                f"{path} cannot be written: {error.strerror}; make {folder} writable"
            ) from error
    return list(contents)


def _part(
    number: int, setting: str, entries: Sequence[Entry], target_accuracy: float | None
) -> _Part:
    members = [entry for entry in entries if entry.setting == setting]
    return _Part(
        title=setting,
        tables=(
            _table(_accuracy_columns(members), members, _accuracy_caption(members)),
            _table(
                _cost_columns(target_accuracy), members, _cost_caption(members, target_accuracy)
            ),
        ),
        figure=_curves(number, setting, members, _series_numbers(entries)),
        notes=tuple(_notes(members)),
    )


def _series_numbers(entries: Sequence[Entry]) -> dict[str, int]:
    """Each method's number, by which it has one colour under all settings."""
    return {label: n for n, label in enumerate(dict.fromkeys(entry.label for entry in entries))}


def _table(columns: Sequence[_Column], entries: Sequence[Entry], caption: str) -> _Table:
    return _Table(
        caption,
        ("Method", *(column.title for column in columns)),
        tuple((entry.name, *(column.cell(entry) for column in columns)) for entry in entries),
    )


def _seeds(entry: Entry) -> str:
    there = [run.seed for run in entry.complete]
    missing = entry.num_seeds - len(there)
    text = seeds_text(there) or "none"
    return f"{text} ({len(there)} of {entry.num_seeds})" if missing else text


def _final_accuracy(entry: Entry) -> Statistic | None:
    finals = [run.final for run in entry.complete]
    return Statistic.of(final.test.primary if final and final.test else None for final in finals)


def _worst_client(entry: Entry) -> Statistic | None:
    finals = [run.final for run in entry.complete]
    return Statistic.of(final.worst_client_score if final else None for final in finals)


def _best_accuracy(entry: Entry) -> Statistic | None:
    best = [best_round(run) for run in entry.complete]
    return Statistic.of(record.test.primary if record and record.test else None for record in best)


def _best_rounds(entry: Entry) -> str:
    best = [best_round(run) for run in entry.complete]
    return rounds_text([record.round for record in best if record])


_ACCURACIES = (
    _Column("Seeds", _seeds),
    _Column("Test accuracy, %", lambda entry: percent(_final_accuracy(entry))),
    _Column("Worst client, %", lambda entry: percent(_worst_client(entry))),
    _Column("At best validation, %", lambda entry: percent(_best_accuracy(entry))),
    _Column("Best round", _best_rounds),
)


def _accuracy_columns(entries: Sequence[Entry]) -> tuple[_Column, ...]:
    """With epsilon where any run is private."""
    runs = [run for entry in entries for run in entry.runs]
    if not (title := epsilon_title(runs)):
        return _ACCURACIES
    mixed = terms_differ(runs)
    epsilon = _Column(title, lambda entry: _epsilon(entry, mixed))
    return (_ACCURACIES[0], epsilon, *_ACCURACIES[1:])


def _epsilon(entry: Entry, with_terms: bool) -> str:
    return epsilon_text(entry.complete, with_terms=with_terms) if entry.complete else NONE


def _cost_columns(target_accuracy: float | None) -> tuple[_Column, ...]:
    totals = (
        _Column("Rounds", lambda e: _total(e, lambda s: s.round, _count)),
        _Column("Uploaded", lambda e: _total(e, lambda s: s.bytes_up, amount_of_bytes)),
        _Column("Downloaded", lambda e: _total(e, lambda s: s.bytes_down, amount_of_bytes)),
        _Column("Client s", lambda e: _total(e, lambda s: s.client_s, seconds)),
        _Column("Server s", lambda e: _total(e, lambda s: s.server_s, seconds)),
    )
    if target_accuracy is None:
        return totals
    target, to = target_accuracy, f"to {_percent(target_accuracy)}"

    def column(
        title: str, value: Callable[[Spent], float], show: Callable[[Statistic], str]
    ) -> _Column:
        return _Column(f"{title} {to}", lambda entry: _to_target(entry, target, value, show))

    return (
        _Column(f"Reached {_percent(target)}", lambda entry: _reached(entry, target)),
        column("Rounds", lambda s: s.round, _count),
        column("Uploaded", lambda s: s.bytes_up, amount_of_bytes),
        column("Client s", lambda s: s.client_s, seconds),
        *totals,
    )


def _total(entry: Entry, value: Callable[[Spent], float], show: Callable[[Statistic], str]) -> str:
    totals = [total_spent(run) for run in entry.complete]
    statistic = Statistic.of(value(total) for total in totals if total)
    return show(statistic) if statistic else NONE


def _reached(entry: Entry, target: float) -> str:
    """How many seeds reached the target."""
    if not entry.complete:
        return NONE
    hits = sum(reached(run, target) is not None for run in entry.complete)
    return f"{hits} of {len(entry.complete)} seeds"


def _to_target(
    entry: Entry,
    target: float,
    value: Callable[[Spent], float],
    show: Callable[[Statistic], str],
) -> str:
    """The mean over the seeds that reached the target."""
    costs = [reached(run, target) for run in entry.complete]
    statistic = Statistic.of(value(cost) if cost else None for cost in costs)
    return show(statistic) if statistic else NONE


def _count(value: Statistic) -> str:
    """A mean of whole numbers: ``12`` where seeds agree, else ``12.5 ± 0.7``."""
    if not value.std:
        return f"{value.mean:,.10g}"
    return f"{value.mean:,.1f} ± {value.std:,.1f}"


def _percent(share: float) -> str:
    return f"{100 * share:.10g}%"


def _accuracy_caption(entries: Sequence[Entry]) -> str:
    raw = any(run.sends_raw_images for entry in entries for run in entry.runs)
    private = f' "{NOT_PRIVATE.capitalize()}": clients send real images as they are.' if raw else ""
    return (
        "Test accuracy after the last round, mean ± sample standard deviation over seeds. Worst "
        "client: the lowest accuracy that any client may expect then, on its own mix of classes. "
        "At best validation: test accuracy of each seed's round of highest validation accuracy, "
        f"the earliest of equals; best round: its number.{_promised(entries)}{_lacking(entries)}"
        f"{private}"
    )


def _promised(entries: Sequence[Entry]) -> str:
    """What an epsilon in the table is, as a sentence after others."""
    noised = [run.noised for entry in entries for run in entry.runs if run.noised is not None]
    if not noised:
        return ""
    deltas = joined(list(dict.fromkeys(f"{one.delta:g}" for one in noised)))
    by = joined(list(dict.fromkeys(one.spent.accountant.upper() for one in noised)))
    return (
        f" Epsilon: of the whole run, the largest of its clients', at delta {deltas} by {by}; it "
        "covers no choice of settings by their results."
    )


def _lacking(entries: Sequence[Entry]) -> str:
    """Whose accuracy is not that of all clients, as a sentence after others."""
    names = [e.name for e in entries if any(run.lacks_clients for run in e.complete)]
    if not names:
        return ""
    return (
        f" Accuracies of {joined(names)}, the worst client's too, cover the clients that answered "
        "in that round."
    )


def _cost_caption(entries: Sequence[Entry], target_accuracy: float | None) -> str:
    left_out = left_out_of_costs(run for entry in entries for run in entry.complete)
    cost = (
        "Cost of a run, mean ± sample standard deviation over seeds; bytes are those of all "
        f"clients, client seconds are summed over clients. {left_out}".rstrip()
    )
    if target_accuracy is None:
        return cost
    target = _percent(target_accuracy)
    return (
        f"{cost} The columns to {target} count all rounds up to the first evaluated one with a "
        f"test accuracy of at least {target}, and are means over the seeds that reached it."
    )


def _notes(entries: Sequence[Entry]) -> Iterable[str]:
    """What is not as it was to be, by entry."""
    for entry in entries:
        missing = entry.num_seeds - len(entry.complete)
        if missing:
            cut = [_cut_short(run) for run in entry.runs if not run.finished]
            detail = f": {'; '.join(cut)}" if cut else ""
            yield f"{entry.name}: {missing} of {entry.num_seeds} seeds missing{detail}."
        for run in entry.complete:
            for taken_up in run.resumed:
                if taken_up.changed:
                    yield (
                        f"{entry.name}: seed {run.seed} was resumed after round "
                        f"{taken_up.after_round} with {taken_up.changed_line}; its results may "
                        "differ in their last bits from those of a run that was not."
                    )


def _cut_short(run: LoadedRun) -> str:
    """How far a run came that is not complete, and why no further."""
    reached = f"round {run.rounds_done} of {run.rounds_planned}"
    if run.status == "failed":
        return f"seed {run.seed} failed at {reached} ({run.failure_line or NO_REASON})"
    return f"seed {run.seed} is {run.status} at {reached}"


_AVERAGED = (
    "Lines are means over seeds, bands reach one sample standard deviation to each side. Seeds are "
    "averaged round by round: a point lies at the mean of what its round had cost."
)


def _curves(
    number: int, setting: str, entries: Sequence[Entry], numbers: dict[str, int]
) -> _Figure | None:
    told = _shared_attacks(entries)
    series = [_series(entry, numbers, told) for entry in entries if entry.complete]
    if not series:
        return None
    panels = (Panel.ROUNDS, Panel.BYTES_UP, Panel.CLIENT_S)
    svg, pdf = draw_curves(series, panels, ", ".join(told))
    under = f" under {setting}" if setting else ""
    several = any(len(entry.complete) > 1 for entry in entries)
    dashed = any(one.is_dashed for one in series)
    flat = any(uploads_no_update(s.runs) or not trains_on_clients(s.runs) for s in series)
    return _Figure(
        f"{FIGURES}/{_stem(number, setting)}",
        f"Test accuracy{under} against rounds, uploaded bytes and client seconds",
        " ".join(
            [
                f"Test accuracy{under} against rounds, bytes uploaded by all clients and client "
                "seconds, both cumulative.",
                *[_AVERAGED] * several,
                *["Horizontal lines: the final accuracy of methods without that cost."] * flat,
                *[f"Dashed: {NOT_PRIVATE}."] * dashed,
            ]
        ),
        svg,
        pdf,
    )


def _shared_attacks(entries: Sequence[Entry]) -> tuple[str, ...]:
    """The attack that every run is under, which a figure then tells once; empty where none is."""
    attacks = {attacks_of([run]) for entry in entries for run in entry.runs}
    return next(iter(attacks)) if len(attacks) == 1 else ()


def _series(entry: Entry, numbers: dict[str, int], told: Sequence[str]) -> Series:
    raw = any(run.sends_raw_images for run in entry.complete)
    return Series(entry.name_without(told), numbers[entry.label], entry.complete, raw)


def _stem(number: int, setting: str) -> str:
    """A file name that every shell and LaTeX takes."""
    words = re.findall(r"[A-Za-z0-9]+", setting)
    return "-".join(["curves", f"{number:02d}", *words]) if words else f"curves-{number:02d}"


def _overview(entries: Sequence[Entry]) -> _Figure | None:
    """Final accuracies of all methods under all settings; None where there is one setting."""
    settings = list(dict.fromkeys(entry.setting for entry in entries))
    if len(settings) < 2:
        return None
    numbers, groups = _series_numbers(entries), []
    series: dict[str, Series] = {}
    values: dict[tuple[int, str], Statistic] = {}
    for place, setting in enumerate(settings):
        members = [entry for entry in entries if entry.setting == setting]
        told = _shared_attacks(members)
        groups.append("\n".join([setting, *told]))
        for entry in members:
            value = _final_accuracy(entry)
            if value is not None:
                one = _series(entry, numbers, told)
                series.setdefault(one.name, one)
                values[place, one.name] = value
    if not values:
        return None
    svg, pdf = draw_final_accuracies(groups, list(series.values()), values)
    return _Figure(
        f"{FIGURES}/final-accuracy",
        "Test accuracy after the last round, per method and setting",
        "Test accuracy after the last round. Bars are means over seeds, whiskers one sample "
        "standard deviation to each side.",
        svg,
        pdf,
    )


def _unlike(entries: Sequence[Entry]) -> list[str]:
    """Why accuracy is not drawn against epsilon, where it is not."""
    reason = unlike_terms((entry.label, entry.complete) for entry in entries)
    return [reason] if reason else []


_Placed = tuple[Entry, EpsilonPoint]


def _against_epsilon(entries: Sequence[Entry]) -> list[_Part]:
    """Accuracy against epsilon, a part for each task; none where epsilons do not compare."""
    groups = _same_task(entries) if not _unlike(entries) else []
    parts = []
    for number, group in enumerate(groups, start=1):
        found = [
            (entry, point)
            for entry in group
            if (point := epsilon_point(entry.complete)) is not None
        ]
        if found:
            settings = "" if len(groups) == 1 else joined(_settings_of(group))
            numbers = _series_numbers(entries)
            parts.append(_epsilon_part(number, settings, group, found, numbers))
    return parts


def _same_task(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Entries of the settings under which every method has the same task.

    Accuracies on other data, partitions or rounds would differ for more than their epsilon.
    """
    groups: list[list[Entry]] = []
    for setting in _settings_of(entries):
        members = [entry for entry in entries if entry.setting == setting]
        tasks = {entry.label: task_of(entry.runs[0]) for entry in members if entry.runs}
        for group in groups:
            others = {entry.label: task_of(entry.runs[0]) for entry in group if entry.runs}
            if all(tasks[label] == others[label] for label in tasks.keys() & others.keys()):
                group += members
                break
        else:
            groups.append(members)
    return groups


def _settings_of(entries: Sequence[Entry]) -> list[str]:
    return list(dict.fromkeys(entry.setting for entry in entries))


def _epsilon_part(
    number: int,
    settings: str,
    entries: Sequence[Entry],
    points: Sequence[_Placed],
    numbers: dict[str, int],
) -> _Part:
    methods = []
    for label in dict.fromkeys(entry.label for entry in entries):
        own = [entry for entry in entries if entry.label == label and entry.complete]
        drawn = sorted((p for e, p in points if e.label == label), key=lambda p: p.epsilon)
        bare = [entry for entry in own if entry.is_reference]
        reference = _final_accuracy(bare[0]) if bare else None
        if drawn or reference is not None:
            series = _series(own[0], numbers, ())
            name = series.name if drawn else f"{series.name}, {NO_NOISE}"
            named = dataclasses.replace(series, name=name)
            methods.append(Against(named, tuple(drawn), None if drawn else reference))
    noised = noised_of(run for entry, _ in points for run in entry.complete)
    assert noised is not None, "points are of private runs"
    terms = f"one {noised.unit}, delta {noised.delta:g}"
    svg, pdf = draw_against_epsilon(methods, f"Epsilon of the whole run ({terms})")
    under = f" under {settings}" if settings else ""
    several = any(len(entry.complete) > 1 for entry, _ in points)
    caption = " ".join(
        [
            f"Test accuracy after the last round{under} against epsilon for one {noised.unit} at "
            f"delta {noised.delta:g}. Points lie at the epsilon that the whole run has on record, "
            "the largest of its clients'; ticks are the budgets.",
            *["Bands reach one sample standard deviation over seeds to each side."] * several,
            *["Dashed: no noise, and so no epsilon."] * any(m.reference for m in methods),
        ]
    )
    figure = _Figure(
        f"{FIGURES}/epsilon-{number:02d}",
        f"Test accuracy{under} against epsilon",
        caption,
        svg,
        pdf,
    )
    title = "Accuracy against epsilon" + (f": {settings}" if settings else "")
    table = _epsilon_table(entries, points, methods, terms)
    return _Part(title, (table,), figure, ())


def _epsilon_table(
    entries: Sequence[Entry],
    points: Sequence[_Placed],
    methods: Sequence[Against],
    terms: str,
) -> _Table:
    """Methods by budgets; where there is none, by settings."""
    columns = list(dict.fromkeys(_column_of(entry, point) for entry, point in points))
    columns.sort(key=lambda column: (column[0] is None, column[0] or 0.0))
    has_reference = any(method.reference is not None for method in methods)
    rows = []
    for label in dict.fromkeys(entry.label for entry in entries):
        own = {_column_of(e, p): p for e, p in points if e.label == label}
        bare = [entry for entry in entries if entry.label == label and entry.is_reference]
        if not own and not bare:
            continue
        cells = [percent(own[c].accuracy) if c in own else NONE for c in columns]
        if has_reference:
            cells.append(percent(_final_accuracy(bare[0])) if bare else NONE)
        named = next(e for e in entries if e.label == label and e.complete)
        rows.append((named.name, *cells))
    spans = []
    for column in columns:
        found = [p.epsilon for e, p in points if _column_of(e, p) == column]
        least, most = f"{min(found):.4g}", f"{max(found):.4g}"
        spans.append(f"{_heading(column)}: {least if least == most else f'{least} to {most}'}")
    return _Table(
        "Test accuracy after the last round in percent, mean ± sample standard deviation over "
        f"seeds, by the budget of the whole run ({terms}). Epsilons on record: {'; '.join(spans)}.",
        ("Method", *map(_heading, columns), *(["No noise"] if has_reference else [])),
        tuple(rows),
    )


def _column_of(entry: Entry, point: EpsilonPoint) -> tuple[float | None, str]:
    """Budget, or the label of the setting where there is none."""
    return (point.budget, "") if point.budget is not None else (None, entry.setting)


def _heading(column: tuple[float | None, str]) -> str:
    budget, setting = column
    return f"Epsilon {budget:g}" if budget is not None else setting or "No budget"


def _markdown(
    title: str, notes: Sequence[str], overview: _Figure | None, parts: Sequence[_Part]
) -> str:
    blocks = [f"# {markdown_text(title)}", *(markdown_text(note) for note in notes)]
    blocks += _markdown_figure(overview) if overview else []
    for part in parts:
        blocks += [f"## {markdown_text(part.title)}"] if part.title else []
        for table in part.tables:
            blocks += [_markdown_table(table), markdown_text(table.caption)]
        blocks += ["\n".join(f"- {markdown_text(note)}" for note in part.notes)] * bool(part.notes)
        blocks += _markdown_figure(part.figure) if part.figure else []
    return "\n\n".join(blocks) + "\n"


def _markdown_table(table: _Table) -> str:
    rule = ("---", *("---:" for _ in table.head[1:]))
    rows = [table.head, *table.rows]
    cells = [[markdown_text(cell) for cell in row] for row in rows]
    cells.insert(1, list(rule))
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _markdown_figure(figure: _Figure) -> list[str]:
    alt = markdown_text(figure.alt).replace("[", "\\[").replace("]", "\\]")
    return [f"![{alt}]({figure.stem}.svg)", markdown_text(figure.caption)]


def _latex(
    title: str, notes: Sequence[str], overview: _Figure | None, parts: Sequence[_Part]
) -> str:
    blocks = [
        f"% {' '.join(title.split())}\n"
        "% \\input this file. It needs \\usepackage{booktabs,graphicx}, and \\graphicspath with\n"
        "% its own folder where that is not the document's.",
        *(latex.escape(note) for note in notes),
    ]
    blocks += [_latex_figure(overview)] if overview else []
    for part in parts:
        under = f"{part.title}. " if part.title else ""
        for index, table in enumerate(part.tables):
            remarks = " ".join(part.notes) if index == 0 else ""
            caption = " ".join(f"{under}{table.caption} {remarks}".split())
            blocks.append(latex.table(caption, table.head, table.rows))
        blocks += [_latex_figure(part.figure)] if part.figure else []
    return "\n\n".join(blocks) + "\n"


def _latex_figure(figure: _Figure) -> str:
    return latex.figure(figure.caption, f"{figure.stem}.pdf")
