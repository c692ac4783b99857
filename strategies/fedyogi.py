"""FedYogi: Yogi on the server.

S. J. Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv:2003.00295, Algorithm 2.

==========  =======================================================================
client      as FedAvg
up, down    as FedAvg
server      v <- v - (1 - beta2) D^2 sign(v - D^2), the rest as FedAdam
==========  =======================================================================

v moves by no more than (1 - beta2) D^2 however far it is from D^2, so that it falls more slowly
than FedAdam's once updates become small. Where v = 0 both give the same v.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from strategies.fedadam import FedAdam, FedAdamOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class FedYogiOptions(FedAdamOptions):
    """FedYogi's own keys."""


class FedYogi(FedAdam):
    """FedAvg with Yogi on the server; see the module's table."""

    name = "fedyogi"
    sections: ClassVar[Mapping[str, type]] = {"fedyogi": FedYogiOptions}

    def second_moment(
        self, moment: torch.Tensor, square: torch.Tensor, decay: float
    ) -> torch.Tensor:
        """The next v, from v and D^2."""
        return moment - (1 - decay) * square * torch.sign(moment - square)
