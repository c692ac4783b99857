"""FedOpt: an optimizer on the server, stepping along the mean of the clients' updates.

S. J. Reddi, Z. Charles, M. Zaheer, Z. Garrett, K. Rush, J. Konecny, S. Kumar, H. B. McMahan,
"Adaptive Federated Optimization", ICLR 2021, arXiv:2003.00295, Algorithms 1 and 2.

==========  =======================================================================
client      as FedAvg
up, down    as FedAvg
server      D = sum_k (n_k / n) (y_k - w_r), the negative of a pseudo-gradient; one step
            of the method's optimizer on it. Entries that are not trained are averaged by
            examples
==========  =======================================================================

The optimizer's slots, such as a momentum, are kept in the parameters' dtype; each step is computed
in float64. A method gives its slots and its step: FedAvgM, FedAdam, FedYogi, FedAdagrad.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from core.config import number
from core.parameters import NamedTensors
from strategies.base import RoundOutcome, ServerState, ServerTask
from strategies.fedavg import FedAvg, WeightedSum


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptiveOptions:
    """Keys of every adaptive method."""

    server_learning_rate: float = number(0.1, "learning rate of the server (eta)", above=0)
    epsilon: float = number(
        1e-3, "added to the root of the second moment, whose start is its square (tau)", above=0
    )

    def step(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """The step eta m / (sqrt(v) + tau), without bias correction.

        Args:
            first: The first moment (m).
            second: The second moment (v), at least zero.
        """
        return self.server_learning_rate * first / (second.sqrt() + self.epsilon)


class FedOpt(FedAvg):
    """FedAvg with an optimizer on the server; see the module's table."""

    server_half = "sum"

    @abstractmethod
    def slot_values(self) -> Mapping[str, float]:
        """The optimizer's slots: what each is filled with before the first round."""

    @abstractmethod
    def step(
        self, difference: torch.Tensor, slots: NamedTensors
    ) -> tuple[torch.Tensor, NamedTensors]:
        """One step of the optimizer on one entry; all tensors float64 and of its shape.

        Args:
            difference: D.
            slots: By the names of `slot_values`.

        Returns:
            What is added to w_r, and the next slots.
        """

    def initial_slots(self, weights: NamedTensors, trainable: Collection[str]) -> NamedTensors:
        """``<slot>/<name>`` for every trainable entry."""
        return {
            f"{slot}/{name}": torch.full_like(weight, value)
            for slot, value in self.slot_values().items()
            for name, weight in weights.items()
            if name in trainable
        }

    def finish(
        self, state: ServerState, accumulator: WeightedSum, task: ServerTask
    ) -> RoundOutcome:
        """One step of the optimizer; without a reply weights and slots stay as they were."""
        if accumulator.weight == 0:
            return RoundOutcome(state, {})
        kinds = tuple(self.slot_values())
        steps: dict[str, torch.Tensor] = {}
        slots = dict(state.slots)
        for name, old in state.weights.items():
            if f"{kinds[0]}/{name}" not in state.slots or name not in accumulator.arrays:
                continue
            own = {kind: state.slots[f"{kind}/{name}"].to(torch.float64) for kind in kinds}
            steps[name], moved = self.step(accumulator.mean(name) - old.to(torch.float64), own)
            slots |= {f"{kind}/{name}": moved[kind].to(old.dtype) for kind in kinds}
        weights = accumulator.weights_after(state.weights, steps)
        metrics = accumulator.told("train_loss")
        return RoundOutcome(ServerState(weights, slots), metrics)
