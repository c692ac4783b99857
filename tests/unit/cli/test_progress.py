"""What is shown while a run goes on."""

from __future__ import annotations

import io
import os
import pty
from contextlib import suppress
from pathlib import Path

import pytest
from rich.console import Console

from cli.progress import LiveProgress, shown_progress
from core.progress import StepCounter
from core.records import ClientRecord, EvaluationRecord, ReplyOutcome, RoundRecord, RunFolder
from server.progress import PlainProgress

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    RunFolder(tmp_path).write_json("config", {"strategy": "feddm"})
    RunFolder(tmp_path).write_json("run", {})
    return tmp_path


class Terminal:
    """A terminal that can be looked at."""

    def __init__(self) -> None:
        self.output = io.StringIO()
        self.console = Console(
            file=self.output, force_terminal=True, width=80, color_system=None, _environ={}
        )

    def bars(self, progress: LiveProgress) -> list[str]:
        """The bars as they would be drawn now, as text."""
        page = Console(file=io.StringIO(), width=80, color_system=None)
        with page.capture() as captured:
            page.print(progress.bars())
        return [" ".join(line.split()) for line in captured.get().splitlines()]


def round_record(round: int) -> RoundRecord:
    evaluation = EvaluationRecord(
        num_examples=4,
        loss=1.0,
        scores={"accuracy": 0.75, "macro_f1": 0.75},
        per_class_accuracy=[0.75],
        confusion=[[4]],
    )
    return RoundRecord(
        round=round,
        validation=evaluation,
        test=evaluation,
        client_scores=None,
        worst_client_score=None,
        bytes_down=1,
        bytes_up=2,
        clients=[],
        server={},
        seconds={"wall": 1.0},
    )


def client(outcome: ReplyOutcome = "counted", failure: str | None = None) -> ClientRecord:
    return ClientRecord(partition_id=0, bytes_down=1, bytes_up=1, outcome=outcome, failure=failure)


def test_bars_follow_clients_and_steps(folder: Path) -> None:
    terminal = Terminal()
    progress = LiveProgress(terminal.console)
    progress.run_started(folder, rounds=5, rounds_done=0)
    count_step = StepCounter(RunFolder(folder).progress)
    progress.round_ended(round_record(0))
    for _ in range(30):
        count_step()
    progress.round_ended(round_record(1))
    progress.round_started(2, clients=3, steps=30)
    for _ in range(12):
        count_step()
    progress.client_replied(client())
    rounds, clients = terminal.bars(progress)
    assert rounds.startswith("round 2/5 ")
    assert " elapsed, " in rounds
    assert rounds.endswith(" left")
    assert clients.startswith("clients 1/3 ")
    assert clients.endswith("matching steps 12/30")
    progress.server_started()
    assert terminal.bars(progress)[1].endswith("aggregating, evaluating")
    for _ in range(4):
        count_step()
    assert terminal.bars(progress)[1].startswith("server ")
    assert terminal.bars(progress)[1].endswith("4 training steps")
    progress.run_ended("complete")


def test_finished_rounds_and_failures_stay_as_lines(folder: Path) -> None:
    terminal = Terminal()
    progress = LiveProgress(terminal.console)
    progress.run_started(folder, rounds=1, rounds_done=0)
    progress.round_started(1, clients=1, steps=0)
    progress.client_replied(client("failed", "ValueError: bad\n  File ..."))
    progress.client_replied(client("surplus", "not needed"))
    progress.round_ended(round_record(1))
    progress.run_ended("failed")
    output = terminal.output.getvalue()
    assert f"run folder {folder}" in output.replace("\n", "")
    assert "client 0 failed: ValueError: bad" in output
    assert "File" not in output
    assert "not needed" not in output
    assert "round 1/1  test accuracy 75.00%  validation 75.00%" in output
    assert output.rstrip().endswith("run failed")


def test_time_left_is_unknown_at_first_and_zero_at_last(folder: Path) -> None:
    terminal = Terminal()
    progress = LiveProgress(terminal.console)
    progress.run_started(folder, rounds=1, rounds_done=0)
    progress.round_started(1, clients=2, steps=0)
    assert terminal.bars(progress)[0].endswith("? left")
    progress.round_ended(round_record(1))
    assert terminal.bars(progress)[0].endswith("0:00:00 left")
    progress.run_ended("complete")


def test_without_clients_only_the_server_is_shown(folder: Path) -> None:
    terminal = Terminal()
    progress = LiveProgress(terminal.console)
    progress.run_started(folder, rounds=1, rounds_done=0)
    progress.round_started(1, clients=0, steps=0)
    assert terminal.bars(progress)[1].startswith("server ")
    progress.run_ended("complete")


def test_the_folder_of_steps_may_go_before_the_bars_do(folder: Path) -> None:
    terminal = Terminal()
    progress = LiveProgress(terminal.console)
    progress.run_started(folder, rounds=1, rounds_done=0)
    StepCounter(RunFolder(folder).progress)()
    progress.round_started(1, clients=1, steps=10)
    (count,) = RunFolder(folder).progress.iterdir()
    count.unlink()
    assert len(terminal.bars(progress)) == 2
    progress.run_ended("complete")


def test_elsewhere_than_on_a_terminal_lines_are_plain() -> None:
    with shown_progress(io.StringIO()) as progress:
        assert isinstance(progress, PlainProgress)


def read_all(leader: int) -> str:
    """What was written to a terminal whose other end is closed."""
    parts = []
    with suppress(OSError):  # Linux tells the end by an error, others by an empty read
        while part := os.read(leader, 1 << 16):
            parts.append(part)
    os.close(leader)
    return b"".join(parts).decode()


@pytest.mark.parametrize(
    ("variable", "value", "live"),
    [("TERM", "xterm", True), ("TERM", "dumb", False), ("CI", "true", False)],
)
def test_a_terminal_shows_bars_unless_it_cannot(
    variable: str, value: str, live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv(variable, value)
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as stream, shown_progress(stream) as progress:
        assert isinstance(progress, LiveProgress if live else PlainProgress)
    os.close(leader)


def test_whatever_happens_the_cursor_comes_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("CI", raising=False)
    leader, follower = pty.openpty()

    def fail() -> None:
        with os.fdopen(follower, "w") as stream, shown_progress(stream) as progress:
            progress.run_started(folder, rounds=1, rounds_done=0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    output = read_all(leader)
    assert HIDE_CURSOR in output
    assert output.rindex(SHOW_CURSOR) > output.rindex(HIDE_CURSOR)
