"""Clips and data sets made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from core.seeds import torch_generator
from data.video.records import Corpus, Video
from workloads.video.dataset import Clip, VideoDataset, dataset_of
from workloads.video.text import Vocabulary


def clip_of(
    seconds: int = 6, *, width: int = 6, seed: int = 0, double: bool = False, **told: Any
) -> Clip:
    """A clip with drawn features and what is told of it as `Video` has it."""
    told = {"name": f"video-{seed}", "path": "video.mp4", "split": "train", **told}
    features = torch.randn(seconds, width, generator=torch_generator(seed))
    return Clip(Video(**told), features.double() if double else features)


def numbered_clip(seconds: int, **told: Any) -> Clip:
    """A clip whose features are the numbers of its seconds, shape (seconds, 1)."""
    clip = clip_of(seconds, **told)
    return Clip(clip.video, torch.arange(seconds, dtype=torch.float32).unsqueeze(1))


def dataset_with(
    clips: list[Clip],
    recipes: Mapping[str, tuple[str, ...]] | None = None,
    *,
    vocabulary: Vocabulary | None = None,
) -> VideoDataset:
    """A data set of these clips, dealt by topic."""
    videos = tuple(clip.video for clip in clips)
    return dataset_of(
        Corpus(Path("nowhere"), "handmade", videos, recipes or {}),
        {clip.video.name: clip.features for clip in clips},
        name="handmade",
        stratum_of={video.name: video.topic for video in videos},
        vocabulary=vocabulary,
    )
