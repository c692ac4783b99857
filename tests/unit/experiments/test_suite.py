"""Suites: what they parse into, what they refuse, and what lies in the folders of their runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from core.errors import ConfigError, DataError, Problem
from experiments.suite import Suite, parse_suite, plan_suite, read_suite, run_folders

METHODS: list[dict[str, object]] = [
    {"label": "sync", "strategy": "fedavg", "train": {"momentum": 0.5}},
    {"label": "prox", "strategy": "fedprox", "fedprox.proximal-weight": 0.1},
]
SETTINGS: list[dict[str, object]] = [
    {"label": "iid", "partition.scheme": "iid"},
    {"label": "skewed", "partition.alpha": 0.1},
]


def suite(**tables: object) -> Suite:
    return parse_suite({"name": "s", "methods": METHODS, **tables})


def problems_of(value: Mapping[str, object]) -> dict[str, Problem]:
    with pytest.raises(ConfigError) as caught:
        parse_suite({"name": "s", **value})
    found = {problem.key: problem for problem in caught.value.problems}
    assert len(found) == len(caught.value.problems)
    return found


def test_runs_are_methods_x_settings_x_seeds(tmp_path: Path) -> None:
    parsed = suite(settings=SETTINGS, seeds=[0, 7], base={"rounds": 3, "runs": str(tmp_path)})
    assert [run.config.name for run in parsed.runs] == [
        "sync-iid-seed0",
        "prox-iid-seed0",
        "sync-skewed-seed0",
        "prox-skewed-seed0",
        "sync-iid-seed7",
        "prox-iid-seed7",
        "sync-skewed-seed7",
        "prox-skewed-seed7",
    ]
    assert {run.folder.parent for run in parsed.runs} == {parsed.folder} == {tmp_path / "s"}
    last = parsed.runs[-1].config
    assert (last.rounds, last.seed, last.partition.alpha) == (3, 7, 0.1)
    assert (last.strategy, last.flat()["fedprox.proximal-weight"]) == ("fedprox", 0.1)
    assert parsed.runs[0].config.train.momentum == 0.5
    assert (parsed.methods, parsed.settings) == (["sync", "prox"], ["iid", "skewed"])


def test_without_settings_and_seeds_a_suite_has_one_run_per_method() -> None:
    assert [run.config.name for run in suite().runs] == ["sync-seed0", "prox-seed0"]
    assert suite().settings == [""]


def test_a_method_takes_the_place_of_the_base() -> None:
    parsed = parse_suite(
        {
            "name": "s",
            "base": {"train.learning-rate": 0.5},
            "methods": [
                {"label": "a", "strategy": "fedavg", "train.learning-rate": 0.1},
                {"label": "b", "strategy": "fedavg"},
            ],
        }
    )
    assert [run.config.train.learning_rate for run in parsed.runs] == [0.1, 0.5]


def test_candidates_are_told_by_their_group() -> None:
    methods = [{**METHODS[0], "choose": "averaging"}, METHODS[1]]
    assert parse_suite({"name": "s", "methods": methods}).choices == {"sync": "averaging"}


def test_a_run_that_sends_raw_images_says_so_in_its_title() -> None:
    methods = [{"label": "raw", "strategy": "real-images"}, METHODS[0]]
    titles = [run.title for run in parse_suite({"name": "s", "methods": methods}).runs]
    assert titles == ["raw-seed0 (not private)", "sync-seed0"]


def test_every_problem_of_every_run_is_told_at_once_with_its_table() -> None:
    found = problems_of(
        {
            "base": {"rounds": 0, "feddm.iterations": 5},
            "methods": [
                {"label": "sync", "strategy": "fedavg", "train.momentum": 2},
                {"label": "dm", "strategy": "feddm", "model.widht": 8},
            ],
            "settings": [{"label": "skewed", "partition.alpha": -1}, {"label": "iid"}],
            "seeds": [0, 1],
        }
    )
    assert {key: problem.value for key, problem in found.items()} == {
        "base.rounds": "0",
        "base.feddm.iterations": "5",
        "methods.sync.train.momentum": "2",
        "methods.dm.model.widht": "8",
        "settings.skewed.partition.alpha": "-1",
    }
    assert "at least 1" in found["base.rounds"].rule
    assert "did you mean model.width" in found["methods.dm.model.widht"].rule
    only_some = found["base.feddm.iterations"].rule
    assert "strategy fedavg does not read it" in only_some
    assert only_some.endswith("(in sync-skewed, sync-iid)")


@pytest.mark.parametrize(
    ("value", "key", "rule"),
    [
        ({"methods": []}, "methods", "at least one [[methods]] table"),
        ({"methods": METHODS, "sedes": [1]}, "sedes", "did you mean seeds?"),
        ({"methods": METHODS, "rounds": 1}, "rounds", "belong into [base]"),
        ({"methods": METHODS, "seeds": [1, 1]}, "seeds", "distinct"),
        ({"methods": METHODS, "seeds": []}, "seeds", "distinct"),
        ({"methods": METHODS, "seeds": [True]}, "seeds", "whole numbers"),
        ({"methods": METHODS, "name": "a/b"}, "name", "letters"),
        ({"methods": METHODS, "name": ".."}, "name", "dot"),
        ({"methods": [{"strategy": "fedavg"}]}, "methods number 1: label", "letters"),
        ({"methods": [METHODS[0], METHODS[0]]}, "methods.sync: label", "twice"),
        ({"methods": METHODS, "base": {"seed": 1}}, "base.seed", "leave it out"),
        ({"methods": METHODS, "base": {"name": "x"}}, "base.name", "leave it out"),
        ({"methods": METHODS, "base": 3}, "base", "table"),
        ({"methods": ["fedavg"]}, "methods number 1", "table"),
        ({"methods": [{**METHODS[0], "runs": "x"}]}, "methods.sync.runs", "[base]"),
        ({"methods": [{**METHODS[0], "choose": 1}]}, "methods.sync.choose", "text"),
        (
            {"methods": METHODS, "settings": [{"label": "x", "train.momentum": 0.1}]},
            "methods.sync.train.momentum",
            "settings.x gives it too",
        ),
        (
            {
                "methods": [{"label": "a"}, {"label": "a-b"}],
                "settings": [{"label": "b-c"}, {"label": "c"}],
            },
            "label",
            "two runs would have this name",
        ),
    ],
)
def test_form(value: dict[str, object], key: str, rule: str) -> None:
    found = problems_of(value)
    assert key in found
    assert rule in found[key].rule


def test_a_file_gives_its_name(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text('[[methods]]\nlabel = "a"\nstrategy = "fedavg"\n')
    assert read_suite(file).name == "study"
    file.write_text('name = "other"\n[[methods]]\nlabel = "a"\nstrategy = "fedavg"\n')
    assert read_suite(file).name == "other"


@pytest.mark.parametrize("content", [None, "a = = 1"])
def test_a_file_that_is_not_there_or_no_toml_is_named(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "study.toml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=r"study\.toml"):
        read_suite(file)


def record(folder: Path, **values: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(values))


def test_states(tmp_path: Path) -> None:
    (run, _) = suite(base={"runs": str(tmp_path)}).runs
    identity = run.config.identity()
    assert run.state() == "todo"
    run.folder.mkdir(parents=True)
    assert run.state() == "incomplete"
    (run.folder / "run.json").write_text("{")
    assert run.state() == "incomplete"
    for status in ("running", "failed", "interrupted"):
        record(run.folder, status=status, identity=identity)
        assert run.state() == "incomplete"
    record(run.folder, status="complete", identity=identity)
    assert run.state() == "done"
    record(run.folder, status="complete", identity="another")
    assert run.state() == "outdated"


def test_where_clients_run_does_not_make_a_run_outdated(tmp_path: Path) -> None:
    base = {"runs": str(tmp_path)}
    (run, _) = suite(base=base).runs
    record(run.folder, status="complete", identity=run.config.identity())
    assert suite(base={**base, "engine.kind": "ray"}).runs[0].state() == "done"
    assert suite(base={**base, "rounds": 11}).runs[0].state() == "outdated"


def test_what_the_data_is_refused_for_names_the_runs() -> None:
    settings = [{"label": "gone", "data.source": "folder:no-such-folder"}, SETTINGS[0]]
    runs = suite(settings=settings).runs
    with pytest.raises(DataError) as caught:
        plan_suite(runs)
    assert str(caught.value).startswith("sync-gone-seed0, prox-gone-seed0: ")
    assert "no-such-folder" in str(caught.value)


def test_what_a_model_is_refused_for_is_told_of_all_runs_at_once(tmp_path: Path) -> None:
    refused = [{"label": label, "model.depth": depth} for label, depth in (("a", 7), ("b", 8))]
    with pytest.raises(ConfigError) as caught:
        plan_suite(suite(settings=refused).runs)
    assert {problem.value for problem in caught.value.problems} >= {"7", "8"}


def test_predictions_come_in_the_order_of_the_runs() -> None:
    base = {"model.width": 2, "partition.clients": 3, "rounds": 2}
    parsed = suite(settings=SETTINGS, base=base)
    plans = plan_suite(parsed.runs)
    assert [plan.config for plan in plans] == [run.config for run in parsed.runs]
    assert all(plan.predicted.total_up > 0 for plan in plans)


def test_run_folders_in_a_folder_leave_out_those_moved_aside(tmp_path: Path) -> None:
    for name in ("b", "a", "a.incomplete-1", "a.outdated-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "no-run").mkdir()
    assert run_folders(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert run_folders(tmp_path / "a") == [tmp_path / "a"]
    assert run_folders(tmp_path / "no-run") == [tmp_path / "no-run"]
