"""FedAdagrad: Adagrad on the server.

S. J. Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv:2003.00295, Algorithm 2
with beta1 = 0.

==========  =======================================================================
client      as FedAvg
up, down    as FedAvg
server      v <- v + D^2, w_{r+1} = w_r + eta D / (sqrt(v) + tau), D as in FedOpt; v
            starts at tau^2
==========  =======================================================================

Algorithm 2 asks for a first v of at least tau^2; some implementations start it at zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from core.parameters import NamedTensors
from strategies.fedopt import AdaptiveOptions, FedOpt

_SECOND_MOMENT = "second-moment"


@dataclass(frozen=True, kw_only=True, slots=True)
class FedAdagradOptions(AdaptiveOptions):
    """FedAdagrad's own keys."""


class FedAdagrad(FedOpt):
    """FedAvg with Adagrad on the server; see the module's table."""

    name = "fedadagrad"
    sections: ClassVar[Mapping[str, type]] = {"fedadagrad": FedAdagradOptions}

    def slot_values(self) -> Mapping[str, float]:
        """The first v is tau^2."""
        return {_SECOND_MOMENT: self.config.section(FedAdagradOptions).epsilon ** 2}

    def step(
        self, difference: torch.Tensor, slots: NamedTensors
    ) -> tuple[torch.Tensor, NamedTensors]:
        """A step along D, scaled by all that came before."""
        second = slots[_SECOND_MOMENT] + difference.square()
        step = self.config.section(FedAdagradOptions).step(difference, second)
        return step, {_SECOND_MOMENT: second}
