"""What guessing scores, by the metrics of this package: what any model must beat.

All values are exact expectations, not draws.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from core.errors import DataError
from workloads.video.metrics.localization import mean_over_tasks
from workloads.video.metrics.retrieval import RankBounds
from workloads.video.metrics.segmentation import frame_accuracy


def guessed_ranks(num_right: npt.NDArray[np.int64], num_candidates: int) -> RankBounds:
    """Ranks when candidates are put in a random order, for `recall_at`.

    Args:
        num_right: How many candidates are right for each query, at least 1, shape (Q,).
        num_candidates: How many there are, N.

    Raises:
        DataError: There is no query, or one has no right candidate or more than there are.

    >>> guessed_ranks(np.array([1, 3]), 7).expected
    array([4., 2.])
    """
    right = np.asarray(num_right, np.int64)
    if right.ndim != 1 or not right.size or right.min() < 1 or right.max() > num_candidates:
        raise DataError(
            f"numbers of right candidates {right.tolist()} of {num_candidates}: there must be a "
            "query, and each must have 1 or more, and no more than there are"
        )
    return RankBounds(np.zeros_like(right), num_candidates - right, right)


def guessed_median_rank(
    num_right: npt.NDArray[np.int64], num_queries: npt.NDArray[np.int64], num_candidates: int
) -> float:
    """The expected median rank when each text puts the candidates in a random order of its own.

    The median over queries of their expected ranks is something else, and higher: ranks of the best
    of several right candidates are skewed.

    With r of N candidates right, none of them is among the first x with probability
    ``C(N - r, x) / C(N, x)``. How many queries have a right one there is a sum over texts, whose
    distribution is found by its characteristic function; the k-th lowest rank is above x where
    these are fewer than k, and its mean is the sum of these probabilities over x.

    Args:
        num_right: Of each text, how many candidates are right, at least 1, shape (G,).
        num_queries: Of each text, how many queries ask it, at least 1, shape (G,); they share its
            order, as they do where a model scores them.
        num_candidates: How many there are, N.

    Raises:
        DataError: As `guessed_ranks`, or a text is never asked.

    >>> round(guessed_median_rank(np.array([1]), np.array([1]), 7), 9)
    4.0
    """
    right = guessed_ranks(num_right, num_candidates).num_right
    asked = np.asarray(num_queries, np.int64)
    if asked.shape != right.shape or asked.min() < 1:
        raise DataError(
            f"numbers of queries {asked.tolist()} of {len(right)} texts: each must be asked"
        )
    count = int(asked.sum())
    kinds, alike = np.unique(np.stack([right, asked]), axis=1, return_counts=True)
    waves = np.exp(-2j * np.pi * np.outer(kinds[1], np.arange((count + 1) // 2 + 1)) / (count + 1))
    lower, upper = (count + 1) // 2, count // 2 + 1
    expected, missed = 0.0, np.ones(kinds.shape[1])
    for x in range(num_candidates):
        within = (1 - missed)[:, None]
        characteristic = np.prod((1 - within + within * waves) ** alike[:, None], axis=0)
        chances = np.fft.irfft(characteristic, count + 1)
        expected += (chances[:lower].sum() + chances[:upper].sum()) / 2
        missed = missed * np.maximum(num_candidates - kinds[0] - x, 0) / (num_candidates - x)
    return float(expected)


def guessed_answers(num_candidates: Sequence[int]) -> float:
    """Accuracy when one of a question's candidates is drawn, in [0, 1].

    Args:
        num_candidates: Of each question, one of which is right.

    Raises:
        DataError: There is no question, or one has no candidate.

    >>> guessed_answers([5, 5, 2])
    0.3
    """
    if not num_candidates or min(num_candidates) < 1:
        raise DataError(
            f"questions with {list(num_candidates)} candidates: there must be a question, and each "
            "must have 1 or more"
        )
    return sum(1 / count for count in num_candidates) / len(num_candidates)


def usual_answers(
    train_answers: Sequence[str], asked: Sequence[tuple[Sequence[str], str]]
) -> float:
    """Accuracy of the candidate that was most often right in training, in [0, 1].

    What questions give away without their videos: candidates that are never right can be told.

    Args:
        train_answers: The right answers of training questions.
        asked: Of each question that is judged, its candidates and the right one. Of candidates
            that were right equally often one is drawn.

    Raises:
        DataError: There is no question.

    >>> usual_answers(["spins", "spins", "falls"], [(["spins", "falls"], "falls")])
    0.0
    """
    if not asked:
        raise DataError("there is no question to be answered; use a corpus that has some")
    counts = Counter(train_answers)
    total = 0.0
    for candidates, right in asked:
        most = max(counts[candidate] for candidate in candidates)
        usual = [candidate for candidate in candidates if counts[candidate] == most]
        total += usual.count(right) / len(usual)
    return total / len(asked)


def majority_accuracy(
    train_labels: npt.NDArray[np.integer],
    labels: npt.NDArray[np.integer],
    background: int | None = None,
) -> float:
    """Frame accuracy of the most frequent label of the training frames, in [0, 1].

    Args:
        train_labels: Of training frames, which alone choose the label; of equally frequent ones
            it is the lowest. Shape (n,).
        labels: Of the frames that are judged, shape (T,).
        background: As in `frame_accuracy`; it is then not chosen either.

    Raises:
        DataError: No training frame or no judged one is left.
    """
    seen = np.asarray(train_labels)
    seen = seen if background is None else seen[seen != background]
    if not seen.size:
        raise DataError(
            f"of {len(train_labels)} training frames none has a label to choose; give some that do"
        )
    values, counts = np.unique(seen, return_counts=True)
    guess = values[counts.argmax()]
    return frame_accuracy(np.full(np.shape(labels), guess), labels, background)


def guessed_recall(happens: Sequence[npt.NDArray[np.bool_]], tasks: Sequence[str]) -> float:
    """Average recall when every video's steps are given one of all increasing tuples of frames.

    All ``C(T, K)`` tuples are equally likely. In ``C(t, k) C(T - 1 - t, K - 1 - k)`` of them step k
    is in frame t, as k steps are before it and the others behind, so that is its chance to be found
    by each frame in which it happens. Random scores through `assign_steps` are something else: they
    favour some tuples, since tuples that share frames tend to win together.

    Args:
        happens: For each video, which step happens in which frame, bool, shape (T, K), K <= T.
        tasks: For each video, its task.

    Raises:
        DataError: Lengths do not fit, a video has more steps than frames, or no step happens.
    """
    if len(happens) != len(tasks):
        raise DataError(
            f"{len(happens)} videos' steps and {len(tasks)} tasks: there must be one of each for "
            "every video"
        )
    expected = []
    for video, matrix in enumerate(happens):
        num_frames, num_steps = matrix.shape
        if num_steps > num_frames:
            raise DataError(
                f"video {video} has {num_frames} frames for {num_steps} steps, which take a frame "
                "each; shorten the list"
            )
        ways = sum(
            math.comb(t, k) * math.comb(num_frames - 1 - t, num_steps - 1 - k)
            for t, k in np.argwhere(matrix).tolist()
        )
        expected.append(ways / math.comb(num_frames, num_steps))
    return mean_over_tasks(expected, happens, tasks)
