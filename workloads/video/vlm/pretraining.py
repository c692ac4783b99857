"""Pre-training: masked tokens of clips that are drawn out of videos and what is said in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch

from core.errors import DataError
from core.scores import Score
from core.seeds import torch_generator
from workloads.video.dataset import Clip
from workloads.video.vlm.clips import Pair, sample_pairs
from workloads.video.vlm.localization import STEP_RECALL, Localization
from workloads.video.vlm.masking import MaskedLoss, Masking, mask_tokens, masked_loss
from workloads.video.vlm.model import VideoLanguageModel
from workloads.video.vlm.retrieval import RETRIEVAL_SCORES, Retrieval
from workloads.video.vlm.task import Judgement, Task, nothing

JUDGING_SEED = 0
"""Of the clips and maskings that pre-training is judged on: the same for every run and round."""

CHUNK = 16


class Pretraining(Task):
    """Masked tokens of clips that are drawn anew for every batch.

    Judged by what nobody fine-tuned: zero-shot retrieval, zero-shot localization of steps, or both,
    as the corpus has captions and recipes.
    """

    name = "pretraining"
    scores: ClassVar[tuple[Score, ...]] = (*RETRIEVAL_SCORES, STEP_RECALL)
    own_entries = ("lm",)

    def num_items(self, clip: Clip) -> int:
        """Clips that are drawn of a video."""
        return self.options.clips

    def judged_by(self) -> tuple[Score, ...]:
        """Those of the tasks that it is judged at."""
        return tuple(score for part in self._judged_at() for score in part.scores)

    def can_judge(self, clips: Sequence[Clip]) -> bool:
        """Whether all that it is judged at can be, and something is."""
        parts = self._judged_at()
        return bool(parts) and all(part.can_judge(clips) for part in parts)

    def masking(self) -> Masking:
        """As configured."""
        options = self.options
        return Masking(options.modality_rate, options.token_rate, options.corrupts_modality)

    def loss(
        self,
        model: VideoLanguageModel,
        clips: Sequence[Clip],
        generator: torch.Generator,
        *,
        has_video: bool = True,
        has_text: bool = True,
    ) -> tuple[torch.Tensor, Mapping[str, float]]:
        """Masked tokens of clips drawn from the videos."""
        pairs = self._pairs(clips, generator, has_video=has_video, has_text=has_text)
        if not pairs:
            return nothing(model), {}
        found = self._masked_loss(model, pairs, generator)
        measured = {
            f"loss/{self.name}": float(found.loss.detach()),
            "video_negatives": float(found.num_negatives),
        }
        if found.num_video:
            measured["masked_token_loss/video"] = float(found.video_sum) / found.num_video
        if found.num_text:
            measured["masked_token_loss/text"] = float(found.text_sum) / found.num_text
        return found.loss, measured

    def judge(self, model: VideoLanguageModel, clips: Sequence[Clip]) -> Judgement:
        """Zero-shot scores; the loss is that of masked tokens of clips drawn once for all."""
        if not clips:
            raise DataError("pretraining: no video to judge on")
        generator = torch_generator(JUDGING_SEED)
        total, count = 0.0, 0
        for start in range(0, len(clips), CHUNK):
            few = clips[start : start + CHUNK]
            pairs = self._pairs(few, generator, has_video=True, has_text=True)
            found = self._masked_loss(model, pairs, generator)
            total, count = total + float(found.loss) * len(few), count + len(few)
        parts = [task.judge(model, clips) for task in self._judged_at()]
        scores = {name: value for part in parts for name, value in part.scores.items()}
        samples = tuple(sample for part in parts for sample in part.samples)
        return Judgement(total / count, len(clips), scores, samples)

    def measures(self) -> tuple[str, ...]:
        """The loss, each modality's part of it, and how many video tokens it chose from (|V'|)."""
        return (
            f"loss/{self.name}",
            "video_negatives",
            "masked_token_loss/video",
            "masked_token_loss/text",
        )

    def _judged_at(self) -> tuple[Task, ...]:
        """The tasks that the corpus has something for."""
        own = (self.options, self.dataset, self.batcher)
        clips = [clip for split in self.dataset.splits.values() for clip in split]
        return tuple(
            part for part in (Retrieval(*own), Localization(*own)) if part.can_judge(clips)
        )

    def _pairs(
        self,
        clips: Sequence[Clip],
        generator: torch.Generator,
        *,
        has_video: bool,
        has_text: bool,
    ) -> list[Pair]:
        options = self.options
        return [
            pair
            for clip in clips
            for pair in sample_pairs(
                clip,
                options.clips,
                self.batcher,
                generator,
                min_text=options.min_text,
                has_video=has_video,
                has_text=has_text,
            )
        ]

    def _masked_loss(
        self, model: VideoLanguageModel, pairs: Sequence[Pair], generator: torch.Generator
    ) -> MaskedLoss:
        tokens = self.batcher.tokens(pairs)
        masked = mask_tokens(tokens, self.masking(), self.batcher.vocabulary, generator)
        return masked_loss(model, masked, joint=self.options.loss == "masked-token")
