from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from core.scores import Score, Scores
from report import figures
from report.curves import curve
from report.loading import load_runs
from report.methods import Method, compare
from tests.unit.report.conftest import make_private

MakeRun = Callable[..., Path]


def methods_of(paths: list[Path]) -> tuple[Method, ...]:
    return compare(load_runs(paths)).methods


def lines(figure: figures.Figure) -> dict[str, dict[str, Any]]:
    return {trace["name"]: trace for trace in figure["data"] if "name" in trace}


def as_plain_numbers(method: Method) -> Method:
    """The same runs judged by a number that is no share, of the same values."""
    psnr = Scores([Score("psnr", "PSNR", is_percent=False)])
    runs = []
    for run in method.runs:
        rounds = []
        for record in run.rounds:
            assert record.test is not None
            test = dataclasses.replace(record.test, scores={"psnr": record.test.primary})
            rounds.append(dataclasses.replace(record, test=test))
        runs.append(dataclasses.replace(run, scores=psnr, rounds=tuple(rounds)))
    return dataclasses.replace(method, runs=tuple(runs))


@pytest.fixture
def methods(five_methods: list[Path]) -> tuple[Method, ...]:
    return methods_of(five_methods)


def every_figure(methods: tuple[Method, ...]) -> list[figures.Figure]:
    found = [
        figures.score_by_round(methods),
        figures.score_by_bytes(methods),
        figures.score_by_client_time(methods),
        figures.score_by_time(methods),
        figures.client_scores(methods),
    ]
    for method in methods:
        run = method.runs[0]
        confusion = figures.confusion(method, run.class_names)
        assert confusion is not None and run.partition is not None
        found += [confusion, figures.partition_counts(run.partition, run.class_names)]
    return found


def test_plotly_accepts_every_figure(methods: tuple[Method, ...]) -> None:
    for figure in every_figure(methods):
        assert len(go.Figure(figure).data) == len(figure["data"]) > 0
        json.dumps(figure, allow_nan=False)


def test_nothing_is_drawn_before_any_evaluation(make_run: MakeRun) -> None:
    path = make_run(status="running", done=0)
    (path / "rounds.jsonl").unlink()
    methods = methods_of([path])
    assert figures.confusion(methods[0], ()) is None
    for figure in (
        figures.score_by_round(methods),
        figures.score_by_bytes(methods),
        figures.score_by_client_time(methods),
        figures.score_by_time(methods),
        figures.client_scores(methods),
    ):
        assert figure["data"] == []
        go.Figure(figure)


def test_every_line_shows_the_percentages_of_its_curve(methods: tuple[Method, ...]) -> None:
    drawn = lines(figures.score_by_round(methods))
    assert list(drawn) == [method.label for method in methods]
    for method in methods:
        means = curve(method.runs)
        assert drawn[method.label]["x"] == means.rounds
        np.testing.assert_allclose(drawn[method.label]["y"], np.array(means.score) * 100)


def test_several_seeds_have_a_band_and_one_has_none(make_run: MakeRun) -> None:
    several = methods_of([make_run("feddm", seed, rounds=3) for seed in (0, 1)])
    band, line = figures.score_by_round(several)["data"]
    means = curve(several[0].runs)
    np.testing.assert_allclose(band["y"][:4], np.array(means.highest) * 100)
    np.testing.assert_allclose(band["y"][4:], np.array(means.lowest[::-1]) * 100)
    assert line["x"] == [0, 1, 2, 3]
    one = methods_of([make_run("feddm", 5, rounds=3)])
    assert len(figures.score_by_round(one)["data"]) == 1


def test_a_method_has_one_colour_in_all_plots(methods: tuple[Method, ...]) -> None:
    by_round, by_bytes, by_client_time, by_time = (
        {name: trace["line"]["color"] for name, trace in lines(figure).items()}
        for figure in (
            figures.score_by_round(methods),
            figures.score_by_bytes(methods),
            figures.score_by_client_time(methods),
            figures.score_by_time(methods),
        )
    )
    assert len(set(by_round.values())) == len(methods)
    assert by_time == by_round
    assert by_bytes.items() <= by_round.items()
    assert by_client_time == by_round
    assert {"local", "centralized"} == by_round.keys() - by_bytes.keys()
    dots = figures.client_scores(methods)["data"][::2]
    assert [trace["marker"]["color"] for trace in dots] == list(by_round.values())


def test_raw_images_are_dashed_and_say_that_they_are_not_private(
    methods: tuple[Method, ...],
) -> None:
    for name, trace in lines(figures.score_by_round(methods)).items():
        raw = name == "real-images (not private)"
        assert (trace["line"]["dash"] == "dash") == raw
        assert ("not private" in trace["customdata"][0][0]) == raw


def test_methods_that_upload_nothing_are_horizontal_lines(methods: tuple[Method, ...]) -> None:
    layout = figures.score_by_bytes(methods)["layout"]
    levels = [100 * curve(method.runs).score[-1] for method in methods[3:]]
    assert [shape["y0"] for shape in layout["shapes"]] == levels
    assert [shape["y1"] for shape in layout["shapes"]] == levels
    texts = [annotation["text"] for annotation in layout["annotations"]]
    assert [text.split()[0] for text in texts] == ["local", "centralized"]


def test_bytes_are_logarithmic_only_where_totals_lie_far_apart(
    methods: tuple[Method, ...], make_run: MakeRun
) -> None:
    far = figures.score_by_bytes(methods)
    assert far["layout"]["xaxis"]["type"] == "log"
    near = methods_of([make_run("fedavg", 7), make_run("fedprox", 7)])
    assert figures.score_by_bytes(near)["layout"]["xaxis"]["type"] == "linear"
    for trace in lines(far).values():
        assert min(trace["x"]) > 0
    ticks = far["layout"]["xaxis"]
    assert len(ticks["tickvals"]) == len(ticks["ticktext"])
    assert dict(zip(ticks["tickvals"], ticks["ticktext"], strict=True))[100_000] == "100 kB"


@pytest.mark.parametrize("num_bytes", [1, 40, 10**6, 5 * 10**15])
def test_bytes_of_any_size_have_ticks(make_run: MakeRun, num_bytes: int) -> None:
    path = make_run("mine.py:X", rounds=2)
    lines = [json.loads(line) for line in (path / "rounds.jsonl").read_text().splitlines()]
    for record in lines[1:]:
        record["bytes_up"] = num_bytes
    (path / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    axis = figures.score_by_bytes(methods_of([path]))["layout"]["xaxis"]
    assert axis["tickvals"][0] <= num_bytes <= 2 * num_bytes <= axis["tickvals"][-1]


def test_the_worst_client_of_each_seed_is_ringed(methods: tuple[Method, ...]) -> None:
    rings = figures.client_scores(methods)["data"][1::2]
    for method, ring in zip(methods, rings, strict=True):
        finals = [run.final for run in method.runs if run.final]
        assert ring["x"] == [100 * (final.worst_client_score or 0) for final in finals]
        for (client, seed), final in zip(ring["customdata"], finals, strict=True):
            assert final.client_scores is not None
            assert client == int(np.argmin(np.array(final.client_scores, dtype=float)))
            assert seed in method.seeds


def test_confusion_counts_are_summed_over_seeds(methods: tuple[Method, ...]) -> None:
    method = methods[1]
    figure = figures.confusion(method, method.runs[0].class_names)
    assert figure is not None
    tests = [run.final.test for run in method.runs if run.final and run.final.test]
    counts = np.sum([test.confusion for test in tests if test.confusion is not None], 0)
    trace = figure["data"][0]
    np.testing.assert_array_equal(
        [[cell[2] for cell in row] for row in trace["customdata"]], counts
    )
    np.testing.assert_allclose(trace["z"], counts / counts.sum(axis=1, keepdims=True))
    assert trace["text"][3][3] == f"{100 * counts[3, 3] / counts[3].sum():.0f}"


def test_a_class_without_test_images_is_blank(make_run: MakeRun) -> None:
    path = make_run(rounds=1)
    text = (path / "rounds.jsonl").read_text().splitlines()
    record = json.loads(text[-1])
    record["test"]["confusion"][4] = [0] * 10
    record["test"]["per_class_accuracy"][4] = None
    (path / "rounds.jsonl").write_text("\n".join([*text[:-1], json.dumps(record)]) + "\n")
    (method,) = methods_of([path])
    figure = figures.confusion(method, method.runs[0].class_names)
    assert figure is not None
    assert figure["data"][0]["z"][4] == [None] * 10
    assert figure["data"][0]["text"][4] == [""] * 10


def test_the_partition_shows_the_counts(methods: tuple[Method, ...]) -> None:
    run = methods[0].runs[1]
    assert run.partition is not None
    trace = figures.partition_counts(run.partition, run.class_names)["data"][0]
    np.testing.assert_array_equal(trace["z"], run.partition.class_counts)


def test_many_classes_and_clients_go_without_text(make_run: MakeRun) -> None:
    names = [f"class {label}" for label in range(100)]
    (method,) = methods_of([make_run("fedavg", rounds=1, clients=60, class_names=names)])
    run = method.runs[0]
    assert run.partition is not None
    for figure in (
        figures.partition_counts(run.partition, names),
        figures.confusion(method, names),
    ):
        assert figure is not None
        go.Figure(figure)
        assert "text" not in figure["data"][0]
        assert len(figure["layout"]["xaxis"]["tickvals"]) <= 20


def test_what_plotly_would_read_as_html_is_escaped(make_run: MakeRun) -> None:
    names = ["<a href='https://example.org'>cat</a>", "<script>dog</script>"]
    methods = methods_of([make_run("<b>mine.py:X", name="x", rounds=2, class_names=names)])
    for figure in every_figure(methods):
        text = json.dumps(figure)
        for tag in ("<a ", "<script", "<b>mine"):
            assert tag not in text


def test_styles_stay_apart_beyond_the_palette(methods: tuple[Method, ...]) -> None:
    styles = {figures.style_of(index, methods[0]) for index in range(40)}
    assert len(styles) == 40


def private_methods(make_run: MakeRun) -> tuple[Method, ...]:
    """Two budgets of one method, and a reference under both."""
    paths = []
    for budget in (1.0, 8.0):
        path = make_run("fedavg", rounds=2, name=f"dp{budget}")
        paths.append(make_private(path, [0, budget / 2, budget - 0.005], budget=budget))
    return methods_of([*paths, make_run("fedprox", rounds=2)])


def test_points_lie_at_the_epsilon_on_record(make_run: MakeRun) -> None:
    methods = private_methods(make_run)
    figure = figures.score_by_epsilon(methods)
    assert figure is not None
    go.Figure(figure)
    points = lines(figure)
    assert list(points) == [method.label for method in methods[:2]]
    for method, epsilon in zip(methods, (0.995, 7.995), strict=False):
        (accuracy,) = curve(method.runs).score[-1:]
        assert points[method.label]["x"] == [epsilon]
        assert points[method.label]["y"] == [pytest.approx(100 * accuracy)]
        assert "error_y" not in points[method.label]
    joining = figure["data"][0]
    assert (joining["mode"], joining["x"]) == ("lines", [0.995, 7.995])
    axis = figure["layout"]["xaxis"]
    assert (axis["type"], axis["tickvals"]) == ("log", [1.0, 8.0])


def test_a_method_without_noise_is_a_dashed_line_and_never_a_point(make_run: MakeRun) -> None:
    methods = private_methods(make_run)
    figure = figures.score_by_epsilon(methods)
    assert figure is not None
    (shape,) = figure["layout"]["shapes"]
    (note,) = figure["layout"]["annotations"]
    level = 100 * curve(methods[2].runs).score[-1]
    assert shape["y0"] == shape["y1"] == pytest.approx(level)
    assert shape["line"]["dash"] == "dash"
    assert note["text"].startswith("fedprox, no noise ")
    assert "fedprox" not in lines(figure)
    assert figures.score_by_epsilon(methods[2:]) is None


def test_seeds_are_whiskers_on_the_page(make_run: MakeRun) -> None:
    paths = [make_private(make_run("fedavg", seed, rounds=1), [0, 2.0]) for seed in (0, 1, 2)]
    (method,) = methods_of(paths)
    figure = figures.score_by_epsilon([method])
    assert figure is not None
    (point,) = figure["data"]
    means = curve(method.runs)
    top = point["y"][0] + point["error_y"]["array"][0]
    bottom = point["y"][0] - point["error_y"]["arrayminus"][0]
    assert top == pytest.approx(100 * means.highest[-1])
    assert bottom == pytest.approx(100 * means.lowest[-1])


def test_epsilon_by_round_is_of_one_unit_and_delta(make_run: MakeRun) -> None:
    example = make_private(make_run("fedavg", rounds=2), [0, 1.0, 2.0], laggard=1)
    client = make_private(
        make_run("fedprox", rounds=2), [0, 5.0, 9.0], unit="client", mechanism="client"
    )
    methods = methods_of([example, client])
    figure = figures.epsilon_by_round(methods, ("example", 1e-5))
    assert figure is not None
    band, line = figure["data"]
    assert (line["name"], line["x"], line["y"]) == ("fedavg", [0, 1, 2], [0, 1.0, 2.0])
    assert band["y"] == [0, 1.0, 2.0, 0, 0, 0]
    other = figures.epsilon_by_round(methods, ("client", 1e-5))
    assert other is not None and list(lines(other)) == ["fedprox"]
    assert figures.epsilon_by_round(methods, ("client", 1e-6)) is None
    signal = figures.signal_by_round(methods)
    assert signal is not None
    assert {name: trace["y"] for name, trace in lines(signal).items()} == {
        "fedavg": [0.5, 0.5], "fedprox": [0.5, 0.5],
    }  # fmt: skip
    for drawn in (figure, signal):
        go.Figure(drawn)


def test_ratios_far_apart_have_a_logarithmic_axis(make_run: MakeRun) -> None:
    paths = [
        make_private(make_run(name, rounds=1), [0, 1.0], snr=snr)
        for name, snr in (("fedavg", 0.01), ("fedprox", 4.0))
    ]
    signal = figures.signal_by_round(methods_of(paths))
    assert signal is not None and signal["layout"]["yaxis"]["type"] == "log"


def test_beyond_a_number_of_clients_a_box_takes_the_place_of_dots(make_run: MakeRun) -> None:
    many = figures.MOST_DOTS + 1
    path = make_run(rounds=1)
    (before, last) = (path / "rounds.jsonl").read_text().splitlines()
    told = np.random.default_rng(0).uniform(0, 1, many).tolist()
    record = json.loads(last) | {"client_scores": told, "worst_client_score": min(told)}
    (path / "rounds.jsonl").write_text(f"{before}\n{json.dumps(record)}\n")
    figure = figures.client_scores(methods_of([path]))
    go.Figure(figure)
    box, ring = figure["data"]
    assert box["type"] == "box" and len(json.dumps(figure)) < 5_000
    ordered = sorted(100 * value for value in told)
    for name, share in (("lowerfence", 0.05), ("q1", 0.25), ("median", 0.5), ("q3", 0.75)):
        below = sum(value < box[name][0] for value in ordered)
        assert below == pytest.approx(share * many, abs=1), name
    assert ring["x"] == [ordered[0]]


def test_of_many_clients_the_first_are_shown(make_run: MakeRun) -> None:
    most = figures.MOST_ROWS
    (method,) = methods_of([make_run("fedavg", rounds=1, clients=most + 20)])
    run = method.runs[0]
    assert run.partition is not None
    figure = figures.partition_counts(run.partition, run.class_names)
    np.testing.assert_array_equal(figure["data"][0]["z"], run.partition.class_counts[:most])
    assert len(figure["data"][0]["customdata"]) == most
    assert figure["layout"]["height"] < 1_000


def test_a_score_that_is_no_share_is_drawn_as_it_is(methods: tuple[Method, ...]) -> None:
    plain = [as_plain_numbers(method) for method in methods]
    for draw in (
        figures.score_by_round,
        figures.score_by_bytes,
        figures.score_by_client_time,
        figures.score_by_time,
    ):
        figure = draw(plain)
        axis = figure["layout"]["yaxis"]
        assert axis["ticksuffix"] == "" and "rangemode" not in axis
        for name, trace in lines(figure).items():
            assert max(trace["y"]) <= 1, name
            assert "%{y:.4~g}%{customdata" in trace["hovertemplate"]
    level = curve(methods[3].runs).score[-1]
    drawn = figures.score_by_bytes(plain)["layout"]
    assert drawn["shapes"][0]["y0"] == level
    assert drawn["annotations"][0]["text"] == f"{methods[3].label} {level:.4g}"
    clients = figures.client_scores(plain)["layout"]["xaxis"]
    assert clients["title"]["text"] == "Client's expected PSNR" and "range" not in clients


def test_clients_without_classes_are_bars(make_run: MakeRun) -> None:
    (run,) = load_runs([make_run("fedavg", rounds=1)])
    assert run.partition is not None
    (bars,) = figures.partition_sizes(run.partition)["data"]
    assert bars["y"] == [len(held) for held in run.partition.clients]
    assert sum(bars["y"]) == run.partition.num_examples
