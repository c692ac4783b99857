"""median: every coordinate is the median of the clients' values.

D. Yin, Y. Chen, K. Ramchandran, P. Bartlett, "Byzantine-Robust Distributed Learning: Towards
Optimal Statistical Rates", ICML 2018, arXiv:1803.01498, Definition 1, on weights instead of
gradients.

==========  =======================================================================
client      as FedAvg
up, down    as FedAvg
server      in every coordinate the median of the n replies' values; for even n the
            mean of the two in the middle; clients count equally
==========  =======================================================================

It is the trimmed mean that leaves out as many as it can, and withstands fewer than n / 2 malicious
clients. Where clients' data differ much, what it leaves out are honest clients too.
"""

from __future__ import annotations

from collections.abc import Sequence

from strategies.base import Reply
from strategies.robust import RobustAverage


class Median(RobustAverage):
    """The coordinate-wise median; see the module's table."""

    name = "median"

    def averaged(self, replies: Sequence[Reply]) -> tuple[Sequence[Reply], int]:
        """All of them, without all but the one or two values in the middle."""
        return replies, (len(replies) - 1) // 2
