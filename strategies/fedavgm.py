"""FedAvgM: federated averaging with momentum on the server.

T.-M. H. Hsu, H. Qi, M. Brown, "Measuring the Effects of Non-Identical Data Distribution for
Federated Visual Classification", 2019, arXiv:1909.06335, Section 4.3.

==========  =======================================================================
client      as FedAvg
up, down    as FedAvg
server      v <- beta v - D, w_{r+1} = w_r - eta_g v, D as in FedOpt; v is zero at first
==========  =======================================================================

With beta = 0 and eta_g = 1 it is FedAvg.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from core.config import number
from core.parameters import NamedTensors
from strategies.fedopt import FedOpt

_VELOCITY = "velocity"


@dataclass(frozen=True, kw_only=True, slots=True)
class FedAvgMOptions:
    """FedAvgM's own keys."""

    momentum: float = number(0.9, "momentum of the server (beta)", least=0, below=1)
    server_learning_rate: float = number(1.0, "learning rate of the server (eta_g)", above=0)


class FedAvgM(FedOpt):
    """FedAvg with momentum on the server; see the module's table."""

    name = "fedavgm"
    sections: ClassVar[Mapping[str, type]] = {"fedavgm": FedAvgMOptions}

    def slot_values(self) -> Mapping[str, float]:
        """The first v is zero."""
        return {_VELOCITY: 0.0}

    def step(
        self, difference: torch.Tensor, slots: NamedTensors
    ) -> tuple[torch.Tensor, NamedTensors]:
        """A step of heavy-ball momentum."""
        options = self.config.section(FedAvgMOptions)
        velocity = options.momentum * slots[_VELOCITY] - difference
        return -options.server_learning_rate * velocity, {_VELOCITY: velocity}
