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
from core.scores import MACRO_F1, Score, Scores
from report import latex
from report.curves import trains_on_clients, uploads_no_update
from report.failures import NO_REASON, left_out_of_costs
from report.loading import LoadedRun
from report.measured import families
from report.methods import NOT_PRIVATE, attacks_of, judged_by, marks_of, task_of
from report.milestones import Spent, best_round, reached, total_spent
from report.privacy import EpsilonPoint, epsilon_point, noised_of, unlike_terms
from report.static_figures import (
    Against,
    Panel,
    Series,
    draw_against_epsilon,
    draw_curves,
    draw_final_scores,
    draw_measured,
)
from report.tables import (
    NO_NOISE,
    NONE,
    Statistic,
    amount_of_bytes,
    column_heading,
    epsilon_text,
    epsilon_title,
    joined,
    markdown_text,
    rounds_text,
    score_text,
    seconds,
    seeds_text,
    sentence_case,
    target_text,
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
    """All that is shown of one setting, or of scores against epsilon under several."""

    title: str
    tables: tuple[_Table, ...]
    figures: tuple[_Figure, ...]
    notes: tuple[str, ...]


def write_comparison(
    entries: Sequence[Entry],
    folder: Path,
    *,
    title: str,
    scores: Scores,
    target: float | None,
    notes: Sequence[str],
) -> Sequence[Path]:
    """Write ``comparison.md``, ``comparison.tex`` and their figures.

    Args:
        entries: Methods under settings, in the order in which they are shown.
        folder: Where to write; made where it is missing. Files that are there are replaced whole.
        title: Of the whole.
        scores: What the runs are judged by, those that are still to come included.
        target: Primary score on test whose cost is compared, in (0, 1] where it is a share; None
            compares totals only.
        notes: Sentences that readers must know, shown below the title.

    Returns:
        The files written, tables first.

    Raises:
        RecordError: A file cannot be written, or the primary scores of two runs differ.
    """
    assert entries, "a comparison needs at least one entry"
    if runs := [run for entry in entries for run in entry.runs]:
        assert judged_by(runs).primary == scores.primary, (judged_by(runs), scores)
    assert target is None or not scores.primary.is_percent or 0 < target <= 1, target
    for entry in entries:
        seeds = [run.seed for run in entry.complete]
        assert len(seeds) == len(set(seeds)) <= entry.num_seeds, (entry.label, seeds)
    places = [(entry.setting, entry.label) for entry in entries]
    assert len(places) == len(set(places)), "an entry is given twice"
    parts = [
        _part(number, setting, entries, scores, target)
        for number, setting in enumerate(dict.fromkeys(e.setting for e in entries), start=1)
    ]
    score = scores.primary
    parts = [*_against_epsilon(entries, score), *parts]
    notes = [*notes, *_unlike(entries, score)]
    overview = _overview(entries, score)
    contents = {
        folder / "comparison.md": _markdown(title, notes, overview, parts).encode(),
        folder / "comparison.tex": _latex(title, notes, overview, parts).encode(),
    }
    for figure in [overview, *(figure for part in parts for figure in part.figures)]:
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
    number: int, setting: str, entries: Sequence[Entry], scores: Scores, target: float | None
) -> _Part:
    members, score = [entry for entry in entries if entry.setting == setting], scores.primary
    curves = _curves(number, setting, members, _series_numbers(entries), score)
    return _Part(
        title=setting,
        tables=(
            _table(_score_columns(members, scores), members, _score_caption(members, scores)),
            _table(_cost_columns(target, score), members, _cost_caption(members, target, score)),
        ),
        figures=(*([curves] if curves else []), *_measured(number, setting, members)),
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


def _final(entry: Entry, score: Score) -> Statistic | None:
    tests = [run.final.test if run.final else None for run in entry.complete]
    return Statistic.of(test.scores.get(score.name) if test else None for test in tests)


def _worst_client(entry: Entry) -> Statistic | None:
    finals = [run.final for run in entry.complete]
    return Statistic.of(final.worst_client_score if final else None for final in finals)


def _at_best_validation(entry: Entry) -> Statistic | None:
    best = [best_round(run) for run in entry.complete]
    return Statistic.of(record.test.primary if record and record.test else None for record in best)


def _best_rounds(entry: Entry) -> str:
    best = [best_round(run) for run in entry.complete]
    return rounds_text([record.round for record in best if record])


def _shown(scores: Scores) -> list[Score]:
    """Those with a column; macro-F1 says little beside accuracy, and stands in the report."""
    return [score for score in scores if score != MACRO_F1 or score == scores.primary]


def _score_columns(entries: Sequence[Entry], scores: Scores) -> list[_Column]:
    """With epsilon where any run is private, and the worst client where clients are told apart."""
    runs, primary = [run for entry in entries for run in entry.runs], scores.primary

    def column(title: str, score: Score, value: Callable[[Entry], Statistic | None]) -> _Column:
        return _Column(title, lambda entry: score_text(value(entry), score))

    def on_test(score: Score) -> _Column:
        return column(column_heading(score, scores), score, lambda entry: _final(entry, score))

    columns = [_Column("Seeds", _seeds)]
    if title := epsilon_title(runs):
        mixed = terms_differ(runs)
        columns.append(_Column(title, lambda entry: _epsilon(entry, mixed)))
    columns += map(on_test, _shown(scores))
    if _tells_clients_apart(entries):
        columns.append(column(primary.heading("Worst client"), primary, _worst_client))
    best = column(primary.heading("At best validation"), primary, _at_best_validation)
    return [*columns, best, _Column("Best round", _best_rounds)]


def _tells_clients_apart(entries: Sequence[Entry]) -> bool:
    runs = [run for entry in entries for run in entry.runs]
    return not runs or any(run.tells_clients_apart for run in runs)


def _epsilon(entry: Entry, with_terms: bool) -> str:
    return epsilon_text(entry.complete, with_terms=with_terms) if entry.complete else NONE


def _cost_columns(target: float | None, score: Score) -> tuple[_Column, ...]:
    totals = (
        _Column("Rounds", lambda e: _total(e, lambda s: s.round, _count)),
        _Column("Uploaded", lambda e: _total(e, lambda s: s.bytes_up, amount_of_bytes)),
        _Column("Downloaded", lambda e: _total(e, lambda s: s.bytes_down, amount_of_bytes)),
        _Column("Client s", lambda e: _total(e, lambda s: s.client_s, seconds)),
        _Column("Server s", lambda e: _total(e, lambda s: s.server_s, seconds)),
    )
    if target is None:
        return totals
    wanted, told = target, target_text(target, score)

    def column(
        title: str, value: Callable[[Spent], float], show: Callable[[Statistic], str]
    ) -> _Column:
        return _Column(f"{title} to {told}", lambda entry: _to_target(entry, wanted, value, show))

    return (
        _Column(f"Reached {told}", lambda entry: _reached(entry, wanted)),
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


def _score_caption(entries: Sequence[Entry], scores: Scores) -> str:
    shown, label = _shown(scores), scores.primary.label
    names = joined([f"test {label}", *(score.label for score in shown if score.label != label)])
    less = [score.label for score in shown if not score.higher_is_better]
    lower = f" Of {joined(less)} lower is better." if less else ""
    runs = [run for entry in entries for run in entry.runs]
    own = "mix of classes" if not runs or any(run.has_classes for run in runs) else "data"
    worst = (
        f" Worst client: the lowest {label} that any client may expect then, on its own {own}."
        if _tells_clients_apart(entries)
        else ""
    )
    raw = any(run.sends_raw_images for run in runs)
    private = f' "{NOT_PRIVATE.capitalize()}": clients send real images as they are.' if raw else ""
    return (
        f"{sentence_case(names)} after the last round, mean ± sample standard deviation over seeds."
        f"{lower}{worst} At best validation: test {label} of each seed's round of highest "
        f"validation {label}, the earliest of equals; best round: its number.{_promised(entries)}"
        f"{_lacking(entries, scores.primary)}{private}"
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


def _lacking(entries: Sequence[Entry], score: Score) -> str:
    """Whose score is not that of all clients, as a sentence after others."""
    names = [e.name for e in entries if any(run.lacks_clients for run in e.complete)]
    if not names:
        return ""
    return (
        f" {sentence_case(score.label)} of {joined(names)}, the worst client's too, covers the "
        "clients that answered in that round."
    )


def _cost_caption(entries: Sequence[Entry], target: float | None, score: Score) -> str:
    left_out = left_out_of_costs(run for entry in entries for run in entry.complete)
    cost = (
        "Cost of a run, mean ± sample standard deviation over seeds; bytes are those of all "
        f"clients, client seconds are summed over clients. {left_out}".rstrip()
    )
    if target is None:
        return cost
    told = target_text(target, score)
    return (
        f"{cost} The columns to {told} count all rounds up to the first evaluated one with a test "
        f"{score.label} of at least {told}, and are means over the seeds that reached it."
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
    number: int,
    setting: str,
    entries: Sequence[Entry],
    numbers: dict[str, int],
    score: Score,
) -> _Figure | None:
    told = _shared_attacks(entries)
    series = [_series(entry, numbers, told) for entry in entries if entry.complete]
    if not series:
        return None
    panels = (Panel.ROUNDS, Panel.BYTES_UP, Panel.CLIENT_S)
    svg, pdf = draw_curves(series, panels, ", ".join(told), score)
    under = f" under {setting}" if setting else ""
    several = any(len(entry.complete) > 1 for entry in entries)
    dashed = any(one.is_dashed for one in series)
    flat = any(uploads_no_update(s.runs) or not trains_on_clients(s.runs) for s in series)
    return _Figure(
        f"{FIGURES}/{_stem('curves', number, setting)}",
        f"Test {score.label}{under} against rounds, uploaded bytes and client seconds",
        " ".join(
            [
                f"Test {score.label}{under} against rounds, bytes uploaded by all clients and "
                "client seconds, both cumulative.",
                *[_AVERAGED] * several,
                *[f"Horizontal lines: the final {score.label} of methods without that cost."]
                * flat,
                *[f"Dashed: {NOT_PRIVATE}."] * dashed,
            ]
        ),
        svg,
        pdf,
    )


def _measured(number: int, setting: str, entries: Sequence[Entry]) -> list[_Figure]:
    """What the workload measured under one setting: a figure for each family of metrics."""
    complete = [entry for entry in entries if entry.complete]
    under = f" under {setting}" if setting else ""
    several = any(len(entry.complete) > 1 for entry in complete)
    figures = []
    found = families([entry.complete for entry in complete])
    for place, family in enumerate(found, start=1):
        panels = [
            (entry.name, courses)
            for entry, courses in zip(complete, family.courses, strict=True)
            if courses
        ]
        if not panels:
            continue
        svg, pdf = draw_measured(family, panels)
        spans = " Lines are means over seeds, bands reach from the lowest to the highest seed."
        figures.append(
            _Figure(
                f"{FIGURES}/{_stem('measured', number, setting, f'{place} {family.name}')}",
                f"{sentence_case(family.label)}{under} against rounds",
                f"{sentence_case(family.label)}{under} against rounds, as clients measured it and "
                f"the server averaged it.{spans * several}",
                svg,
                pdf,
            )
        )
    return figures


def _shared_attacks(entries: Sequence[Entry]) -> tuple[str, ...]:
    """The attack that every run is under, which a figure then tells once; empty where none is."""
    attacks = {attacks_of([run]) for entry in entries for run in entry.runs}
    return next(iter(attacks)) if len(attacks) == 1 else ()


def _series(entry: Entry, numbers: dict[str, int], told: Sequence[str]) -> Series:
    raw = any(run.sends_raw_images for run in entry.complete)
    return Series(entry.name_without(told), numbers[entry.label], entry.complete, raw)


def _stem(kind: str, number: int, *told: str) -> str:
    """A file name that every shell and LaTeX takes."""
    words = re.findall(r"[A-Za-z0-9]+", " ".join(told))
    return "-".join([kind, f"{number:02d}", *words])


def _overview(entries: Sequence[Entry], score: Score) -> _Figure | None:
    """Final scores of all methods under all settings; None where there is one setting."""
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
            value = _final(entry, score)
            if value is not None:
                one = _series(entry, numbers, told)
                series.setdefault(one.name, one)
                values[place, one.name] = value
    if not values:
        return None
    svg, pdf = draw_final_scores(groups, list(series.values()), values, score)
    return _Figure(
        f"{FIGURES}/final-{score.name.replace('_', '-')}",
        f"Test {score.label} after the last round, per method and setting",
        f"Test {score.label} after the last round. Bars are means over seeds, whiskers one sample "
        "standard deviation to each side.",
        svg,
        pdf,
    )


def _unlike(entries: Sequence[Entry], score: Score) -> list[str]:
    """Why the score is not drawn against epsilon, where it is not."""
    reason = unlike_terms(((entry.label, entry.complete) for entry in entries), score)
    return [reason] if reason else []


_Placed = tuple[Entry, EpsilonPoint]


def _against_epsilon(entries: Sequence[Entry], score: Score) -> list[_Part]:
    """The score against epsilon, a part for each task; none where epsilons do not compare."""
    groups = _same_task(entries) if not _unlike(entries, score) else []
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
            parts.append(_epsilon_part(number, settings, group, found, numbers, score))
    return parts


def _same_task(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Entries of the settings under which every method has the same task.

    Scores on other data, partitions or rounds would differ for more than their epsilon.
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
    score: Score,
) -> _Part:
    methods = []
    for label in dict.fromkeys(entry.label for entry in entries):
        own = [entry for entry in entries if entry.label == label and entry.complete]
        drawn = sorted((p for e, p in points if e.label == label), key=lambda p: p.epsilon)
        bare = [entry for entry in own if entry.is_reference]
        reference = _final(bare[0], score) if bare else None
        if drawn or reference is not None:
            series = _series(own[0], numbers, ())
            name = series.name if drawn else f"{series.name}, {NO_NOISE}"
            named = dataclasses.replace(series, name=name)
            methods.append(Against(named, tuple(drawn), None if drawn else reference))
    noised = noised_of(run for entry, _ in points for run in entry.complete)
    assert noised is not None, "points are of private runs"
    terms = f"one {noised.unit}, delta {noised.delta:g}"
    svg, pdf = draw_against_epsilon(methods, f"Epsilon of the whole run ({terms})", score)
    under = f" under {settings}" if settings else ""
    several = any(len(entry.complete) > 1 for entry, _ in points)
    caption = " ".join(
        [
            f"Test {score.label} after the last round{under} against epsilon for one "
            f"{noised.unit} at delta {noised.delta:g}. Points lie at the epsilon that the whole "
            "run has on record, the largest of its clients'; ticks are the budgets.",
            *["Bands reach one sample standard deviation over seeds to each side."] * several,
            *["Dashed: no noise, and so no epsilon."] * any(m.reference for m in methods),
        ]
    )
    figure = _Figure(
        f"{FIGURES}/epsilon-{number:02d}",
        f"Test {score.label}{under} against epsilon",
        caption,
        svg,
        pdf,
    )
    title = f"{sentence_case(score.label)} against epsilon" + (f": {settings}" if settings else "")
    table = _epsilon_table(entries, points, methods, terms, score)
    return _Part(title, (table,), (figure,), ())


def _epsilon_table(
    entries: Sequence[Entry],
    points: Sequence[_Placed],
    methods: Sequence[Against],
    terms: str,
    score: Score,
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
        cells = [score_text(own[c].score, score) if c in own else NONE for c in columns]
        if has_reference:
            cells.append(score_text(_final(bare[0], score), score) if bare else NONE)
        named = next(e for e in entries if e.label == label and e.complete)
        rows.append((named.name, *cells))
    spans = []
    for column in columns:
        found = [p.epsilon for e, p in points if _column_of(e, p) == column]
        least, most = f"{min(found):.4g}", f"{max(found):.4g}"
        spans.append(f"{_heading(column)}: {least if least == most else f'{least} to {most}'}")
    return _Table(
        f"Test {score.label} after the last round{' in percent' * score.is_percent}, mean ± sample "
        f"standard deviation over seeds, by the budget of the whole run ({terms}). Epsilons on "
        f"record: {'; '.join(spans)}.",
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
        for figure in part.figures:
            blocks += _markdown_figure(figure)
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
        blocks += map(_latex_figure, part.figures)
    return "\n\n".join(blocks) + "\n"


def _latex_figure(figure: _Figure) -> str:
    return latex.figure(figure.caption, f"{figure.stem}.pdf")
