"""Figures for print and Markdown, as SVG and PDF.

Colours are safe for readers who are colour-blind, and every line has a marker besides. Equal
records give equal bytes: no date, no random id, and no setting of the user's own matplotlib.
"""

from __future__ import annotations

import enum
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from core.scores import Score
from report.curves import Course, Curve, curve, trains_on_clients, uploads_no_update
from report.loading import LoadedRun
from report.measured import Family, readable
from report.privacy import EpsilonPoint, epsilon_ticks
from report.tables import Statistic, plain_bytes, sentence_case

COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#882255",
    "#999933",
)  # fmt: skip
"""Okabe and Ito (2008) without yellow, which white paper swallows, with two of Tol's muted ones."""

MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">")

_WIDTH_IN = 7.2
_PANEL_HEIGHT_IN = 2.35
_LEGEND_ROW_IN = 0.17
_LEGEND_WIDTH_IN = 6.9
_CHARACTER_IN = 0.062
_MOST_CHARACTERS = 95
_MOST_MARKERS = 8
_MOST_PANELS = 3
_INK = "#1a1e24"
_NO_NOISE_DASH = (0, (5, 2.5))
_LOOK: Mapping[str, Any] = {
    "font.size": 8,
    "font.family": "DejaVu Sans",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e2e5ea",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "hatch.linewidth": 0.6,
    "text.parse_math": False,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "tessera",
}


class Panel(enum.Enum):
    """What the primary score on test is drawn against."""

    ROUNDS = "Communication round"
    BYTES_UP = "Uploaded bytes"
    CLIENT_S = "Client seconds"


@dataclass(frozen=True, slots=True)
class Series:
    """One method.

    Attributes:
        name: As it is called in the legend.
        number: Chooses colour and marker.
        runs: Its runs, one a seed.
        is_dashed: Drawn dashed or hatched, as methods are that send real images.
    """

    name: str
    number: int
    runs: tuple[LoadedRun, ...]
    is_dashed: bool

    @property
    def colour(self) -> str:
        """Of line, band and bar."""
        return COLOURS[self.number % len(COLOURS)]

    @property
    def marker(self) -> str:
        """Tells methods of one colour apart."""
        return MARKERS[(self.number + self.number // len(COLOURS)) % len(MARKERS)]

    @property
    def line(self) -> dict[str, Any]:
        """How its line is drawn."""
        hollow = self.number // len(COLOURS) % 2 == 1
        return {
            "color": self.colour,
            "marker": self.marker,
            "markerfacecolor": "white" if hollow else self.colour,
            "linestyle": (0, (4, 2)) if self.is_dashed else "-",
        }


def draw_curves(
    series: Sequence[Series], panels: Sequence[Panel], heading: str, score: Score
) -> tuple[bytes, bytes]:
    """The primary score on test, one panel beside the other with one legend below.

    Args:
        series: The methods.
        panels: What it is drawn against. Bytes and seconds have logarithmic axes; a method without
            that cost is a horizontal line at its final score.
        heading: What holds for all of them; empty where nothing must be said.
        score: The primary score.

    Returns:
        The figure as SVG and as PDF.
    """
    with style.context(["default", dict(_LOOK)]):
        figure, columns = _figure([one.name for one in series])
        if heading:
            figure.suptitle(heading, fontsize="medium")
        axes = figure.subplots(1, len(panels), sharey=True)
        curves = [curve(one.runs) for one in series]
        for axis, panel in zip(axes, panels, strict=True):
            drawn = [
                _draw_curve(axis, panel, one, points, score.factor)
                for one, points in zip(series, curves, strict=True)
            ]
            _set_horizontal_axis(axis, panel, any(drawn))
        _set_score_axis(axes[0], score)
        handles = [Line2D([], [], **one.line, label=one.name) for one in series]
        _add_legend(figure, handles, columns)
        return _rendered(figure)


def _set_score_axis(axis: Axes, score: Score) -> None:
    """A share's axis keeps to what shares can be."""
    axis.set_ylabel(score.heading(f"Test {score.label}"))
    if score.is_percent:
        low, high = axis.get_ylim()
        axis.set_ylim(max(0.0, low), min(100.5, high))


def _draw_curve(axis: Axes, panel: Panel, one: Series, points: Curve, factor: int) -> bool:
    """Draw one method; False where it has no place on the horizontal axis."""
    has_cost = {
        Panel.ROUNDS: True,
        Panel.BYTES_UP: not uploads_no_update(one.runs),
        Panel.CLIENT_S: trains_on_clients(one.runs),
    }[panel]
    if not points.rounds:
        return False
    if not has_cost:
        level = factor * points.score[-1]
        axis.axhline(level, color=one.colour, linewidth=1.0, linestyle=(0, (6, 2, 1, 2)))
        axis.plot([0.02], [level], transform=axis.get_yaxis_transform(), **one.line)
        return False
    if panel is Panel.BYTES_UP:
        points = points.where_positive(points.bytes_up)
        x: Sequence[float] = points.bytes_up
    elif panel is Panel.CLIENT_S:
        points = points.where_positive(points.client_s)
        x = points.client_s
    else:
        x = points.rounds
    mean = [factor * value for value in points.score]
    if len(one.runs) > 1:
        low = [factor * (m - s) for m, s in zip(points.score, points.std, strict=True)]
        high = [factor * (m + s) for m, s in zip(points.score, points.std, strict=True)]
        axis.fill_between(x, low, high, color=one.colour, alpha=0.13, linewidth=0)
    marked = _marked(x if panel is Panel.ROUNDS else np.log10(x).tolist(), one.number)
    axis.plot(x, mean, **one.line, markevery=marked, markeredgewidth=0.8)
    return bool(x)


def _marked(places: Sequence[float], number: int) -> list[int]:
    """Which points carry a marker: a few, evenly along the axis.

    Those of different methods are set apart, since lines may lie together.
    """
    if len(places) <= _MOST_MARKERS:
        return list(range(len(places)))
    shares = (np.arange(_MOST_MARKERS) + number % 4 / 4) / _MOST_MARKERS
    wanted = places[0] + (places[-1] - places[0]) * shares
    return sorted({int(np.abs(np.array(places) - place).argmin()) for place in wanted})


def _set_horizontal_axis(axis: Axes, panel: Panel, has_curves: bool) -> None:
    if not has_curves:
        axis.set_xticks([])
        axis.set_xlabel(f"{panel.value}: none")
        return
    axis.set_xlabel(panel.value)
    if panel is Panel.ROUNDS:
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        return
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    narrow = math.log10(high / low) < 2
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=4))
    axis.xaxis.set_minor_formatter(NullFormatter())
    text = _bytes_tick if panel is Panel.BYTES_UP else _seconds_tick
    axis.xaxis.set_major_formatter(FuncFormatter(text))


def _bytes_tick(value: float, _position: int | None) -> str:
    number, _, unit = plain_bytes(value).partition(" ")
    return f"{float(number.replace(',', '')):g} {unit}"


def _seconds_tick(value: float, _position: int | None) -> str:
    return f"{value:,.10g}"


def draw_final_scores(
    groups: Sequence[str],
    series: Sequence[Series],
    values: Mapping[tuple[int, str], Statistic],
    score: Score,
) -> tuple[bytes, bytes]:
    """Final scores on test as bars, grouped by setting.

    Args:
        groups: Names of the settings, from left to right.
        series: The methods.
        values: By place of the setting and name of the method; there is no bar where one is
            missing.
        score: Of which they are values.

    Returns:
        The figure as SVG and as PDF.
    """
    with style.context(["default", dict(_LOOK)]):
        figure, columns = _figure([one.name for one in series])
        axis = figure.subplots()
        width = 0.84 / len(series)
        for place, one in enumerate(series):
            offset = (place - (len(series) - 1) / 2) * width
            for group in range(len(groups)):
                if (value := values.get((group, one.name))) is not None:
                    _draw_bar(axis, group + offset, width, value, one, score.factor)
        axis.set_xticks(range(len(groups)), groups)
        axis.tick_params(axis="x", length=0)
        axis.grid(False, axis="x")
        axis.set_xlim(-0.5, len(groups) - 0.5)
        axis.set_ylabel(score.heading(f"Test {score.label}"))
        if score.is_percent:
            axis.set_ylim(0, 100)
        _add_legend(figure, [Patch(**_bar(one), label=one.name) for one in series], columns)
        return _rendered(figure)


@dataclass(frozen=True, slots=True)
class Against:
    """One method against epsilon.

    Attributes:
        series: The method.
        points: Ascending by epsilon; empty for one without noise.
        reference: Final score of one without noise; else None.
    """

    series: Series
    points: tuple[EpsilonPoint, ...]
    reference: Statistic | None = None


def draw_against_epsilon(
    methods: Sequence[Against], title: str, score: Score
) -> tuple[bytes, bytes]:
    """The final primary score on test against the epsilon that whole runs have on record.

    Ticks stand at the budgets, and at the epsilon itself where a run had none. A method without
    noise has no epsilon: it is a dashed line.

    Args:
        methods: All of one unit and delta.
        title: Of the horizontal axis.
        score: The primary score.

    Returns:
        The figure as SVG and as PDF.
    """
    with style.context(["default", dict(_LOOK)]):
        figure, columns = _figure([one.series.name for one in methods])
        axis = figure.subplots()
        for one in methods:
            if one.reference is not None:
                _draw_reference(axis, one.series, one.reference, score.factor)
            if one.points:
                _draw_points(axis, one.series, one.points, score.factor)
        points = [point for one in methods for point in one.points]
        _set_epsilon_axis(axis, points, title)
        _set_score_axis(axis, score)
        handles = [Line2D([], [], **_look(one), label=one.series.name) for one in methods]
        _add_legend(figure, handles, columns)
        return _rendered(figure)


def draw_measured(
    family: Family, panels: Sequence[tuple[str, Mapping[str, Course]]]
) -> tuple[bytes, bytes]:
    """What the members of a family came to against rounds, a panel for each method.

    Args:
        family: Of which the courses are.
        panels: Of each method its name and its members' courses; a member looks alike in all.

    Returns:
        The figure as SVG and as PDF.
    """
    looks = {
        member: Series(readable(member), number, (), is_dashed=False)
        for number, member in enumerate(family.members)
    }
    columns = min(len(panels), _MOST_PANELS)
    rows = math.ceil(len(panels) / columns)
    with style.context(["default", dict(_LOOK)]):
        figure, legend_columns = _figure([one.name for one in looks.values()], rows)
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axis, (name, courses) in zip(axes.flat, panels, strict=False):
            axis.set_title(textwrap.fill(name, 110 // columns), fontsize="medium")
            for member, drawn in courses.items():
                _draw_course(axis, looks[member], drawn)
            axis.set_xlabel(Panel.ROUNDS.value)
            axis.tick_params(labelbottom=True)  # also where no panel stands below
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        for axis in axes.flat[len(panels) :]:
            axis.remove()
        for axis in axes[:, 0]:
            axis.set_ylabel(sentence_case(family.label))
        handles = [Line2D([], [], **one.line, label=one.name) for one in looks.values()]
        _add_legend(figure, handles, legend_columns)
        return _rendered(figure)


def _draw_course(axis: Axes, one: Series, drawn: Course) -> None:
    if drawn.least != drawn.most:
        axis.fill_between(
            drawn.rounds, drawn.least, drawn.most, color=one.colour, alpha=0.13, linewidth=0
        )
    marked = _marked(drawn.rounds, one.number)
    axis.plot(drawn.rounds, drawn.value, **one.line, markevery=marked, markeredgewidth=0.8)


def _look(one: Against) -> dict[str, Any]:
    """A reference has no markers, for it has no place on the axis."""
    if one.reference is None:
        return one.series.line
    return {"color": one.series.colour, "linestyle": _NO_NOISE_DASH, "marker": ""}


def _draw_reference(axis: Axes, one: Series, value: Statistic, factor: int) -> None:
    if value.std is not None:
        low, high = factor * (value.mean - value.std), factor * (value.mean + value.std)
        axis.axhspan(low, high, color=one.colour, alpha=0.08, linewidth=0)
    axis.axhline(factor * value.mean, color=one.colour, linestyle=_NO_NOISE_DASH)


def _draw_points(axis: Axes, one: Series, points: Sequence[EpsilonPoint], factor: int) -> None:
    x = [point.epsilon for point in points]
    mean = [factor * point.score.mean for point in points]
    std = [factor * (point.score.std or 0.0) for point in points]
    if any(point.score.std is not None for point in points):
        low = [m - s for m, s in zip(mean, std, strict=True)]
        high = [m + s for m, s in zip(mean, std, strict=True)]
        if len(points) > 1:
            axis.fill_between(x, low, high, color=one.colour, alpha=0.13, linewidth=0)
        else:
            axis.errorbar(x, mean, std, color=one.colour, linewidth=0.8, capsize=2.0)
    axis.plot(x, mean, **one.line, markeredgewidth=0.8)


def _set_epsilon_axis(axis: Axes, points: Sequence[EpsilonPoint], title: str) -> None:
    """Logarithmic, with ticks at the budgets."""
    axis.set_xlabel(title)
    ticks = epsilon_ticks(points)
    if min(point.epsilon for point in points) > 0:
        axis.set_xscale("log")
    axis.set_xticks(ticks, [f"{place:.3g}" for place in ticks])
    axis.set_xticks([], minor=True)


def _draw_bar(
    axis: Axes, x: float, width: float, value: Statistic, one: Series, factor: int
) -> None:
    height = factor * value.mean
    axis.bar(x, height, 0.88 * width, **_bar(one))
    if value.std is not None:
        whisker = axis.errorbar(
            x, height, factor * value.std, color=_INK, linewidth=0.8, capsize=min(2.0, 15 * width)
        )
        for artist in whisker.get_children():
            artist.set_path_effects([withStroke(linewidth=1.8, foreground="white")])


def _bar(one: Series) -> dict[str, Any]:
    """How its bar is drawn; the second of a colour is pale, as its marker is hollow."""
    pale = one.number // len(COLOURS) % 2 == 1
    fill: dict[str, Any] = {"facecolor": "white" if pale else one.colour}
    return fill | {
        "edgecolor": "white" if one.is_dashed and not pale else one.colour,
        "linewidth": 0.8,
        "hatch": "/////" if one.is_dashed else "",
    }


def _figure(names: Sequence[str], panel_rows: int = 1) -> tuple[Figure, int]:
    """A figure that has room for its legend below, and the legend's number of columns."""
    widest = max(map(len, names)) * _CHARACTER_IN + 0.5
    columns = max(1, min(len(names), int(_LEGEND_WIDTH_IN / widest)))
    rows = math.ceil(len(names) / columns)
    height = panel_rows * _PANEL_HEIGHT_IN + 0.1 + _LEGEND_ROW_IN * rows
    figure = Figure(figsize=(_WIDTH_IN, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, columns


def _add_legend(figure: Figure, handles: Sequence[Any], columns: int) -> None:
    for handle in handles:
        handle.set_label(textwrap.fill(handle.get_label(), _MOST_CHARACTERS))
    figure.legend(
        handles=list(handles),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        handlelength=2.6,
        columnspacing=1.4,
        labelspacing=0.35,
    )


def _rendered(figure: Figure) -> tuple[bytes, bytes]:
    svg, pdf = io.BytesIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    figure.savefig(pdf, format="pdf", metadata={"CreationDate": None, "ModDate": None})
    return svg.getvalue(), pdf.getvalue()
