"""Families of metrics that a workload measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from report import figures, static_figures
from report.curves import Course
from report.loading import load_run, load_runs
from report.measured import families
from report.methods import compare
from tests.unit.report.conftest import make_retrieval

MakeRun = Callable[..., Path]

RECALLS = [0.1, 0.2, 0.3]


def test_members_are_the_means_over_seeds_round_by_round(make_run: MakeRun) -> None:
    paths = [
        make_retrieval(make_run("fedavg", seed, rounds=2), RECALLS, {"a/x": values, "n": values})
        for seed, values in enumerate(([1.0, 2.0, 3.0], [3.0, 8.0, 5.0]))
    ]
    (family,) = families([load_runs(paths)])
    assert (family.name, family.members) == ("a", ("x",))
    assert family.courses == (
        {"x": Course([0, 1, 2], [2.0, 5.0, 4.0], [1.0, 2.0, 3.0], [3.0, 8.0, 5.0])},
    )
    found = family.last(load_runs(paths), family.courses[0], "x")
    assert found is not None
    assert found.mean == 4.0 and found.std == pytest.approx(2**0.5)  # of 3 and 5
    assert family.last(load_runs(paths), {}, "x") is None


def test_the_axis_reaches_what_lies_below_nothing(make_run: MakeRun) -> None:
    values = {"a/x": [-1.0, 0.0, 3.0], "a/y": [0.0, 0.0, 1.0]}
    (family,) = families([[load_run(make_retrieval(make_run(rounds=2), RECALLS, values))]])
    figure = figures.measured_by_round(family, family.courses[0])
    assert figure is not None
    low, high = figure["layout"]["yaxis"]["range"]
    assert low < -1 and high > 3


def test_only_names_of_two_parts_are_families(make_run: MakeRun) -> None:
    names = ("plain", "/x", "a/", "b/x/y", "c_d/e_f")
    path = make_retrieval(make_run(rounds=2), RECALLS, dict.fromkeys(names, RECALLS))
    found = families([[load_run(path)]])
    assert [(one.name, one.label, one.members) for one in found] == [
        ("b", "b", ("x/y",)),
        ("c_d", "c d", ("e_f",)),
    ]
    assert families([[load_run(make_run("fedavg", rounds=1))], []]) == []


def test_a_member_that_one_method_lacks_keeps_its_place_in_the_others(make_run: MakeRun) -> None:
    one = make_retrieval(make_run("fedavg", rounds=2), RECALLS, {"a/x": RECALLS, "a/y": RECALLS})
    other = make_retrieval(make_run("fedprox", rounds=2), RECALLS, {"a/y": RECALLS})
    (family,) = families([[load_run(one)], [load_run(other)], []])
    assert [list(courses) for courses in family.courses] == [["x", "y"], ["y"], []]
    both, alone = (figures.measured_by_round(family, courses) for courses in family.courses[:2])
    assert both is not None and alone is not None
    (y,) = [trace for trace in both["data"] if trace["name"] == "y"]
    assert alone["data"] == [y], "it looks alike wherever it is drawn"
    assert both["layout"]["yaxis"]["range"] == alone["layout"]["yaxis"]["range"]
    assert figures.measured_by_round(family, {}) is None


def test_lines_and_bands_hold_the_values(make_run: MakeRun) -> None:
    seeds = {"a/x<b>": ([1.0, 2.0, 3.0], [3.0, 8.0, 5.0]), "a/y_z": ([4.0, 4.0, 4.0],) * 2}
    paths = [
        make_retrieval(
            make_run("fedavg", seed, rounds=2), RECALLS, {n: v[seed] for n, v in seeds.items()}
        )
        for seed in (0, 1)
    ]
    (method,) = compare(load_runs(paths)).methods
    (family,) = families([method.runs])
    figure = figures.measured_by_round(family, family.courses[0])
    assert figure is not None
    band, x, y = figure["data"]
    assert (x["name"], x["x"], x["y"]) == ("x&lt;b&gt;", [0, 1, 2], [2.0, 5.0, 4.0])
    assert (y["name"], y["x"], y["y"]) == ("y z", [0, 1, 2], [4.0, 4.0, 4.0])
    assert band["y"] == [3.0, 8.0, 5.0, 3.0, 2.0, 1.0]
    assert figure["layout"]["yaxis"]["title"]["text"] == "A"


def test_the_static_figure_has_a_panel_for_each_method(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []

    def keep(figure: Figure) -> tuple[bytes, bytes]:
        drawn.append(figure)
        return b"", b""

    monkeypatch.setattr(static_figures, "_rendered", keep)
    values = {"a/x": [1.0, 2.0, 3.0], "a/y": [3.0, 8.0, 5.0]}
    run = load_run(make_retrieval(make_run("fedavg", rounds=2), RECALLS, values))
    (family,) = families([[run]])
    panels = [(name, family.courses[0]) for name in ("one", "two", "three", "four")]
    static_figures.draw_measured(family, panels)
    axes: list[Any] = drawn[0].axes
    assert [axis.get_title() for axis in axes] == ["one", "two", "three", "four"]
    for axis in axes:
        x, y = axis.lines
        np.testing.assert_array_equal(x.get_data(), [[0, 1, 2], [1.0, 2.0, 3.0]])
        np.testing.assert_array_equal(y.get_data(), [[0, 1, 2], [3.0, 8.0, 5.0]])
        assert to_rgba(x.get_color()) != to_rgba(y.get_color())
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["x", "y"]
