"""FedProx: federated averaging with a proximal term.

T. Li, A. K. Sahu, M. Zaheer, M. Sanjabi, A. Talwalkar, V. Smith, "Federated Optimization in
Heterogeneous Networks", MLSys 2020, arXiv:1812.06127, Algorithm 2.

==========  =======================================================================
client      E epochs of minibatch SGD on f_k(w) + mu/2 ||w - w_r||^2, that is,
            mu (w - w_r) is added to the gradient of every step
up, down    as FedAvg
server      as FedAvg
==========  =======================================================================

With mu = 0 it is FedAvg.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from core.config import number
from strategies.base import ClientTask
from strategies.fedavg import FedAvg
from strategies.local_sgd import Correction


@dataclass(frozen=True, kw_only=True, slots=True)
class FedProxOptions:
    """FedProx's own key."""

    proximal_weight: float = number(0.01, "weight of the proximal term (mu); 0 is FedAvg", least=0)


def proximal_gradient(start: torch.Tensor, weight: float) -> Correction:
    """The gradient mu (w - w_r) of the proximal term.

    Args:
        start: w_r as a vector, shape (d,).
        weight: mu.
    """

    def gradient(values: torch.Tensor) -> torch.Tensor:
        return weight * (values - start)

    return gradient


class FedProx(FedAvg):
    """FedAvg that holds clients near the global weights; see the module's table."""

    name = "fedprox"
    client_half = "gradient-steps"
    sections: ClassVar[Mapping[str, type]] = {"fedprox": FedProxOptions}

    def correction(self, task: ClientTask) -> Correction:
        """The gradient of mu/2 ||w - w_r||^2."""
        weight = self.config.section(FedProxOptions).proximal_weight
        return proximal_gradient(task.parameters.values.clone(), weight)
