"""What VLM is trained to do on a client's videos, and how it is judged at it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from core.scores import Score
from data.video.records import Span
from workloads.video.dataset import Clip, VideoDataset
from workloads.video.vlm.clips import Batcher
from workloads.video.vlm.model import VideoLanguageModel
from workloads.video.vlm.options import VlmOptions


@dataclass(frozen=True, slots=True)
class Sample:
    """One item as people look at it.

    Attributes:
        kind: What all of a kind stand under.
        clip: The video.
        span: What of it is meant; None for all.
        lines: What is told of it, by what it is.
    """

    kind: str
    clip: Clip
    span: Span | None
    lines: Mapping[str, str]

    @property
    def title(self) -> str:
        """The video's name, and the seconds that are meant."""
        start_s, end_s = self.span or (0.0, float(len(self.clip.features)))
        return f"{self.clip.video.name}, {start_s:.1f} to {end_s:.1f} s"


@dataclass(frozen=True, slots=True)
class Judgement:
    """How well a model does a task on one split.

    Attributes:
        loss: Mean of what training minimises, over what was judged.
        num_items: Items judged: queries, frames, questions, captions.
        scores: By name, those of `Task.scores`.
        samples: A few items as people look at them.
    """

    loss: float
    num_items: int
    scores: Mapping[str, float]
    samples: tuple[Sample, ...] = ()


@dataclass(frozen=True)
class Task(ABC):
    """One task on one corpus.

    Attributes:
        options: The workload's keys.
        dataset: What labels and recipes there are.
        batcher: Makes batches.
        name: As the configuration names it.
        scores: What it is judged by; the first is its primary one.
        own_entries: Names of parts of the model that this task alone trains, or it and others of
            which it is one.
    """

    options: VlmOptions
    dataset: VideoDataset
    batcher: Batcher

    name: ClassVar[str]
    scores: ClassVar[tuple[Score, ...]]
    own_entries: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def lacking(cls, dataset: VideoDataset) -> str:
        """What a corpus lacks for this task, as a clause after ``the corpus``; else empty."""
        return ""

    @abstractmethod
    def num_items(self, clip: Clip) -> int:
        """Items that a video gives: 0 where it cannot be trained or judged on."""

    def judged_by(self) -> tuple[Score, ...]:
        """Its scores on this corpus."""
        return self.scores

    def can_judge(self, clips: Sequence[Clip]) -> bool:
        """Whether one of these videos gives an item to judge on."""
        return any(map(self.num_items, clips))

    @abstractmethod
    def loss(
        self, model: VideoLanguageModel, clips: Sequence[Clip], generator: torch.Generator
    ) -> tuple[torch.Tensor, Mapping[str, float]]:
        """What training minimises on a batch of videos, shape (), and what was measured.

        Videos without an item add nothing; without any, the loss and its gradient are zero.
        """

    @abstractmethod
    def judge(self, model: VideoLanguageModel, clips: Sequence[Clip]) -> Judgement:
        """Judge a model, in the mode that it is in, without gradients.

        Raises:
            DataError: No video gives an item.
        """

    def measures(self) -> tuple[str, ...]:
        """Names of what `loss` measures."""
        return (f"loss/{self.name}",)


def nothing(model: VideoLanguageModel) -> torch.Tensor:
    """A loss of zero that depends on the model, for a step whose videos have no item."""
    return model.words.sum() * 0.0
