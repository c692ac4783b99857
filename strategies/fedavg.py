"""FedAvg: federated averaging.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Aguera y Arcas, "Communication-Efficient
Learning of Deep Networks from Decentralized Data", AISTATS 2017, arXiv:1602.05629, Algorithm 1.

==========  =======================================================================
client      E epochs of minibatch SGD on its own examples, from w_r
up          every shared entry of the state dict by its own name, shape and dtype (y_k),
            metrics ``num_examples`` (n_k), ``train_loss``
down        the same entries (w_r)
server      w_{r+1} = sum_k (n_k / n) y_k, n the sum of n_k over the replies; with
            ``train.weighting=equal`` each n_k is 1. A workload may weigh groups of entries
            otherwise, and a client send a part of them: each entry is averaged over those
            that sent it
==========  =======================================================================

One full-batch local step from equal weights is one step of SGD on the union of the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

import numpy as np
import torch

from core.groups import EntryWeights
from core.parameters import NamedTensors
from core.wire import Array, Record, RecordSpec
from strategies.base import (
    ClientShape,
    ClientTask,
    ClientUpdate,
    Reply,
    RoundOutcome,
    ServerState,
    ServerTask,
    Strategy,
    arrays_of,
    tensors_of,
    wrong_count,
)
from strategies.local_sgd import Correction, num_steps, train_locally

Entry = TypeVar("Entry")


_NO_GROUPS: Mapping[str, int] = MappingProxyType({})


@dataclass(slots=True)
class WeightedSum:
    """A running sum of replies' arrays and metrics, each times the reply's weight, in float64.

    Attributes:
        weight: Sum of the replies' weights, such as n for examples.
        weights: By name of an array, sum of the weights of those replies that hold it.
        metrics: sum_k n_k x_k by name, over all replies.
    """

    weight: int = 0
    weights: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    _sums: dict[str, torch.Tensor] = field(default_factory=dict)
    _held: list[dict[str, tuple[Array, int]]] = field(default_factory=list)

    @property
    def arrays(self) -> dict[str, torch.Tensor]:
        """sum_k n_k x_k by name, float64, over the replies that hold an array of the name."""
        self._add_held()
        return self._sums

    def add(self, record: Record, weight: int, groups: Mapping[str, int] = _NO_GROUPS) -> None:
        """Add everything in `record`, times its weight; its arrays must stay as they are.

        Args:
            record: A reply's.
            weight: Of the reply.
            groups: Weights of groups of entries that count otherwise, by name.
        """
        each, held = EntryWeights(weight, groups), {}
        for name, array in record.arrays.items():
            own = each.of(name.rpartition("/")[2])
            if own == 0:
                continue
            held[name] = array, own
            self.weights[name] = self.weights.get(name, 0) + own
        self._held.append(held)
        if len(self._held) == _AT_ONCE:
            self._add_held()
        for name, value in record.metrics.items():
            self.metrics[name] = self.metrics.get(name, 0.0) + weight * float(value)
        self.weight += weight

    def _add_held(self) -> None:
        for name in dict.fromkeys(name for held in self._held for name in held):
            parts = [held[name] for held in self._held if name in held]
            if name not in self._sums:
                self._sums[name] = torch.zeros(parts[0][0].shape, dtype=torch.float64)
            assert all(array.shape == self._sums[name].shape for array, _ in parts), name
            _add_scaled(self._sums[name].view(-1), parts)
        self._held.clear()

    def mean(self, name: str) -> torch.Tensor:
        """sum_k (n_k / n) x_k of the array `name`, float64."""
        return self.arrays[name] / self.weights[name]

    def mean_metric(self, name: str) -> float:
        """sum_k (n_k / n) x_k of the metric `name`."""
        return self.metrics[name] / self.weight

    def told(self, name: str) -> dict[str, float]:
        """`mean_metric` under its name; empty where replies do not tell it."""
        return {name: self.mean_metric(name)} if name in self.metrics else {}

    def weights_after(
        self, weights: NamedTensors, steps: NamedTensors | None = None
    ) -> dict[str, torch.Tensor]:
        """The next weights, in the dtypes of `weights`.

        An entry of `steps`, float64, is added to the entry of that name. Every other entry becomes
        its mean, or stays as it is where no reply holds it; integers, such as BatchNorm's step
        counter, are averaged likewise and rounded.
        """
        after = {}
        for name, old in weights.items():
            step = None if steps is None else steps.get(name)
            if step is None and name not in self.arrays:
                after[name] = old
                continue
            after[name] = new = torch.empty_like(old, memory_format=torch.contiguous_format)
            total = self.weights.get(name, self.weight)
            sources = (self.arrays[name],) if step is None else (old, step)
            for into, *parts in zip(*(_blocks(t) for t in (new, *sources)), strict=True):
                value = parts[0] / total if step is None else parts[0].double() + parts[1]
                into.copy_(value if old.is_floating_point() else value.round())
        return after


_BLOCK = 131_072
"""Numbers that are converted to float64 at a time: few enough for a cache, many for a call."""

_AT_ONCE = 2
"""Replies that are added in one pass over the sum, which is twice as large as one of them."""


def _add_scaled(total: torch.Tensor, parts: Sequence[tuple[Array, int]]) -> None:
    """Add arrays, each times its weight and in their order, to `total`, float64, in place."""
    flat = [(array.reshape(-1), weight) for array, weight in parts]
    converted = torch.empty(min(_BLOCK, len(total)), dtype=torch.float64)
    for start, sums in enumerate(total.split(_BLOCK)):
        block = converted[: len(sums)]
        for values, weight in flat:
            np.copyto(block.numpy(), values[start * _BLOCK : (start + 1) * _BLOCK])
            sums.add_(block, alpha=weight)


def _blocks(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    blocks: tuple[torch.Tensor, ...] = tensor.reshape(-1).split(_BLOCK)
    return blocks


def received_weights(task: ClientTask) -> dict[str, torch.Tensor]:
    """What is shared of w_r, out of a broadcast that may hold further arrays of a method."""
    entries = task.parameters.model.state_dict()
    return tensors_of({n: array for n, array in task.received.arrays.items() if n in entries})


def with_updates(
    weights: Mapping[str, Entry], updates: Mapping[str, Mapping[str, Entry]]
) -> dict[str, Entry]:
    """What a client sends that sends updates: arrays, or their forms.

    Args:
        weights: Every entry of the state dict.
        updates: By prefix, what is sent in place of the entries of the same names.

    Returns:
        The updates as ``prefix/name``, and the entries that no update replaces by their own names.
    """
    replaced = {name for update in updates.values() for name in update}
    sent = {name: entry for name, entry in weights.items() if name not in replaced}
    for prefix, update in updates.items():
        sent |= {f"{prefix}/{name}": entry for name, entry in update.items()}
    return sent


class FedAvgClient(Strategy):
    """FedAvg's client half, for methods whose server half is another; see the module's table."""

    images_sent = "none"
    client_half = "gradient-steps"
    averages_weights = True

    def correction(self, task: ClientTask) -> Correction | None:
        """What a variant adds to the gradient of each local step; FedAvg adds nothing.

        The weights are those just received when this is called.
        """
        return None

    def reply_spec(self, client: ClientShape, round: int) -> RecordSpec:
        """The weights and two metrics, whatever the client holds."""
        return RecordSpec(client.trained.weights, ("num_examples", "train_loss", "train_s"))

    def client_steps(self, client: ClientShape) -> int:
        """Minibatches of E epochs."""
        return num_steps(client.num_training_examples, self.config)

    def client_update(self, task: ClientTask) -> ClientUpdate:
        """E local epochs from the weights received."""
        task.parameters.load(received_weights(task))
        train_loss = train_locally(
            task.parameters,
            task.objective,
            self.config.train,
            seed=task.seed,
            personal=task.personal,
            mechanism=task.mechanism,
            correction=self.correction(task),
            count_step=task.count_step,
        )
        metrics = {"num_examples": len(task.examples), "train_loss": train_loss}
        return ClientUpdate(arrays_of(task.trained_weights()), metrics)

    def check_reply(self, reply: Reply, client: ClientShape) -> list[str]:
        """A client counts in proportion to its examples, so it must not invent any."""
        return wrong_count(reply, client)


class FedAvg(FedAvgClient):
    """Federated averaging; see the module's table."""

    name = "fedavg"
    server_half = "sum"

    def begin(self, state: ServerState) -> WeightedSum:
        """An empty sum."""
        return WeightedSum()

    def add(self, accumulator: WeightedSum, reply: Reply) -> WeightedSum:
        """Add n_k y_k."""
        accumulator.add(reply.record, self.weight_of(reply), self.group_weights_of(reply))
        return accumulator

    def finish(
        self, state: ServerState, accumulator: WeightedSum, task: ServerTask
    ) -> RoundOutcome:
        """The weighted mean; without a reply the model stays as it was."""
        if accumulator.weight == 0:
            return RoundOutcome(state, {})
        weights = accumulator.weights_after(state.weights)
        metrics = accumulator.told("train_loss")
        return RoundOutcome(ServerState(weights, state.slots), metrics)
