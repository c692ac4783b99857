"""What a run reports while it goes on. The server calls; terminals, logs and tests implement."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from core.records import RoundRecord


class Progress(Protocol):
    """Called from the server's thread, in this order."""

    def run_started(self, folder: Path, rounds: int, clients: int, steps_per_round: int) -> None:
        """A run begins.

        Args:
            folder: Its run folder; ``core.progress.steps_counted(folder / "progress")`` tells the
                clients' inner steps so far.
            rounds: Rounds to come.
            clients: Clients asked each round.
            steps_per_round: Inner steps of all clients in a round; 0 if unknown.
        """

    def round_started(self, round: int) -> None:
        """Requests of `round` go out."""

    def client_replied(self, partition_id: int, failure: str | None) -> None:
        """A client's reply was counted, or it failed and this is why."""

    def server_started(self) -> None:
        """All replies are in; the server works."""

    def round_ended(self, record: RoundRecord) -> None:
        """A round is on record; round 0 is the initial model."""

    def run_ended(self, status: str) -> None:
        """The run is over: complete, failed or interrupted."""


class PlainProgress:
    """One line per round, for logs and pipes."""

    def __init__(self) -> None:
        self._rounds = 0

    def run_started(self, folder: Path, rounds: int, clients: int, steps_per_round: int) -> None:
        """Name the folder."""
        self._rounds = rounds
        print(f"run folder {folder}", flush=True)

    def round_started(self, round: int) -> None:
        """Say nothing."""

    def client_replied(self, partition_id: int, failure: str | None) -> None:
        """Name a client that failed."""
        if failure is not None:
            print(f"  client {partition_id} failed: {failure}", flush=True)

    def server_started(self) -> None:
        """Say nothing."""

    def round_ended(self, record: RoundRecord) -> None:
        """One line with the figures of the round."""
        print(round_line(record, self._rounds), flush=True)

    def run_ended(self, status: str) -> None:
        """Say how it ended."""
        print(f"run {status}", flush=True)


def round_line(record: RoundRecord, rounds: int) -> str:
    """A round in one line.

    >>> record = RoundRecord(round=2, validation=None, test=None, client_accuracy=None,
    ...     worst_client_accuracy=None, bytes_down=10, bytes_up=20, clients=[], server={},
    ...     seconds={"wall": 1.5, "elapsed": 3.0})
    >>> round_line(record, 5)
    'round 2/5  not evaluated  up 20 B  down 10 B  1.5 s'
    """
    width = len(str(rounds))
    judged = "not evaluated"
    if record.test is not None and record.validation is not None:
        judged = (
            f"test accuracy {record.test.accuracy:6.2%}  "
            f"validation {record.validation.accuracy:6.2%}"
        )
    return (
        f"round {record.round:>{width}}/{rounds}  {judged}  "
        f"up {record.bytes_up:,} B  down {record.bytes_down:,} B  {record.seconds['wall']:.1f} s"
    )
