"""What was judged and measured over rounds, and what it had cost: means over a method's seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from report.loading import LoadedRun
from report.milestones import Spent, spending

_UPLOADS_NO_UPDATE = ("local", "centralized")


@dataclass(frozen=True, slots=True)
class Curve:
    """The primary score on test over the rounds that every seed has evaluated.

    Each list has one entry a round. A share is in [0, 1].

    Seeds are averaged round by round, costs as well: a point lies at the mean cost of its round.

    Attributes:
        rounds: Round numbers.
        score: Mean over seeds.
        std: Sample standard deviation over seeds (n - 1); 0 for one seed.
        lowest: Least over seeds.
        highest: Greatest over seeds.
        bytes_up: Bytes that all clients sent until then, mean over seeds.
        client_s: Seconds that clients trained until then, summed over clients, mean over seeds.
        elapsed_s: Seconds since the start of the run, mean over seeds.
    """

    rounds: list[int]
    score: list[float]
    std: list[float]
    lowest: list[float]
    highest: list[float]
    bytes_up: list[float]
    client_s: list[float]
    elapsed_s: list[float]

    def where_positive(self, cost: Sequence[float]) -> Curve:
        """Without the rounds at which `cost` is still 0, which no logarithmic axis can show.

        Args:
            cost: One value a round, such as `bytes_up`.
        """
        kept = [index for index, value in enumerate(cost) if value > 0]
        return Curve(*([getattr(self, f.name)[i] for i in kept] for f in fields(self)))


def curve(runs: Sequence[LoadedRun]) -> Curve:
    """The curve of the runs of one method; empty where no round is evaluated in all of them."""
    per_seed: list[dict[int, tuple[float, Spent, float]]] = []
    for run in runs:
        points = {
            record.round: (record.test.primary, spent, record.seconds["elapsed"])
            for record, spent in zip(run.rounds, spending(run), strict=True)
            if record.test is not None
        }
        if points:
            per_seed.append(points)
    shared = sorted(set.intersection(*map(set, per_seed))) if per_seed else []
    if not shared:
        return Curve([], [], [], [], [], [], [], [])
    reached = [[points[r] for points in per_seed] for r in shared]
    scores = np.array([[score for score, _, _ in seeds] for seeds in reached])
    deviates = scores.shape[1] > 1
    return Curve(
        rounds=shared,
        score=scores.mean(axis=1).tolist(),
        std=scores.std(axis=1, ddof=1).tolist() if deviates else [0.0] * len(shared),
        lowest=scores.min(axis=1).tolist(),
        highest=scores.max(axis=1).tolist(),
        bytes_up=[float(np.mean([spent.bytes_up for _, spent, _ in seeds])) for seeds in reached],
        client_s=[float(np.mean([spent.client_s for _, spent, _ in seeds])) for seeds in reached],
        elapsed_s=[float(np.mean([elapsed for _, _, elapsed in seeds])) for seeds in reached],
    )


@dataclass(frozen=True, slots=True)
class Course:
    """A number over rounds; each list has one entry a round.

    Attributes:
        rounds: That every seed has on record.
        value: Mean over seeds, unless it says otherwise where the course is made.
        least: Least over seeds, likewise.
        most: Greatest over seeds, likewise.
    """

    rounds: list[int]
    value: list[float]
    least: list[float]
    most: list[float]


def course(runs: Sequence[LoadedRun], metric: str) -> Course:
    """What the server measured under the name `metric` in the rounds of one method's runs."""
    per_seed = [
        {record.round: record.server[metric] for record in run.rounds if metric in record.server}
        for run in runs
    ]
    shared = sorted(set.intersection(*map(set, per_seed)))
    values = [[seed[r] for seed in per_seed] for r in shared]
    return Course(
        shared,
        [sum(seeds) / len(seeds) for seeds in values],
        [min(seeds) for seeds in values],
        [max(seeds) for seeds in values],
    )


def uploads_no_update(runs: Sequence[LoadedRun]) -> bool:
    """Whether no upload carries weights or images: there is none, or metrics alone."""
    return any(run.strategy in _UPLOADS_NO_UPDATE for run in runs) or all(
        run.rounds_done > 0 and spending(run)[-1].bytes_up == 0 and not _heard_nobody(run)
        for run in runs
    )


def trains_on_clients(runs: Sequence[LoadedRun]) -> bool:
    """Whether any client has spent time on training, or may yet."""
    return any(
        run.rounds_done == 0 or spending(run)[-1].client_s > 0 or _heard_nobody(run) for run in runs
    )


def _heard_nobody(run: LoadedRun) -> bool:
    """Whether clients were asked and none was counted: what they would cost is not known."""
    outcomes = {client.outcome for record in run.rounds for client in record.clients}
    return bool(outcomes) and "counted" not in outcomes
