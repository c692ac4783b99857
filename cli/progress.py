"""How a run goes, shown while it goes: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from core.progress import steps_counted
from core.records import ClientRecord, RoundRecord, RunFolder
from server.progress import (
    PlainProgress,
    Progress,
    ending,
    epsilon_told,
    failure_line,
    going_on,
    primary_score,
    round_line,
)
from strategies.table import strategy_class

REFRESHES_PER_SECOND = 4
"""Enough to look alive; a refresh costs some milliseconds of the interpreter that trains."""

_TELLING_SHARE = 0.02
"""From this share of the first round on, its pace says something about the rest."""


@contextmanager
def shown_progress(stream: TextIO) -> Iterator[Progress]:
    """Bars where `stream` is a terminal that can move its cursor, and plain lines elsewhere.

    Whatever happens, the terminal is left in order.
    """
    console = Console(file=stream)
    if not stream.isatty() or console.is_dumb_terminal or os.environ.get("CI"):
        yield PlainProgress()
        return
    progress = LiveProgress(console)
    try:
        yield progress
    finally:
        progress.close()


class LiveProgress:
    """Bars of rounds, clients and inner steps below the lines of finished rounds.

    The server's thread only stores numbers; a thread of the display reads them, and the clients'
    step counts, when it draws.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None

    def run_started(self, folder: Path, rounds: int, rounds_done: int) -> None:
        """Name the folder and show the bars."""
        self.close()
        self._folder = folder
        self._steps_folder = RunFolder(folder).progress
        strategy = RunFolder(folder).read_json("config")["strategy"]
        self._kind_of_step = strategy_class(str(strategy)).step_name
        self._score = primary_score(folder)
        self._rounds, self._clients, self._steps_per_round = rounds, 0, 0
        self._round = self._done = self._done_before = rounds_done
        self._replied = self._steps = self._steps_before = 0
        self._server_works = True
        self._began = self._round_began = time.monotonic()
        self._finished_s = 0.0
        self._print(f"run folder {folder}{going_on(rounds_done)}")
        self._live = Live(
            console=self._console,
            get_renderable=self.bars,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,
        )
        self._live.start()

    def round_started(self, round: int, clients: int, steps: int) -> None:
        """Empty the bars of the round."""
        self._round, self._replied = round, 0
        self._clients, self._steps_per_round = clients, steps
        self._server_works = clients == 0
        self._steps_before = self._count_steps()
        self._round_began = time.monotonic()

    def client_replied(self, client: ClientRecord) -> None:
        """Move the clients' bar; name a client that failed."""
        self._replied += 1
        if line := failure_line(client):
            self._print(line)

    def server_started(self) -> None:
        """Show that the server works."""
        self._steps_before = self._count_steps()
        self._server_works = True

    def round_ended(self, record: RoundRecord) -> None:
        """One line with the figures of the round."""
        self._done = record.round
        if record.round > 0:
            self._finished_s += time.monotonic() - self._round_began
        told = epsilon_told(record, self._folder)
        self._print(round_line(record, self._rounds, self._score, told))

    def run_ended(self, status: str) -> None:
        """Take the bars away and say how it ended."""
        self.close()
        self._print(ending(status, self._folder))

    def close(self) -> None:
        """Take the bars away, if there are any."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _count_steps(self) -> int:
        with suppress(OSError):  # the folder goes when the run ends
            self._steps = max(self._steps, steps_counted(self._steps_folder))
        return self._steps

    def bars(self) -> Table:
        """Rounds, and below them clients and their steps or the server's, as of now."""
        now = time.monotonic()
        steps = self._count_steps() - self._steps_before
        table = Table.grid(padding=(0, 1))
        table.add_column(width=14, no_wrap=True)
        table.add_column(width=26)
        table.add_column(no_wrap=True)
        elapsed = timedelta(seconds=int(now - self._began))
        table.add_row(
            f"round {self._round}/{self._rounds}",
            ProgressBar(total=self._rounds, completed=self._done),
            f"{elapsed} elapsed, {self._left(now, steps)} left",
        )
        if self._server_works:
            doing = f"{steps:,} training steps" if steps else "aggregating, evaluating"
            table.add_row("server", ProgressBar(pulse=True), doing)
            return table
        told = f"{self._kind_of_step} steps {steps:,}"
        told += f"/{self._steps_per_round:,}" if self._steps_per_round else ""
        total, completed = self._clients, self._replied
        if self._steps_per_round:
            total, completed = self._steps_per_round, min(steps, self._steps_per_round)
        table.add_row(
            f"clients {self._replied}/{self._clients}",
            ProgressBar(total=total, completed=completed),
            told,
        )
        return table

    def _left(self, now: float, steps: int) -> str:
        """Time to the end, as the finished rounds went; before any, as this one's clients go."""
        in_round = now - self._round_began
        if self._done > self._done_before:
            pace = self._finished_s / (self._done - self._done_before)
        elif self._steps_per_round and steps >= _TELLING_SHARE * self._steps_per_round:
            pace = in_round * self._steps_per_round / steps
        else:
            return "?"
        if self._done == self._rounds:
            return str(timedelta(0))
        left = pace * (self._rounds - self._done) - in_round
        return str(timedelta(seconds=max(0, int(left))))
