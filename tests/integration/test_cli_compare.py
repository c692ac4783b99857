"""``tessera compare``: tunes, runs once, goes on, redoes what changed, survives failing runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from filelock import FileLock
from typer.testing import CliRunner

import tessera as api
from cli.main import app
from core.records import RoundRecord, RunFolder
from report.loading import load_run
from server.recorder import Recorder

SUITE = """
seeds = [0, 1]
target-accuracy = 0.5

[base]
rounds = 1
model.width = 2
partition.clients = 3
partition.scheme = "iid"
engine.kind = "in-process"

[tuning]
seeds = [1]

[[methods]]
label = "all-data"
strategy = "centralized"

[[methods]]
label = "fedavg"
strategy = "fedavg"
[methods.grid]
train.learning-rate = [1e-6, 0.1]
"""

SLOW, FAST = (f"tuning/fedavg-learning-rate{rate}-seed1" for rate in ("1e-06", "0.1"))
FINALS = [f"{method}-seed{seed}" for seed in (0, 1) for method in ("all-data", "fedavg")]

FAILING = """
from strategies.fedavg import FedAvg

class Failing(FedAvg):
    name = "failing"

    def finish(self, state, accumulator, task):
        raise ZeroDivisionError("no luck")
"""


@pytest.fixture(autouse=True)
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "study.toml"
    file.write_text(SUITE)
    return file


def compare(*words: str) -> Result:
    return CliRunner().invoke(app, ["compare", "study.toml", *words])


def value_of(result: Result) -> dict[str, Any]:
    value = json.loads(result.stdout)
    assert isinstance(value, dict)
    return value


def started(folder: Path) -> dict[str, str]:
    """When each run began, by name."""
    return {
        str(run.parent.relative_to(folder)): json.loads(run.read_text())["started"]
        + str(run.stat().st_ino)
        for run in folder.glob("**/run.json")
    }


def states(dry: dict[str, Any]) -> dict[str, str]:
    return {run["name"]: run["state"] for run in dry["runs"]}


def test_a_suite_from_start_to_report(tmp_path: Path) -> None:
    dry = value_of(compare("--dry-run", "--json"))
    assert states(dry) == {
        SLOW: "todo",
        FAST: "todo",
        "all-data-seed0": "todo",
        "fedavg-seed0": "untold",
        "all-data-seed1": "todo",
        "fedavg-seed1": "untold",
    }
    for run in dry["runs"]:
        assert (run["total_bytes_up"] is None) == (run["state"] == "untold")
        assert run["tunes"] == run["name"].startswith("tuning/")
    assert not (tmp_path / ".runs").exists()
    told = compare("--dry-run").stdout
    assert "5 of 6 runs to do" in told
    assert "known once candidates have run" in told
    result = compare()
    assert result.exit_code == 0, result.stderr
    folder = tmp_path / ".runs" / "study"
    assert started(folder).keys() == {SLOW, FAST, *FINALS}
    for words in (
        f"report {folder / 'report.html'}\n",
        f"comparison {folder / 'comparison.md'}\n",
        f"comparison {folder / 'comparison.tex'}\n",
        "fedavg-seed1 is what tuning has run already",
        "learning-rate=0.1",
        "to 50% test accuracy",
    ):
        assert words in result.stdout
    (tuned,) = json.loads((folder / "tuning.json").read_text())["tunings"]
    assert tuned["winner"] == "learning-rate0.1"
    page = (folder / "comparison.md").read_text()
    assert "fedavg was tuned on seed 1 over 2 candidates (learning-rate 1e-06, 0.1)" in page
    assert "<html" in (folder / "report.html").read_text()
    for run in dry["runs"]:
        if run["total_bytes_up"] is not None:
            loaded = load_run(folder / run["name"])
            assert sum(record.bytes_up for record in loaded.rounds) == run["total_bytes_up"]
            assert sum(record.bytes_down for record in loaded.rounds) == run["total_bytes_down"]

    before = started(folder)
    again = value_of(compare("--json"))
    assert started(folder) == before
    assert again["tuning"] == [tuned]
    cell = next(cell for cell in again["summary"] if cell["method"] == "fedavg")
    assert cell["tuned_keys"] == {"train.learning-rate": 0.1}
    finals = [load_run(folder / f"fedavg-seed{seed}").final for seed in (0, 1)]
    accuracies = [final.test.primary for final in finals if final and final.test]
    assert cell["test_accuracy"]["mean"] == pytest.approx(sum(accuracies) / 2)
    assert [run["name"] for run in again["runs"]] == FINALS
    assert again["runs_left"] == 0
    dry = value_of(compare("--dry-run", "--json"))
    assert set(states(dry).values()) == {"done"}
    assert all(run["total_bytes_up"] is not None for run in dry["runs"])
    told = compare("--dry-run").stdout
    assert "0 of 6 runs to do" in told
    assert "takes learning-rate=0.1" in told


def test_no_test_figure_of_a_candidate_is_printed() -> None:
    result = compare()
    lines = result.stdout.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("run 3/6 "))
    assert any(line.startswith("round 1/1") for line in lines[:first])
    assert not any("test accuracy" in line for line in lines[:first])
    assert any("test accuracy" in line for line in lines[first:])


def test_what_changed_is_run_anew_and_nothing_is_lost(tmp_path: Path, suite: Path) -> None:
    assert compare().exit_code == 0
    folder = tmp_path / ".runs" / "study"
    suite.write_text(SUITE.replace('"centralized"', '"centralized"\ntrain.momentum = 0.5'))
    before = started(folder)
    dry = value_of(compare("--dry-run", "--json"))
    assert {name for name, state in states(dry).items() if state != "done"} == {
        "all-data-seed0",
        "all-data-seed1",
    }
    assert states(dry)["all-data-seed0"] == "outdated"
    result = compare()
    assert result.exit_code == 0, result.stderr
    after = started(folder)
    aside = {"all-data-seed0.outdated-1", "all-data-seed1.outdated-1"}
    assert after.keys() - before.keys() == aside
    for name in aside:
        assert after[name] == before[name.partition(".")[0]]
    for name in (SLOW, FAST, "fedavg-seed0", "fedavg-seed1"):
        assert after[name] == before[name]
    assert load_run(folder / "all-data-seed0").config["train.momentum"] == 0.5
    assert "0 of 6 runs to do" in compare("--dry-run").stdout


@pytest.mark.parametrize("name", [FAST, "all-data-seed0"])
def test_a_run_that_was_interrupted_goes_on_to_the_same_end(
    tmp_path: Path, suite: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    suite.write_text(SUITE.replace("rounds = 1", "rounds = 3"))
    folder = tmp_path / ".runs" / "study"
    record = Recorder.round

    def interrupt(self: Recorder, now: RoundRecord, *rest: Any, **options: Any) -> None:
        record(self, now, *rest, **options)
        if now.round == 2 and self.folder.path == folder / name:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Recorder, "round", interrupt)
        assert compare().exit_code == 130
    assert len(load_run(folder / name).rounds) == 3
    assert states(value_of(compare("--dry-run", "--json")))[name] == "incomplete"
    assert compare().exit_code == 0
    resumed = {run: load_run(folder / run).rounds for run in (SLOW, FAST, *FINALS)}
    folder.rename(folder.with_name("first"))
    assert compare().exit_code == 0
    for run, rounds in resumed.items():
        whole = load_run(folder / run).rounds
        assert [(r.round, r.validation, r.test, r.bytes_up) for r in rounds] == [
            (r.round, r.validation, r.test, r.bytes_up) for r in whole
        ]


def test_a_damaged_checkpoint_is_moved_aside_with_its_reason(tmp_path: Path, suite: Path) -> None:
    assert compare().exit_code == 0
    cut_off = RunFolder(tmp_path / ".runs" / "study" / "all-data-seed0")
    cut_off.write_json("run", {**cut_off.read_json("run"), "status": "running"})
    for checkpoint in (cut_off.path / "checkpoints").iterdir():
        checkpoint.write_bytes(b"torn")
    result = compare()
    assert result.exit_code == 0, result.stderr
    assert "all-data-seed0 again; what lies there is moved aside: " in result.stdout
    assert cut_off.path.with_name("all-data-seed0.incomplete-1").is_dir()
    assert load_run(cut_off.path).finished


def test_when_time_is_up_the_summary_says_what_is_left(tmp_path: Path) -> None:
    result = compare("--max-minutes", "1e-9")
    assert result.exit_code == 0, result.stderr
    assert "time is up: 5 runs are left of 6; the same command goes on" in result.stdout
    assert "none is taken yet" in result.stdout
    assert value_of(compare("--max-minutes", "1e-9", "--json"))["runs_left"] == 5
    assert value_of(compare("--max-minutes", "60", "--json"))["runs_left"] == 0
    assert compare("--max-minutes", "0").exit_code == 2


def test_a_second_comparison_of_the_suite_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / ".runs" / "study"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        result = compare()
    assert result.exit_code == 4
    assert f"{folder} is in use" in result.stderr
    assert started(folder) == {}


def test_a_run_that_fails_does_not_stop_the_others(tmp_path: Path, suite: Path) -> None:
    Path("failing.py").write_text(FAILING)
    broken = '[[methods]]\nlabel = "broken"\nstrategy = "failing.py:Failing"\n\n[[methods]]'
    suite.write_text(SUITE.replace("[[methods]]", broken, 1))
    result = compare()
    assert result.exit_code == 4
    assert "run broken-seed0 failed: ZeroDivisionError: no luck" in result.stdout
    assert "Traceback" in result.stderr
    as_json = compare("--json")
    assert as_json.exit_code == 4
    value = value_of(as_json)
    assert [failure["run"] for failure in value["failures"]] == ["broken-seed0", "broken-seed1"]
    assert [run["name"] for run in value["runs"]] == FINALS
    folder = tmp_path / ".runs" / "study"
    assert RunFolder(folder / "broken-seed0").read_json("run")["status"] == "failed"


def test_a_candidate_that_diverges_loses_and_all_of_them_fail_the_method(
    tmp_path: Path, suite: Path
) -> None:
    suite.write_text(SUITE.replace("[1e-6, 0.1]", "[1e30, 0.1]"))
    result = compare()
    assert result.exit_code == 0, result.stderr
    assert "learning-rate=1e+30  failed: DivergedError: " in result.stdout
    assert (
        states(value_of(compare("--dry-run", "--json")))["tuning/fedavg-learning-rate1e+30-seed1"]
        == "failed"
    )
    suite.write_text(SUITE.replace("[1e-6, 0.1]", "[1e30]"))
    result = compare()
    assert result.exit_code == 4
    assert "fedavg has no candidate left and is not run" in result.stdout
    value = value_of(compare("--json"))
    assert [run["name"] for run in value["runs"]] == ["all-data-seed0", "all-data-seed1"]
    assert "all candidates failed; it would not be run" in compare("--dry-run").stdout


def test_a_run_that_diverged_is_computed_once_and_shown_with_its_reason(
    tmp_path: Path, suite: Path
) -> None:
    suite.write_text(SUITE.replace('"centralized"', '"centralized"\ntrain.learning-rate = 1e30'))
    assert compare().exit_code == 4
    folder = tmp_path / ".runs" / "study"
    before = started(folder)
    assert states(value_of(compare("--dry-run", "--json")))["all-data-seed0"] == "failed"
    again = compare()
    assert again.exit_code == 4
    assert started(folder) == before
    place = folder / "all-data-seed0"
    assert "run all-data-seed0 failed: DivergedError: " in again.stdout
    assert f"to run it again, move {place} away" in again.stdout
    assert "Traceback" not in again.stderr
    value = value_of(compare("--json"))
    assert [run["name"] for run in value["runs"]] == ["fedavg-seed0", "fedavg-seed1"]
    assert [(run["name"], run["status"]) for run in value["unfinished"]] == [
        ("all-data-seed0", "failed"),
        ("all-data-seed1", "failed"),
    ]
    assert all(run["failure"].startswith("DivergedError: ") for run in value["unfinished"])
    page = (folder / "comparison.md").read_text()
    assert "all-data: 2 of 2 seeds missing: seed 0 failed at round " in page
    assert "all-data" in (folder / "report.html").read_text()
    assert value["report"] == str(folder / "report.html")


HOLDS = """
import sys
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_run_that_another_process_writes_is_left_to_it(tmp_path: Path) -> None:
    assert compare().exit_code == 0
    held = RunFolder(tmp_path / ".runs" / "study" / "all-data-seed0")
    held.write_json("run", {**held.read_json("run"), "status": "running"})
    before = {p: p.read_bytes() for p in held.path.rglob("*") if p.is_file()}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(held.lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        result = compare()
        other.communicate()
    assert result.exit_code == 4
    assert "run all-data-seed0 failed: BusyError: " in result.stdout
    assert "moved aside" not in result.stdout
    assert {p: p.read_bytes() for p in held.path.rglob("*") if p.is_file()} == before
    assert not list(held.path.parent.glob("all-data-seed0.*"))
    assert "all-data-seed0 goes on where it stopped" in compare().stdout
    assert load_run(held.path).finished


def test_a_suites_runs_share_one_mlflow_store_without_its_candidates(
    tmp_path: Path, suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    suite.write_text(SUITE.replace("[base]", '[base]\nsinks.mlflow = true\nsinks.project = "p"'))
    result = compare()
    assert result.exit_code == 0, result.stderr
    folder = tmp_path / ".runs" / "study"
    assert list(tmp_path.rglob("mlflow.db")) == [folder / "mlflow.db"]
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("p")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name for run in runs) == sorted(FINALS)
    for run in runs:
        loaded = load_run(folder / run.info.run_name)
        assert run.info.status == "FINISHED"
        assert loaded.folder.read_json("sinks")["mlflow"] == run.info.run_id
        history = client.get_metric_history(run.info.run_id, "test/accuracy")
        assert {metric.step: metric.value for metric in history} == {
            record.round: record.test.primary for record in loaded.rounds if record.test
        }
        assert run.data.params["name"] == loaded.name
        assert len(list(loaded.folder.events.iterdir())) == 1
    assert "fedavg-seed1 is what tuning has run already" in result.stdout


def test_nothing_starts_where_one_run_is_refused(tmp_path: Path, suite: Path) -> None:
    suite.write_text(SUITE.replace("1e-6", "0").replace('"iid"', '"idd"'))
    result = compare("--json")
    assert result.exit_code == 2
    keys = [problem["key"] for problem in value_of(result)["error"]["problems"]]
    assert keys == ["base.partition.scheme", "methods.fedavg.grid.train.learning-rate"]
    suite.write_text(SUITE.replace("[base]", '[base]\ndata.source = "folder:nowhere"'))
    assert compare().exit_code == 3
    assert not (tmp_path / ".runs").exists()


def test_a_suite_from_python(tmp_path: Path) -> None:
    methods = [{"label": "all-data", "strategy": "centralized"}]
    base = {"rounds": 1, "model": {"width": 2}}
    result = api.compare({"name": "mine", "base": base, "methods": methods})
    ((run, loaded),) = result.runs
    assert run.method == "all-data"
    assert loaded.folder.path == tmp_path / ".runs" / "mine" / "all-data-seed0"
    assert (result.tuned, result.failures, result.num_left) == ((), (), 0)
    assert tmp_path / ".runs" / "mine" / "comparison.md" in result.comparison
    assert result.report == tmp_path / ".runs" / "mine" / "report.html"
    assert "all-data" in api.table(result)
    assert api.report(result, "mine.html") == tmp_path / "mine.html"
