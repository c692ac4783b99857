"""Action segmentation: one label a frame, and windows that slide over long videos.

A frame is whatever has one label, such as a second's feature. Frame accuracy is what COIN reports
(Tang et al., "COIN: A Large-scale Dataset for Comprehensive Instructional Video Analysis", CVPR
2019): all frames of all videos pooled, background a label like the others.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from core.errors import DataError


def window_starts(num_frames: int, size: int, step: int) -> list[int]:
    """First frames of windows that together hold every frame.

    A window starts every `step` frames as long as it fits; if frames are left over, a last one ends
    with the video. A video shorter than a window has one, from its first frame.

    Args:
        num_frames: Length of the video, at least 1.
        size: Frames of a window.
        step: Frames from one start to the next, 1 to `size`.

    Raises:
        DataError: The video is empty, or windows would leave frames out.

    >>> window_starts(70, 32, 16), window_starts(20, 32, 16)
    ([0, 16, 32, 38], [0])
    """
    if num_frames < 1:
        raise DataError(f"a video of {num_frames} frames has no windows; leave it out")
    if not 1 <= step <= size:
        raise DataError(
            f"windows of {size} frames every {step}: must start every 1 to {size} frames, so that "
            "none is left out"
        )
    last = max(0, num_frames - size)
    starts = list(range(0, last + 1, step))
    return starts if starts[-1] == last else [*starts, last]


def frame_accuracy(
    predicted: npt.NDArray[np.integer],
    labels: npt.NDArray[np.integer],
    background: int | None = None,
) -> float:
    """The share of frames with the right label, in [0, 1].

    Args:
        predicted: Labels that a model gives, shape (T,), the frames of all videos after each other.
        labels: The right ones, shape (T,).
        background: A label whose frames are left out: whether a model finds the background is then
            not asked, but a step that it takes for background is still wrong. None for all frames.

    Raises:
        DataError: Shapes differ, or no frame is left.
    """
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    if predicted.shape != labels.shape or labels.ndim != 1:
        raise DataError(
            f"predicted labels of shape {predicted.shape} and right ones of {labels.shape}: both "
            "must be (frames,)"
        )
    counted = np.full(labels.shape, True) if background is None else labels != background
    if not counted.any():
        but = "" if background is None else f" but background, label {background}"
        raise DataError(f"of {len(labels)} frames none is left{but}; judge videos that have some")
    return float((predicted == labels)[counted].mean())
