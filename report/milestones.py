"""Rounds of one run that matter: the best on validation, and the first to reach a target.

What a run had cost by then counts every round up to it, evaluated or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.records import RoundRecord
from report.loading import LoadedRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a run had cost when a round ended.

    Attributes:
        round: The round's number.
        bytes_up: Bytes that all clients sent until then.
        bytes_down: Bytes that were sent to all clients until then.
        client_s: Seconds that clients trained until then, summed over clients.
        server_s: Seconds of aggregation and server training until then.
    """

    round: int
    bytes_up: int
    bytes_down: int
    client_s: float
    server_s: float


def spending(run: LoadedRun) -> Sequence[Spent]:
    """What each round on record had cost when it ended, in the order of `run.rounds`."""
    spent = Spent(round=0, bytes_up=0, bytes_down=0, client_s=0.0, server_s=0.0)
    points = []
    for record in run.rounds:
        spent = Spent(
            round=record.round,
            bytes_up=spent.bytes_up + record.bytes_up,
            bytes_down=spent.bytes_down + record.bytes_down,
            client_s=spent.client_s + record.seconds["client_sum"],
            server_s=spent.server_s + record.seconds["server"],
        )
        points.append(spent)
    return points


def total_spent(run: LoadedRun) -> Spent | None:
    """What the whole run has cost; None before any round is on record."""
    return spending(run)[-1] if run.rounds else None


def best_round(run: LoadedRun) -> RoundRecord | None:
    """The round of highest primary score on validation, the earliest of equals.

    Test scores have no part in the choice. None where no round has been judged on both validation
    and test.
    """
    judged = [
        (record.validation.primary, record)
        for record in run.rounds
        if record.validation is not None and record.test is not None
    ]
    return max(judged, key=lambda pair: pair[0])[1] if judged else None


def reached(run: LoadedRun, target: float) -> Spent | None:
    """What it took to reach a target: the first evaluated round at or above it.

    Args:
        run: The run.
        target: Primary score on test, not multiplied by 100 where it is a share.

    Returns:
        The cost up to and including that round; None where no evaluated round reaches it.
    """
    for record, spent in zip(run.rounds, spending(run), strict=True):
        if record.test is not None and record.test.primary >= target:
            return spent
    return None
