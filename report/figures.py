"""The plots, as plotly figures in plain dictionaries.

Colours are CSS variables such as ``var(--series-0)``; the page's script puts in their values, so
that one figure serves light and dark. Text from records is escaped here, because plotly reads
HTML in every label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from core.scores import Score
from data.partition import Partition
from report.curves import Course, Curve, curve, trains_on_clients, uploads_no_update
from report.measured import Family, readable
from report.methods import Method, judged_by
from report.privacy import (
    EpsilonPoint,
    epsilon_course,
    epsilon_point,
    epsilon_ticks,
    family,
    final_scores,
    signal_course,
)
from report.tables import NO_NOISE, brief, plain_bytes, sentence_case

Figure = dict[str, Any]

NUM_COLOURS = 8
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross")
_LOG_FROM_RATIO = 20
_LOG_EPSILON_FROM_RATIO = 3
MOST_DOTS = 500
"""Clients of a method, seeds together, beyond which a box takes the place of dots."""

MOST_ROWS = 100
"""Clients of a partition that are shown, the first ones."""

_MOST_CELLS_WITH_TEXT = 400
_MOST_CLASSES_WITH_TEXT = 12
_MOST_NAMED_CLASSES = 20
_LONGEST_TICK = 14


@dataclass(frozen=True, slots=True)
class Style:
    """How a method is drawn in every plot.

    Attributes:
        colour: A CSS variable.
        symbol: Plotly's name of the marker.
        dash: ``solid``, ``dash`` for methods that are not private, ``dot`` for unfinished ones.
    """

    colour: str
    symbol: str
    dash: str


def style_of(index: int, method: Method) -> Style:
    """The style of the method at `index`."""
    dash = "dash" if method.sends_raw_images else "solid" if method.finished else "dot"
    symbol = SYMBOLS[(index + index // NUM_COLOURS) % len(SYMBOLS)]
    return Style(f"var(--series-{index % NUM_COLOURS})", symbol, dash)


def _primary(methods: Sequence[Method]) -> Score:
    """What the methods of one report are all judged by."""
    return judged_by(run for method in methods for run in method.runs).primary


def score_by_round(methods: Sequence[Method]) -> Figure:
    """The primary score on test against communication rounds."""
    curves = _curves(methods)
    traces = _curve_traces(methods, curves, [c.rounds for c in curves], "round %{x}")
    last = max((c.rounds[-1] for c in curves if c.rounds), default=1)
    return _figure(traces, xaxis=_round_axis(last), yaxis=_score_axis(_primary(methods)))


def _round_axis(last: int) -> dict[str, Any]:
    step = next(n * 10**k for k in range(9) for n in (1, 2, 5) if n * 10**k * 10 >= last)
    return _axis("Communication round") | {"tick0": 0, "dtick": step}


def score_by_bytes(methods: Sequence[Method]) -> Figure:
    """The primary score on test against cumulative uploaded bytes.

    Methods that upload neither weights nor images are horizontal lines at their final score.
    The axis is logarithmic where totals differ more than twentyfold.
    """
    return _score_by_cost(
        methods,
        lambda c: c.bytes_up,
        [not uploads_no_update(method.runs) for method in methods],
        _axis("Uploaded by all clients, cumulative") | {"tickformat": "~s", "ticksuffix": "B"},
        _bare_bytes,
        "%{customdata[2]} uploaded",
    )


def score_by_client_time(methods: Sequence[Method]) -> Figure:
    """The primary score on test against the seconds that clients trained, summed over clients.

    Methods in which no client trains are horizontal lines at their final score. The axis is
    logarithmic where totals differ more than twentyfold.
    """
    return _score_by_cost(
        methods,
        lambda c: c.client_s,
        [trains_on_clients(method.runs) for method in methods],
        _axis("Client seconds, cumulative"),
        lambda seconds: f"{seconds:,g}",
        "%{x:.3~g} client seconds",
    )


def _score_by_cost(
    methods: Sequence[Method],
    cost: Callable[[Curve], list[float]],
    has_cost: Sequence[bool],
    axis: Mapping[str, Any],
    tick: Callable[[float], str],
    position: str,
) -> Figure:
    """The primary score on test against a cumulative cost.

    Args:
        methods: All methods shown.
        cost: Takes the cost from a curve.
        has_cost: For each method, whether it is a curve; the others are horizontal lines.
        axis: The horizontal axis.
        tick: The text of a tick.
        position: Plotly's template for the place of a point.
    """
    score = _primary(methods)
    curves = [
        c.where_positive(cost(c)) if costs else c
        for c, costs in zip(_curves(methods), has_cost, strict=True)
    ]
    xs = [cost(c) if costs else [] for c, costs in zip(curves, has_cost, strict=True)]
    shapes, annotations = [], []
    for index, (method, c) in enumerate(zip(methods, curves, strict=True)):
        if not has_cost[index] and c.score:
            style, level = style_of(index, method), c.score[-1]
            shapes.append(_horizontal(score.factor * level, style))
            annotations.append(_name_of_horizontal(level, score, style, method))
    totals = [x[-1] for x in xs if x]
    is_log = bool(totals) and max(totals) / min(totals) > _LOG_FROM_RATIO
    xaxis = dict(axis) | {
        "type": "log" if is_log else "linear",
        "tickmode": "array" if is_log else "auto",
        "nticks": 6,
    }
    xaxis |= _log_ticks([x for costs in xs for x in costs], tick)
    traces = _curve_traces(methods, curves, xs, position)
    return _figure(
        traces, xaxis=xaxis, yaxis=_score_axis(score), shapes=shapes, annotations=annotations
    )


def _horizontal(level: float, style: Style, dash: str = "longdashdot") -> dict[str, Any]:
    line = {"color": style.colour, "width": 1.5, "dash": dash}
    ends = {"xref": "paper", "x0": 0, "x1": 1, "y0": level, "y1": level}
    return {"type": "line", "line": line, "layer": "below"} | ends


def _name_of_horizontal(
    level: float, score: Score, style: Style, method: Method, told: str = ""
) -> dict[str, Any]:
    return {
        "xref": "paper",
        "x": 0,
        "xanchor": "left",
        "xshift": 4,
        "y": score.factor * level,
        "yanchor": "bottom",
        "text": f"{escape(method.label)}{told} {brief(level, score)}{score.unit}",
        "showarrow": False,
        "font": {"color": style.colour, "size": 12},
    }


def score_by_time(methods: Sequence[Method]) -> Figure:
    """The primary score on test against wall clock."""
    curves = _curves(methods)
    longest = max((c.elapsed_s[-1] for c in curves if c.rounds), default=0.0)
    unit, scale = ("h", 3600) if longest > 7200 else ("min", 60) if longest > 180 else ("s", 1)
    xs = [[elapsed / scale for elapsed in c.elapsed_s] for c in curves]
    traces = _curve_traces(methods, curves, xs, f"%{{x:.3~g}} {unit}")
    yaxis = _score_axis(_primary(methods))
    return _figure(traces, xaxis=_axis(f"Wall clock, {unit}"), yaxis=yaxis)


def epsilon_by_round(methods: Sequence[Method], terms: tuple[str, float]) -> Figure | None:
    """Epsilon of the whole run so far against rounds, of the methods of one unit and delta.

    The line is the largest client's, the band reaches down to the client that spent least. None
    where no figure is on record.
    """
    courses = [
        (escape(method.label), style_of(index, method), epsilon_course(method.runs))
        for index, method in enumerate(methods)
        if any(run.noised is not None and run.noised.terms == terms for run in method.runs)
    ]
    yaxis = _axis("Epsilon of the whole run") | {"rangemode": "tozero", "nticks": 6}
    return _course_figure(courses, "epsilon %{y:.4~g}", yaxis)


def signal_by_round(methods: Sequence[Method]) -> Figure | None:
    """Signal-to-noise ratio against rounds; None where no run tells one."""
    courses = [
        (escape(method.label), style_of(index, method), signal_course(method.runs))
        for index, method in enumerate(methods)
        if any(run.noised is not None for run in method.runs)
    ]
    values = [value for _, _, course in courses for value in course.value]
    is_log = bool(values) and min(values) > 0 and max(values) / min(values) > _LOG_FROM_RATIO
    yaxis = _axis("Signal over noise")
    if is_log:
        yaxis |= {"type": "log", "tickmode": "array"} | _log_ticks(values, lambda v: f"{v:g}")
    else:
        yaxis |= {"rangemode": "tozero", "nticks": 6}
    return _course_figure(courses, "signal over noise %{y:.3~g}", yaxis)


def style_of_member(index: int) -> Style:
    """The style of the member at `index` of a family."""
    symbol = SYMBOLS[(index + index // NUM_COLOURS) % len(SYMBOLS)]
    return Style(f"var(--series-{index % NUM_COLOURS})", symbol, "solid")


def measured_by_round(family: Family, courses: Mapping[str, Course]) -> Figure | None:
    """What a family's members came to against rounds, in the runs of one method.

    Args:
        family: Of which `courses` are; a member looks alike for every method.
        courses: By member.

    Returns:
        The figure; None where `courses` is empty.
    """
    named = [
        (escape(readable(member)), style_of_member(index), courses[member])
        for index, member in enumerate(family.members)
        if member in courses
    ]
    yaxis = _axis(escape(sentence_case(family.label))) | {"range": _span(family), "nticks": 6}
    return _course_figure(named, "%{y:.4~g}", yaxis)


def _span(family: Family) -> list[float]:
    """From 0 to the greatest value, or from the least below it: one axis for every method."""
    courses = [course for drawn in family.courses for course in drawn.values()]
    low = min([0.0, *(value for course in courses for value in course.least)])
    high = max([0.0, *(value for course in courses for value in course.most)])
    margin = 0.05 * (high - low) or 1.0
    return [low - margin if low < 0 else 0.0, high + margin]


def _course_figure(
    courses: Sequence[tuple[str, Style, Course]], hover: str, yaxis: dict[str, Any]
) -> Figure | None:
    """Lines with their bands; None where there is none.

    Args:
        courses: Of each line its name, escaped, and how it is drawn.
        hover: Plotly's template of a value.
        yaxis: The vertical axis.
    """
    bands, lines = [], []
    for label, style, course in courses:
        if not course.rounds:
            continue
        if course.least != course.most:
            bands.append(_band(course.rounds, course.most, course.least, style))
        lines.append(
            {
                "type": "scatter",
                "x": course.rounds,
                "y": course.value,
                "name": label,
                "mode": "lines+markers" if len(course.rounds) <= 30 else "lines",
                "line": {"color": style.colour, "width": 2, "dash": style.dash},
                "marker": {"color": style.colour, "size": 6, "symbol": style.symbol},
                "customdata": [[label]] * len(course.rounds),
                "hovertemplate": "<b>%{customdata[0]}</b><br>"
                + hover
                + "<br>round %{x}<extra></extra>",
            }
        )
    if not lines:
        return None
    last = max(course.rounds[-1] for _, _, course in courses if course.rounds)
    return _figure(bands + lines, xaxis=_round_axis(last), yaxis=yaxis)


def score_by_epsilon(methods: Sequence[Method]) -> Figure | None:
    """The final primary score on test against the epsilon that the whole run has on record.

    Methods that differ in their budget alone are joined by a thin line. Those without noise have no
    epsilon: they are dashed lines at their score. None where there is no point; the caller has
    made sure that all epsilons are of one unit and delta.
    """
    points = {
        index: point
        for index, method in enumerate(methods)
        if (point := epsilon_point(method.runs)) is not None
    }
    if not points:
        return None
    score = _primary(methods)
    shapes, annotations, drawn = [], [], set()
    for index, method in enumerate(methods):
        if all(run.noised is None for run in method.runs) and (found := _mean(method)) is not None:
            if (same := (family(method.runs), found)) in drawn:  # under another budget's setting
                continue
            drawn.add(same)
            style = style_of(index, method)
            shapes.append(_horizontal(score.factor * found, style, "dash"))
            annotations.append(_name_of_horizontal(found, score, style, method, f", {NO_NOISE}"))
    families: dict[Any, list[EpsilonPoint]] = {}
    for index, point in points.items():
        families.setdefault(family(methods[index].runs), []).append(point)
    traces = [
        _joining(sorted(members, key=lambda point: point.epsilon), score)
        for members in families.values()
        if len(members) > 1
    ]
    traces += [
        _epsilon_marker(index, methods[index], point, score) for index, point in points.items()
    ]
    epsilons = [point.epsilon for point in points.values()]
    is_log = min(epsilons) > 0 and max(epsilons) / min(epsilons) > _LOG_EPSILON_FROM_RATIO
    xaxis = _axis("Epsilon of the whole run") | {"type": "log" if is_log else "linear"}
    if is_log:
        ticks = epsilon_ticks(points.values())
        xaxis |= {"tickmode": "array", "tickvals": ticks, "ticktext": [f"{t:.3g}" for t in ticks]}
    else:
        xaxis |= {"rangemode": "tozero", "nticks": 6}
    return _figure(
        traces, xaxis=xaxis, yaxis=_score_axis(score), shapes=shapes, annotations=annotations
    )


def _mean(method: Method) -> float | None:
    found = final_scores(method.runs)
    return sum(found) / len(found) if found else None


def _joining(points: Sequence[EpsilonPoint], score: Score) -> dict[str, Any]:
    return {
        "type": "scatter",
        "x": [point.epsilon for point in points],
        "y": [score.factor * point.score.mean for point in points],
        "mode": "lines",
        "line": {"color": "var(--muted)", "width": 1},
        "hoverinfo": "skip",
    }


def _epsilon_marker(
    index: int, method: Method, point: EpsilonPoint, score: Score
) -> dict[str, Any]:
    style, label, mean = style_of(index, method), escape(method.label), point.score.mean
    several = len(method.runs) > 1
    span = f" ({brief(point.lowest, score)} to {brief(point.highest, score)})" if several else ""
    budget = "no budget" if point.budget is None else f"budget {point.budget:g}"
    trace: dict[str, Any] = {
        "type": "scatter",
        "x": [point.epsilon],
        "y": [score.factor * mean],
        "name": label,
        "mode": "markers",
        "marker": {"color": style.colour, "size": 9, "symbol": style.symbol},
        "customdata": [[label, span, budget]],
        "hovertemplate": "<b>%{customdata[0]}</b><br>"
        + _hovered(score)
        + "%{customdata[1]}<br>epsilon %{x:.4~g}, %{customdata[2]}<extra></extra>",
    }
    if several:
        trace["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": [score.factor * (point.highest - mean)],
            "arrayminus": [score.factor * (mean - point.lowest)],
            "color": style.colour,
            "thickness": 1.5,
            "width": 3,
        }
    return trace


def _log_ticks(costs: Sequence[float], text: Callable[[float], str]) -> dict[str, Any]:
    """Ticks of a logarithmic axis: decades, with 2 and 5 between them where there are few."""
    if not costs:
        return {}
    low, high = math.floor(math.log10(min(costs))), math.ceil(math.log10(max(costs)))
    steps = (1,) if high - low > 2 else (1, 2, 5)
    values = [step * 10.0**power for power in range(low, high + 1) for step in steps]
    return {"tickvals": values, "ticktext": [text(value) for value in values]}


def _bare_bytes(count: float) -> str:
    number, _, unit = plain_bytes(count).partition(" ")
    return f"{float(number.replace(',', '')):g} {unit}"


def _curves(methods: Sequence[Method]) -> list[Curve]:
    return [curve(method.runs) for method in methods]


def _curve_traces(
    methods: Sequence[Method],
    curves: Sequence[Curve],
    xs: Sequence[Sequence[float]],
    position: str,
) -> list[dict[str, Any]]:
    score = _primary(methods)
    bands, lines = [], []
    for index, (method, c, x) in enumerate(zip(methods, curves, xs, strict=True)):
        if not x:
            continue
        style, label = style_of(index, method), escape(method.label)
        mean, low, high = (_shown(v, score) for v in (c.score, c.lowest, c.highest))
        several = len(method.runs) > 1
        if several:
            bands.append(_band(x, high, low, style))
        spans = [
            f" ({brief(a, score)} to {brief(b, score)})" if several else ""
            for a, b in zip(c.lowest, c.highest, strict=True)
        ]
        sizes = [plain_bytes(count) for count in c.bytes_up]
        rows = zip([label] * len(x), spans, sizes, strict=True)
        lines.append(
            {
                "type": "scatter",
                "x": list(x),
                "y": mean,
                "name": label,
                "mode": "lines+markers" if len(x) <= 30 else "lines",
                "line": {"color": style.colour, "width": 2, "dash": style.dash},
                "marker": {"color": style.colour, "size": 6, "symbol": style.symbol},
                "customdata": [list(row) for row in rows],
                "hovertemplate": "<b>%{customdata[0]}</b><br>"
                + _hovered(score)
                + "%{customdata[1]}<br>"
                + position
                + "<extra></extra>",
            }
        )
    return bands + lines


def _band(
    x: Sequence[float], high: Sequence[float], low: Sequence[float], style: Style
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "x": [*x, *reversed(x)],
        "y": [*high, *reversed(low)],
        "fill": "toself",
        "fillcolor": style.colour,
        "opacity": 0.16,
        "line": {"width": 0},
        "mode": "lines",
        "hoverinfo": "skip",
    }


def client_scores(methods: Sequence[Method]) -> Figure:
    """One dot per client and seed at the final round; the worst of each seed ringed.

    Of a method with more than `MOST_DOTS` dots a box shows how they lie.
    """
    score = _primary(methods)
    traces: list[dict[str, Any]] = []
    annotations = []
    for index, method in enumerate(methods):
        style, row = style_of(index, method), len(methods) - 1 - index
        points = [
            (score.factor * value, client, run.seed)
            for run in method.runs
            if run.final is not None
            for client, value in enumerate(run.final.client_scores or [])
            if value is not None
        ]
        worst = [
            min((p for p in points if p[2] == seed), key=lambda p: p[0])
            for seed in sorted({p[2] for p in points})
        ]
        annotations.append(
            {
                "xref": "paper",
                "x": 0,
                "xanchor": "left",
                "y": row + 0.24,
                "yanchor": "bottom",
                "text": escape(method.label),
                "showarrow": False,
                "font": {"size": 13},
            }
        )
        hover = f"client %{{customdata[0]}}, seed %{{customdata[1]}}: {_hovered(score, 'x')}"
        hover += "<extra></extra>"
        if not points:
            continue
        if len(points) > MOST_DOTS:
            traces.append(_box([p[0] for p in points], row, style))
        else:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": [p[0] for p in points],
                    "y": [row] * len(points),
                    "customdata": [list(p[1:]) for p in points],
                    "hovertemplate": hover,
                    "cliponaxis": False,
                    "marker": {"color": style.colour, "size": 10, "opacity": 0.55},
                }
            )
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [p[0] for p in worst],
                "y": [row] * len(worst),
                "customdata": [list(p[1:]) for p in worst],
                "hovertemplate": "worst: " + hover,
                "cliponaxis": False,
                "marker": {
                    "color": "var(--ink)",
                    "size": 15,
                    "symbol": "circle-open",
                    "line": {"width": 1.5},
                },
            }
        )
        if len(worst) == 1:
            annotations.append(
                {
                    "x": worst[0][0],
                    "y": row - 0.18,
                    "yanchor": "top",
                    "showarrow": False,
                    "text": f"client {worst[0][1]}",
                    "font": {"size": 12, "color": "var(--muted)"},
                }
            )
    yaxis = {
        "range": [-0.6, len(methods) - 0.3],
        "showticklabels": False,
        "fixedrange": True,
        "tickvals": list(range(len(methods))),
        "gridcolor": "var(--rule)",
        "zeroline": False,
    }
    xaxis = _axis(score.heading(f"Client's expected {score.label}"))
    return _figure(
        traces,
        xaxis=xaxis | ({"range": [-2, 102]} if score.is_percent else {}),
        yaxis=yaxis,
        annotations=annotations,
        height=90 + 72 * len(methods),
        margin={"l": 8, "r": 12, "t": 8, "b": 48},
    )


def _box(values: Sequence[float], row: int, style: Style) -> dict[str, Any]:
    """Median, quartiles, and whiskers from the 5th to the 95th percentile."""
    low, first, median, third, high = np.percentile(values, (5, 25, 50, 75, 95)).tolist()
    return {
        "type": "box",
        "orientation": "h",
        "y": [row],
        "lowerfence": [low],
        "q1": [first],
        "median": [median],
        "q3": [third],
        "upperfence": [high],
        "width": 0.3,
        "hoverinfo": "x",
        "line": {"color": style.colour, "width": 2},
    }


def confusion(method: Method, class_names: Sequence[str]) -> Figure | None:
    """Confusion matrix at the final round, counts summed over seeds; None without classes.

    Colour is the share of the true class, so that rows of unequal size compare.
    """
    tests = [run.final.test for run in method.runs if run.final and run.final.test]
    matrices = [test.confusion for test in tests if test.confusion is not None]
    if not matrices:
        return None
    counts = np.sum(matrices, axis=0)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.where(totals > 0, counts / np.maximum(totals, 1), np.nan)
    with_text = len(class_names) <= _MOST_CLASSES_WITH_TEXT
    text = [[f"{100 * v:.0f}" if v >= 0.005 else "" for v in row] for row in shares]
    names = [escape(name) for name in class_names]
    customdata = [
        [[names[true], names[predicted], int(n)] for predicted, n in enumerate(row)]
        for true, row in enumerate(counts)
    ]
    hover = "true %{customdata[0]}, predicted %{customdata[1]}<br>"
    hover += "%{customdata[2]} examples, %{z:.1%} of the class<extra></extra>"
    trace = _heat(shares.tolist(), text if with_text else None) | {
        "zmin": 0,
        "zmax": 1,
        "customdata": customdata,
        "hovertemplate": hover,
    }
    ticks = _class_ticks(class_names)
    square = {"scaleanchor": "x", "constrain": "domain", "autorange": "reversed"}
    return _figure(
        [trace],
        xaxis=_heat_axis("Predicted class", ticks | _upright(class_names))
        | {"constrain": "domain"},
        yaxis=_heat_axis("True class", ticks) | square,
        height=None,
    )


def partition_counts(partition: Partition, class_names: Sequence[str]) -> Figure:
    """Examples of each class that each client holds, clients down, classes across.

    Of more than `MOST_ROWS` clients the first ones are shown.
    """
    counts = partition.class_counts[:MOST_ROWS]
    num_clients, num_classes = counts.shape
    with_text = counts.size <= _MOST_CELLS_WITH_TEXT and num_classes <= _MOST_CLASSES_WITH_TEXT
    text = [[str(n) if n else "" for n in row] for row in counts.tolist()]
    names = [escape(name) for name in class_names]
    customdata = [
        [[client, names[label]] for label in range(num_classes)] for client in range(num_clients)
    ]
    hover = "client %{customdata[0]}, class %{customdata[1]}: %{z} examples<extra></extra>"
    trace = _heat(counts.tolist(), text if with_text else None) | {
        "zmin": 0,
        "customdata": customdata,
        "hovertemplate": hover,
    }
    step = max(1, num_clients // 20)
    clients = {"tickvals": list(range(0, num_clients, step)), "autorange": "reversed"}
    cell = max(6, min(30, 600 // num_clients))
    return _figure(
        [trace],
        xaxis=_heat_axis("Class", _class_ticks(class_names) | _upright(class_names)),
        yaxis=_heat_axis("Client", clients),
        height=70 + cell * num_clients,
    )


def partition_sizes(partition: Partition) -> Figure:
    """Examples that each client holds, where nothing tells them apart by class.

    Of more than `MOST_ROWS` clients the first ones are shown.
    """
    sizes = [len(indices) for indices in partition.clients[:MOST_ROWS]]
    bars = {
        "type": "bar",
        "x": list(range(len(sizes))),
        "y": sizes,
        "marker": {"color": "var(--series-0)"},
        "hovertemplate": "client %{x}: %{y} examples<extra></extra>",
    }
    step = max(1, len(sizes) // 20)
    clients = _axis("Client") | {"tickvals": list(range(0, len(sizes), step)), "showgrid": False}
    return _figure([bars], xaxis=clients, yaxis=_axis("Examples") | {"nticks": 6})


def _shown(values: Sequence[float], score: Score) -> list[float]:
    return [score.factor * value for value in values]


def _hovered(score: Score, axis: str = "y") -> str:
    """Plotly's template of a value of `score` that a pointer rests on."""
    return f"%{{{axis}:.1f}}%" if score.is_percent else f"%{{{axis}:.4~g}}"


def _heat(z: list[list[float]], text: list[list[str]] | None) -> dict[str, Any]:
    scale = [[0, "var(--heat-least)"], [1, "var(--heat-most)"]]
    rows = [[None if math.isnan(value) else value for value in row] for row in z]
    gap = 1 if max(len(rows), len(rows[0])) <= _MOST_NAMED_CLASSES else 0
    trace = {
        "type": "heatmap",
        "z": rows,
        "colorscale": scale,
        "showscale": False,
        "xgap": gap,
        "ygap": gap,
        "hoverongaps": False,
    }
    return trace | (
        {"text": text, "texttemplate": "%{text}", "textfont": {"color": "var(--ink)"}}
        if text
        else {}
    )


def _class_ticks(names: Sequence[str]) -> dict[str, Any]:
    """Names where they fit, else the number of every tenth class or so."""
    if len(names) > _MOST_NAMED_CLASSES:
        step = max(10, len(names) // 100 * 10)
        return {"tickvals": list(range(0, len(names), step))}
    cut = _LONGEST_TICK - 1
    short = [name if len(name) <= _LONGEST_TICK else f"{name[:cut]}…" for name in names]
    return {"tickvals": list(range(len(names))), "ticktext": [escape(name) for name in short]}


def _upright(names: Sequence[str]) -> dict[str, Any]:
    """Horizontal axis: long names stand on end, so that none is dropped where it is narrow."""
    fits = len(names) > _MOST_NAMED_CLASSES or max(map(len, names), default=0) <= 3
    return {"tickangle": 0 if fits else -90}


def _heat_axis(title: str, ticks: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "title": _axis_title(title, 8),
        "showgrid": False,
        "zeroline": False,
        "ticks": "",
        "automargin": True,
        "fixedrange": True,
        "tickfont": {"size": 11},
    } | dict(ticks)


def _axis(title: str) -> dict[str, Any]:
    return {
        "title": _axis_title(title, 12),
        "gridcolor": "var(--rule)",
        "zeroline": False,
        "ticks": "",
        "automargin": True,
    }


def _axis_title(text: str, standoff: int) -> dict[str, Any]:
    return {"text": text, "standoff": standoff, "font": {"size": 13, "color": "var(--muted)"}}


def _score_axis(score: Score) -> dict[str, Any]:
    """An axis of a score; only of a share is it known that 0 is its least."""
    shape = {"rangemode": "tozero"} if score.is_percent else {}
    return _axis("") | shape | {"ticksuffix": score.unit, "nticks": 6}


def _figure(traces: Sequence[dict[str, Any]], **layout: Any) -> Figure:
    base = {
        "height": 360,
        "margin": {"l": 48, "r": 12, "t": 12, "b": 48},
        "showlegend": False,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "var(--ink)"},
        "hovermode": "closest",
        "hoverlabel": {
            "bgcolor": "var(--surface)",
            "bordercolor": "var(--rule)",
            "font": {"color": "var(--ink)", "family": "system-ui, sans-serif"},
        },
    }
    chosen = {key: value for key, value in (base | layout).items() if value is not None}
    return {"data": list(traces), "layout": chosen}
