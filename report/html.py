"""The report: one HTML file that needs nothing but itself.

Everything from records passes through jinja2's autoescape, or through its JSON filter where
scripts read it. A content security policy allows the two scripts by hash and no address at all, so
a browser fetches nothing and runs nothing that a record might smuggle in.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from core.errors import RecordError
from core.records import write_whole
from core.scores import Score
from data.partition import Partition
from report import figures
from report.curves import curve, trains_on_clients, uploads_no_update
from report.exhibits import showcases
from report.failures import NO_REASON, failure_rows, left_out_of_costs, outcome_counts
from report.images import galleries, without_images
from report.loading import OUTCOMES, LoadedRun, load_runs
from report.measured import families, readable
from report.methods import Comparison, Method, compare, short_names
from report.privacy import (
    PRIVACY_COLUMNS,
    noised_of,
    privacy_rows,
    terms_text,
    unlike_terms,
)
from report.tables import (
    NONE,
    Row,
    Statistic,
    brief,
    columns_of,
    epsilon_of,
    joined,
    number,
    plain_bytes,
    result_rows,
    seeds_text,
    sentence_case,
    to_csv,
    to_markdown,
)

_FOLDER = Path(__file__).parent
_LONGEST_LIST_IN_PROSE = 100
_MOST_PARTITIONS = 6
_MOST_FAILURES = 200


def write_report(runs: Sequence[Path], out: Path, labels: Mapping[Path, str] | None = None) -> Path:
    """Write the report on run folders.

    Args:
        runs: Run folders; those that differ only in their seed are shown as one method.
        out: The HTML file, replaced whole if it is there.
        labels: By run folder, what its method is called, such as a suite's method and setting; runs
            of one label are shown as one method.

    Returns:
        The absolute path of the file.

    Raises:
        RecordError: No run was given, a run is damaged, or `out` cannot be written.
    """
    path = Path(out).expanduser().resolve()
    if path.is_dir():
        raise RecordError(f"{path} is a folder; name the HTML file to write, such as report.html")
    named = {Path(run).expanduser().resolve(): label for run, label in (labels or {}).items()}
    page = render(compare(load_runs(runs), named))
    try:
        write_whole(path, page.encode())
    except OSError as error:
        raise RecordError(
            f"{path} cannot be written: {error.strerror}; name another file"
        ) from error
    return path


def render(comparison: Comparison) -> str:
    """The page as text; equal records give equal pages."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    scripts = [get_plotlyjs(), (_FOLDER / "report.js").read_text("utf-8")]
    methods = comparison.methods
    judged = [method for method in methods if curve(method.runs).rounds]
    rows = result_rows(methods)
    scores, runs = comparison.scores, comparison.runs
    tells_clients_apart = any(run.tells_clients_apart for run in runs)
    partitions, failures = _partitions(comparison.runs), failure_rows(methods)
    return environment.get_template("report.html").render(
        title=_title(comparison),
        summary=_summary(comparison, rows),
        notes=list(_notes(comparison)),
        policy=_policy(scripts),
        scripts=[Markup(script) for script in scripts],
        css=Markup((_FOLDER / "report.css").read_text("utf-8")),
        columns=columns_of(rows),
        rows=rows,
        styles=[figures.style_of(index, method) for index, method in enumerate(methods)],
        methods=methods,
        exports={"markdown": to_markdown(rows), "csv": to_csv(rows)},
        score=scores.primary,
        label=sentence_case(scores.primary.label),
        results_note=_results_note(comparison),
        has_classes=any(run.has_classes for run in runs),
        curves={
            "round": figures.score_by_round(methods),
            "bytes": figures.score_by_bytes(methods),
            "client_time": figures.score_by_client_time(methods),
            "time": figures.score_by_time(methods),
        },
        several_seeds=any(len(method.runs) > 1 for method in methods),
        networked=any(run.network is not None for run in comparison.runs),
        left_out=left_out_of_costs(comparison.runs),
        undotted=any(None in (r.final.client_scores or ()) for r in comparison.runs if r.final),
        lacking=[m.label for m in methods if any(run.lacks_clients for run in m.runs)],
        silent=[m.label for m in judged if uploads_no_update(m.runs)],
        idle=[m.label for m in judged if not trains_on_clients(m.runs)],
        class_tables=_class_tables(methods),
        confusions=[
            (method, figure)
            for method in methods
            if (figure := figures.confusion(method, method.class_names))
        ],
        clients=figures.client_scores(methods) if tells_clients_apart else None,
        measured=_measured(methods),
        showcases=showcases(methods),
        boxed=any(_num_told(method) > figures.MOST_DOTS for method in methods),
        most_dots=figures.MOST_DOTS,
        partitions=partitions[:_MOST_PARTITIONS],
        num_partitions=len(partitions),
        galleries=galleries(methods),
        without_images=without_images(methods),
        failures=failures[:_MOST_FAILURES],
        num_failures=len(failures),
        outcomes=_outcome_table(methods),
        privacy=_privacy(methods, scores.primary),
        settings=_settings(methods),
        environments=_environments(comparison.runs),
        resumptions=_resumptions,
        joined=joined,
    )


def _policy(scripts: Iterable[str]) -> str:
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _title(comparison: Comparison) -> str:
    sources = _sources(comparison.runs)
    return f"Federated training on {joined(sources)}" if sources else "Federated training"


def _summary(comparison: Comparison, rows: Sequence[Row]) -> str:
    """The result in one paragraph of plain words."""
    runs, labels = comparison.runs, [row.method.label for row in rows]
    few = sum(map(len, labels)) <= _LONGEST_LIST_IN_PROSE
    clients = _values(runs, "partition.clients")
    seeds = sorted({run.seed for run in runs})
    rounds = _values(runs, "rounds")
    ways = list(dict.fromkeys(_dealing(run.config) for run in runs))
    subject = (
        joined(labels) if few else f"{len(labels)} {'method' if len(labels) == 1 else 'methods'}"
    )
    sentences = [
        f"{subject} trained on {joined(_sources(runs)) or 'one data set'}, "
        f"{_held(joined(clients) + (' client' if clients == ['1'] else ' clients'), ways)}, "
        f"for {joined(rounds)} {'round' if rounds == ['1'] else 'rounds'}, "
        f"with {'seed' if len(seeds) == 1 else 'seeds'} {seeds_text(seeds)}."
    ]
    score = comparison.scores.primary
    told = f"Test {score.label} at the last evaluated round"
    judged = [(row.method.label, row.primary) for row in rows if row.primary is not None]
    if judged and few:
        results = [f"{label} {_inline(value, score)}" for label, value in judged]
        sentences.append(f"{told}: {joined(results)}.")
    elif judged:
        ordered = sorted(judged, key=lambda pair: pair[1].mean)
        ends = [f"{_inline(value, score)} ({label})" for label, value in (ordered[0], ordered[-1])]
        sentences.append(f"{told} lies between {joined(ends)}.")
    else:
        sentences.append("No round has been evaluated yet.")
    sent = [
        f"{row.method.label} {plain_bytes(row.bytes_up.mean)}"
        for row in rows
        if row.bytes_up is not None and not uploads_no_update(row.method.runs)
    ]
    if sent and few:
        sentences.append(f"Uploaded by all clients together: {joined(sent)}.")
    raw = [method.label for method in comparison.methods if method.sends_raw_images]
    guarantees = {run.privacy.guarantee for run in runs if run.privacy is not None}
    if guarantees == {"none"}:
        sentences.append("No method carries a privacy guarantee.")
    sentences += _guarantees(comparison.methods) if few else []
    attacked = list(dict.fromkeys(m.attack for m in comparison.methods if m.attack))
    if attacked:
        sentences.append(f"Malicious clients took part ({'; '.join(attacked)}).")
    if raw:
        verb = "sends" if len(raw) == 1 else "send"
        sentences.append(f"{joined(raw)} {verb} clients' real images as they are.")
    return " ".join(sentences)


def _guarantees(methods: Sequence[Method]) -> list[str]:
    """What private methods have cost, and that the others promise nothing, as sentences."""
    parts: dict[tuple[str, float], list[str]] = {}
    for method in methods:
        noised, epsilon = noised_of(method.runs), epsilon_of(method.runs)
        if noised is not None and epsilon is not None:
            told = f"{method.label} {epsilon.mean:.4g}"
            parts.setdefault(noised.terms, []).append(told)
    sentences = [
        f"Epsilon of the whole run for one {unit}, at delta {delta:g}: {joined(told)}."
        for (unit, delta), told in parts.items()
    ]
    without = [method.label for method in methods if noised_of(method.runs) is None]
    if parts and without:
        sentences.append(f"No privacy guarantee: {joined(without)}.")
    return sentences


def _inline(value: Statistic, score: Score) -> str:
    spread = "" if value.std is None else f"\u00a0±\u00a0{brief(value.std, score)}"
    return f"{brief(value.mean, score)}{spread}{score.unit}"


def _results_note(comparison: Comparison) -> str:
    """What the scores in the table of results are, as sentences."""
    scores, runs = comparison.scores, comparison.runs
    names = [score.label for score in scores]
    worst = ""
    if any(run.tells_clients_apart for run in runs):
        names.append("worst client")
        own = "mix of classes" if any(run.has_classes for run in runs) else "data"
        worst = f"; the worst client's is the lowest that any client may expect on its own {own}"
    less = [score.label for score in scores if not score.higher_is_better]
    lower = f" Of {joined(less)} lower is better." if less else ""
    return (
        f"{sentence_case(joined(names))} {'are' if len(names) > 1 else 'is'} of the last evaluated "
        f"round, on the test set{worst}.{lower}"
    )


_OWN = "by nobody, since clients brought their own"


def _held(clients: str, ways: Sequence[str]) -> str:
    """Who had the images, as part of a sentence."""
    if list(ways) == [_OWN]:
        return f"which {clients} brought"
    return f"dealt to {clients} {ways[0] if len(ways) == 1 else f'in {len(ways)} ways'}"


def _dealing(config: Mapping[str, Any]) -> str:
    """How the images were dealt, as the end of a sentence."""
    if config.get("partition.file"):
        return f"as the file {config['partition.file']} says"
    scheme = config.get("partition.scheme")
    return {
        "iid": "evenly at random (IID)",
        "dirichlet": f"by a Dirichlet distribution (alpha {config.get('partition.alpha')})",
        "pathological": f"{config.get('partition.classes-per-client')} classes each",
        "quantity": f"in unequal numbers (alpha {config.get('partition.alpha')})",
        "own": _OWN,
    }.get(str(scheme), f"by {scheme}")


def _values(runs: Iterable[LoadedRun], key: str) -> list[str]:
    found = dict.fromkeys(run.config[key] for run in runs if key in run.config)
    short = short_names(found)
    return [str(short.get(value, value)) for value in found]


def _sources(runs: Iterable[LoadedRun]) -> list[str]:
    """What runs were trained on: as their partition has it, since only some workloads read a key.

    Without a partition it is what their configuration names.
    """
    keys = ("video.source", "data.source")
    told = [
        run.partition.source
        if run.partition is not None
        else next((run.config[key] for key in keys if key in run.config), None)
        for run in runs
    ]
    found = dict.fromkeys(source for source in told if source is not None)
    short = short_names(found)
    return [str(short.get(source, source)) for source in found]


def _notes(comparison: Comparison) -> Iterable[str]:
    """What a reader must know before the figures."""
    for method in comparison.methods:
        yield from (_cut_short(method, run) for run in method.runs if not run.finished)
    for left_out, kept in comparison.superseded:
        yield (
            f"{left_out.name} is left out: {kept.name} is of the same method and seed, and "
            f"{'newer' if kept.started >= left_out.started else 'complete'}."
        )
    changed = [run.name for run in comparison.runs if any(r.changed for r in run.resumed)]
    if changed:
        yield (
            f"Resumed in another environment than begun in: {joined(changed)}. The results may "
            "differ in their last bits from those of runs that were not; what changed stands under "
            "Reproduce."
        )
    if comparison.task_differences:
        keys = joined(comparison.task_differences)
        yield f"The methods differ in {keys}: compare their figures with care."


def _cut_short(method: Method, run: LoadedRun) -> str:
    """How far a run came that is not complete, and why no further."""
    where = f"{run.name} ({method.name}, seed {run.seed})"
    reached = f"round {run.rounds_done} of {run.rounds_planned}"
    if run.status == "failed":
        return f"{where} failed at {reached}: {run.failure_line or NO_REASON}"
    if run.status == "interrupted":
        return f"{where} was interrupted at {reached}."
    return f"{where} is still running or was cut off; on record up to {reached}."


@dataclass(frozen=True, slots=True)
class _ClassTable:
    """Recall by class, for methods that share their classes."""

    class_names: tuple[str, ...]
    rows: tuple[tuple[Method, tuple[float | None, ...]], ...]


def _class_tables(methods: Sequence[Method]) -> list[_ClassTable]:
    tables: dict[tuple[str, ...], list[tuple[Method, tuple[float | None, ...]]]] = {}
    for method in methods:
        tests = [run.final.test for run in method.runs if run.final and run.final.test]
        recalls = [r for test in tests if (r := test.per_class_accuracy) is not None]
        if recalls:
            columns = zip(*recalls, strict=True)
            statistics = [Statistic.of(column) for column in columns]
            means = tuple(None if value is None else value.mean for value in statistics)
            tables.setdefault(method.class_names, []).append((method, means))
    return [_ClassTable(names, tuple(rows)) for names, rows in tables.items()]


@dataclass(frozen=True, slots=True)
class _PartitionView:
    """One partition, and which runs use it."""

    partition: Partition
    source: str
    seeds: str
    dealing: str
    figure: figures.Figure
    has_images: bool

    @property
    def examples(self) -> str:
        """What was dealt, in the plural."""
        return "images" if self.has_images else "examples"

    @property
    def by_class(self) -> bool:
        """Whether the figure tells classes apart."""
        return _by_class(self.partition)

    @property
    def left_out(self) -> str:
        """What the figure does not show, as a sentence; empty where it shows all."""
        counts = self.partition.class_counts
        if len(counts) <= figures.MOST_ROWS:
            return ""
        sizes = np.array(list(map(len, self.partition.clients)))
        held = (counts > 0).sum(axis=1)
        classes = f" of {_range(held)} classes" if self.by_class else ""
        each = f" of {held.mean():.3g}" if self.by_class else ""
        return (
            f"The first {figures.MOST_ROWS} of {len(counts):,} clients are shown; all of them hold "
            f"{_range(sizes)} {self.examples}{classes}, on average {sizes.mean():.4g}{each}."
        )


def _range(values: npt.NDArray[np.int64]) -> str:
    least, most = int(values.min()), int(values.max())
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _num_told(method: Method) -> int:
    """Clients whose score at the final round is on record, all seeds together."""
    finals = [run.final.client_scores or [] for run in method.runs if run.final]
    return sum(score is not None for told in finals for score in told)


@dataclass(frozen=True, slots=True)
class _Measured:
    """One family of metrics that the workload measured.

    Attributes:
        label: What it is called.
        members: Names of its members, each with how its lines look.
        plots: For each method that has any: the plot, and the members that are in it.
        rows: Likewise, the members' values in the last round.
    """

    label: str
    members: tuple[tuple[str, figures.Style], ...]
    plots: tuple[tuple[Method, figures.Figure, str], ...]
    rows: tuple[tuple[Method, tuple[str, ...]], ...]

    @property
    def title(self) -> str:
        """The label as a heading."""
        return sentence_case(self.label)


def _measured(methods: Sequence[Method]) -> list[_Measured]:
    views = []
    for family in families([method.runs for method in methods]):
        there = [
            (method, courses, figure)
            for method, courses in zip(methods, family.courses, strict=True)
            if (figure := figures.measured_by_round(family, courses)) is not None
        ]
        if not there:
            continue
        views.append(
            _Measured(
                family.label,
                tuple(
                    (readable(member), figures.style_of_member(index))
                    for index, member in enumerate(family.members)
                ),
                tuple(
                    (method, figure, joined(list(map(readable, courses))))
                    for method, courses, figure in there
                ),
                tuple(
                    (
                        method,
                        tuple(
                            number(family.last(method.runs, courses, member))
                            for member in family.members
                        ),
                    )
                    for method, courses, _ in there
                ),
            )
        )
    return views


def _partitions(runs: Sequence[LoadedRun]) -> list[_PartitionView]:
    users: dict[bytes, list[LoadedRun]] = {}
    for run in runs:
        # Clients of a private run with images of their own tell nobody how many.
        if run.partition is not None and run.partition.num_examples:
            users.setdefault(_digest(run.partition), []).append(run)
    sources = short_names(run.partition.source for run in runs if run.partition is not None)
    views = []
    for members in users.values():
        partition = members[0].partition
        assert partition is not None
        views.append(
            _PartitionView(
                partition,
                sources.get(partition.source, partition.source),
                seeds_text(sorted({run.seed for run in members})),
                _dealing(members[0].config),
                _partition_figure(partition, members[0].class_names),
                members[0].has_classes,
            )
        )
    return views


def _by_class(partition: Partition) -> bool:
    """Whether a partition tells classes apart; without any all examples are of one."""
    return len(partition.class_counts[0]) > 1


def _partition_figure(partition: Partition, class_names: Sequence[str]) -> figures.Figure:
    if _by_class(partition):
        return figures.partition_counts(partition, class_names)
    return figures.partition_sizes(partition)


def _digest(partition: Partition) -> bytes:
    digest = hashlib.sha256(partition.source.encode())
    for indices in partition.clients:
        digest.update(len(indices).to_bytes(8, "big") + indices.tobytes())
    digest.update(partition.class_counts.tobytes())
    return digest.digest()


@dataclass(frozen=True, slots=True)
class _OutcomeTable:
    """What came of the requests of the methods in which any failed or was surplus.

    Attributes:
        names: Outcomes that occurred.
        rows: Per method: requests, and how many came to each outcome of `names`.
        surplus: Whether any reply was surplus.
    """

    names: tuple[str, ...]
    rows: tuple[tuple[Method, int, tuple[int, ...]], ...]
    surplus: bool


def _outcome_table(methods: Sequence[Method]) -> _OutcomeTable:
    tallies = [t for t in outcome_counts(methods) if t.asked > t.counts[OUTCOMES.index("counted")]]
    occurred = [
        index
        for index, outcome in enumerate(OUTCOMES)
        if outcome == "counted" or any(tally.counts[index] for tally in tallies)
    ]
    return _OutcomeTable(
        names=tuple(OUTCOMES[index] for index in occurred),
        rows=tuple((t.method, t.asked, tuple(t.counts[i] for i in occurred)) for t in tallies),
        surplus=any(OUTCOMES[index] == "surplus" for index in occurred),
    )


@dataclass(frozen=True, slots=True)
class _Privacy:
    """What the page tells of privacy.

    Attributes:
        statements: Of every method.
        columns: Headings of `rows`.
        rows: The methods that add noise.
        epsilons: For each unit and delta, in words, epsilon against rounds.
        signal: Signal-to-noise ratio against rounds; None where none is on record.
        score: The primary score against epsilon; None where it is not drawn.
        why_not: Why it is not, where there are epsilons to draw it against.
    """

    statements: tuple[tuple[Method, list[str]], ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[figures.Style, Method, tuple[str, ...]], ...]
    epsilons: tuple[tuple[str, figures.Figure], ...]
    signal: figures.Figure | None
    score: figures.Figure | None
    why_not: str


def _privacy(methods: Sequence[Method], score: Score) -> _Privacy:
    styles = {m.label: figures.style_of(index, m) for index, m in enumerate(methods)}
    why_not = unlike_terms(((method.label, method.runs) for method in methods), score)
    terms = dict.fromkeys(
        run.noised.terms for method in methods for run in method.runs if run.noised is not None
    )
    drawn = [(terms_text(kind), figures.epsilon_by_round(methods, kind)) for kind in terms]
    return _Privacy(
        statements=tuple((method, _statements(method)) for method in methods),
        columns=PRIVACY_COLUMNS,
        rows=tuple(
            (styles[method.label], method, cells) for method, cells in privacy_rows(methods)
        ),
        epsilons=tuple((title, figure) for title, figure in drawn if figure is not None),
        signal=figures.signal_by_round(methods),
        score=None if why_not else figures.score_by_epsilon(methods),
        why_not=why_not,
    )


def _statements(method: Method) -> list[str]:
    texts = [run.privacy.text for run in method.runs if run.privacy is not None]
    return list(dict.fromkeys(texts)) or [
        "No statement is on record; the run did not get that far."
    ]


def _resumptions(run: LoadedRun) -> str:
    """When a run was taken up again, as the end of a line; empty where it never was."""
    times = [
        f"after round {taken_up.after_round} ({taken_up.at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
        f"{f'; changed: {taken_up.changed_line}' if taken_up.changed else ''})"
        for taken_up in run.resumed
    ]
    return f", resumed {joined(times)}" if times else ""


@dataclass(frozen=True, slots=True)
class _Setting:
    """One configuration key across methods."""

    key: str
    values: tuple[str, ...]
    differs: bool


def _settings(methods: Sequence[Method]) -> list[_Setting]:
    moot = {"seed", "name", "runs"}
    configs = [method.runs[0].config for method in methods]
    keys = sorted({key for config in configs for key in config} - moot)
    settings = []
    for key in keys:
        values = tuple(str(config[key]) if key in config else NONE for config in configs)
        settings.append(_Setting(key, values, len(set(values) - {NONE}) > 1))
    return settings


def _environments(runs: Sequence[LoadedRun]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Distinct environments, each with the runs made in it."""
    users: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for run in runs:
        if run.environment:
            users.setdefault(tuple(run.environment.items()), []).append(run.name)
    if len(users) == 1:
        return [("All runs", list(next(iter(users))))]
    return [(joined(names), list(values)) for values, names in users.items()]
