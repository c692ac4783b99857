"""The command line: help, versions, errors and exit codes. Nothing here trains."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

import cli.main
import experiments.plan
from cli.main import SUITE_FORM, app
from cli.outcome import EXIT_CODES
from core.errors import (
    ConfigError,
    DataError,
    QuorumError,
    RecordError,
    RunError,
    TesseraError,
)
from core.records import RunFolder
from experiments.suite import parse_suite
from pairing.configuration import config_keys, parse_config
from strategies.table import STRATEGIES
from tests.unit.report.conftest import make_retrieval, write_run

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def tessera(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def error_of(result: Result) -> dict[str, Any]:
    """The one JSON object on the standard output."""
    (key, value), *others = json.loads(result.stdout).items()
    assert key == "error"
    assert others == []
    assert value.keys() == {"kind", "message", "problems"}
    assert isinstance(value, dict)
    return value


def test_help_lists_every_key_with_default_and_rule() -> None:
    result = tessera("run", "--help")
    assert result.exit_code == 0
    words = " ".join(result.stdout.split())
    for key in config_keys():
        assert f" {key.name} " in words
        default = str(key.default).lower() if isinstance(key.default, bool) else key.default
        described = f"{key.rule.meaning}; {key.rule.text} ["
        # Where a line is broken at a hyphen, a space comes into the text.
        assert described.replace(" ", "") in words.replace(" ", "")
        assert f"default {default or 'empty'}" in words or default == 0
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_help_says_which_strategies_read_a_section() -> None:
    words = " ".join(tessera("run", "--help").stdout.split())
    for name in {name for strategy in STRATEGIES.values() for name in strategy.sections}:
        about = words.partition(f"Keys {name}.*: ")[2]
        first = next(key.name for key in config_keys() if key.name.startswith(f"{name}."))
        readers = [s.name for s in STRATEGIES.values() if name in s.sections]
        assert about.partition(f" {first} ")[0].endswith(f"Read by {', '.join(readers)}.")


def test_exit_codes_are_those_of_the_errors_and_in_every_help() -> None:
    errors = (TesseraError, ConfigError, DataError, RunError, RecordError, QuorumError)
    assert EXIT_CODES.keys() == {0, 130, *(error.exit_code for error in errors)}
    assert [error.exit_code for error in errors] == [1, 2, 3, 4, 5, 6]
    for words in ((), ("run",), ("compare",), ("report",), ("doctor",)):
        shown = tessera(*words, "--help").stdout
        for code, meaning in EXIT_CODES.items():
            assert f"{code:>3}  {meaning}" in shown


def test_the_suite_in_the_help_is_one() -> None:
    shown = tessera("compare", "--help").stdout
    assert textwrap.indent(SUITE_FORM, "    ") in shown
    assert max(map(len, shown.splitlines())) <= 80
    suite = parse_suite({"name": "s", **tomllib.loads(SUITE_FORM)})
    assert tuple(tomllib.loads(SUITE_FORM)) == ("seeds", "target-accuracy", *TABLES)
    assert (suite.seeds, suite.settings, suite.methods) == ((0, 1, 2), ("skewed",), ("FedAvg",))
    assert [tuning.num_trials for tuning in suite.tunings] == [2]


TABLES = ("base", "settings", "tuning", "methods")


@pytest.mark.parametrize("record", ["{}", '{"schema": 2}', '{"status": null}', "[]", "{"])
def test_a_run_whose_record_lacks_its_status_is_refused(tmp_path: Path, record: str) -> None:
    flat = parse_config({"strategy": "centralized", "runs": str(tmp_path), "rounds": 1}).flat()
    folder = RunFolder.create(tmp_path, "mine", flat)
    (folder.path / "run.json").write_text(record)
    result = tessera("run", "--resume", "mine")
    assert result.exit_code == 5
    assert str(folder.path / "run.json") in result.stderr
    assert "Traceback" not in result.stderr
    assert (folder.path / "run.json").read_text() == record


def test_the_figures_of_a_run_are_told_by_its_scores(tmp_path: Path) -> None:
    images = cli.main.ran(write_run(tmp_path, "fedavg", rounds=1), report=False).value
    assert images["test"].keys() == {"accuracy", "macro_f1", "loss"}
    assert 0 < images["worst_client_accuracy"] <= images["test"]["accuracy"]
    path = make_retrieval(write_run(tmp_path, "fedprox", rounds=1), [0.1, 0.25])
    videos = cli.main.ran(path, report=False)
    assert videos.value["test"].items() >= {"recall_at_1": 0.25, "median_rank": 4.0}.items()
    assert videos.value["worst_client_recall_at_1"] is None
    assert "accurac" not in videos.text + json.dumps(videos.value)
    (method,) = json.loads(tessera("report", str(path), "--json").stdout)["methods"]
    assert method["test_recall_at_1"] == {"mean": 0.25, "std": None}


def test_version() -> None:
    result = tessera("--version")
    assert (result.exit_code, result.stdout) == (0, "tessera 0.1.0\n")


def test_help_does_not_wait_for_torch() -> None:
    script = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from cli.main import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "print(sorted({'torch', 'flwr', 'ray', 'numpy'} & sys.modules.keys()))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "[]\n"


BAD = ["rounds=0", "train.learning-rate=fast", "strategy=fedavgg", "model.widht=3", "alone"]


def test_every_problem_is_told_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    result = tessera("run", *BAD)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "5 configuration problems" in result.stderr
    for words in (
        "rounds=0: must be a whole number at least 1",
        "train.learning-rate=fast: must be a number above 0",
        "strategy=fedavgg: must be one of",
        "did you mean fedavg",
        "did you mean model.width",
        "alone: write key=value",
    ):
        assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_problems_as_json() -> None:
    result = tessera("run", *BAD, "--json")
    assert result.exit_code == 2
    error = error_of(result)
    assert error["kind"] == "config"
    assert [(p["key"], p["value"]) for p in error["problems"]] == [
        ("alone", ""),
        ("rounds", "0"),
        ("train.learning-rate", "fast"),
        ("strategy", "fedavgg"),
        ("model.widht", "3"),
    ]
    assert all(problem["rule"] for problem in error["problems"])


@pytest.mark.parametrize("words", [("run", "--nope"), ("rnu",), ("report",), ()])
def test_bad_usage(words: tuple[str, ...]) -> None:
    result = tessera(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Usage: tessera" in result.stderr
    if words:
        as_json = tessera(*words, "--json")
        assert as_json.exit_code == 2
        assert error_of(as_json)["kind"] == "usage"


@pytest.mark.parametrize(
    ("words", "code", "kind"),
    [
        (("run", "data.source=folder:no-such-folder"), 3, "data"),
        (("run", "data.source=cifar10", "--dry-run"), 3, "data"),
        (("report", "no-such-run"), 5, "records"),
        (("compare", "no-such-suite.toml"), 2, "config"),
        (("run", "strategy=no-such-file.py:Mine"), 2, "config"),
    ],
)
def test_errors_a_user_can_mend(
    words: tuple[str, ...], code: int, kind: str, tmp_path: Path
) -> None:
    result = tessera(*words)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith("tessera: ")
    assert "Traceback" not in result.stderr
    as_json = tessera(*words, "--json")
    assert as_json.exit_code == code
    assert error_of(as_json)["kind"] == kind
    assert error_of(as_json)["message"] in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (RunError("all clients failed"), 4, "run"),
        (ZeroDivisionError("by zero"), 1, "unexpected"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_while_running(
    error: BaseException, code: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(config: object) -> None:
        raise error

    monkeypatch.setattr(experiments.plan, "plan", fail)
    result = tessera("run", "--dry-run")
    assert (result.exit_code, result.stdout) == (code, "")
    assert ("Traceback" in result.stderr) == (kind == "unexpected")
    as_json = tessera("run", "--dry-run", "--json")
    assert as_json.exit_code == code
    assert error_of(as_json)["kind"] == kind


def test_a_dry_run_tells_what_would_be_done_and_writes_nothing(tmp_path: Path) -> None:
    result = tessera("run", "--dry-run", "strategy=real-images", "partition.clients=4", "rounds=3")
    assert result.exit_code == 0
    for words in (
        "strategy=real-images, rounds=3, partition.clients=4",
        "1,295 train, 143 validation, 359 test examples of 10 classes",
        "4 with ",
        "failed partition attempts",
        "parameters",
        "B in 3 rounds",
        "in-process",
        "none: the images are not private",
        "nothing was started or written",
    ):
        assert words in " ".join(result.stdout.split())
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_as_json(tmp_path: Path) -> None:
    result = tessera("run", "--dry-run", "--json", "strategy=fedavg", "partition.clients=4")
    plan = json.loads(result.stdout)
    assert result.exit_code == 0
    assert plan["config"]["strategy"] == "fedavg"
    assert sum(map(sum, plan["class_counts"])) == plan["num_examples"]["train"] == 1295
    assert [len(clients) for clients in plan["bytes_up"]] == [4] * 10
    assert plan["total_bytes_up"] == sum(map(sum, plan["bytes_up"]))
    assert plan["privacy"]["guarantee"] == "none"
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_leaves_is_no_reason_to_complain() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "cli.main", "run", "--dry-run", "strategy=centralized"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(timeout=120) == 1
        assert process.stderr.read() == ""


def test_the_console_script_is_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["tessera", "--version"])
    with pytest.raises(SystemExit) as caught:
        cli.main.main()
    assert caught.value.code == 0
