"""What averages that withstand malicious clients share: FedAvg's client half, and a mean with cuts.

The server keeps all replies of a round, leaves some out, or the outermost values of every
coordinate, and averages the rest equally: a client that could name its own weight would need no
other attack. `strategies.trimmed_mean` and `strategies.median` cut coordinates,
`strategies.multi_krum` cuts replies.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from core.config import RunConfig
from core.wire import Array
from core.workload import Offer
from strategies.base import CollectingStrategy, Reply, RoundOutcome, ServerState, ServerTask
from strategies.fedavg import FedAvgClient, WeightedSum

_VALUES_AT_ONCE = 2**22


class RobustAverage(CollectingStrategy, FedAvgClient):
    """FedAvg's clients under a server that says which replies and which values it averages."""

    needs: ClassVar[Mapping[Offer, str]] = {
        "equal-forms": "it compares clients' replies with one another, entry by entry"
    }

    @abstractmethod
    def averaged(self, replies: Sequence[Reply]) -> tuple[Sequence[Reply], int]:
        """What goes into the mean of a round.

        Args:
            replies: All that came, at least one, in the order of their partition ids.

        Returns:
            The replies that are averaged, none where `replies` are too few for the defence; and
            how many of the lowest and of the highest values of every coordinate are left out.
        """

    def finish(
        self, state: ServerState, accumulator: list[Reply], task: ServerTask
    ) -> RoundOutcome:
        """The mean of what `averaged` keeps; with too few replies the model stays as it was.

        ``num_averaged`` is how many values were averaged in every coordinate, 0 if the model
        stayed; ``train_loss`` is averaged like a coordinate. Integer entries are averaged likewise
        and rounded.
        """
        replies = sorted(accumulator, key=lambda reply: reply.partition_id)
        kept, num_trimmed = self.averaged(replies) if replies else ([], 0)
        if not kept:
            why = f"{len(replies)} replies are too few for {self.name} to defend the model"
            return RoundOutcome(state, {"num_averaged": 0}, discarded=why if replies else None)
        means = WeightedSum(weight=1)
        for name in kept[0].record.arrays:
            mean = trimmed_mean([reply.record.arrays[name] for reply in kept], num_trimmed)
            means.arrays[name] = torch.from_numpy(mean)
        metrics: dict[str, float] = {"num_averaged": len(kept) - 2 * num_trimmed}
        told = [reply.record.metrics for reply in kept]
        if all("train_loss" in own for own in told):
            losses = [np.float64(own["train_loss"]) for own in told]
            metrics["train_loss"] = float(trimmed_mean(losses, num_trimmed))
        weights = means.weights_after(state.weights)
        return RoundOutcome(ServerState(weights, state.slots), metrics)


def most_replies(config: RunConfig) -> int:
    """How many replies a round counts if none is lost."""
    return config.cohort.size or config.partition.clients


def trimmed_mean(values: Sequence[Array | np.float64], num_trimmed: int) -> npt.NDArray[np.float64]:
    """The mean of every coordinate without its lowest and its highest values.

    Args:
        values: n arrays of one shape and dtype.
        num_trimmed: How many are left out at either end (b), 2 b < n.

    Returns:
        float64, of that shape. Without trimming it is the plain mean, summed in the order given;
        with it the order does not matter.

    >>> trimmed_mean([np.array([1.0]), np.array([5.0]), np.array([-900.0]), np.array([2.0])], 1)
    array([1.5])
    """
    num_kept = len(values) - 2 * num_trimmed
    assert num_trimmed >= 0 and num_kept > 0, "something must be left to average"
    means = np.empty(np.size(values[0]), np.float64)
    for window, columns in coordinates(values):
        if num_trimmed:
            columns.sort(axis=1)
        inner = columns[:, num_trimmed : num_trimmed + num_kept]
        means[window] = inner.mean(axis=1, dtype=np.float64)
    return means.reshape(np.shape(values[0]))


def coordinates(values: Sequence[Array | np.float64]) -> Iterator[tuple[slice, Array]]:
    """The values of all coordinates, some at a time, so that many large replies fit into memory.

    Args:
        values: n arrays of one shape and dtype.

    Yields:
        Which coordinates of the flattened arrays, and a copy of their values, shape (coordinates,
        n), of the arrays' dtype.
    """
    flat = [np.reshape(value, -1) for value in values]
    step = max(1, _VALUES_AT_ONCE // len(flat))
    for start in range(0, flat[0].size, step):
        window = slice(start, start + step)
        yield window, np.stack([value[window] for value in flat], axis=1)
