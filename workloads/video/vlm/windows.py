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
    sums: list[torch.Tensor | None] = [None] * len(clips)
    counts = [torch.zeros(len(clip.features), 1, device=features.device) for clip in clips]
    for row, (index, start) in enumerate(places):
        length = len(windows[row])
        logits = logits_of(index, states[row, :length])
        tail = len(clips[index].features) - start - length
        placed = torch.nn.functional.pad(logits, (0, 0, start, tail))
        held = sums[index]
        sums[index] = placed if held is None else held + placed
        counts[index][start : start + length] += 1
    return [total / count for total, count in zip(sums, counts, strict=True) if total is not None]
