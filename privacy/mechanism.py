"""The Gaussian mechanism on sums over sampled examples: sample, clip, sum, noise.

Everything that a private run releases passes through `GaussianSums.release`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from core.errors import PrivacyError
from privacy.noise import NoiseSource

if TYPE_CHECKING:
    from privacy.dp_optimizer import SummedGradient


class GaussianSums:
    """Noised sums of clipped parts of Poisson-sampled examples, by one client in one round.

    Adding or removing one example changes each sum by at most `clip` in Euclidean norm, and each is
    released with independent N(0, (`noise_multiplier` `clip`)^2) on every coordinate.

    Attributes:
        kind: Which mechanism, as in ``privacy.mechanism``.
        clip: C.
        noise_multiplier: sigma.
        sampling_rate: q, of every example in every step on its own.
        steps: Sums to be released.
        count_scale: Constant coordinate of ``feature``.
        count_floor: Least count of ``feature``.
        released: Sums released so far; never more than `steps`.
    """

    def __init__(
        self,
        kind: str,
        *,
        clip: float,
        noise_multiplier: float,
        sampling_rate: float,
        steps: int,
        source: NoiseSource,
        count_scale: float = 1.0,
        count_floor: float = 1.0,
    ) -> None:
        self.kind = kind
        self.clip = clip
        self.noise_multiplier = noise_multiplier
        self.sampling_rate = sampling_rate
        self.steps = steps
        self.count_scale = count_scale
        self.count_floor = count_floor
        self.released = 0
        self._source = source
        self._excess: list[torch.Tensor] = []
        self._optimizer: SummedGradient | None = None

    def batches(self, num_examples: int) -> Iterator[torch.Tensor]:
        """`steps` Poisson batches: indices, int64, of whatever length, 0 included."""
        from privacy.dp_optimizer import PoissonSampler  # imports Opacus

        if num_examples == 0:
            yield from itertools.repeat(torch.zeros(0, dtype=torch.int64), self.steps)
            return
        for indices in PoissonSampler(num_examples, self.sampling_rate, self.steps, self._source):
            yield torch.tensor(indices, dtype=torch.int64)

    def clip_factors(self, norms: torch.Tensor) -> torch.Tensor:
        """What each part is multiplied by so that its norm is at most C; 1 where it is.

        0 for a norm that is not finite: such a part is left out by `finite_rows`.
        """
        factors = torch.where(norms > self.clip, self.clip / norms, torch.ones_like(norms))
        return torch.where(torch.isfinite(norms), factors, torch.zeros_like(factors))

    @staticmethod
    def finite_rows(parts: torch.Tensor) -> torch.Tensor:
        """`parts`, shape (B, ...), with zeros in place of those whose norm is not finite.

        One image on which a network overflows would otherwise spoil the sum, and so be seen in it.
        """
        finite = torch.isfinite(parts.flatten(1).norm(dim=1))
        shape = (len(parts), *[1] * (parts.dim() - 1))
        return torch.where(finite.view(shape), parts, torch.zeros_like(parts))

    def release(self, total: torch.Tensor) -> torch.Tensor:
        """`total`, a sum of clipped parts, with noise.

        Raises:
            PrivacyError: `steps` sums were released already, which is all that was charged.
        """
        if self.released == self.steps:
            raise PrivacyError(
                f"{self.steps} noised sums were charged and one more was asked for; a round may "
                "not look at its examples more often than privacy.steps (feddm.iterations) says"
            )
        self.released += 1
        if self.noise_multiplier == 0:
            return total
        std = self.noise_multiplier * self.clip
        assert math.isfinite(std), "noise needs a finite clip"
        noised = total + self._source.normal(total, std)
        # The square of the noised norm less its mean for pure noise estimates the square of the
        # signal's, from what is released anyway.
        noise_square = total.numel() * std**2
        self._excess.append(noised.square().sum(dtype=torch.float64) / noise_square - 1.0)
        return noised

    def release_mean(self, total: torch.Tensor, denominator: float) -> torch.Tensor:
        """`release` on Opacus's DPOptimizer, divided by a constant."""
        from privacy.dp_optimizer import SummedGradient

        if self._optimizer is None:
            self._optimizer = SummedGradient(self, total, denominator)
        return self._optimizer.mean(total)

    @property
    def signal_to_noise(self) -> float:
        """Norm of the released sums over that of their noise, root mean square over the steps.

        Estimated from the noised sums alone, so that it costs no privacy; 0 where noise prevails.
        """
        if not self._excess:
            return 0.0
        return math.sqrt(max(0.0, float(torch.stack(self._excess).mean())))
