"""States of every second of a video, however long: windows that overlap, and their means."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from workloads.video.dataset import Clip
from workloads.video.metrics.segmentation import window_starts
from workloads.video.vlm.model import VideoLanguageModel, padded


def over_windows(
    model: VideoLanguageModel,
    clips: Sequence[Clip],
    size: int,
    step: int,
    logits_of: Callable[[int, torch.Tensor], torch.Tensor],
) -> list[torch.Tensor]:
    """Logits of every second, averaged over the windows that hold it.

    Args:
        model: Encodes the windows, each apart from any text.
        clips: The videos.
        size: Seconds of a window.
        step: Seconds from one to the next; the last one ends with the video.
        logits_of: From a video's index and states, shape (n, d), to logits, shape (n, C).

    Returns:
        For each video, shape (seconds, C).
    """
    places = [
        (index, start)
        for index, clip in enumerate(clips)
        for start in window_starts(len(clip.features), size, step)
    ]
    windows = [clips[index].features[start : start + size] for index, start in places]
    features, valid = padded(windows)
    states = model.video_states(features, valid)
    found: list[list[torch.Tensor]] = [[] for _ in clips]
    for row, (index, _) in enumerate(places):
        found[index].append(logits_of(index, states[row, : len(windows[row])]))
    starts: list[list[int]] = [[] for _ in clips]
    for index, start in places:
        starts[index].append(start)
    return [
        average_windows(logits, firsts, len(clip.features))
        for logits, firsts, clip in zip(found, starts, clips, strict=True)
    ]


def average_windows(
    logits: Sequence[torch.Tensor], starts: Sequence[int], num_seconds: int
) -> torch.Tensor:
    """Logits of every second, each the mean over the windows that hold it.

    Args:
        logits: Of each window, shape (n, C).
        starts: First second of each; together they hold every second.
        num_seconds: Length of the video, T.

    Returns:
        Shape (T, C).
    """
    total = logits[0].new_zeros(num_seconds, logits[0].shape[1])
    count = logits[0].new_zeros(num_seconds, 1)
    for window, start in zip(logits, starts, strict=True):
        tail = num_seconds - start - len(window)
        total = total + torch.nn.functional.pad(window, (0, 0, start, tail))
        count[start : start + len(window)] += 1
    assert count.all(), "every second is in a window"
    return total / count
