"""FedAdam: Adam on the server.

S. J. Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv:2003.00295, Algorithm 2.

==========  =======================================================================
client      as FedAvg
up, down    as FedAvg
server      m <- beta1 m + (1 - beta1) D, v <- beta2 v + (1 - beta2) D^2,
            w_{r+1} = w_r + eta m / (sqrt(v) + tau), D as in FedOpt; m starts at zero and
            v at tau^2
==========  =======================================================================

Algorithm 2 asks for a first v of at least tau^2; some implementations start it at zero. As there,
and other than in Adam, nothing is corrected for the bias of the first rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from core.config import number
from core.parameters import NamedTensors
from strategies.fedopt import AdaptiveOptions, FedOpt

_MOMENTUM = "momentum"
_SECOND_MOMENT = "second-moment"


@dataclass(frozen=True, kw_only=True, slots=True)
class FedAdamOptions(AdaptiveOptions):
    """FedAdam's own keys."""

    beta1: float = number(0.9, "decay of the first moment (beta1)", least=0, below=1)
    beta2: float = number(0.99, "decay of the second moment (beta2)", least=0, below=1)


class FedAdam(FedOpt):
    """FedAvg with Adam on the server; see the module's table."""

    name = "fedadam"
    sections: ClassVar[Mapping[str, type]] = {"fedadam": FedAdamOptions}

    def second_moment(
        self, moment: torch.Tensor, square: torch.Tensor, decay: float
    ) -> torch.Tensor:
        """The next v, from v and D^2."""
        return decay * moment + (1 - decay) * square

    def slot_values(self) -> Mapping[str, float]:
        """The first m is zero, the first v tau^2."""
        epsilon = self.config.section(FedAdamOptions).epsilon
        return {_MOMENTUM: 0.0, _SECOND_MOMENT: epsilon**2}

    def step(
        self, difference: torch.Tensor, slots: NamedTensors
    ) -> tuple[torch.Tensor, NamedTensors]:
        """A step along the first moment, scaled by the second."""
        options = self.config.section(FedAdamOptions)
        first = options.beta1 * slots[_MOMENTUM] + (1 - options.beta1) * difference
        second = self.second_moment(slots[_SECOND_MOMENT], difference.square(), options.beta2)
        return options.step(first, second), {_MOMENTUM: first, _SECOND_MOMENT: second}
