"""The assignment against all increasing tuples of frames, and recall by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import DataError
from workloads.video.metrics.localization import assign_steps, average_recall

SIZES = st.integers(1, 7).flatmap(lambda t: st.tuples(st.just(t), st.integers(1, t)))


def summed(scores: np.ndarray, frames: tuple[int, ...]) -> float:
    total = 0.0
    for step, frame in enumerate(frames):
        total += scores[frame, step]
    return total


def best_of_all(scores: np.ndarray) -> tuple[int, ...]:
    """Of all increasing tuples the best; of equal ones that whose last frames are earliest."""
    num_frames, num_steps = scores.shape
    every = itertools.combinations(range(num_frames), num_steps)
    return min(every, key=lambda frames: (-summed(scores, frames), frames[::-1]))


@given(SIZES, st.integers(0, 2**32 - 1))
def test_the_sum_is_the_highest_of_all(size: tuple[int, int], seed: int) -> None:
    scores = np.random.default_rng(seed).normal(size=size)
    assert tuple(assign_steps(scores).tolist()) == best_of_all(scores)


@given(SIZES, st.data())
def test_ties_and_infinities_are_settled_as_told(
    size: tuple[int, int], data: st.DataObject
) -> None:
    values = st.sampled_from([0.0, 0.0, 1.0, 2.0, -np.inf])
    cells = data.draw(st.lists(values, min_size=size[0] * size[1], max_size=size[0] * size[1]))
    scores = np.array(cells).reshape(size)
    assert tuple(assign_steps(scores).tolist()) == best_of_all(scores)
    unknown = np.where(np.isinf(scores), np.nan, scores)
    assert (assign_steps(unknown) == assign_steps(scores)).all()
    assert (assign_steps(np.where(np.isinf(scores), np.inf, scores)) == assign_steps(scores)).all()


@given(SIZES, st.integers(0, 2**32 - 1))
def test_what_is_added_to_all_frames_of_a_step_changes_nothing(
    size: tuple[int, int], seed: int
) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.integers(-8, 9, size=size).astype(float)
    shifts = generator.integers(-8, 9, size=size[1])
    assert (assign_steps(scores + shifts) == assign_steps(scores)).all()


def test_by_hand() -> None:
    # Each step's own best frames are 0 and 0; the order must hold, and strictly.
    assert assign_steps(np.array([[9.0, 9.0], [0.0, 1.0], [0.0, 2.0]])).tolist() == [0, 2]
    # Best frames in the wrong order: giving up the second step's is cheaper.
    assert assign_steps(np.array([[0.0, 3.0], [5.0, 0.0], [0.0, 1.0]])).tolist() == [1, 2]
    assert assign_steps(np.zeros((5, 3))).tolist() == [0, 1, 2]
    assert assign_steps(np.eye(4)).tolist() == [0, 1, 2, 3]


def test_more_steps_than_frames_are_refused() -> None:
    for shape in ((2, 3), (0, 1), (3, 0), (4,)):
        with pytest.raises(DataError, match="no more steps than frames"):
            assign_steps(np.zeros(shape))


def matrix(num_frames: int, *spans: tuple[int, int]) -> np.ndarray:
    found = np.zeros((num_frames, len(spans)), bool)
    for step, (start, end) in enumerate(spans):
        found[start:end, step] = True
    return found


def test_recall_by_hand() -> None:
    happens = [
        matrix(6, (0, 2), (3, 5)),  # of task a: the first found, the second missed
        matrix(6, (0, 0), (1, 3)),  # of task a: the first does not happen, the second is found
        matrix(4, (0, 1), (2, 3), (0, 0)),  # of task b: neither found
        matrix(4, (0, 1)),  # of task b: found
        matrix(4, (0, 0)),  # of task c, which has no step to find
    ]
    frames = [np.array(one) for one in ([1, 5], [0, 1], [1, 3, 3], [0], [2])]
    found = average_recall(happens, frames, ["a", "a", "b", "b", "c"])
    assert found == pytest.approx((2 / 3 + 1 / 3) / 2)
    # A task's videos are pooled: their own recalls, 1/2 and 1, would give a mean of 3/4 for a.
    assert average_recall(happens[:2], frames[:2], ["a", "a"]) == pytest.approx(2 / 3)


@given(SIZES, st.integers(0, 2**32 - 1))
def test_recall_is_the_product_of_matrices_over_steps_that_happen(
    size: tuple[int, int], seed: int
) -> None:
    generator = np.random.default_rng(seed)
    happens = generator.random(size) < 0.5
    happens[0, 0] = True
    frames = assign_steps(generator.normal(size=size))
    chosen = np.zeros(size)
    chosen[frames, np.arange(size[1])] = 1
    expected = (happens * chosen).sum() / (happens.sum(0) > 0).sum()
    assert average_recall([happens], [frames], ["a"]) == pytest.approx(expected)
    # Scores that say where steps are find all that can be in order: here one after another.
    steps = np.eye(*size, dtype=bool)
    assert average_recall([steps], [assign_steps(steps.astype(float))], ["a"]) == 1


def test_what_does_not_fit_is_refused() -> None:
    one = matrix(3, (0, 1), (1, 2))
    with pytest.raises(DataError, match="one of each"):
        average_recall([one], [], ["a"])
    with pytest.raises(DataError, match="video 0: steps of shape"):
        average_recall([one], [np.array([0])], ["a"])
    for frame in (-1, 3):
        with pytest.raises(DataError, match="0 to 2"):
            average_recall([one], [np.array([0, frame])], ["a"])
    with pytest.raises(DataError, match="none shows a step"):
        average_recall([matrix(3, (0, 0))], [np.array([0])], ["a"])
    with pytest.raises(DataError, match="0 videos"):
        average_recall([], [], [])
