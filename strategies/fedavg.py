"""FedAvg: federated averaging.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Aguera y Arcas, "Communication-Efficient
Learning of Deep Networks from Decentralized Data", AISTATS 2017, arXiv:1602.05629, Algorithm 1.

==========  =======================================================================
client      E epochs of minibatch SGD on its own images, from w_r
up          every entry of the state dict by its own name, shape and dtype (y_k),
            metrics ``num_examples`` (n_k), ``train_loss``
down        the same entries (w_r)
server      w_{r+1} = sum_k (n_k / n) y_k, n the sum of n_k over the replies
==========  =======================================================================

One full-batch local step from equal weights is one step of SGD on the union of the data.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from core.parameters import NamedTensors, weights_of
from core.wire import RecordSpec
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
)
from strategies.local_sgd import Correction, num_steps, train_locally


@dataclass(slots=True)
class WeightedSum:
    """A running sum of n_k y_k in float64; the first reply's dtypes are kept for the mean.

    Integer entries, such as BatchNorm's step counter, are averaged likewise and rounded.
    """

    num_examples: int = 0
    train_loss: float = 0.0
    sums: dict[str, torch.Tensor] = field(default_factory=dict)

    def mean(self, like: NamedTensors) -> dict[str, torch.Tensor]:
        """sum_k (n_k / n) y_k, in the dtypes of `like`."""
        means = {}
        for name, reference in like.items():
            mean = self.sums[name] / self.num_examples
            rounded = mean if reference.is_floating_point() else mean.round()
            means[name] = rounded.to(reference.dtype)
        return means


class FedAvg(Strategy):
    """Federated averaging; see the module's table."""

    name = "fedavg"
    images_sent = "none"

    def correction(self, task: ClientTask) -> Correction | None:
        """What a variant adds to the gradient of each local step; FedAvg adds nothing."""
        return None

    def reply_spec(self, client: ClientShape, round: int) -> RecordSpec:
        """The weights and two metrics, whatever the client holds."""
        return RecordSpec(client.model.weights, ("num_examples", "train_loss", "train_s"))

    def client_steps(self, client: ClientShape) -> int:
        """Minibatches of E epochs."""
        return num_steps(client.num_examples, self.config.train)

    def client_update(self, task: ClientTask) -> ClientUpdate:
        """E local epochs from the weights received."""
        task.parameters.load(tensors_of(task.received.arrays))
        train_loss = train_locally(
            task.parameters,
            task.examples,
            task.workload,
            self.config.train,
            seed=task.seed,
            correction=self.correction(task),
            count_step=task.count_step,
        )
        metrics = {"num_examples": len(task.examples), "train_loss": train_loss}
        return ClientUpdate(arrays_of(weights_of(task.parameters.model)), metrics)

    def check_reply(self, reply: Reply, client: ClientShape) -> list[str]:
        """A client counts in proportion to its examples, so it must not invent any."""
        count = reply.record.metrics["num_examples"]
        if count == client.num_examples:
            return []
        return [f"num_examples is {count}, but the client holds {client.num_examples}"]

    def begin(self, state: ServerState) -> WeightedSum:
        """An empty sum."""
        zeros = {
            name: torch.zeros_like(w, dtype=torch.float64) for name, w in state.weights.items()
        }
        return WeightedSum(sums=zeros)

    def add(self, accumulator: WeightedSum, reply: Reply) -> WeightedSum:
        """Add n_k y_k."""
        count = int(reply.record.metrics["num_examples"])
        for name, weights in tensors_of(reply.record.arrays).items():
            accumulator.sums[name].add_(weights.to(torch.float64), alpha=count)
        accumulator.num_examples += count
        accumulator.train_loss += count * float(reply.record.metrics["train_loss"])
        return accumulator

    def finish(
        self, state: ServerState, accumulator: WeightedSum, task: ServerTask
    ) -> RoundOutcome:
        """The mean weighted by examples; without a reply the model stays as it was."""
        if accumulator.num_examples == 0:
            return RoundOutcome(state, {})
        weights = accumulator.mean(state.weights)
        metrics = {"train_loss": accumulator.train_loss / accumulator.num_examples}
        return RoundOutcome(ServerState(weights, state.slots), metrics)
