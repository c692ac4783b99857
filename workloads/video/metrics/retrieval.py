"""Text-video retrieval: where the right candidate stands, ties included.

Scores tie as soon as a model answers alike to different inputs, and then sorting decides: a model
that gives every candidate one score can come out as perfect. Here tied candidates are in no order,
and every number is its expectation when they are put in a random one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.errors import DataError


@dataclass(frozen=True, slots=True, eq=False)
class RankBounds:
    """Where the best right candidate of each query stands among all candidates; 1 is the first.

    Attributes:
        num_better: Wrong candidates with a higher score than any right one, int64, shape (Q,).
        num_tied: Wrong candidates with just the score of the best right one, likewise.
        num_right: Right candidates with that score, at least 1, likewise.
    """

    num_better: npt.NDArray[np.int64]
    num_tied: npt.NDArray[np.int64]
    num_right: npt.NDArray[np.int64]

    @property
    def best(self) -> npt.NDArray[np.int64]:
        """The rank if every tie is broken for the right candidate, shape (Q,)."""
        return self.num_better + 1

    @property
    def worst(self) -> npt.NDArray[np.int64]:
        """The rank if every tie is broken against it, shape (Q,)."""
        return self.num_better + 1 + self.num_tied

    @property
    def expected(self) -> npt.NDArray[np.float64]:
        """The mean rank over all orders of the tied candidates, float64, shape (Q,).

        The right ones among the tied cut the wrong ones into ``num_right + 1`` stretches of the
        same expected length, and the first stretch stands before them. With one right candidate
        that is half of the tied ones.
        """
        return self.num_better + 1 + self.num_tied / (self.num_right + 1)


def ranks(
    similarity: npt.NDArray[np.floating], target: npt.NDArray[np.int64] | npt.NDArray[np.bool_]
) -> RankBounds:
    """The rank of the right candidate of every query, or of the best one if several are right.

    A NaN counts against the model wherever it stands: a right candidate with it stands behind all
    others, a wrong one before them.

    Args:
        similarity: Score of each candidate for each query, higher is better, shape (Q, N).
        target: The right candidate of each query, int, shape (Q,); or which candidates are right,
            bool, shape (Q, N), at least one in each row.

    Raises:
        DataError: Shapes do not fit, there is no query, or a query has no right candidate.

    >>> found = ranks(np.array([[0.3, 0.9, 0.3, 0.1]]), np.array([0]))
    >>> found.best, found.expected, found.worst
    (array([2]), array([2.5]), array([3]))
    """
    scores = np.asarray(similarity)
    if scores.ndim != 2 or not scores.size:
        raise DataError(
            f"similarity of shape {scores.shape}: must have a row for each query and a column for "
            "each candidate, at least one of both"
        )
    right = _mask(np.asarray(target), scores.shape)
    unknown = np.isnan(scores)
    # Two sorting keys, since a wrong candidate's NaN must stand even before an infinite score.
    kept = np.where(unknown, -np.inf, scores)
    level = np.where(unknown, np.where(right, -1, 1), 0)
    right_level = np.where(right, level, -1).max(1, keepdims=True)
    at_level = right & (level == right_level)
    right_score = np.where(at_level, kept, -np.inf).max(1, keepdims=True)
    same_level = level == right_level
    better = (level > right_level) | (same_level & (kept > right_score))
    tied = same_level & (kept == right_score)
    return RankBounds(
        num_better=better.sum(1, dtype=np.int64),
        num_tied=(tied & ~right).sum(1, dtype=np.int64),
        num_right=(tied & right).sum(1, dtype=np.int64),
    )


def recall_at(found: RankBounds, k: int) -> float:
    """R@k: the share of queries with a right candidate among the first k, in [0, 1].

    A query with ties counts by the probability of that over all orders of the tied. Of ``g``
    tied candidates, ``w`` of them wrong, the first ``j = k - num_better`` are within k. All
    ``C(g, j)`` choices of these are equally likely and ``C(w, j)`` hold no right one, so the
    probability is ``1 - C(w, j) / C(g, j)``. With one right candidate this is ``j / g``. Without
    ties it is 1 or 0, the usual definition.

    Raises:
        DataError: `k` is below 1.

    >>> recall_at(ranks(np.zeros((1, 4)), np.array([2])), 1)
    0.25
    """
    if k < 1:
        raise DataError(f"recall at {k}: must be at 1 or more")
    num_tied, group = found.num_tied, found.num_tied + found.num_right
    within = np.clip(k - found.num_better, 0, group)
    missed = np.ones(len(group))
    for i in range(int(within.max())):
        drawn = i < within
        missed[drawn] *= np.maximum(num_tied[drawn] - i, 0) / (group[drawn] - i)
    return float(1 - missed.mean())


def median_rank(found: RankBounds) -> float:
    """MedR: the median over queries of the expected rank; the first rank is 1."""
    return float(np.median(found.expected))


def _mask(target: npt.NDArray[np.generic], shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    num_queries, num_candidates = shape
    if target.dtype == np.bool_:
        if target.shape != shape:
            raise DataError(f"right candidates of shape {target.shape}: must have that of {shape}")
        if not (some := target.any(1)).all():
            raise DataError(
                f"query {int(some.argmin())} has no right candidate; leave such queries out"
            )
        return target.astype(np.bool_)
    if target.shape != (num_queries,) or not np.issubdtype(target.dtype, np.integer):
        raise DataError(
            f"right candidates of shape {target.shape} and type {target.dtype}: must be one index "
            f"for each of {num_queries} queries, or bool of shape {shape}"
        )
    index = target.astype(np.int64)
    if index.min() < 0 or index.max() >= num_candidates:
        raise DataError(
            f"right candidates {index.min()} to {index.max()}: must be in 0 to "
            f"{num_candidates - 1}, the columns of the similarity"
        )
    mask: npt.NDArray[np.bool_] = np.arange(num_candidates) == index[:, None]
    return mask
