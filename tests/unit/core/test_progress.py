"""Step counts across counters and processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from core.progress import StepCounter, steps_counted

ROOT = Path(__file__).resolve().parents[3]


def test_counters_of_one_process_add_up(tmp_path: Path) -> None:
    assert steps_counted(tmp_path / "progress") == 0
    first, second = StepCounter(tmp_path / "progress"), StepCounter(tmp_path / "progress")
    for _ in range(3):
        first()
        second()
    first()
    assert steps_counted(tmp_path / "progress") == 7


def test_counts_of_processes_add_up(tmp_path: Path) -> None:
    StepCounter(tmp_path)()
    code = (
        "import sys; from pathlib import Path; from core.progress import StepCounter;"
        "c = StepCounter(Path(sys.argv[1])); [c() for _ in range(5)]"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, check=True)
    assert steps_counted(tmp_path) == 6
