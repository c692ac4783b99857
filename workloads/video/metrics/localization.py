"""Step localization: when each step of a known list happens, as CrossTask judges it.

Source: Zhukov, Alayrac, Cinbis, Fouhey, Laptev, Sivic, "Cross-task weakly supervised learning from
instructional videos", CVPR 2019, section 5: every step of the list is given exactly one frame, in
the list's order, background between them free.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from core.errors import DataError


def assign_steps(scores: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """One frame for every step, strictly increasing, so that the sum of scores is highest.

    Dynamic programming in O(T K) time. Of several best assignments it is the one whose last step
    is earliest, then the one before it, and so on. A score that is NaN or infinite counts as minus
    infinity: the frame is taken for that step only where no other is left.

    Args:
        scores: Of each frame for each step, such as log-probabilities, shape (T, K), 1 <= K <= T.

    Returns:
        The frame of each step, int64, shape (K,).

    Raises:
        DataError: There is no step, or there are more steps than frames, so that not all can have
            one of their own.

    >>> assign_steps(np.array([[0, 5], [4, 0], [0, 3]]))
    array([1, 2])
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or not 1 <= scores.shape[1] <= scores.shape[0]:
        raise DataError(
            f"scores of shape {scores.shape}: must be (frames, steps) with a step and no more "
            "steps than frames, since each step takes a frame of its own; shorten the list"
        )
    num_frames, num_steps = scores.shape
    kept = np.where(np.isfinite(scores), scores, -np.inf)
    # Step k can only be in frames k to k + slack: earlier steps need k frames before it, and later
    # ones need theirs behind. Row k of `best_until` is about these alone, so all of it is feasible.
    slack = num_frames - num_steps
    best_until = np.empty((num_steps, slack + 1), np.int64)
    sums = np.zeros(slack + 1)
    for k in range(num_steps):
        sums = sums + kept[k : k + slack + 1, k]
        # argmax over every prefix: a place is kept until a later one is strictly better.
        highest = np.maximum.accumulate(sums)
        is_new = np.concatenate([[True], highest[1:] > highest[:-1]])
        best_until[k] = np.maximum.accumulate(np.where(is_new, np.arange(slack + 1), 0))
        sums = highest
    places = np.empty(num_steps, np.int64)
    limit = slack
    for k in reversed(range(num_steps)):
        limit = places[k] = best_until[k, limit]
    return places + np.arange(num_steps)


def average_recall(
    happens: Sequence[npt.NDArray[np.bool_]],
    frames: Sequence[npt.NDArray[np.int64]],
    tasks: Sequence[str],
) -> float:
    """The share of steps whose frame lies within them, per task, averaged over tasks, in [0, 1].

    A task's recall is over all of its videos together: the steps that were found, over the steps
    that happen. A step of the list that a video does not show cannot be found and is not counted. A
    task of which no video shows a step is left out.

    Args:
        happens: For each video, which step happens in which frame, bool, shape (T, K).
        frames: For each video, the frame of each step, as by `assign_steps`, shape (K,).
        tasks: For each video, its task.

    Raises:
        DataError: Lengths do not fit, a frame is outside its video, or no step happens at all.
    """
    if not len(happens) == len(frames) == len(tasks):
        raise DataError(
            f"{len(happens)} videos' steps, {len(frames)} assignments and {len(tasks)} tasks: "
            "there must be one of each for every video"
        )
    num_found = []
    for video, (matrix, chosen) in enumerate(zip(happens, frames, strict=True)):
        wanted, where = np.asarray(matrix).astype(bool), np.asarray(chosen)
        if wanted.ndim != 2 or where.shape != (wanted.shape[1],):
            raise DataError(
                f"video {video}: steps of shape {wanted.shape} and frames of shape {where.shape}: "
                "must be (frames, steps) and (steps,)"
            )
        if where.size and not (where.min() >= 0 and where.max() < len(wanted)):
            raise DataError(
                f"video {video}: frames {where.tolist()}: must be in 0 to {len(wanted) - 1}"
            )
        num_found.append(float(wanted[where, np.arange(len(where))].sum()))
    return mean_over_tasks(num_found, happens, tasks)


def mean_over_tasks(
    num_found: Sequence[float], happens: Sequence[npt.NDArray[np.bool_]], tasks: Sequence[str]
) -> float:
    """Average recall, given how many steps were found in each video, perhaps in expectation."""
    found: dict[str, float] = {}
    num_steps: dict[str, int] = {}
    for hits, matrix, task in zip(num_found, happens, tasks, strict=True):
        found[task] = found.get(task, 0.0) + hits
        num_steps[task] = num_steps.get(task, 0) + int(np.asarray(matrix).any(0).sum())
    recalls = [found[task] / count for task, count in num_steps.items() if count]
    if not recalls:
        raise DataError(f"of {len(happens)} videos none shows a step; judge videos that do")
    return float(np.mean(recalls))
