from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from report.loading import load_run, load_runs
from report.methods import compare

MakeRun = Callable[..., Path]


def labels(paths: list[Path]) -> list[str]:
    return [method.label for method in compare(load_runs(paths)).methods]


def test_runs_that_differ_only_in_seed_are_one_method(make_run: MakeRun) -> None:
    paths = [make_run("feddm", seed, rounds=1) for seed in (2, 0, 1)]
    comparison = compare(load_runs(paths))
    (method,) = comparison.methods
    assert method.seeds == (0, 1, 2)
    assert method.label == "feddm"
    assert comparison.superseded == ()


def test_what_cannot_change_a_result_does_not_part_runs(make_run: MakeRun) -> None:
    moot = {"engine.kind": "ray", "engine.workers": 2, "runs": "elsewhere", "data.root": "x"}
    paths = [make_run("feddm", 0, rounds=1), make_run("feddm", 1, rounds=1, settings=moot)]
    assert labels(paths) == ["feddm"]


def test_methods_keep_the_order_in_which_runs_are_given(make_run: MakeRun) -> None:
    paths = [make_run(strategy, rounds=1) for strategy in ("local", "feddm", "fedavg")]
    assert labels(paths) == ["local", "feddm", "fedavg"]


def test_a_label_names_the_settings_in_which_one_strategy_differs(make_run: MakeRun) -> None:
    paths = [
        make_run("feddm", rounds=1, name="a", settings={"mosaic.images-per-class": 1}),
        make_run("feddm", rounds=1, name="b", settings={"mosaic.images-per-class": 2}),
        make_run("fedavg", rounds=1, settings={"train.learning-rate": 0.3}),
    ]
    assert labels(paths) == ["feddm images-per-class=1", "feddm images-per-class=2", "fedavg"]


def test_a_label_names_every_part_of_the_task_that_differs(make_run: MakeRun) -> None:
    paths = [
        make_run("feddm", rounds=1, settings={"partition.alpha": 0.5}),
        make_run("fedavg", rounds=1),
    ]
    assert labels(paths) == ["feddm alpha=0.5", "fedavg alpha=0.01"]
    assert compare(load_runs(paths)).task_differences == ("partition.alpha",)
    assert compare(load_runs(paths[:1])).task_differences == ()


def test_keys_of_equal_ending_are_spelled_in_full(make_run: MakeRun) -> None:
    paths = [
        make_run("feddm", rounds=1, name=name, settings={"a.rate": rate, "b.rate": rate})
        for name, rate in (("x", 1), ("y", 2))
    ]
    assert labels(paths) == ["feddm a.rate=1 b.rate=1", "feddm a.rate=2 b.rate=2"]


def test_runs_of_one_label_are_one_method_whatever_their_settings(make_run: MakeRun) -> None:
    def settings(rate: float) -> dict[str, object]:
        return {"train.learning-rate": rate}

    paths = [
        make_run("fedavg", 0, rounds=1, name="a", settings=settings(0.1)),
        make_run("fedavg", 1, rounds=1, name="b", settings=settings(0.2)),
        make_run("fedavg", 0, rounds=1, name="c", settings=settings(0.3)),
        make_run("real-images", 0, rounds=1, name="d"),
        make_run("fedavg", 2, rounds=2, done=1, name="e", status="running"),
    ]
    names = {paths[0]: "tuned", paths[1]: "tuned", paths[3]: "pixels, skewed", paths[4]: "tuned"}
    comparison = compare(load_runs(paths), names)
    assert [(m.label, m.seeds) for m in comparison.methods] == [
        ("tuned", (0, 1)),
        ("fedavg", (0,)),
        ("pixels, skewed (not private)", (0,)),
        ("tuned (unfinished)", (2,)),
    ]
    assert comparison.superseded == ()


def test_two_runs_of_one_label_and_seed_leave_the_newer(make_run: MakeRun) -> None:
    paths = [
        make_run("fedavg", name="old", rounds=1, settings={"train.learning-rate": 0.1}),
        make_run("fedavg", name="new", rounds=1, started="2026-05-01T00:00:00+00:00"),
    ]
    comparison = compare(load_runs(paths), dict.fromkeys(paths, "one"))
    assert [run.name for run in comparison.runs] == ["new"]
    assert [(a.name, b.name) for a, b in comparison.superseded] == [("old", "new")]


def test_plugins_are_named_by_file_and_class(make_run: MakeRun) -> None:
    paths = [
        make_run("/a/b/mine.py:Mine", rounds=1, name="x", settings={"model.name": "/c/net.py:big"}),
        make_run("/a/b/mine.py:Mine", rounds=1, name="y", settings={"model.name": "/c/net.py:wee"}),
        make_run(
            "/a/b/mine.py:Other", rounds=1, name="z", settings={"model.name": "/c/net.py:wee"}
        ),
    ]
    assert labels(paths) == [
        "mine.py:Mine name=net.py:big",
        "mine.py:Mine name=net.py:wee",
        "mine.py:Other name=net.py:wee",
    ]


def test_plugins_of_one_name_keep_their_folders(make_run: MakeRun) -> None:
    paths = [make_run(f"/{folder}/mine.py:Mine", rounds=1, name=folder) for folder in "ab"]
    assert labels(paths) == ["/a/mine.py:Mine", "/b/mine.py:Mine"]


def test_raw_images_are_marked_in_the_label(make_run: MakeRun) -> None:
    assert labels([make_run("real-images", rounds=1)]) == ["real-images (not private)"]


def test_unfinished_runs_are_a_method_of_their_own(make_run: MakeRun) -> None:
    paths = [
        make_run("real-images", 0, rounds=2),
        make_run("real-images", 1, rounds=2, done=1, status="failed", failure="no replies"),
        make_run("real-images", 2, rounds=2, done=1, status="running"),
    ]
    methods = compare(load_runs(paths)).methods
    assert [m.label for m in methods] == [
        "real-images (not private)",
        "real-images (not private, unfinished)",
    ]
    assert [m.seeds for m in methods] == [(0,), (1, 2)]


def test_of_equal_runs_the_newer_is_kept_and_the_complete_before_all(make_run: MakeRun) -> None:
    days = [f"2026-03-0{day}T09:00:00+00:00" for day in (1, 2, 3)]
    newest_cut_off = load_run(make_run(name="cut", rounds=2, done=1, status="running",
                                       started=days[2]))  # fmt: skip
    newer = load_run(make_run(name="newer", rounds=2, started=days[1]))
    older = load_run(make_run(name="older", rounds=2, started=days[0]))
    for order in ([newer, older, newest_cut_off], [newest_cut_off, older, newer]):
        comparison = compare(order)
        assert comparison.runs == (newer,)
        assert {left_out.name for left_out, _ in comparison.superseded} == {"older", "cut"}


def test_class_names_come_from_a_run_that_knows_them(make_run: MakeRun) -> None:
    paths = [make_run("feddm", seed, rounds=2, done=1, status="running") for seed in (0, 1)]
    for name in ("partition.json", "rounds.jsonl"):
        (paths[0] / name).unlink()
    (method,) = compare(load_runs(paths)).methods
    assert method.runs[0].class_names == ()
    assert method.class_names == tuple("0123456789")


def test_an_attack_is_a_mark_and_no_setting(make_run: MakeRun) -> None:
    def attack(kind: str, factor: float) -> dict[str, object]:
        return {"attack.kind": kind, "attack.fraction": 0.2, "attack.factor": factor}

    paths = [
        make_run("fedavg", rounds=1, name="a", settings=attack("none", 10.0)),
        make_run("fedavg", rounds=1, name="b", settings=attack("scale", 10.0)),
        make_run("fedavg", rounds=1, name="c", settings=attack("scale", 2.0)),
        make_run("real-images", rounds=1, settings=attack("label-flip", 10.0)),
    ]
    assert labels(paths) == [
        "fedavg",
        "fedavg (attack: scale x10, 20% of clients)",
        "fedavg (attack: scale x2, 20% of clients)",
        "real-images (not private, attack: label-flip, 20% of clients)",
    ]
    differences = compare(load_runs(paths)).task_differences
    assert differences == ("attack.factor", "attack.kind")
