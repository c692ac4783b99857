"""Watches a contender from outside: when each of its rounds ended, and what it cost in CPU time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import RunError

POLL_S = 0.01
"""How often is looked for a new line; one look costs some ten microseconds."""

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Watched:
    """One run of a contender.

    Attributes:
        round_s: Seconds of each round after the first.
        start_to_round_1_s: Seconds from the command to the end of round 1.
        cpu_s_per_round: CPU seconds of the process and all that it started, mean of the rounds
            after the first and before the last, or of the second where there are but two: when the
            last is seen to have ended, workers may have ended too, and their time be gone.
        start_cpu_s: Likewise, from the command to the end of round 1.
        total_s: Seconds from the command to the end of the process.
    """

    round_s: list[float]
    start_to_round_1_s: float
    cpu_s_per_round: float
    start_cpu_s: float
    total_s: float


def watch(
    command: Sequence[str],
    *,
    rounds: int,
    rounds_file: Path,
    log: Path,
    environment: Mapping[str, str],
    folder: Path,
    timeout_s: float = 1800,
) -> Watched:
    """Run a command to its end.

    Args:
        command: What to run, in `folder`, with `environment` in place of this process's.
        rounds: Number of rounds.
        rounds_file: JSON lines that the command appends, one a round with its number under
            ``round``; where the line tells ``at`` (seconds since the epoch) or ``seconds.elapsed``,
            rounds are timed by that, otherwise by when the line was seen.
        log: What the command prints.
        environment: Variables of the command.
        folder: Its working directory.
        timeout_s: After this the command is ended.

    Raises:
        RunError: It failed, took too long or told fewer rounds; names the log.
    """
    seen_at: dict[int, float] = {}
    cpu_at: dict[int, float] = {}
    with log.open("wb") as output:
        started_at, began = time.time(), time.monotonic()
        process = subprocess.Popen(
            list(command),
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            size = 0
            while True:
                # Looked at before the file: what an ended process has written is seen all the same.
                ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                found = rounds_file.stat().st_size if rounds_file.exists() else 0
                if found != size:
                    size = found
                    now = time.time()
                    for number in _rounds_told(rounds_file):
                        if number not in seen_at:
                            seen_at[number] = now
                            cpu_at[number] = tree_cpu_s(process.pid)
                if ended is not None:
                    break
                if time.monotonic() - began > timeout_s:
                    raise RunError(f"{command[0]} took more than {timeout_s:g} s; see {log}")
                time.sleep(POLL_S)
            total_s = time.monotonic() - began
            code = process.wait()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
    if code != 0:
        raise RunError(f"a contender ended with exit code {code}; see {log}")
    if missing := [number for number in range(1, rounds + 1) if number not in seen_at]:
        raise RunError(f"a contender told nothing of rounds {missing}; see {log}")
    ends = _ends(rounds_file, seen_at)
    last_alive = max(2, rounds - 1)
    return Watched(
        round_s=[ends[number] - ends[number - 1] for number in range(2, rounds + 1)],
        start_to_round_1_s=seen_at[1] - started_at,
        cpu_s_per_round=(cpu_at[last_alive] - cpu_at[1]) / (last_alive - 1),
        start_cpu_s=cpu_at[1],
        total_s=total_s,
    )


def tree_cpu_s(root: int) -> float:
    """CPU seconds of a process and of all its descendants, those included that it waited for."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                # The name, in parentheses, may itself hold spaces and parentheses.
                stat = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat[1])
            ticks[int(entry.name)] = sum(map(int, stat[11:15]))
    total = 0
    for pid in ticks:
        ancestor: int | None = pid
        while ancestor is not None and ancestor != root:
            ancestor = parents.get(ancestor)
        if ancestor == root:
            total += ticks[pid]
    return total / _TICKS_PER_S


def _lines(path: Path) -> list[dict[str, Any]]:
    """Complete lines; one that is being written is left out."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def _rounds_told(path: Path) -> list[int]:
    return [int(line["round"]) for line in _lines(path)]


def _ends(path: Path, seen_at: Mapping[int, float]) -> dict[int, float]:
    """When rounds ended, by the contender's clock where it tells the time."""
    ends = dict(seen_at)
    for line in _lines(path):
        if "at" in line:
            ends[int(line["round"])] = float(line["at"])
        elif "seconds" in line:
            ends[int(line["round"])] = float(line["seconds"]["elapsed"])
    return ends
