"""Clients whose reply was not counted: who, in which rounds, what came of them and why.

A surplus reply is no failure: the round had closed with all the replies it takes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from core.records import ReplyOutcome
from report.loading import OUTCOMES, LoadedRun
from report.methods import Method
from report.tables import joined, seeds_text

FAILURES: tuple[ReplyOutcome, ...] = ("refused", "failed", "dropped", "late")
NO_REASON = "no reason on record"
_MOST_ROWS_OF_A_RUN = 12
_MOST_SPANS = 8
_MOST_NAMED_CLIENTS = 3
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One request that failed."""

    round: int
    partition_id: int
    outcome: ReplyOutcome
    reason: str


@dataclass(frozen=True, slots=True)
class FailureRow:
    """Failures of one run that are told together.

    Attributes:
        method: Whose run it is.
        run: The run.
        outcome: What came of the requests.
        clients: Which clients, in words.
        rounds: In which rounds, in words.
        count: Requests that failed so.
        reason: Why; where `alike`, one of several reasons that differ in their numbers.
        alike: Whether there are such others.
    """

    method: Method
    run: LoadedRun
    outcome: ReplyOutcome
    clients: str
    rounds: str
    count: int
    reason: str
    alike: bool


@dataclass(frozen=True, slots=True)
class OutcomeCounts:
    """What came of all requests of a method, all seeds together, in the order of `OUTCOMES`."""

    method: Method
    asked: int
    counts: tuple[int, ...]


def failures_of(run: LoadedRun) -> list[Occurrence]:
    """Every request of a run that failed, by round and client."""
    return [
        Occurrence(record.round, client.partition_id, client.outcome, client.failure or NO_REASON)
        for record in run.rounds
        for client in sorted(record.clients, key=lambda client: client.partition_id)
        if client.outcome in FAILURES
    ]


def outcome_counts(methods: Sequence[Method]) -> list[OutcomeCounts]:
    """What came of all requests, one entry per method."""
    tallies = []
    for method in methods:
        clients = (c for run in method.runs for record in run.rounds for c in record.clients)
        tally = Counter(client.outcome for client in clients)
        counts = tuple(tally[outcome] for outcome in OUTCOMES)
        tallies.append(OutcomeCounts(method, sum(counts), counts))
    return tallies


def left_out_of_costs(runs: Iterable[LoadedRun]) -> str:
    """What client seconds and uploads do not count, as a sentence; empty where nothing is missing.

    Dropouts are simulated and cost nothing.
    """
    occurred = {c.outcome for run in runs for record in run.rounds for c in record.clients}
    without_seconds = [o for o in ("refused", "late", "surplus") if o in occurred]
    without_bytes = [o for o in ("late", "surplus") if o in occurred]
    untimed = ["clients that failed"] if "failed" in occurred else []
    untimed += [f"replies that were {joined(without_seconds, 'or')}"] if without_seconds else []
    if not untimed:
        return ""
    uploads = f"; uploads leave out those that were {joined(without_bytes, 'or')}"
    return f"Client seconds leave out {joined(untimed)}{uploads if without_bytes else ''}."


def failure_rows(methods: Sequence[Method]) -> list[FailureRow]:
    """The failures of all runs, by method and seed; of a run the most frequent first.

    A run with few failures is told in full: clients that failed in the same rounds for the same
    reason share a row. One with more is summarised per client and reason, where reasons that
    differ in their numbers alone are one; one with more still, per reason.
    """
    rows = []
    for method in methods:
        for run in method.runs:
            groups = _groups(failures_of(run))
            groups.sort(key=lambda group: (-len(group), group[0].round, group[0].partition_id))
            rows += [_row(method, run, group) for group in groups]
    return rows


def _groups(failures: Sequence[Occurrence]) -> list[list[Occurrence]]:
    """Occurrences that share a row, in the finest way that is short enough."""
    exact = _grouped(failures, lambda f: (f.outcome, f.reason, f.partition_id))
    same_rounds: dict[Hashable, list[Occurrence]] = {}
    for group in exact:
        rounds = tuple(failure.round for failure in group)
        key = (group[0].outcome, group[0].reason, rounds)
        same_rounds.setdefault(key, []).extend(group)
    levels: tuple[Callable[[], list[list[Occurrence]]], ...] = (
        lambda: list(same_rounds.values()),
        lambda: _grouped(failures, lambda f: (f.outcome, _pattern(f.reason), f.partition_id)),
        lambda: _grouped(failures, lambda f: (f.outcome, _pattern(f.reason))),
    )
    for level in levels:
        groups = level()
        if len(groups) <= _MOST_ROWS_OF_A_RUN:
            break
    return groups


def _grouped(
    failures: Iterable[Occurrence], key: Callable[[Occurrence], Hashable]
) -> list[list[Occurrence]]:
    groups: dict[Hashable, list[Occurrence]] = {}
    for failure in failures:
        groups.setdefault(key(failure), []).append(failure)
    return list(groups.values())


def _pattern(reason: str) -> str:
    """A reason without its numbers, which name a client or a duration."""
    return _NUMBER.sub("#", reason)


def _row(method: Method, run: LoadedRun, group: Sequence[Occurrence]) -> FailureRow:
    return FailureRow(
        method=method,
        run=run,
        outcome=group[0].outcome,
        clients=_clients_text(Counter(failure.partition_id for failure in group)),
        rounds=_rounds_text(sorted({failure.round for failure in group})),
        count=len(group),
        reason=group[0].reason,
        alike=len({failure.reason for failure in group}) > 1,
    )


def _clients_text(times: Counter[int]) -> str:
    text = seeds_text(sorted(times))
    if text.count(",") < _MOST_SPANS:
        return text
    by_times = sorted(times, key=lambda client: (-times[client], client))
    named = ", ".join(str(client) for client in by_times[:_MOST_NAMED_CLIENTS])
    return f"{len(times)} clients, most often {named}"


def _rounds_text(rounds: Sequence[int]) -> str:
    text = seeds_text(rounds)
    if text.count(",") < _MOST_SPANS:
        return text
    return f"{len(rounds)} rounds from {rounds[0]} to {rounds[-1]}"
