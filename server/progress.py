"""What a run reports while it goes on. The server calls; terminals, logs and tests implement."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from core.errors import RecordError
from core.records import ClientRecord, RoundRecord, RunFolder, scores_of
from core.scores import CLASSIFICATION, Score


class Progress(Protocol):
    """Called from the server's thread, in this order."""

    def run_started(self, folder: Path, rounds: int, rounds_done: int) -> None:
        """A run begins, or goes on.

        Args:
            folder: Its run folder, whose ``run.json`` is written;
                ``core.progress.steps_counted(folder / "progress")`` tells the clients' inner steps
                so far.
            rounds: Rounds in all.
            rounds_done: Rounds that were done before.
        """

    def round_started(self, round: int, clients: int, steps: int) -> None:
        """Requests of `round` go out.

        Args:
            round: From 1.
            clients: Clients asked.
            steps: Inner steps of all whose replies the round takes; 0 if unknown.
        """

    def client_replied(self, client: ClientRecord) -> None:
        """A client's reply was counted, or why none of it was."""

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
        self._folder = Path()
        self._score = CLASSIFICATION.primary

    def run_started(self, folder: Path, rounds: int, rounds_done: int) -> None:
        """Name the folder."""
        self._rounds, self._folder = rounds, folder
        self._score = primary_score(folder)
        print(f"run folder {folder}{going_on(rounds_done)}", flush=True)

    def round_started(self, round: int, clients: int, steps: int) -> None:
        """Say nothing."""

    def client_replied(self, client: ClientRecord) -> None:
        """Name a client that failed."""
        if line := failure_line(client):
            print(line, flush=True)

    def server_started(self) -> None:
        """Say nothing."""

    def round_ended(self, record: RoundRecord) -> None:
        """One line with the figures of the round."""
        told = epsilon_told(record, self._folder)
        print(round_line(record, self._rounds, self._score, told), flush=True)

    def run_ended(self, status: str) -> None:
        """Say how it ended."""
        print(ending(status, self._folder), flush=True)


def going_on(rounds_done: int) -> str:
    """What is said of a run that goes on."""
    return f", going on after round {rounds_done}" if rounds_done else ""


def ending(status: str, folder: Path) -> str:
    """What is said at the end of a run."""
    goes_on = status == "interrupted"
    return f"run {status}" + (f"; go on with: tessera run --resume {folder}" if goes_on else "")


def failure_line(client: ClientRecord) -> str:
    """What is said of a client whose reply did not count; empty where nothing is.

    >>> failure_line(ClientRecord(partition_id=3, bytes_down=1, bytes_up=0, outcome="failed",
    ...     failure="ValueError: no"))
    '  client 3 failed: ValueError: no'
    """
    if client.outcome in ("counted", "surplus") or client.failure is None:
        return ""
    return f"  client {client.partition_id} {client.outcome}: {client.failure.splitlines()[0]}"


def primary_score(folder: Path) -> Score:
    """What the run in `folder` is judged by first.

    Raises:
        RecordError: Its ``run.json`` is missing or damaged.
    """
    run = RunFolder(folder)
    return scores_of(run.read_json("run"), run.path / "run.json").primary


def epsilon_told(record: RoundRecord, folder: Path) -> str:
    """What a private run has cost so far, such as ``epsilon 1.23 of 4``; empty for any other."""
    try:
        statement = RunFolder(folder).read_json("privacy")
    except RecordError:
        return ""
    if "mechanism" not in statement or record.round == 0:
        return ""
    if (epsilon := record.server.get("epsilon")) is None:
        note = (statement.get("spent") or {}).get("note")
        return f"epsilon {note}" if note else "epsilon unknown"
    budget = statement["budget"]
    return f"epsilon {epsilon:.4g}" + (f" of {budget:g}" if budget is not None else "")


def round_line(record: RoundRecord, rounds: int, score: Score, privacy: str = "") -> str:
    """A round in one line.

    Args:
        record: What happened.
        rounds: Rounds in all.
        score: The run's primary one.
        privacy: What a private run has cost so far; empty for any other.

    >>> record = RoundRecord(round=2, validation=None, test=None, client_scores=None,
    ...     worst_client_score=None, bytes_down=10, bytes_up=20, clients=[], server={},
    ...     seconds={"wall": 1.5, "elapsed": 3.0})
    >>> round_line(record, 5, CLASSIFICATION.primary)
    'round 2/5  not evaluated  up 20 B  down 10 B  1.5 s'
    """
    width = len(str(rounds))
    splits = ((f"test {score.label}", record.test), ("validation", record.validation))
    told = [
        f"{title} {score.text(judged.primary):>6}" for title, judged in splits if judged is not None
    ]
    judged = "  ".join([*(told or ["not evaluated"]), *([privacy] if privacy else [])])
    return (
        f"round {record.round:>{width}}/{rounds}  {judged}  "
        f"up {record.bytes_up:,} B  down {record.bytes_down:,} B  {record.seconds['wall']:.1f} s"
    )
