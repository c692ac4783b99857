"""multi-krum: only the replies nearest to their neighbours are averaged.

P. Blanchard, E. M. El Mhamdi, R. Guerraoui, J. Stainer, "Machine Learning with Adversaries:
Byzantine Tolerant Gradient Descent", NeurIPS 2017, arXiv:1703.02757, on weights instead of
gradients.

==========  =======================================================================
client      as FedAvg
up, down    as FedAvg
server      the score of reply i is the sum of ||y_i - y_j||^2 over the n - f - 2
            others j nearest to it, over all floating-point entries; the m replies
            of lowest score are averaged, ties by partition id, each counting equally
==========  =======================================================================

With m = 1 it is Krum. It needs n >= 2 f + 3 and m <= n - f replies; where fewer come the model
stays as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from core.config import RunConfig, number
from core.errors import Problem
from core.wire import Array
from strategies.base import Reply
from strategies.robust import RobustAverage, coordinates, most_replies


@dataclass(frozen=True, kw_only=True, slots=True)
class MultiKrumOptions:
    """Multi-Krum's own keys."""

    byzantine: int = number(2, "malicious replies to withstand in a round (f)", least=0)
    selected: int = number(
        0,
        "replies averaged (m); 0 averages all but multi-krum.byzantine of those that came",
        least=0,
    )

    def fewest_replies(self) -> int:
        """How many replies the selection needs: 2 f + 3, and m + f."""
        return max(2 * self.byzantine + 3, self.selected + self.byzantine)


class MultiKrum(RobustAverage):
    """Krum's selection of several replies; see the module's table."""

    name = "multi-krum"
    sections: ClassVar[Mapping[str, type]] = {"multi-krum": MultiKrumOptions}

    @classmethod
    def problems(cls, config: RunConfig) -> Iterable[Problem]:
        """A round must be able to bring as many replies as the selection needs."""
        options, num_replies = config.section(MultiKrumOptions), most_replies(config)
        f, m = options.byzantine, options.selected
        if num_replies < 2 * f + 3:
            way_out = f"lower it to {(num_replies - 3) // 2} or " if num_replies >= 3 else ""
            rule = (
                f"needs 2 f + 3 = {2 * f + 3} replies in a round, which takes {num_replies}; "
                f"{way_out}ask more clients"
            )
            yield Problem("multi-krum.byzantine", str(f), rule)
        elif m > num_replies - f:
            rule = (
                f"must be at most {num_replies - f}: the {num_replies} replies of a round less "
                f"multi-krum.byzantine={f}; 0 takes that many"
            )
            yield Problem("multi-krum.selected", str(m), rule)

    def averaged(self, replies: Sequence[Reply]) -> tuple[Sequence[Reply], int]:
        """Those of lowest score, in the order of their partition ids."""
        options = self.config.section(MultiKrumOptions)
        if len(replies) < options.fewest_replies():
            return [], 0
        squares = squared_distances([reply.record.arrays for reply in replies])
        nearest = len(replies) - options.byzantine - 2
        scores = krum_scores(squares, nearest)
        num_selected = options.selected or len(replies) - options.byzantine
        chosen = np.sort(np.argsort(scores, kind="stable")[:num_selected])
        return [replies[i] for i in chosen], 0


def squared_distances(replies: Sequence[Mapping[str, Array]]) -> npt.NDArray[np.float64]:
    """||y_i - y_j||^2 over all floating-point entries, float64, shape (n, n).

    Differences are taken before they are squared: of replies that are close by their own length,
    the expansion into scalar products would leave little but rounding.
    """
    count = len(replies)
    pairs = torch.zeros(count * (count - 1) // 2, dtype=torch.float64)
    for name, first in replies[0].items():
        if first.dtype.kind == "f":
            for _, columns in coordinates([arrays[name] for arrays in replies]):
                rows = torch.from_numpy(columns.T.astype(np.float64, order="C"))
                pairs += functional.pdist(rows).square()
    squares = np.zeros((count, count))
    squares[np.triu_indices(count, 1)] = pairs.numpy()
    return squares + squares.T


def krum_scores(squares: npt.NDArray[np.float64], nearest: int) -> npt.NDArray[np.float64]:
    """Each reply's sum of squared distances to the `nearest` others nearest to it, shape (n,).

    >>> krum_scores(np.array([[0.0, 1, 9], [1, 0, 4], [9, 4, 0]]), 1)
    array([1., 1., 4.])
    """
    others = squares[~np.eye(len(squares), dtype=bool)].reshape(len(squares), -1)
    sums: npt.NDArray[np.float64] = np.sort(others, axis=1)[:, :nearest].sum(axis=1)
    return sums
