"""What lies in examples/ runs as it stands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.suite import plan_suite, read_suite
from report.loading import load_run

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_the_notebook_trains_two_methods_and_writes_a_report(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, EXAMPLES / "compare_in_a_notebook.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stderr
    runs = [load_run(path) for path in sorted((tmp_path / ".runs").iterdir())]
    assert [run.strategy for run in runs] == ["fedavg", "feddm"]
    for run in runs:
        assert run.finished
        assert run.final is not None
        assert run.final.test is not None
        assert f"{100 * run.final.test.primary:.2f}" in ran.stdout
    assert ran.stdout.endswith(f"report {tmp_path / 'report.html'}\n")
    assert "<html" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.name)
def test_every_suite_is_ready_to_run(file: Path) -> None:
    suite = read_suite(file)
    assert len(plan_suite(suite.runs)) == len(suite.runs) > 0
