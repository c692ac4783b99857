"""``tessera run`` from end to end, on digits and small enough to take a second."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cli.main import app
from core.records import RunFolder
from report.loading import load_run
from strategies.table import STRATEGIES
from tests.conftest import TINY_SECTIONS

ROOT = Path(__file__).resolve().parents[2]
TINY = ("partition.clients=3", "rounds=2", "model.width=8", "engine.kind=in-process")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def tiny(strategy: str) -> tuple[str, ...]:
    """Settings under which `strategy` takes a second."""
    own = [TINY_SECTIONS.get(name, {}) for name in STRATEGIES[strategy].sections]
    words = (f"{key}={value}" for section in own for key, value in section.items())
    return (f"strategy={strategy}", *TINY, *words)


def tessera(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def value_of(result: Result) -> dict[str, Any]:
    value = json.loads(result.stdout)
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_dry_run_predicts_every_byte(strategy: str, tmp_path: Path) -> None:
    words = tiny(strategy)
    plan = value_of(tessera("run", *words, "--dry-run", "--json"))
    assert list(tmp_path.iterdir()) == []
    result = tessera("run", *words, "--json", "--no-report")
    assert result.exit_code == 0, result.stderr
    rounds = load_run(Path(value_of(result)["folder"])).rounds[1:]
    assert [[c.bytes_up for c in r.clients] for r in rounds] == plan["bytes_up"]
    assert [[c.bytes_down for c in r.clients] for r in rounds] == plan["bytes_down"]
    assert value_of(result)["bytes_up"] == plan["total_bytes_up"]
    assert value_of(result)["bytes_down"] == plan["total_bytes_down"]
    (folder,) = (tmp_path / ".runs").iterdir()
    assert RunFolder(folder).read_json("run")["identity"] == plan["identity"]


def test_a_run_ends_with_a_table_and_a_report(tmp_path: Path) -> None:
    result = tessera("run", *tiny("feddm"), "name=mine")
    folder = tmp_path / ".runs" / "mine"
    assert result.exit_code == 0, result.stderr
    run = load_run(folder)
    assert run.finished
    assert run.final is not None
    assert run.final.test is not None
    assert f"{100 * run.final.test.primary:.2f}" in result.stdout
    assert "round 2/2" in result.stdout
    assert "privacy none: the images are not private" in result.stdout
    assert result.stdout.endswith(f"report {folder / 'report.html'}\n")
    assert "<html" in (folder / "report.html").read_text()


def test_json_is_all_there_is_on_the_standard_output(tmp_path: Path) -> None:
    result = tessera("run", *tiny("fedavg"), "--json")
    value = value_of(result)
    run = load_run(Path(value["folder"]))
    assert run.final is not None
    assert run.final.test is not None
    assert value["test"]["accuracy"] == run.final.test.primary
    assert (value["status"], value["rounds"]) == ("complete", 2)
    assert Path(value["report"]).is_file()
    assert "round 2/2" in result.stderr


def test_report_takes_runs_and_folders_of_runs(tmp_path: Path) -> None:
    for seed in (0, 1):
        done = tessera("run", *tiny("fedavg"), f"seed={seed}", "--no-report", f"name=r{seed}")
        assert done.exit_code == 0
    assert not (tmp_path / ".runs" / "r0" / "report.html").exists()
    result = tessera("report", ".runs", "--out", "all.html", "--json")
    (method,) = value_of(result)["methods"]
    accuracies = []
    for seed in (0, 1):
        final = load_run(tmp_path / ".runs" / f"r{seed}").final
        assert final is not None
        assert final.test is not None
        accuracies.append(final.test.primary)
    assert method["seeds"] == [0, 1]
    assert method["test_accuracy"]["mean"] == pytest.approx(sum(accuracies) / 2)
    assert (tmp_path / "all.html").is_file()
    text = tessera("report", ".runs/r0", ".runs/r1")
    assert text.exit_code == 0
    assert text.stdout.endswith(f"report {tmp_path / 'report.html'}\n")


def test_a_run_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    assert tessera("run", *tiny("centralized"), "name=mine").exit_code == 0
    before = (tmp_path / ".runs" / "mine" / "run.json").read_bytes()
    result = tessera("run", *tiny("centralized"), "name=mine")
    assert result.exit_code == 5
    assert "exists; give another name" in result.stderr
    assert (tmp_path / ".runs" / "mine" / "run.json").read_bytes() == before


FAILING = """
from strategies.fedavg import FedAvg

class Failing(FedAvg):
    name = "failing"

    def client_update(self, task):
        raise ZeroDivisionError("no luck")
"""


def test_a_run_that_fails_says_why_and_records_it(tmp_path: Path) -> None:
    Path("failing.py").write_text(FAILING)
    result = tessera("run", "strategy=failing.py:Failing", *TINY, "name=mine", "--json")
    assert result.exit_code == 4, result.stderr
    error = value_of(result)["error"]
    assert error["kind"] == "run"
    assert "ZeroDivisionError: no luck" in error["message"]
    record = RunFolder(tmp_path / ".runs" / "mine").read_json("run")
    assert record["status"] == "failed"
    assert "no luck" in record["failure"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_is_recorded_as_such(number: signal.Signals, tmp_path: Path) -> None:
    words = ("strategy=fedavg", *TINY[:1], "rounds=100000", *TINY[2:], "name=mine")
    with subprocess.Popen(
        [sys.executable, "-m", "cli.main", "run", *words, f"runs={tmp_path}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if line.startswith("round      2/"):
                process.send_signal(number)
                break
        output = process.stdout.read()
        assert process.wait(timeout=60) == 130
        assert process.stderr.read() == "tessera: interrupted\n"
    assert "run interrupted; go on with: tessera run --resume" in output
    run = load_run(tmp_path / "mine")
    assert run.status == "interrupted"
    assert run.rounds_done >= 2


def test_a_terminal_shows_bars_and_gets_its_cursor_back(tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    environment.pop("CI", None)
    words = [*tiny("feddm"), "feddm.iterations=200", f"runs={tmp_path}"]
    words.remove("feddm.iterations=3")
    with subprocess.Popen(
        [sys.executable, "-m", "cli.main", "run", *words],
        cwd=ROOT,
        env=environment,
        stdout=follower,
        stderr=follower,
    ) as process:
        os.close(follower)
        parts = []
        with suppress(OSError):  # the end of a terminal whose other side was closed
            while part := os.read(leader, 1 << 16):
                parts.append(part)
        os.close(leader)
        assert process.wait(timeout=60) == 0
    output = b"".join(parts).decode()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)
    assert re.search(r"round 1/2 .* elapsed, .* left", plain)
    assert re.search(r"clients \d/3 .* matching steps \d+/600", plain)
    assert re.search(r"round 2/2  test accuracy", plain)
    assert "Test accuracy, %" in plain
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")
