"""Step localization: when each step of a recipe happens (section 4.3).

A second's score for a step is the dot product of the state of that second, of a video encoded
apart, with the mean state of the step's text. Trained by binary cross-entropy against when steps
happen; an untrained encoder gives zero-shot scores. Every step of the recipe is then assigned
exactly one second, in the recipe's order, so that the sum of scores is highest; recall is the share
of a video's steps whose second lies within them, averaged over topics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from core.errors import DataError
from core.scores import Score
from workloads.video.dataset import Clip, VideoDataset
from workloads.video.metrics.localization import assign_steps, average_recall
from workloads.video.vlm.model import VideoLanguageModel
from workloads.video.vlm.retrieval import text_vectors
from workloads.video.vlm.task import Judgement, Sample, Task, nothing
from workloads.video.vlm.windows import over_windows

STEP_RECALL = Score("step_recall", "average recall of steps", is_percent=True)
CHUNK = 64
SAMPLES = 4


class Localization(Task):
    """Steps of the video's own recipe."""

    name = "localization"
    scores = (STEP_RECALL,)

    @classmethod
    def lacking(cls, dataset: VideoDataset) -> str:
        """Recipes."""
        return "" if dataset.recipes else "has no recipes, which are lists of steps by topic"

    def recipe(self, clip: Clip) -> tuple[str, ...]:
        """Texts of the steps to find, in order; no more than the video has seconds."""
        return self.dataset.recipes.get(clip.video.topic, ())[: len(clip.features)]

    def num_items(self, clip: Clip) -> int:
        """Steps of the recipe that some second shows."""
        return int(self.happens(clip).any(0).sum())

    def happens(self, clip: Clip) -> torch.Tensor:
        """Which step happens in which second, shape (seconds, K), 0 or 1."""
        recipe = self.recipe(clip)
        matrix = torch.zeros(len(clip.features), len(recipe), device=clip.features.device)
        for event in clip.video.events:
            if event.step in recipe:
                middle = torch.arange(len(clip.features), device=matrix.device) + 0.5
                inside = (event.span[0] <= middle) & (middle < event.span[1])
                matrix[inside, recipe.index(event.step)] = 1
        return matrix

    def scores_of(self, model: VideoLanguageModel, clips: Sequence[Clip]) -> list[torch.Tensor]:
        """Of every second of each video and every step of its recipe, shape (seconds, K)."""
        texts = {step: None for clip in clips for step in self.recipe(clip)}
        vectors = text_vectors(model, self.batcher, [self.batcher.ids(step) for step in texts])
        row = {step: i for i, step in enumerate(texts)}
        rows = [[row[step] for step in self.recipe(clip)] for clip in clips]
        options = self.options
        return over_windows(
            model,
            clips,
            options.max_video,
            options.window_step,
            lambda index, states: states @ vectors[rows[index]].T,
        )

    def loss(
        self, model: VideoLanguageModel, clips: Sequence[Clip], generator: torch.Generator
    ) -> tuple[torch.Tensor, Mapping[str, float]]:
        """Binary cross-entropy of every second and step."""
        clips = [clip for clip in clips if self.num_items(clip)]
        if not clips:
            return nothing(model), {}
        logits = torch.cat([one.flatten() for one in self.scores_of(model, clips)])
        wanted = torch.cat([self.happens(clip).flatten() for clip in clips])
        loss = functional.binary_cross_entropy_with_logits(logits, wanted)
        return loss, {f"loss/{self.name}": float(loss.detach())}

    def judge(self, model: VideoLanguageModel, clips: Sequence[Clip]) -> Judgement:
        """Assign the steps, and average the recall over topics.

        The loss is training's, of every second and step.
        """
        clips = [clip for clip in clips if self.num_items(clip)]
        if not clips:
            raise DataError(
                "localization: no video shows a step of its recipe; use a corpus that has recipes"
            )
        total, count = 0.0, 0
        topics, wanted, chosen = [], [], []
        samples = []
        for start in range(0, len(clips), CHUNK):
            few = clips[start : start + CHUNK]
            for clip, logits in zip(few, self.scores_of(model, few), strict=True):
                happens = self.happens(clip)
                loss = functional.binary_cross_entropy_with_logits(
                    logits.double(), happens.double(), reduction="sum"
                )
                total, count = total + float(loss), count + logits.numel()
                among_steps = functional.log_softmax(logits.double(), 1).cpu().numpy()
                seconds = assign_steps(among_steps)
                topics.append(clip.video.topic)
                wanted.append(happens.cpu().numpy().astype(bool))
                chosen.append(seconds)
                samples.append(self._sample(clip, seconds))
        scores = {"step_recall": average_recall(wanted, chosen, topics)}
        return Judgement(total / count, len(clips), scores, tuple(samples[:SAMPLES]))

    def _sample(self, clip: Clip, seconds: npt.NDArray[np.int64]) -> Sample:
        spans: dict[str, list[str]] = {}
        for event in clip.video.events:
            spans.setdefault(event.step, []).append(f"{event.span[0]:.1f}-{event.span[1]:.1f} s")
        lines = {
            step: f"second {second}; gold {', '.join(spans.get(step, ['not in the video']))}"
            for step, second in zip(self.recipe(clip), seconds.tolist(), strict=True)
        }
        return Sample("Localization", clip, None, lines)
