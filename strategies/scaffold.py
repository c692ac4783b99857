"""SCAFFOLD: local steps corrected by control variates.

S. P. Karimireddy, S. Kale, M. Mohri, S. J. Reddi, S. U. Stich, A. T. Suresh, "SCAFFOLD: Stochastic
Controlled Averaging for Federated Learning", ICML 2020, arXiv:1910.06378, Algorithm 1.

==========  =======================================================================
client      tau_k steps y <- y - eta (g(y) - c_k + c) of E epochs from w_r, then its
            new variate: with option I the gradient of its mean loss at w_r, with
            option II c_k - c + (w_r - y_k) / (tau_k eta). Keeps it as c_k, zero at first
up          ``delta/<name>`` y_k - w_r and ``variate-delta/<name>`` (new c_k less old) of
            every trainable entry, the other entries by their own names, metrics
            ``num_examples``, ``train_loss``
down        every entry of the state dict (w_r) and ``variate/<name>`` (c)
server      w_{r+1} = w_r + eta_g / |S| sum_k delta_k, c <- c + 1/K sum_k variate-delta_k,
            S the clients that replied, K all clients (of an entry: all that train it); c is
            zero at first. Entries that are not trained are averaged by examples
==========  =======================================================================

Clients count equally, whatever they hold: with zero variates, eta_g = 1 and clients of equal size a
round is FedAvg's. While all clients reply in every round c is the mean of the c_k. Weight decay is
part of the gradient.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from core.config import RunConfig, choice, number
from core.errors import Problem
from core.parameters import NamedTensors, weights_of
from core.wire import Array, ArraySpec, Record, RecordSpec
from core.workload import Offer
from strategies.base import (
    ClientShape,
    ClientTask,
    ClientUpdate,
    ModelForm,
    Reply,
    RoundOutcome,
    ServerState,
    ServerTask,
    arrays_of,
    tensors_of,
)
from strategies.fedavg import FedAvgClient, WeightedSum, received_weights, with_updates
from strategies.local_sgd import Correction, num_steps

_VARIATE = "variate"
_DELTA = "delta"
_VARIATE_DELTA = "variate-delta"


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaffoldOptions:
    """SCAFFOLD's own keys."""

    option: str = choice(
        "II",
        "a client's new variate: II takes the mean of its local steps, I one more pass over its "
        "images for their gradient at the global weights",
        ["II", "I"],
    )
    server_learning_rate: float = number(
        1.0, "step of the server along the mean update (eta_g)", above=0
    )


@dataclass(frozen=True, slots=True)
class CohortSums:
    """Running sums: of updates, where clients count equally, and of the rest by examples."""

    updates: WeightedSum = field(default_factory=WeightedSum)
    rest: WeightedSum = field(default_factory=WeightedSum)


class Scaffold(FedAvgClient):
    """FedAvg without client drift; see the module's table."""

    name = "scaffold"
    client_half = "gradient-steps"
    server_half = "sum"
    sections: ClassVar[Mapping[str, type]] = {"scaffold": ScaffoldOptions}
    needs: ClassVar[Mapping[Offer, str]] = {
        "gradient-steps": "its control variates are means of the gradients of a client's steps"
    }

    @classmethod
    def problems(cls, config: RunConfig) -> Iterable[Problem]:
        """Momentum, with which option II is no mean of gradients."""
        momentum = config.train.momentum
        if momentum and config.section(ScaffoldOptions).option == "II":
            rule = (
                "must be 0 with scaffold.option=II, which reads the mean gradient off the local "
                "steps; leave it out or set scaffold.option=I"
            )
            yield Problem("train.momentum", f"{momentum:g}", rule)

    def keeps_client_state(self) -> bool:
        """Its variate."""
        return True

    def initial_slots(self, weights: NamedTensors, trainable: Collection[str]) -> NamedTensors:
        """The first c is zero."""
        return {
            f"{_VARIATE}/{name}": torch.zeros_like(weight)
            for name, weight in weights.items()
            if name in trainable
        }

    def broadcast(self, state: ServerState) -> dict[str, Array]:
        """The global weights and c."""
        return arrays_of({**state.weights, **state.slots})

    def broadcast_spec(self, model: ModelForm) -> Mapping[str, ArraySpec]:
        """Form of the weights, and of c, which is that of the trainable entries."""
        variates = {f"{_VARIATE}/{name}": model.weights[name] for name in model.trainable}
        return {**model.weights, **variates}

    def reply_spec(self, client: ClientShape, round: int) -> RecordSpec:
        """Two updates for each trainable entry."""
        model = client.trained
        update = {name: model.weights[name] for name in model.trainable}
        arrays = with_updates(model.weights, {_DELTA: update, _VARIATE_DELTA: update})
        return RecordSpec(arrays, ("num_examples", "train_loss", "train_s"))

    def client_steps(self, client: ClientShape) -> int:
        """Minibatches of E epochs, and of the pass of option I."""
        steps = super().client_steps(client)
        if self.config.section(ScaffoldOptions).option == "I":
            steps += -(-client.num_training_examples // self.config.train.batch_size)
        return steps

    def correction(self, task: ClientTask) -> Correction:
        """The vector c - c_k."""
        shift = _server_variate(task) - _client_variate(task)
        return lambda values: shift

    def client_update(self, task: ClientTask) -> ClientUpdate:
        """E corrected local epochs from the weights received, and a new variate."""
        parameters, weights = task.parameters, received_weights(task)
        update = super().client_update(task)
        start, old = parameters.vector(weights), _client_variate(task)
        delta = parameters.values - start
        if self.config.section(ScaffoldOptions).option == "I":
            # Loaded after the local steps: a forward pass in train() mode moves buffers, and what
            # it does to them must not go into the steps or the reply.
            trained = weights_of(parameters.model)
            parameters.load(weights)
            variate_delta = self._full_gradient(task) - old
            parameters.load(trained)  # what the client keeps of the model, and judges
        else:
            train = self.config.train
            steps = num_steps(task.objective.num_examples, self.config)
            variate_delta = -delta / (steps * train.learning_rate) - _server_variate(task)
        updates = {
            prefix: arrays_of(
                {n: v for n, v in parameters.named(vector).items() if n in update.arrays}
            )
            for prefix, vector in ((_DELTA, delta), (_VARIATE_DELTA, variate_delta))
        }
        arrays = with_updates(update.arrays, updates)
        return ClientUpdate(arrays, update.metrics, {_VARIATE: old + variate_delta})

    def begin(self, state: ServerState) -> CohortSums:
        """Empty sums."""
        return CohortSums()

    def add(self, accumulator: CohortSums, reply: Reply) -> CohortSums:
        """Add the updates once, the rest n_k times."""
        arrays, metrics = reply.record.arrays, reply.record.metrics
        prefixes = (f"{_DELTA}/", f"{_VARIATE_DELTA}/")
        updates = {name: array for name, array in arrays.items() if name.startswith(prefixes)}
        rest = {name: array for name, array in arrays.items() if name not in updates}
        accumulator.updates.add(Record(updates), 1)
        weight, groups = self.weight_of(reply), self.group_weights_of(reply)
        accumulator.rest.add(Record(rest, metrics), weight, groups)
        return accumulator

    def finish(self, state: ServerState, accumulator: CohortSums, task: ServerTask) -> RoundOutcome:
        """The next weights and c; without a reply both stay as they were."""
        updates, rest = accumulator.updates, accumulator.rest
        if updates.weight == 0:
            return RoundOutcome(state, {})
        rate = self.config.section(ScaffoldOptions).server_learning_rate
        steps, slots = {}, {}
        for slot, variate in state.slots.items():
            name = slot.removeprefix(f"{_VARIATE}/")
            if f"{_DELTA}/{name}" not in updates.arrays:
                slots[slot] = variate
                continue
            steps[name] = rate * updates.mean(f"{_DELTA}/{name}")
            total = updates.arrays[f"{_VARIATE_DELTA}/{name}"]
            owners = task.owners.get(name, self.config.partition.clients)
            moved = variate.to(torch.float64) + total / owners
            slots[slot] = moved.to(variate.dtype)
        weights = rest.weights_after(state.weights, steps)
        return RoundOutcome(ServerState(weights, slots), rest.told("train_loss"))

    def _full_gradient(self, task: ClientTask) -> torch.Tensor:
        """Gradient of the mean loss over all examples at the model's weights, shape (d,).

        In batches of ``train.batch-size`` and in train() mode as in the local steps, so that layers
        which look at the batch see the same; each batch counts as a step.
        """
        parameters, train, objective = task.parameters, self.config.train, task.objective
        parameters.train()
        parameters.zero_gradient()
        order = torch.arange(objective.num_examples, device=objective.device)
        for batch in order.split(train.batch_size):
            found = objective.losses(batch)
            (found.sum() if found.ndim else found * len(batch)).backward()
            task.count_step()
        mean = parameters.gradient / objective.num_examples
        return mean + train.weight_decay * parameters.values


def _server_variate(task: ClientTask) -> torch.Tensor:
    """c, shape (d,)."""
    received = tensors_of(task.received.arrays)
    names = task.parameters.named(task.parameters.values)
    return task.parameters.vector({name: received[f"{_VARIATE}/{name}"] for name in names})


def _client_variate(task: ClientTask) -> torch.Tensor:
    """c_k, shape (d,): what the client kept, or zeros."""
    values = task.parameters.values
    return torch.zeros_like(values) if task.state is None else task.state[_VARIATE].to(values)
