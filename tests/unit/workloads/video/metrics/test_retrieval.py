"""Ranks and recall against every order of tied candidates, and the sorting that they replace."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import DataError
from workloads.video.metrics.retrieval import median_rank, ranks, recall_at

FEW = st.integers(0, 2).map(float)


@st.composite
def tied_queries(draw: st.DrawFn) -> tuple[list[list[float]], list[list[bool]]]:
    """Scores of few values, so that many tie, and which candidates are right."""
    num_queries, num_candidates = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    scores, right = [], []
    for _ in range(num_queries):
        scores.append(draw(st.lists(FEW, min_size=num_candidates, max_size=num_candidates)))
        row = draw(st.lists(st.booleans(), min_size=num_candidates, max_size=num_candidates))
        row[draw(st.integers(0, num_candidates - 1))] = True
        right.append(row)
    return scores, right


def every_rank(scores: list[float], right: list[bool]) -> list[int]:
    """The first right candidate's rank in every order that sorts the scores."""
    found = []
    for order in itertools.permutations(range(len(scores))):
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order)):
            found.append(1 + next(place for place, one in enumerate(order) if right[one]))
    return found


@given(tied_queries(), st.integers(1, 6))
def test_every_number_is_the_mean_over_all_orders_of_the_tied(
    queries: tuple[list[list[float]], list[list[bool]]], k: int
) -> None:
    scores, right = queries
    found = ranks(np.array(scores), np.array(right))
    orders = [every_rank(*pair) for pair in zip(scores, right, strict=True)]
    assert found.best.tolist() == [min(one) for one in orders]
    assert found.worst.tolist() == [max(one) for one in orders]
    means = [float(Fraction(sum(one), len(one))) for one in orders]
    assert found.expected == pytest.approx(means)
    assert median_rank(found) == pytest.approx(np.median(means))
    shares = [Fraction(sum(rank <= k for rank in one), len(one)) for one in orders]
    assert recall_at(found, k) == pytest.approx(float(sum(shares) / len(shares)))


@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_without_ties_ranks_are_those_of_sorting(seed: int, num_candidates: int) -> None:
    generator = np.random.default_rng(seed)
    similarity = generator.permuted(np.arange(6 * num_candidates).reshape(6, -1), axis=1) / 7
    target = generator.integers(num_candidates, size=6)
    found = ranks(similarity, target)
    order = np.argsort(-similarity, axis=1)
    by_sorting = (order == target[:, None]).argmax(1) + 1
    assert (found.best == by_sorting).all() and (found.worst == by_sorting).all()
    assert (found.expected == by_sorting).all()
    for k in (1, 5, 10):
        assert recall_at(found, k) == pytest.approx((by_sorting <= k).mean())


def test_one_score_for_all_is_chance() -> None:
    found = ranks(np.zeros((8, 8)), np.arange(8))
    assert recall_at(found, 1) == pytest.approx(1 / 8)
    assert recall_at(found, 5) == pytest.approx(5 / 8)
    assert recall_at(found, 8) == recall_at(found, 10) == 1
    assert median_rank(found) == 4.5
    # Counting the zeros of "sorted scores less the right one's", as is common, gives 64 ranks.
    assert len(found.best) == 8


@given(tied_queries())
def test_an_index_is_a_mask_with_one_right(
    queries: tuple[list[list[float]], list[list[bool]]],
) -> None:
    scores, right = np.array(queries[0]), np.array(queries[1])
    target = right.argmax(1)
    one = ranks(scores, target)
    other = ranks(scores, np.eye(scores.shape[1], dtype=bool)[target])
    assert (one.expected == other.expected).all() and (one.num_right == 1).all()
    assert (one.expected == one.num_better + 1 + one.num_tied / 2).all()
    assert (ranks(scores, right).expected <= one.expected).all()


def test_nan_counts_against_the_model() -> None:
    nan, inf = np.nan, np.inf
    similarity = np.array(
        [
            [nan, 0.0, -inf, -1.0],  # the right one: behind all
            [0.0, nan, -1.0, -1.0],  # a wrong one: before the right one
            [nan, nan, nan, nan],  # all of them: behind all
            [inf, nan, 0.0, inf],
        ]
    )
    found = ranks(similarity, np.zeros(4, np.int64))
    assert found.best.tolist() == [4, 2, 4, 2]
    assert found.worst.tolist() == [4, 2, 4, 3]
    several = ranks(similarity[:1], np.array([[True, False, True, False]]))
    assert several.expected.tolist() == [3]  # a right one with a score, however low, is used


@pytest.mark.parametrize(
    ("similarity", "target", "says"),
    [
        (np.zeros(3), np.array([0]), "shape"),
        (np.zeros((0, 3)), np.zeros(0, np.int64), "at least one"),
        (np.zeros((2, 3)), np.array([0]), "2 queries"),
        (np.zeros((2, 3)), np.array([0.0, 1.0]), "float64"),
        (np.zeros((2, 3)), np.array([0, 3]), "0 to 2"),
        (np.zeros((2, 3)), np.array([-1, 2]), "0 to 2"),
        (np.zeros((2, 3)), np.ones((3, 2), bool), "shape"),
        (np.zeros((2, 3)), np.array([[True] * 3, [False] * 3]), "query 1 has no right"),
    ],
)
def test_what_does_not_fit_is_refused(
    similarity: np.ndarray, target: np.ndarray, says: str
) -> None:
    with pytest.raises(DataError, match=says):
        ranks(similarity, target)


def test_recall_at_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="recall at 0"):
        recall_at(ranks(np.zeros((1, 1)), np.array([0])), 0)
