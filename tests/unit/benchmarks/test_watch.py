"""Watching a process from outside."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from benchmarks.watch import Watched, watch
from core.errors import RunError

TELL = """
import json, subprocess, sys, time
def tell(**line):
    with open(sys.argv[1], "a") as file:
        file.write(json.dumps(line) + "\\n")
"""


def watched(tmp_path: Path, script: str, rounds: int, timeout_s: float = 60) -> Watched:
    path = tmp_path / "rounds.jsonl"
    return watch(
        [sys.executable, "-c", TELL + script, str(path)],
        rounds=rounds,
        rounds_file=path,
        log=tmp_path / "log.txt",
        environment=os.environ,
        folder=tmp_path,
        timeout_s=timeout_s,
    )


def test_rounds_are_timed_by_the_clock_that_the_contender_tells(tmp_path: Path) -> None:
    script = "for r, at in ((1, 100.0), (2, 101.5), (3, 104.5)): tell(round=r, at=at)"
    assert watched(tmp_path, script, 3).round_s == [1.5, 3.0]


def test_records_of_tessera_tell_the_time_since_the_start(tmp_path: Path) -> None:
    script = "for r, s in ((0, 1.0), (1, 2.0), (2, 4.5)): tell(round=r, seconds={'elapsed': s})"
    assert watched(tmp_path, script, 2).round_s == [2.5]


def test_cpu_time_of_children_counts_whether_they_live_or_not(tmp_path: Path) -> None:
    script = """
burn = "import time\\nwhile time.process_time() < 0.4: pass\\n"
tell(round=1)
time.sleep(0.2)
subprocess.run([sys.executable, "-c", burn], check=True)
living = subprocess.Popen(
    [sys.executable, "-c", burn + "print(flush=True); time.sleep(60)"], stdout=subprocess.PIPE
)
living.stdout.readline()
tell(round=2)
time.sleep(0.5)
living.kill(); living.wait()
"""
    assert watched(tmp_path, script, 2).cpu_s_per_round >= 0.78  # two clocks of 10 ms


def test_cpu_time_survives_a_worker_that_ends_with_the_last_round(tmp_path: Path) -> None:
    script = """
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever ends takes its CPU seconds along
burn = "while True: pass"
worker = subprocess.Popen([sys.executable, "-c", burn])
for r in (1, 2):
    tell(round=r)
    time.sleep(0.5)
worker.kill()
worker.wait()
tell(round=3)
"""
    assert watched(tmp_path, script, 3).cpu_s_per_round >= 0.1


def test_a_failure_names_the_log(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"exit code 3; see .*log\.txt"):
        watched(tmp_path, "print('why'); sys.exit(3)", 2)
    assert (tmp_path / "log.txt").read_text() == "why\n"


def test_missing_rounds_are_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nothing of rounds \[2\]"):
        watched(tmp_path, "tell(round=1)", 2)


def test_what_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"more than 0\.2 s"):
        watched(tmp_path, "time.sleep(60)", 2, timeout_s=0.2)
