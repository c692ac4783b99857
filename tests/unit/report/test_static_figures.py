from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure

from core.scores import ACCURACY, Score
from report import static_figures
from report.curves import curve
from report.loading import LoadedRun, load_run, load_runs
from report.privacy import EpsilonPoint
from report.static_figures import (
    COLOURS,
    Against,
    Panel,
    Series,
    draw_against_epsilon,
    draw_curves,
    draw_final_scores,
)
from report.tables import Statistic

MakeRun = Callable[..., Path]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were rendered, in order."""
    figures: list[Figure] = []
    render = static_figures._rendered

    def keep(figure: Figure) -> tuple[bytes, bytes]:
        figures.append(figure)
        return render(figure)

    monkeypatch.setattr(static_figures, "_rendered", keep)
    return figures


class _Drawn:
    """What a panel shows, as arrays."""

    def __init__(self, axis: Any) -> None:
        self.lines = [np.array(line.get_data(), dtype=float) for line in axis.lines]
        self.colours = [to_rgba(line.get_color()) for line in axis.lines]
        self.bands = [np.array(band.get_paths()[0].vertices) for band in axis.collections]


def series_of(paths: list[Path]) -> list[Series]:
    runs = load_runs(paths)
    groups: dict[str, list[LoadedRun]] = {}
    for run in runs:
        groups.setdefault(run.strategy, []).append(run)
    return [
        Series(name, number, tuple(members), members[0].sends_raw_images)
        for number, (name, members) in enumerate(groups.items())
    ]


def test_lines_and_bands_are_the_curves(five_methods: list[Path], drawn: list[Figure]) -> None:
    series = series_of(five_methods)
    draw_curves(series, list(Panel), "", ACCURACY)
    by_round, by_bytes, by_seconds = map(_Drawn, drawn[0].axes)
    for number, one in enumerate(series):
        points = curve(one.runs)
        x, y = by_round.lines[number]
        np.testing.assert_array_equal(x, points.rounds)
        np.testing.assert_allclose(y, 100 * np.array(points.score))
        band = by_round.bands[number]
        highest = np.array(points.score) + np.array(points.std)
        lowest = np.array(points.score) - np.array(points.std)
        assert band.max(axis=0)[1] == pytest.approx(100 * highest.max())
        assert band.min(axis=0)[1] == pytest.approx(100 * lowest.min())
        assert by_round.colours[number] == to_rgba(one.colour)
        np.testing.assert_allclose(by_seconds.lines[number][0], np.array(points.client_s))
    for number in range(3):
        points = curve(series[number].runs)
        np.testing.assert_allclose(by_bytes.lines[number][0], np.array(points.bytes_up[1:]))
    assert tuple(axis.get_xscale() for axis in drawn[0].axes) == (
        "linear", "log", "log",
    )  # fmt: skip


def test_only_a_share_is_drawn_as_percent(five_methods: list[Path], drawn: list[Figure]) -> None:
    series = series_of(five_methods)[:1]
    psnr = Score("psnr", "PSNR", is_percent=False)
    draw_curves(series, [Panel.ROUNDS, Panel.BYTES_UP], "", psnr)
    draw_final_scores(["a"], series, {(0, series[0].name): Statistic(131.5, 2.0)}, psnr)
    by_round, bars = drawn[0].axes[0], drawn[1].axes[0]
    np.testing.assert_allclose(_Drawn(by_round).lines[0][1], np.array(curve(series[0].runs).score))
    assert by_round.get_ylabel() == bars.get_ylabel() == "Test PSNR"
    assert bars.get_ylim()[1] > 131.5
    draw_curves(series, [Panel.ROUNDS, Panel.BYTES_UP], "", ACCURACY)
    assert drawn[2].axes[0].get_ylabel() == "Test accuracy, %"


def test_methods_without_the_cost_are_horizontal(
    five_methods: list[Path], drawn: list[Figure]
) -> None:
    series = series_of(five_methods)
    draw_curves(series, [Panel.ROUNDS, Panel.BYTES_UP], "", ACCURACY)
    lines = _Drawn(drawn[0].axes[1]).lines
    assert len(lines) == 3 + 2 * 2  # a level and a marker for each of local and centralized
    for place, one in enumerate(series[3:]):
        level = 100 * curve(one.runs).score[-1]
        np.testing.assert_allclose(lines[3 + 2 * place][1], np.array([level, level]))


def test_a_cost_that_nobody_has_gets_no_axis(five_methods: list[Path], drawn: list[Figure]) -> None:
    draw_curves(series_of(five_methods)[3:], list(Panel), "", ACCURACY)
    axis = drawn[0].axes[1]
    assert axis.get_xlabel() == "Uploaded bytes: none"
    assert list(axis.get_xticks()) == []


def test_the_legend_names_every_method_as_it_is_called(
    make_run: MakeRun, drawn: list[Figure]
) -> None:
    run = load_run(make_run(rounds=1))
    names = ["_under", "$x$", "plain"]
    draw_curves(
        [Series(n, i, (run,), False) for i, n in enumerate(names)], list(Panel), "$y_$", ACCURACY
    )
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == names
    assert not any(text.get_parse_math() for text in legend.get_texts())


def test_raw_images_are_dashed_and_hatched(five_methods: list[Path], drawn: list[Figure]) -> None:
    series = series_of(five_methods)
    draw_curves(series, list(Panel), "", ACCURACY)
    dashed = [line.get_linestyle() == "--" for line in drawn[0].axes[0].lines]
    values = {(0, one.name): Statistic(0.5, 0.1) for one in series}
    draw_final_scores(["a"], series, values, ACCURACY)
    hatched = [bool(patch.get_hatch()) for patch in drawn[1].axes[0].patches]
    assert dashed == hatched == [False, False, True, False, False]


def test_bars_are_the_values_and_missing_ones_are_left_out(
    five_methods: list[Path], drawn: list[Figure]
) -> None:
    series = series_of(five_methods)[:2]
    values = {
        (0, "feddm"): Statistic(0.9, 0.02),
        (0, "fedavg"): Statistic(0.7, None),
        (1, "fedavg"): Statistic(0.6, 0.05),
    }
    draw_final_scores(["a", "b"], series, values, ACCURACY)
    axis = drawn[0].axes[0]
    bars: list[Any] = list(axis.patches)
    assert [bar.get_height() for bar in bars] == pytest.approx([90, 70, 60])
    assert [round(bar.get_x() + bar.get_width() / 2) for bar in bars] == [0, 0, 1]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["a", "b"]
    whiskers = [line.get_segments()[0] for line in axis.collections]  # type: ignore[attr-defined]
    assert [(s[0][1], s[1][1]) for s in whiskers] == [
        pytest.approx((88, 92)), pytest.approx((55, 65)),
    ]  # fmt: skip
    assert axis.get_ylim()[0] == 0


def test_forty_methods_are_told_apart() -> None:
    looks = {repr(sorted(Series("x", n, (), False).line.items())) for n in range(40)}
    assert len(looks) == 40


def test_the_users_own_settings_change_nothing(make_run: MakeRun) -> None:
    series = [Series("feddm", 0, (load_run(make_run(rounds=2)),), False)]
    before = draw_curves(series, list(Panel), "", ACCURACY)
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 9, "svg.hashsalt": "other"}):
        size = matplotlib.rcParams["font.size"]
        assert draw_curves(series, list(Panel), "", ACCURACY) == before
        assert matplotlib.rcParams["font.size"] == size


def test_no_file_holds_a_date(make_run: MakeRun) -> None:
    svg, pdf = draw_curves(
        [Series("feddm", 0, (load_run(make_run(rounds=1)),), False)], list(Panel), "", ACCURACY
    )
    assert b"<dc:date>" not in svg
    assert b"CreationDate" not in pdf and b"ModDate" not in pdf


# Machado, Oliveira and Fernandes (2009), severity 1.0, on linear RGB.
DEFICIENCIES = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}  # fmt: skip


def lab(colour: str, deficiency: str) -> np.ndarray[Any, Any]:
    """CIE L*a*b* (D65) of a colour as seen under a deficiency."""
    srgb = np.array(to_rgb(colour))
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(DEFICIENCIES[deficiency]) @ linear, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    t = np.array(to_xyz) @ seen / [0.9505, 1, 1.089]
    f = np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_colours_stay_apart_for_the_colour_blind(deficiency: str) -> None:
    for one, other in itertools.combinations(COLOURS, 2):
        difference = np.linalg.norm(lab(one, deficiency) - lab(other, deficiency))
        assert difference > 10, (one, other, float(difference))


def against(make_run: MakeRun) -> list[Against]:
    """A method at two budgets, one at a single epsilon without a budget, and a reference."""
    run = load_run(make_run(rounds=1))
    points = (
        EpsilonPoint(0.995, Statistic(0.5, 0.02), 0.48, 0.52, 1.0),
        EpsilonPoint(7.99, Statistic(0.8, 0.01), 0.79, 0.81, 8.0),
    )
    lone = (EpsilonPoint(14.05, Statistic(0.7, 0.03), 0.67, 0.73, None),)
    return [
        Against(Series("dp", 0, (run,), False), points),
        Against(Series("lone", 1, (run,), False), lone),
        Against(Series("plain, no noise", 2, (run,), False), (), Statistic(0.9, 0.04)),
    ]


def test_points_against_epsilon_are_the_records(make_run: MakeRun, drawn: list[Figure]) -> None:
    methods = against(make_run)
    draw_against_epsilon(methods, "Epsilon (one example)", ACCURACY)
    (axis,) = drawn[0].axes
    by_colour = {
        to_rgba(line.get_color()): line for line in axis.lines if line.get_marker() != "None"
    }
    dp = by_colour[to_rgba(methods[0].series.colour)]
    np.testing.assert_allclose(
        np.array(dp.get_data(), dtype=float), np.array([[0.995, 7.99], [50.0, 80.0]])
    )
    lone = by_colour[to_rgba(methods[1].series.colour)]
    np.testing.assert_allclose(np.array(lone.get_data(), dtype=float), np.array([[14.05], [70.0]]))
    band = np.array(axis.collections[0].get_paths()[0].vertices)
    assert {(x, round(y, 6)) for x, y in band.tolist()} == {
        (0.995, 48.0), (0.995, 52.0), (7.99, 79.0), (7.99, 81.0),
    }  # fmt: skip
    assert axis.get_xscale() == "log"
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "8", "14.1"]
    assert axis.get_xlabel() == "Epsilon (one example)"


def test_no_noise_is_a_dashed_line_without_a_point(make_run: MakeRun, drawn: list[Figure]) -> None:
    methods = against(make_run)
    draw_against_epsilon(methods, "Epsilon", ACCURACY)
    (axis,) = drawn[0].axes
    (line,) = [one for one in axis.lines if to_rgba(one.get_color()) == to_rgba(COLOURS[2])]
    np.testing.assert_allclose(np.array(line.get_ydata(), dtype=float), [90, 90])
    assert line.get_linestyle() == "--" and line.get_marker() == "None"
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["dp", "lone", "plain, no noise"]
    assert axis.get_ylim()[1] >= 90
