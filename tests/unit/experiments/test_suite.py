"""Suites: what they parse into, what they refuse, and what lies in the folders of their runs."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config import SinksConfig
from core.errors import ConfigError, DataError, Problem
from core.records import RunFolder
from core.scores import CLASSIFICATION, Score, Scores
from experiments.suite import (
    Found,
    Suite,
    SuiteRun,
    Target,
    judged_by,
    parse_suite,
    plan_suite,
    read_suite,
    run_folders,
)
from tests.unit.experiments.conftest import end_run, round_record, start_run

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
    assert (parsed.methods, parsed.settings) == (("sync", "prox"), ("iid", "skewed"))


def test_without_settings_and_seeds_a_suite_has_one_run_per_method() -> None:
    assert [run.config.name for run in suite().runs] == ["sync-seed0", "prox-seed0"]
    assert suite().settings == ("",)


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


GRID: dict[str, object] = {
    "label": "avg",
    "strategy": "fedavg",
    "grid": {"train.learning-rate": [0.01, 0.1], "train": {"local-epochs": [1, 5]}},
}


def test_every_combination_of_a_grid_is_a_candidate() -> None:
    parsed = suite(
        methods=[METHODS[0], GRID],
        settings=SETTINGS,
        seeds=[0, 7],
        tuning={"setting": "skewed", "seeds": [7]},
    )
    (tuning,) = parsed.tunings
    assert (tuning.method, tuning.setting, tuning.seeds) == ("avg", "skewed", (7,))
    assert [candidate.keys for candidate in tuning.candidates] == [
        {"train.learning-rate": rate, "train.local-epochs": epochs}
        for rate in (0.01, 0.1)
        for epochs in (1, 5)
    ]
    last = tuning.candidates[-1]
    assert last.text == "learning-rate=0.1 local-epochs=5"
    (trial,) = last.trials
    assert trial.name == "tuning/avg-skewed-learning-rate0.1-local-epochs5-seed7"
    assert trial.folder == parsed.folder / trial.name
    names = ["avg-iid-seed0", "avg-skewed-seed0", "avg-iid-seed7", "avg-skewed-seed7"]
    for candidate in tuning.candidates:
        assert [run.name for run in candidate.finals] == names
        for run in (*candidate.trials, *candidate.finals):
            train = run.config.train
            given = {"train.learning-rate": train.learning_rate}
            assert {**given, "train.local-epochs": train.local_epochs} == candidate.keys
    assert trial.config.identity() == last.finals[-1].config.identity()
    assert [run.name for run in parsed.runs] == [name.replace("avg", "sync") for name in names]
    assert parsed.num_runs == 4 + 4 + 4
    first = [run.name for run in parsed.final_runs([last])][:4]
    assert first == ["sync-iid-seed0", "avg-iid-seed0", "sync-skewed-seed0", "avg-skewed-seed0"]
    assert [run.name for run in parsed.final_runs([])] == [run.name for run in parsed.runs]


def test_each_setting_may_tune_on_its_own() -> None:
    parsed = suite(methods=[GRID], settings=SETTINGS, tuning={"setting": "each"})
    assert [(t.setting, t.settings) for t in parsed.tunings] == [
        ("iid", ("iid",)),
        ("skewed", ("skewed",)),
    ]
    for tuning in parsed.tunings:
        for candidate in tuning.candidates:
            assert {run.setting for run in (*candidate.trials, *candidate.finals)} == {
                tuning.setting
            }


def test_candidates_run_under_all_seeds_where_none_are_given() -> None:
    (tuning,) = suite(methods=[GRID], tuning={}, seeds=[0, 1]).tunings
    assert tuning.seeds == (0, 1)
    assert [run.name for run in tuning.candidates[0].trials] == [
        f"tuning/avg-learning-rate0.01-local-epochs1-seed{seed}" for seed in (0, 1)
    ]


def labels_of(grid: Mapping[str, list[object]], strategy: str) -> list[str]:
    methods = [{"label": "m", "strategy": strategy, "grid": grid}]
    (tuning,) = suite(methods=methods, tuning={}).tunings
    return [candidate.label for candidate in tuning.candidates]


def test_keys_of_one_tail_are_told_apart_by_their_sections() -> None:
    grid: dict[str, list[object]] = {"feddm.learning-rate": [1], "mosaic.learning-rate": [0.5]}
    assert labels_of(grid, "feddm") == ["feddm.learning-rate1-mosaic.learning-rate0.5"]


def test_values_that_name_no_folder_are_told_apart_by_a_hash() -> None:
    sources: list[object] = ["folder:a/b", "folder:a_b", "digits"]
    labels = labels_of({"data.source": sources}, "fedavg")
    assert labels[2] == "sourcedigits"
    assert len(set(labels)) == 3
    assert all(label.startswith("sourcefolder_a_b-") for label in labels[:2])
    assert labels == labels_of({"data.source": sources}, "fedavg")


@given(
    st.dictionaries(
        st.sampled_from(["train.learning-rate", "train.momentum", "train.weight-decay"]),
        st.lists(st.floats(1e-9, 0.99), min_size=1, max_size=3, unique=True),
        min_size=1,
    )
)
def test_labels_of_candidates_are_unique_and_legal(grid: dict[str, list[object]]) -> None:
    labels = labels_of(grid, "fedavg")
    assert len(set(labels)) == len(labels) == math.prod(map(len, grid.values()))
    assert all(re.fullmatch(r"[A-Za-z0-9_.=+-]{1,80}", label) for label in labels)


def test_a_bad_value_of_a_grid_is_told_with_its_table() -> None:
    grid = {"train.learning-rate": [0.1, -1], "train.local-epochs": [1, 2]}
    found = problems_of({"methods": [{**GRID, "grid": grid}], "tuning": {}, "seeds": [0, 1]})
    (problem,) = found.values()
    assert str(problem) == "methods.avg.grid.train.learning-rate=-1: must be a number above 0"


def test_a_target_accuracy() -> None:
    assert suite().target is None
    assert suite(**{"target-accuracy": 0.9}).target == Target("target-accuracy", 0.9)
    assert suite(**{"target-accuracy": 1}).target == Target("target-accuracy", 1.0)
    assert suite(**{"target-score": 12}).target == Target("target-score", 12.0)


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
        (
            {"methods": [METHODS[0], {**METHODS[1], "label": "Sync"}]},
            "methods.Sync: label",
            "differs from sync in case alone",
        ),
        (
            {"methods": METHODS, "settings": [{"label": "IID"}, {"label": "iid"}]},
            "settings.iid: label",
            "differs from IID in case alone",
        ),
        (
            {
                "methods": [{"label": "a"}, {"label": "a-b"}],
                "settings": [{"label": "B-c"}, {"label": "c"}],
            },
            "label",
            "two runs would have this name",
        ),
        ({"methods": METHODS, "base": {"seed": 1}}, "base.seed", "leave it out"),
        ({"methods": METHODS, "base": {"name": "x"}}, "base.name", "leave it out"),
        ({"methods": METHODS, "base": 3}, "base", "table"),
        ({"methods": ["fedavg"]}, "methods number 1", "table"),
        ({"methods": [{**METHODS[0], "runs": "x"}]}, "methods.sync.runs", "[base]"),
        ({"methods": [{**METHODS[0], "choose": "x"}]}, "methods.sync.choose", "no such key"),
        ({"methods": METHODS, "target-accuracy": 90}, "target-accuracy", "at most 1"),
        ({"methods": METHODS, "target-accuracy": 0}, "target-accuracy", "above 0"),
        ({"methods": METHODS, "target-accuracy": True}, "target-accuracy", "a number"),
        ({"methods": METHODS, "target-score": "high"}, "target-score", "a number"),
        ({"methods": METHODS, "target-score": math.inf}, "target-score", "a number"),
        (
            {"methods": METHODS, "target-score": 0.9, "target-accuracy": 0.9},
            "target-score",
            "give one of them",
        ),
        ({"methods": METHODS, "tuning": {}}, "tuning", "no method has a grid"),
        ({"methods": [GRID]}, "tuning", "avg has a grid; say where"),
        ({"methods": [GRID], "tuning": 3}, "tuning", "table"),
        ({"methods": [GRID], "tuning": {"sets": 1}}, "tuning.sets", "setting and seeds"),
        ({"methods": [GRID], "tuning": {"seeds": [1]}}, "tuning.seeds", "the suite's: 0"),
        ({"methods": [GRID], "tuning": {"seeds": []}}, "tuning.seeds", "distinct"),
        ({"methods": [GRID], "tuning": {"setting": "x"}}, "tuning.setting", "no [[settings]]"),
        (
            {"methods": [GRID], "settings": SETTINGS, "tuning": {}},
            "tuning.setting",
            "one of iid, skewed, or each",
        ),
        (
            {"methods": [GRID], "settings": [{"label": "each"}], "tuning": {"setting": "each"}},
            "settings: label",
            "another label",
        ),
        ({"methods": [{**GRID, "grid": 3}], "tuning": {}}, "methods.avg.grid", "table"),
        ({"methods": [{**GRID, "grid": {}}], "tuning": {}}, "methods.avg.grid", "empty"),
        (
            {"methods": [{**GRID, "grid": {"rounds": 3}}], "tuning": {}},
            "methods.avg.grid.rounds",
            "list of the values",
        ),
        (
            {"methods": [{**GRID, "grid": {"seed": [3]}}], "tuning": {}},
            "methods.avg.grid.seed",
            "leave it out",
        ),
        (
            {"methods": [{**GRID, "rounds": 3, "grid": {"rounds": [3]}}], "tuning": {}},
            "methods.avg.grid.rounds",
            "the method gives it too",
        ),
        (
            {
                "methods": [{**GRID, "grid": {"partition.alpha": [1.0]}}],
                "settings": [SETTINGS[1]],
                "tuning": {"setting": "skewed"},
            },
            "methods.avg.grid.partition.alpha",
            "settings.skewed gives it too",
        ),
        (
            {"methods": [{**GRID, "grid": {"train.momentum": [0.5, "0.5"]}}], "tuning": {}},
            "methods.avg.grid",
            "same configuration as momentum=0.5",
        ),
        (
            {"methods": [{**METHODS[0], "label": "a" * 200}]},
            "label",
            "at most 200 characters",
        ),
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


@pytest.mark.parametrize("grid", [3, {}, {"rounds": 3}])
def test_a_grid_that_is_refused_is_not_also_missed(grid: object) -> None:
    found = problems_of({"methods": [{**GRID, "grid": grid}], "tuning": {}})
    assert len(found) == 1
    assert "tuning" not in found


def test_values_that_differ_in_case_alone_have_folders_of_their_own() -> None:
    files: list[object] = ["Mine", "mine", "other"]
    labels = labels_of({"partition.file": files}, "fedavg")
    assert len({label.casefold() for label in labels}) == 3
    assert labels[2] == "fileother"


def test_candidates_runs_reach_no_sinks_and_are_the_same_runs() -> None:
    parsed = suite(methods=[GRID], tuning={}, base={"sinks.mlflow": True, "sinks.wandb": True})
    (candidate, *_) = parsed.tunings[0].candidates
    (trial,), (final,) = candidate.trials, candidate.finals
    assert trial.config.sinks == SinksConfig()
    assert (final.config.sinks.mlflow, final.config.sinks.wandb) == (True, True)
    assert trial.config.identity() == final.config.identity()


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


def complete(run: SuiteRun) -> None:
    """Record a run to its end."""
    if run.folder.exists():
        shutil.rmtree(run.folder)
    folder = start_run(run.config)
    for number in range(run.config.rounds + 1):
        folder.append_round(round_record(number, 0.5, 0.5))
    end_run(folder, run.config, "complete")


def test_states(tmp_path: Path) -> None:
    (run, _) = suite(base={"runs": str(tmp_path)}).runs
    identity = run.config.identity()
    assert run.state() == "todo"
    run.folder.mkdir(parents=True)
    assert run.state() == "damaged"
    (run.folder / "run.json").write_text("{")
    assert run.state() == "damaged"
    for status in ("running", "failed", "interrupted"):
        record(run.folder, status=status, identity=identity)
        assert run.state() == "incomplete"
    record(run.folder, status="failed", identity=identity, failure="RunError: no client")
    assert run.look() == Found("incomplete", "RunError: no client")
    record(run.folder, status="failed", identity=identity, failure="DivergedError: in round 2")
    assert run.look() == Found("failed", "DivergedError: in round 2")
    record(run.folder, status="complete", identity=identity)
    assert run.state() == "damaged"
    complete(run)
    assert run.state() == "done"
    assert run.look().run is not None
    (run.folder / "rounds.jsonl").write_text("")
    assert run.state() == "damaged"
    assert "rounds.jsonl" in run.look().reason
    for status in ("complete", "interrupted"):
        record(run.folder, status=status, identity="another")
        assert run.state() == "outdated"


def test_where_clients_run_does_not_make_a_run_outdated(tmp_path: Path) -> None:
    base = {"runs": str(tmp_path)}
    (run, _) = suite(base=base).runs
    complete(run)
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


RETRIEVAL = Scores([Score("recall_at_1", "R@1", is_percent=True)])
LOUDNESS = Scores([Score("psnr", "PSNR", is_percent=False)])


def plans_of(*scores: Scores) -> list[Any]:
    return [SimpleNamespace(scores=one) for one in scores]


def test_the_runs_of_a_suite_are_judged_by_one_primary_score() -> None:
    parsed = suite()
    more = Scores([*CLASSIFICATION, *RETRIEVAL])
    assert judged_by(parsed, parsed.runs, plans_of(CLASSIFICATION, more)) == more
    with pytest.raises(ConfigError) as caught:
        judged_by(parsed, parsed.runs, plans_of(CLASSIFICATION, RETRIEVAL))
    (problem,) = caught.value.problems
    assert problem.rule == (
        "sync-seed0 is judged by accuracy (accuracy), and prox-seed0 by R@1 (recall_at_1), which "
        "do not compare; put them apart"
    )


def test_what_is_on_record_must_be_judged_as_what_is_to_run(tmp_path: Path) -> None:
    parsed = suite(base={"runs": str(tmp_path)})
    done, to_do = parsed.runs
    complete(done)
    assert judged_by(parsed, [to_do], plans_of(CLASSIFICATION)) == CLASSIFICATION
    with pytest.raises(ConfigError, match=r"prox-seed0 is judged by R@1 .* sync-seed0 by accuracy"):
        judged_by(parsed, [to_do], plans_of(RETRIEVAL))
    folder = RunFolder(done.folder)
    folder.write_json("run", {**folder.read_json("run"), "identity": "another"})
    assert judged_by(parsed, [to_do], plans_of(RETRIEVAL)) == RETRIEVAL


@pytest.mark.parametrize(
    ("target", "scores", "rule"),
    [
        ({"target-accuracy": 0.9}, RETRIEVAL, "the runs are judged by R@1; give target-score"),
        ({"target-score": 30}, RETRIEVAL, "R@1 is a share: must be above 0 and at most 1"),
        ({"target-accuracy": 0.9}, CLASSIFICATION, None),
        ({"target-score": 0.9}, CLASSIFICATION, None),
        ({"target-score": 30}, LOUDNESS, None),
    ],
)
def test_a_target_is_of_the_score_that_runs_are_judged_by(
    target: dict[str, float], scores: Scores, rule: str | None
) -> None:
    parsed = suite(**target)
    if rule is None:
        assert judged_by(parsed, parsed.runs, plans_of(scores, scores)) == scores
        return
    with pytest.raises(ConfigError) as caught:
        judged_by(parsed, parsed.runs, plans_of(scores, scores))
    (problem,) = caught.value.problems
    assert problem.key == next(iter(target)) and rule in problem.rule


def test_run_folders_in_a_folder_leave_out_those_moved_aside(tmp_path: Path) -> None:
    for name in ("b", "a", "a.incomplete-1", "a.outdated-2", "b.damaged-1", "tuning/a-x-seed0"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "no-run").mkdir()
    assert run_folders(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert run_folders(tmp_path / "a") == [tmp_path / "a"]
    assert run_folders(tmp_path / "no-run") == [tmp_path / "no-run"]


BUDGETS: list[dict[str, object]] = [
    {"label": "e1", "privacy.epsilon": 1.0},
    {"label": "e8", "privacy.epsilon": 8.0},
]


def dp(label: str, **keys: object) -> dict[str, object]:
    return {"label": label, "strategy": "fedavg", "privacy.mechanism": "dp-sgd", **keys}


def test_a_reference_takes_no_privacy_keys_of_base_and_settings() -> None:
    parsed = suite(
        base={"privacy.delta": 1e-6},
        settings=BUDGETS,
        methods=[dp("dp"), {"label": "plain", "strategy": "fedavg"}],
    )
    by_name = {run.name: run.config.privacy for run in parsed.runs}
    assert (by_name["dp-e8-seed0"].epsilon, by_name["dp-e8-seed0"].delta) == (8.0, 1e-6)
    assert not by_name["plain-e8-seed0"].is_private
    plain = [run.config.identity() for run in parsed.runs if run.method == "plain"]
    assert len(set(plain)) == 1


def test_a_method_may_leave_the_mechanism_of_the_base() -> None:
    parsed = suite(
        base={"privacy.mechanism": "dp-sgd", "privacy.epsilon": 2.0, "strategy": "fedavg"},
        methods=[{"label": "dp"}, {"label": "plain", "privacy.mechanism": "none"}],
    )
    assert [run.config.privacy.mechanism for run in parsed.runs] == ["dp-sgd", "none"]


def test_what_a_reference_gives_itself_is_still_refused() -> None:
    found = problems_of(
        {"methods": [{"label": "plain", "strategy": "fedavg", "privacy.epsilon": 1.0}]}
    )
    assert "is read only with privacy.mechanism=" in found["methods.plain.privacy.epsilon"].rule


@pytest.mark.parametrize(
    ("base", "key"),
    [
        ({"privacy.epsilon": 4.0}, "base.privacy.epsilon"),
        ({"privacy.mechanizm": "dp-sgd", "privacy.epsilon": 4.0}, "base.privacy.mechanizm"),
        ({"privacy.epsilom": 4.0}, "base.privacy.epsilom"),
    ],
)
def test_privacy_that_nobody_reads_is_refused(base: dict[str, object], key: str) -> None:
    """A typing error must not train on clients' data without noise."""
    found = problems_of({"base": base, "methods": [{"label": "plain", "strategy": "fedavg"}]})
    assert key in found


def test_unlike_units_are_refused_when_the_suite_is_read() -> None:
    client = dp("clients") | {"privacy.mechanism": "client"}
    found = problems_of({"settings": BUDGETS, "methods": [dp("a"), client, dp("b")]})
    rule = found["privacy.mechanism"].rule
    assert "unlike units (one example: a and b; one client: clients)" in rule
    assert "split the suite" in rule
    parse_suite({"name": "s", "settings": BUDGETS, "methods": [client]})


def test_unlike_deltas_are_refused_when_the_suite_is_read() -> None:
    methods = [dp("a", **{"privacy.delta": 1e-6}), dp("b"), dp("c", **{"privacy.delta": 1e-6})]
    found = problems_of({"settings": BUDGETS, "methods": methods})
    assert "unlike deltas (1e-06: a and c; 1e-05: b)" in found["privacy.delta"].rule
    assert "split the suite" in found["privacy.delta"].rule
