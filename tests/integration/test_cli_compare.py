"""``tessera compare``: runs once, resumes, redoes what changed, and survives a failing run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

import tessera as api
from cli.main import app
from core.records import RunFolder
from report.loading import load_run

SUITE = """
seeds = [0, 1]

[base]
rounds = 1
model.width = 2
partition.clients = 3
partition.scheme = "iid"
engine.kind = "in-process"

[[methods]]
label = "all-data"
strategy = "centralized"

[[methods]]
label = "fast"
choose = "fedavg"
strategy = "fedavg"
train.learning-rate = 0.1

[[methods]]
label = "slow"
choose = "fedavg"
strategy = "fedavg"
train.learning-rate = 1e-6
"""

FAILING = """
from strategies.fedavg import FedAvg

class Failing(FedAvg):
    name = "failing"

    def client_update(self, task):
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
        run.parent.name: json.loads(run.read_text())["started"] + str(run.stat().st_ino)
        for run in folder.glob("*/run.json")
    }


def test_a_suite_from_start_to_report(tmp_path: Path) -> None:
    dry = value_of(compare("--dry-run", "--json"))
    assert [run["state"] for run in dry["runs"]] == ["todo"] * 6
    assert not (tmp_path / ".runs").exists()
    assert "6 of 6 runs to do" in compare("--dry-run").stdout
    result = compare()
    assert result.exit_code == 0, result.stderr
    folder = tmp_path / ".runs" / "study"
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {
        f"{method}-seed{seed}" for method in ("all-data", "fast", "slow") for seed in (0, 1)
    }
    assert result.stdout.endswith(f"report {folder / 'report.html'}\n")
    assert "fedavg: fast is chosen" in result.stdout
    assert "<html" in (folder / "report.html").read_text()
    for run in dry["runs"]:
        loaded = load_run(folder / run["name"])
        assert sum(record.bytes_up for record in loaded.rounds) == run["total_bytes_up"]
        assert sum(record.bytes_down for record in loaded.rounds) == run["total_bytes_down"]

    before = started(folder)
    again = value_of(compare("--json"))
    assert started(folder) == before
    chosen = next(cell for cell in again["summary"] if cell["role"] == "chosen")
    assert chosen["method"] == "fast"
    finals = [load_run(folder / f"fast-seed{seed}").final for seed in (0, 1)]
    accuracies = [final.test.accuracy for final in finals if final and final.test]
    assert chosen["test_accuracy"]["mean"] == pytest.approx(sum(accuracies) / 2)
    assert "0 of 6 runs to do" in compare("--dry-run").stdout


def test_what_is_incomplete_or_changed_is_run_anew_and_nothing_is_lost(
    tmp_path: Path, suite: Path
) -> None:
    assert compare().exit_code == 0
    folder = tmp_path / ".runs" / "study"
    cut_off = RunFolder(folder / "all-data-seed0")
    cut_off.write_json("run", {**cut_off.read_json("run"), "status": "running"})
    suite.write_text(SUITE.replace("0.1", "0.2"))
    before = started(folder)
    states = {run["name"]: run["state"] for run in value_of(compare("--dry-run", "--json"))["runs"]}
    assert states == {
        "all-data-seed0": "incomplete",
        "all-data-seed1": "done",
        "fast-seed0": "outdated",
        "fast-seed1": "outdated",
        "slow-seed0": "done",
        "slow-seed1": "done",
    }
    result = compare()
    assert result.exit_code == 0, result.stderr
    after = started(folder)
    aside = {"all-data-seed0.incomplete-1", "fast-seed0.outdated-1", "fast-seed1.outdated-1"}
    assert after.keys() - before.keys() == aside
    for name in aside:
        assert after[name] == before[name.partition(".")[0]]
    for name in ("all-data-seed1", "slow-seed0", "slow-seed1"):
        assert after[name] == before[name]
    assert load_run(folder / "fast-seed0").config["train.learning-rate"] == 0.2
    assert "0 of 6 runs to do" in compare("--dry-run").stdout


def test_a_run_that_fails_does_not_stop_the_others(tmp_path: Path, suite: Path) -> None:
    Path("failing.py").write_text(FAILING)
    broken = '[[methods]]\nlabel = "broken"\nstrategy = "failing.py:Failing"\n\n[[methods]]'
    suite.write_text(SUITE.replace("[[methods]]", broken, 1).replace("[0, 1]", "[0]"))
    result = compare()
    assert result.exit_code == 4
    assert "run broken-seed0 failed: RunError: all 3 clients failed" in result.stdout
    as_json = compare("--json")
    assert as_json.exit_code == 4
    value = value_of(as_json)
    assert [failure["run"] for failure in value["failures"]] == ["broken-seed0"]
    assert [run["name"] for run in value["runs"]] == ["all-data-seed0", "fast-seed0", "slow-seed0"]
    folder = tmp_path / ".runs" / "study"
    assert RunFolder(folder / "broken-seed0").read_json("run")["status"] == "failed"
    assert (folder / "broken-seed0.incomplete-1").is_dir()


def test_nothing_starts_where_one_run_is_refused(tmp_path: Path, suite: Path) -> None:
    suite.write_text(SUITE.replace("1e-6", "0").replace('"iid"', '"idd"'))
    result = compare("--json")
    assert result.exit_code == 2
    keys = [problem["key"] for problem in value_of(result)["error"]["problems"]]
    assert keys == ["base.partition.scheme", "methods.slow.train.learning-rate"]
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
    assert result.failures == ()
    assert result.report == tmp_path / ".runs" / "mine" / "report.html"
    assert "centralized" in api.table(result)
    assert api.report(result, "mine.html") == tmp_path / "mine.html"
