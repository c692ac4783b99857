"""trimmed-mean: in every coordinate the outermost values are left out before averaging.

D. Yin, Y. Chen, K. Ramchandran, P. Bartlett, "Byzantine-Robust Distributed Learning: Towards
Optimal Statistical Rates", ICML 2018, arXiv:1803.01498, Definition 2, on weights instead of
gradients.

==========  =======================================================================
client      as FedAvg
up, down    as FedAvg
server      in every coordinate the mean of the n replies' values without the
            floor(beta n) lowest and the floor(beta n) highest; clients count equally
==========  =======================================================================

With beta = 0, or where all clients send the same, it is the plain mean: FedAvg on clients of equal
size. It withstands floor(beta n) malicious clients: every coordinate stays within the range of the
others' values. Where so few reply that nothing would be left out, the model stays as it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from core.config import RunConfig, number
from core.errors import Problem
from strategies.base import Reply
from strategies.robust import RobustAverage, most_replies


@dataclass(frozen=True, kw_only=True, slots=True)
class TrimmedMeanOptions:
    """The trimmed mean's own key."""

    trim_fraction: float = number(
        0.2,
        "share of the replies left out at either end of every coordinate (beta), rounded down; 0 "
        "is the plain mean",
        least=0,
        below=0.5,
    )


class TrimmedMean(RobustAverage):
    """The coordinate-wise trimmed mean; see the module's table."""

    name = "trimmed-mean"
    sections: ClassVar[Mapping[str, type]] = {"trimmed-mean": TrimmedMeanOptions}

    @classmethod
    def problems(cls, config: RunConfig) -> Iterable[Problem]:
        """A share of which nothing is left after rounding down leaves nothing out."""
        fraction, num_replies = (
            config.section(TrimmedMeanOptions).trim_fraction,
            most_replies(config),
        )
        if fraction and not num_trimmed(fraction, num_replies):
            least = math.ceil(1 / Fraction(str(fraction)))
            rule = (
                f"leaves out none of the {num_replies} replies of a round; it needs {least} of "
                "them, and 0 is the plain mean"
            )
            yield Problem("trimmed-mean.trim-fraction", f"{fraction:g}", rule)

    def averaged(self, replies: Sequence[Reply]) -> tuple[Sequence[Reply], int]:
        """All of them, without floor(beta n) values at either end."""
        fraction = self.config.section(TrimmedMeanOptions).trim_fraction
        count = num_trimmed(fraction, len(replies))
        return (replies, count) if count or not fraction else ([], 0)


def num_trimmed(fraction: float, num_replies: int) -> int:
    """floor(beta n), of beta as it is written: 0.29 of 100 are 29, though 0.29 * 100 < 29.

    >>> num_trimmed(0.29, 100), num_trimmed(0.2, 9)
    (29, 1)
    """
    return math.floor(Fraction(str(fraction)) * num_replies)
