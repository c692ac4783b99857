"""Expectations of guessing against every guess there is."""

from __future__ import annotations

import doctest
import itertools
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import DataError
from workloads.video.metrics import captions, chance, localization, retrieval, segmentation
from workloads.video.metrics.chance import (
    guessed_answers,
    guessed_median_rank,
    guessed_ranks,
    guessed_recall,
    majority_accuracy,
    usual_answers,
)
from workloads.video.metrics.localization import average_recall
from workloads.video.metrics.retrieval import median_rank, ranks, recall_at


@pytest.mark.parametrize("module", [captions, chance, localization, retrieval, segmentation])
def test_examples_in_docstrings(module: ModuleType) -> None:
    outcome = doctest.testmod(module)
    assert outcome.attempted > 0 and outcome.failed == 0


@given(st.integers(1, 6), st.data())
def test_a_random_order_is_one_in_which_all_tie(num_candidates: int, data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(1, num_candidates), min_size=1, max_size=4))
    mask = np.arange(num_candidates) < np.array(counts)[:, None]
    found = guessed_ranks(np.array(counts), num_candidates)
    tied = ranks(np.zeros(mask.shape), mask)
    assert (found.expected == tied.expected).all() and (found.worst == tied.worst).all()
    for k in (1, 2, 10):
        assert recall_at(found, k) == pytest.approx(recall_at(tied, k))


def test_retrieval_by_hand() -> None:
    found = guessed_ranks(np.ones(3, np.int64), 1000)
    assert [recall_at(found, k) for k in (1, 5, 10)] == pytest.approx([0.001, 0.005, 0.01])
    assert median_rank(found) == 500.5
    # Two of four are right: both places of the first two are wrong in 1 of 6 choices.
    assert recall_at(guessed_ranks(np.array([2]), 4), 2) == pytest.approx(5 / 6)


@settings(max_examples=30)
@given(st.integers(1, 4), st.data())
def test_a_median_rank_is_the_mean_over_all_orders_of_every_text(
    num_candidates: int, data: st.DataObject
) -> None:
    """Every way in which up to three texts can put their candidates in order."""
    texts = st.tuples(st.integers(1, num_candidates), st.integers(1, 3))
    right, asked = zip(*data.draw(st.lists(texts, min_size=1, max_size=3)), strict=True)
    orders = list(itertools.permutations(range(num_candidates)))
    first = [[min(order.index(one) for one in range(r)) + 1 for order in orders] for r in right]
    medians = [np.median(np.repeat(drawn, asked)) for drawn in itertools.product(*first)]
    found = guessed_median_rank(np.array(right), np.array(asked), num_candidates)
    assert found == pytest.approx(np.mean(medians))


def test_a_median_rank_by_hand() -> None:
    # Of 1000 clips each text has one, and the median of three even draws is in the middle.
    ones = np.ones(3, np.int64)
    assert guessed_median_rank(ones, ones, 1000) == pytest.approx(500.5)
    # Two of three are right: the first is one of them in 2 of 3 orders, else the second.
    assert guessed_median_rank(np.array([2]), np.array([1]), 3) == pytest.approx(4 / 3)
    # Three that ask it apart: the middle is above 1 where two or three of them are.
    apart = guessed_median_rank(np.full(3, 2), ones, 3)
    assert apart == pytest.approx(1 + 3 * (1 / 3) ** 2 * (2 / 3) + (1 / 3) ** 3)
    assert median_rank(guessed_ranks(np.full(3, 2), 3)) == pytest.approx(4 / 3) != apart


def test_answers_and_majority_by_hand() -> None:
    assert guessed_answers([5, 5, 5]) == pytest.approx(0.2)
    train, labels = np.array([0, 0, 0, 2, 2, 1]), np.array([1, 1, 2, 0])
    assert majority_accuracy(train, labels) == 1 / 4  # what is frequent in training, not here
    assert majority_accuracy(train, labels, background=0) == 1 / 3
    assert majority_accuracy(np.array([2, 1]), labels) == 1 / 2  # of equal ones the lowest


def test_the_most_usual_answer_by_hand() -> None:
    train = ["spins", "spins", "falls", "grows", "grows"]
    asked = [
        (("falls", "spins"), "spins"),  # right
        (("falls", "spins"), "falls"),  # wrong
        (("grows", "spins", "falls"), "grows"),  # drawn out of two
        (("rises", "sinks", "jumps"), "rises"),  # drawn out of all, none of which was ever right
    ]
    assert usual_answers(train, asked) == pytest.approx((1 + 0 + 1 / 2 + 1 / 3) / 4)
    with pytest.raises(DataError, match="no question"):
        usual_answers(train, [])


@given(st.integers(1, 6).flatmap(lambda t: st.tuples(st.just(t), st.integers(1, t))), st.data())
def test_recall_is_the_mean_over_all_increasing_tuples(
    size: tuple[int, int], data: st.DataObject
) -> None:
    generator = np.random.default_rng(data.draw(st.integers(0, 999)))
    one, other = generator.random(size) < 0.5, np.eye(3, 2, dtype=bool)
    one[0, 0] = True
    every = [np.array(frames) for frames in itertools.combinations(range(size[0]), size[1])]
    alone = float(np.mean([average_recall([one], [frames], ["a"]) for frames in every]))
    assert guessed_recall([one], ["a"]) == pytest.approx(alone)
    # Of the three tuples of 3 frames for 2 steps, frames 0 and 1 are step 0's and step 1's: each
    # is right in 2 and 1 of them.
    assert guessed_recall([other], ["b"]) == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert guessed_recall([one, other], ["a", "b"]) == pytest.approx((alone + 1 / 2) / 2)
    num_steps = int(one.any(0).sum())
    pooled = (alone * num_steps + 1) / (num_steps + 2)
    assert guessed_recall([one, other], ["a", "a"]) == pytest.approx(pooled)


def test_a_step_that_fills_the_video_is_always_found() -> None:
    assert guessed_recall([np.ones((300, 12), bool)], ["a"]) == pytest.approx(1)


def test_what_does_not_fit_is_refused() -> None:
    for counts in ([], [0], [5]):
        with pytest.raises(DataError, match="right candidates"):
            guessed_ranks(np.array(counts, np.int64), 4)
    for asked in ([1], [1, 0]):
        with pytest.raises(DataError, match="each must be asked"):
            guessed_median_rank(np.ones(2, np.int64), np.array(asked), 4)
    for questions in ([], [3, 0]):
        with pytest.raises(DataError, match="questions with"):
            guessed_answers(questions)
    with pytest.raises(DataError, match="2 training frames none"):
        majority_accuracy(np.zeros(2, int), np.ones(2, int), background=0)
    with pytest.raises(DataError, match="one of each"):
        guessed_recall([np.ones((2, 1), bool)], [])
    with pytest.raises(DataError, match="2 frames for 3 steps"):
        guessed_recall([np.ones((2, 3), bool)], ["a"])
    with pytest.raises(DataError, match="none shows a step"):
        guessed_recall([np.zeros((2, 1), bool)], ["a"])
