"""Videos ready for a workload: frozen features of every second, and what is told of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import torch

from data.video.records import SPLITS, Corpus, Split, Video
from workloads.video.text import Vocabulary


@dataclass(frozen=True, slots=True)
class Clip:
    """A video without what only a generator knows, with its frozen features.

    Attributes:
        record: As the source has it; its `gold` is None.
        features: One row for each second, float32, shape (seconds, D), on the CPU.
        video: The record with times that are those of the rows: from the start of its clip.
    """

    record: Video
    features: torch.Tensor
    video: Video = field(init=False)

    def __post_init__(self) -> None:
        assert self.record.gold is None, "gold labels never come near a model's input"
        object.__setattr__(self, "video", self.record.of_clip())


@dataclass(frozen=True, slots=True)
class VideoDataset:
    """A corpus, loaded: an example is a video, so that partitions deal whole videos.

    Attributes:
        name: The source as configured.
        root: The folder that videos' files lie in.
        class_names: The strata that partitioners deal by.
        splits: The videos of each split.
        strata: Of each training video its stratum, int64, shape (N,).
        vocabulary: What texts are made of.
        steps: Texts of all steps, each once, in order.
        recipes: By topic, its steps in their order.
        num_left_out: Videos of each split that could not be read.
    """

    name: str
    root: Path
    class_names: tuple[str, ...]
    splits: Mapping[Split, tuple[Clip, ...]]
    strata: torch.Tensor
    vocabulary: Vocabulary
    steps: tuple[str, ...]
    recipes: Mapping[str, tuple[str, ...]]
    num_left_out: Mapping[Split, int]

    @property
    def feature_width(self) -> int:
        """Width of a feature (D)."""
        return next(clip.features.shape[1] for clips in self.splits.values() for clip in clips)

    @property
    def num_examples(self) -> dict[str, int]:
        """Videos in each split."""
        return {split: len(self.splits[split]) for split in SPLITS}

    @property
    def train_labels(self) -> torch.Tensor:
        """Stratum of every training video, int64, shape (N,)."""
        return self.strata

    @property
    def train_units(self) -> torch.Tensor:
        """Which file each training video is of or a clip of, int64, shape (N,)."""
        numbers: dict[str, int] = {}
        files = [clip.record.path for clip in self.splits["train"]]
        return torch.tensor([numbers.setdefault(file, len(numbers)) for file in files]).long()

    def content(self, indices: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """A digest of each training video at `indices`, uint8, shape (n, 32)."""
        clips = [self.splits["train"][i] for i in indices.tolist()]
        rows = [torch.frombuffer(bytearray(_digest(clip)), dtype=torch.uint8) for clip in clips]
        return (torch.stack(rows) if rows else torch.zeros(0, 32, dtype=torch.uint8),)

    def sha256(self) -> str:
        """A digest of all features and texts of the three splits, and of the vocabulary."""
        digest = hashlib.sha256(self.vocabulary.sha256.encode())
        digest.update(json.dumps([self.steps, dict(self.recipes)]).encode())
        for split in SPLITS:
            digest.update(split.encode())
            for clip in self.splits[split]:
                digest.update(_digest(clip))
        return digest.hexdigest()


def _digest(clip: Clip) -> bytes:
    digest = hashlib.sha256(json.dumps(clip.record.to_json(), sort_keys=True).encode())
    digest.update(clip.features.contiguous().numpy().tobytes())
    return digest.digest()


@dataclass(frozen=True, slots=True)
class VideoExamples:
    """The videos of one client, or of all.

    Attributes:
        clips: The videos, their features on the device that trains.
        device: That device.
    """

    clips: tuple[Clip, ...]
    device: torch.device

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def num_bytes(self) -> int:
        """Of all features."""
        return sum(clip.features.nbytes for clip in self.clips)


def texts_of(video: Video, recipes: Mapping[str, tuple[str, ...]]) -> list[str]:
    """All that is told of a video: what a vocabulary is made of."""
    found = [utterance.text for utterance in video.narration]
    found += [event.caption for event in video.events] + list(video.captions) + [video.paragraph]
    for question in video.questions:
        found += [question.text, question.answer, *question.candidates]
    found += [moment.query for moment in video.moments]
    return [text for text in [*found, *recipes.get(video.topic, ())] if text]


def dataset_of(
    corpus: Corpus,
    features: Mapping[str, torch.Tensor],
    *,
    name: str,
    stratum_of: Mapping[str, str],
    vocabulary: Vocabulary | None = None,
) -> VideoDataset:
    """Put records and features together, gold labels left behind.

    Args:
        corpus: The records.
        features: By a video's name, float32, shape (seconds, D); videos without are left out.
        name: The source as configured.
        stratum_of: By a training video's name, what partitioners deal it by.
        vocabulary: As given; else every word of the training videos.
    """
    kept: dict[Split, list[Clip]] = {split: [] for split in SPLITS}
    left_out = dict.fromkeys(SPLITS, 0)
    for video in corpus.videos:
        if video.name in features:
            kept[video.split].append(Clip(_without_gold(video), features[video.name]))
        else:
            left_out[video.split] += 1
    train = [clip.video for clip in kept["train"]]
    if vocabulary is None:
        vocabulary = Vocabulary.of_texts(
            text for video in train for text in texts_of(video, corpus.recipes)
        )
    strata = sorted({stratum_of[video.name] for video in train})
    number = {stratum: i for i, stratum in enumerate(strata)}
    return VideoDataset(
        name=name,
        root=corpus.root,
        class_names=tuple(strata),
        splits=MappingProxyType({split: tuple(clips) for split, clips in kept.items()}),
        strata=torch.tensor([number[stratum_of[v.name]] for v in train], dtype=torch.int64),
        vocabulary=vocabulary,
        steps=tuple(sorted({step for steps in corpus.recipes.values() for step in steps})),
        recipes=corpus.recipes,
        num_left_out=MappingProxyType(left_out),
    )


def _without_gold(video: Video) -> Video:
    return dataclasses.replace(video, gold=None)


def on_device(clips: Sequence[Clip], device: torch.device) -> VideoExamples:
    """The videos with their features on `device`."""
    return VideoExamples(
        tuple(Clip(clip.record, clip.features.to(device)) for clip in clips), device
    )
