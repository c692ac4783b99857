"""Client-level privacy in one round: the Gaussian mechanism on the sum of clients' updates.

H. B. McMahan, D. Ramage, K. Talwar, L. Zhang, "Learning Differentially Private Recurrent Language
Models", ICLR 2018, arXiv:1710.06963, with a fixed denominator.

A client's update is one vector: all arrays of its reply, less what they would be had it changed
nothing. Its Euclidean norm over all of them is clipped to C, so that a client that is added or
removed moves the sum by at most C, whatever it holds and however many arrays it sends. The sum, and
nothing else, is released, once, with independent N(0, (sigma C)^2) on every coordinate: the
Gaussian mechanism of sensitivity C and noise multiplier sigma. Dividing by the number of clients
that were asked for, a constant of the configuration, and whatever a server makes of the mean, is
post-processing. A client of which nothing comes adds zero and stays in the denominator.
"""

from __future__ import annotations

import torch

from core.errors import PrivacyError
from core.parameters import NamedTensors
from privacy.mechanism import GaussianSums


class ClientSum:
    """The sum of one round's clipped updates, to be noised and read once.

    Attributes:
        count: Updates added.
    """

    def __init__(self, mechanism: GaussianSums, unchanged: NamedTensors, denominator: int) -> None:
        """Begin with zero.

        Args:
            mechanism: Clips and noises.
            unchanged: The reply of a client that changes nothing: every array by its name, in its
                form.
            denominator: What the sum is divided by.

        Raises:
            PrivacyError: As `refuse_unfit_arrays`.
        """
        refuse_unfit_arrays(unchanged)
        self.count = 0
        self._mechanism = mechanism
        self._unchanged = unchanged
        self._denominator = denominator
        self._total = _vector(unchanged, unchanged).zero_()
        self._released = False

    def add(self, arrays: NamedTensors) -> None:
        """Clip one client's update and add it.

        An update that has no finite norm counts as zero, which no clipping could make of it.
        """
        assert not self._released, "nothing is added to a sum that was released"
        update = _vector(arrays, self._unchanged) - _vector(self._unchanged, self._unchanged)
        norm = torch.linalg.vector_norm(update)
        if norm.isfinite():
            self._total += update * self._mechanism.clip_factors(norm)
        self.count += 1

    def release_mean(self) -> dict[str, torch.Tensor]:
        """The reply whose update is the noised sum over the denominator, in its arrays' dtypes."""
        assert not self._released, "a sum that is noised twice is released twice"
        self._released = True
        mean = self._mechanism.release(self._total) / self._denominator
        parts = mean.split([array.numel() for array in self._unchanged.values()])
        return {
            name: (array.to(torch.float64) + part.view(array.shape)).to(array.dtype)
            for (name, array), part in zip(self._unchanged.items(), parts, strict=True)
        }


def refuse_unfit_arrays(arrays: NamedTensors) -> None:
    """Refuse replies that noise would not hide.

    Raises:
        PrivacyError: An array is not of floating-point numbers.
    """
    for name, array in arrays.items():
        if not array.is_floating_point():
            raise PrivacyError(
                f"array {name!r} of clients' replies is {array.dtype}, which cannot be noised; "
                "privacy.mechanism=client needs every array to be of floating-point numbers"
            )


def _vector(arrays: NamedTensors, order: NamedTensors) -> torch.Tensor:
    """All arrays as one vector, float64."""
    assert arrays.keys() == order.keys(), "a reply that counts has all arrays and no others"
    return torch.cat([arrays[name].reshape(-1).to(torch.float64) for name in order])
