"""FedNova: federated averaging of normalised directions.

J. Wang, Q. Liu, H. Liang, G. Joshi, H. V. Poor, "Tackling the Objective Inconsistency Problem in
Heterogeneous Federated Optimization", NeurIPS 2020, arXiv:2007.07481, equations (3) and (8).

==========  =======================================================================
client      E epochs of minibatch SGD from w_r to y_k, with momentum rho and the
            proximal term mu/2 ||w - w_r||^2 if any. In each case
            y_k = w_r - eta sum_i a_{k,i} g_i, g_i the gradient of step i
up          ``direction/<name>`` d_k = (w_r - y_k) / (eta ||a_k||_1) of every trainable
            entry, the other entries by their own names, metrics ``num_examples`` (n_k),
            ``train_loss``, ``a_norm`` (||a_k||_1)
down        every entry of the state dict (w_r)
server      tau_eff = sum_k p_k ||a_k||_1, w_{r+1} = w_r - tau_eff eta sum_k p_k d_k,
            p_k = n_k / n; of an entry that not all clients send, or that counts otherwise,
            both sums are over its own clients by its own weights. Entries that are not
            trained are averaged by examples
==========  =======================================================================

A client that takes more steps no longer counts for more. Where all take equally many, it is FedAvg
(with momentum or the proximal term too, FedProx), to rounding. Weight decay is part of g_i.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from core.config import RunConfig, TrainConfig, number
from core.errors import Problem
from core.groups import EntryWeights
from core.wire import RecordSpec
from core.workload import Offer
from strategies.base import (
    ClientShape,
    ClientTask,
    ClientUpdate,
    Reply,
    RoundOutcome,
    ServerState,
    ServerTask,
    arrays_of,
)
from strategies.fedavg import FedAvg, WeightedSum, received_weights, with_updates
from strategies.fedprox import proximal_gradient
from strategies.local_sgd import Correction, num_steps

_DIRECTION = "direction"


@dataclass(frozen=True, kw_only=True, slots=True)
class FedNovaOptions:
    """FedNova's own key."""

    proximal_weight: float = number(
        0.0, "weight of a proximal term in the local steps (mu); 0 is none", least=0
    )


def accumulation_vector(steps: int, config: TrainConfig, proximal_weight: float) -> torch.Tensor:
    """The coefficients a_k of the gradients in y_k = w_r - eta sum_i a_{k,i} g_i.

    The local recursion is linear in the gradients and does not change from step to step, so the
    coefficient of a gradient is the response to a single unit gradient as many steps ago: with
    b_1 = v_1 = 1, v_{j+1} = rho v_j - eta mu b_j and b_{j+1} = b_j + v_{j+1}. With momentum alone
    b_j = (1 - rho^j) / (1 - rho), with the proximal term alone b_j = (1 - eta mu)^(j-1).

    Args:
        steps: tau_k, at least 1.
        config: Learning rate (eta) and momentum (rho) of the local steps.
        proximal_weight: mu.

    Returns:
        float64, shape (steps,): the first step's coefficient first.
    """
    pull = config.learning_rate * proximal_weight
    response = velocity = 1.0
    responses = [response]
    for _ in range(steps - 1):
        velocity = config.momentum * velocity - pull * response
        response += velocity
        responses.append(response)
    return torch.tensor(responses[::-1], dtype=torch.float64)


@dataclass(slots=True)
class NormalisedSum(WeightedSum):
    """Running sums, with those of the norms by which each entry's directions were divided.

    Attributes:
        norms: sum_k n_k ||a_k||_1 by the name of an array, over the replies that hold it.
    """

    norms: dict[str, float] = field(default_factory=dict)

    def effective_steps(self, name: str) -> float:
        """tau_eff of the array `name`."""
        return self.norms[name] / self.weights[name]


class FedNova(FedAvg):
    """FedAvg without the bias to clients that take more steps; see the module's table."""

    name = "fednova"
    sections: ClassVar[Mapping[str, type]] = {"fednova": FedNovaOptions}
    client_half = "gradient-steps"
    server_half = "sum"
    public_metrics = ("a_norm",)
    needs: ClassVar[Mapping[Offer, str]] = {
        "gradient-steps": "it takes the sum of a client's steps for a mean of gradients"
    }

    @classmethod
    def problems(cls, config: RunConfig) -> Iterable[Problem]:
        """A proximal term that throws local steps further out instead of pulling them back."""
        weight = config.section(FedNovaOptions).proximal_weight
        bound = 2 * (1 + config.train.momentum) / config.train.learning_rate
        if weight >= bound:
            rule = (
                f"must be below 2 (1 + train.momentum) / train.learning-rate = {bound:g}, or the "
                "local steps diverge; lower it or train.learning-rate"
            )
            yield Problem("fednova.proximal-weight", f"{weight:g}", rule)

    def correction(self, task: ClientTask) -> Correction | None:
        """FedProx's term, if any."""
        weight = self.config.section(FedNovaOptions).proximal_weight
        return proximal_gradient(task.parameters.values.clone(), weight) if weight else None

    def reply_spec(self, client: ClientShape, round: int) -> RecordSpec:
        """A direction for each trainable entry."""
        model = client.trained
        directions = {name: model.weights[name] for name in model.trainable}
        arrays = with_updates(model.weights, {_DIRECTION: directions})
        return RecordSpec(arrays, ("num_examples", "train_loss", "a_norm", "train_s"))

    def client_update(self, task: ClientTask) -> ClientUpdate:
        """E local epochs from the weights received, told as a mean step."""
        update = super().client_update(task)
        parameters, a_norm = task.parameters, self._a_norm(task.objective.num_examples)
        start = parameters.vector(received_weights(task))
        direction = (start - parameters.values) / (self.config.train.learning_rate * a_norm)
        named = {n: v for n, v in parameters.named(direction).items() if n in update.arrays}
        arrays = with_updates(update.arrays, {_DIRECTION: arrays_of(named)})
        return ClientUpdate(arrays, {**update.metrics, "a_norm": a_norm})

    def check_reply(self, reply: Reply, client: ClientShape) -> list[str]:
        """The norm follows from the client's examples, so it must not invent that either."""
        told, expected = (
            float(reply.record.metrics["a_norm"]),
            self._a_norm(client.num_training_examples),
        )
        reasons = super().check_reply(reply, client)
        if not math.isclose(told, expected, rel_tol=1e-9):
            steps = self.client_steps(client)
            reasons.append(f"a_norm is {told:.10g}, but {steps} steps give {expected:.10g}")
        return reasons

    def begin(self, state: ServerState) -> NormalisedSum:
        """Empty sums."""
        return NormalisedSum()

    def add(self, accumulator: WeightedSum, reply: Reply) -> NormalisedSum:
        """Add n_k d_k and n_k ||a_k||_1."""
        assert isinstance(accumulator, NormalisedSum), "what `begin` gave"
        super().add(accumulator, reply)
        each = EntryWeights(self.weight_of(reply), self.group_weights_of(reply))
        a_norm, norms = float(reply.record.metrics["a_norm"]), accumulator.norms
        for name in reply.record.arrays:
            if name.startswith(f"{_DIRECTION}/"):
                weight = each.of(name.removeprefix(f"{_DIRECTION}/"))
                norms[name] = norms.get(name, 0.0) + weight * a_norm
        return accumulator

    def finish(
        self, state: ServerState, accumulator: WeightedSum, task: ServerTask
    ) -> RoundOutcome:
        """tau_eff times the mean direction; without a reply the model stays as it was."""
        assert isinstance(accumulator, NormalisedSum), "what `begin` gave"
        if accumulator.weight == 0:
            return RoundOutcome(state, {})
        effective_steps = accumulator.mean_metric("a_norm")
        rate = self.config.train.learning_rate
        steps = {
            name: -accumulator.effective_steps(direction) * rate * accumulator.mean(direction)
            for name in state.weights
            if (direction := f"{_DIRECTION}/{name}") in accumulator.arrays
        }
        weights = accumulator.weights_after(state.weights, steps)
        metrics = {
            **accumulator.told("train_loss"),
            "effective_steps": effective_steps,
        }
        return RoundOutcome(ServerState(weights, state.slots), metrics)

    def _a_norm(self, num_examples: int) -> float:
        """||a_k||_1 of a client whose epochs visit `num_examples`."""
        weight = self.config.section(FedNovaOptions).proximal_weight
        train = self.config.train
        vector = accumulation_vector(num_steps(num_examples, self.config), train, weight)
        return float(vector.abs().sum())
