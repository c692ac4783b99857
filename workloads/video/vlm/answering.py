"""Multiple-choice question answering: which candidate tells of a clip (section 4.4).

Clip and candidates are encoded apart, as in retrieval; a candidate's text is the question and the
answer. Trained by cross-entropy over a question's own candidates, judged by accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.nn import functional

from core.errors import DataError
from core.scores import Score
from data.video.records import Question
from workloads.video.dataset import Clip
from workloads.video.vlm.model import VideoLanguageModel
from workloads.video.vlm.retrieval import text_vectors, video_vectors
from workloads.video.vlm.task import Judgement, Sample, Task, nothing

CHUNK = 64
SAMPLES = 6


class Answering(Task):
    """Questions with candidates."""

    name = "question-answering"
    scores = (Score("answer_accuracy", "accuracy of answers", is_percent=True),)

    def items(self, clip: Clip) -> list[Question]:
        """A video's questions that have candidates."""
        return [question for question in clip.video.questions if question.candidates]

    def num_items(self, clip: Clip) -> int:
        """Questions that have candidates."""
        return len(self.items(clip))

    def logits(
        self, model: VideoLanguageModel, asked: Sequence[tuple[Clip, Question]]
    ) -> list[torch.Tensor]:
        """A score of each candidate of each question, shapes (candidates,)."""
        stretches = [self.batcher.stretch(clip, question.span) for clip, question in asked]
        texts = {
            (question.text, candidate): None
            for _, question in asked
            for candidate in question.candidates
        }
        row = {pair: i for i, pair in enumerate(texts)}
        words = [self.batcher.ids(f"{text} {candidate}".strip()) for text, candidate in texts]
        by_text = text_vectors(model, self.batcher, words)
        by_video = video_vectors(model, stretches)
        return [
            by_text[[row[question.text, candidate] for candidate in question.candidates]] @ video
            for (_, question), video in zip(asked, by_video, strict=True)
        ]

    def loss(
        self, model: VideoLanguageModel, clips: Sequence[Clip], generator: torch.Generator
    ) -> tuple[torch.Tensor, Mapping[str, float]]:
        """Cross-entropy of the right candidate, the mean over questions."""
        asked = [(clip, question) for clip in clips for question in self.items(clip)]
        if not asked:
            return nothing(model), {}
        loss = self._losses(self.logits(model, asked), asked).mean()
        return loss, {f"loss/{self.name}": float(loss.detach())}

    def judge(self, model: VideoLanguageModel, clips: Sequence[Clip]) -> Judgement:
        """The share of questions of which the right candidate scores highest.

        A tie counts by the chance of drawing it; where a score is no number, nothing is answered.
        """
        asked = [(clip, question) for clip in clips for question in self.items(clip)]
        if not asked:
            raise DataError(
                "question-answering: no video has a question with candidates; use a corpus that "
                "has, or another task"
            )
        logits = [
            one.double()
            for start in range(0, len(asked), CHUNK)
            for one in self.logits(model, asked[start : start + CHUNK])
        ]
        right = 0.0
        for found, (_, question) in zip(logits, asked, strict=True):
            best = found == found.max()
            chosen = float(best[question.candidates.index(question.answer)])
            right += chosen / max(1, int(best.sum()))
        loss = float(self._losses(logits, asked).mean())
        samples = []
        for i in range(0, len(asked), max(1, len(asked) // SAMPLES)):
            clip, question = asked[i]
            lines = {
                "question": question.text,
                "gold": question.answer,
                "model": question.candidates[int(logits[i].argmax())],
            }
            samples.append(Sample("Questions", clip, question.span, lines))
        scores = {"answer_accuracy": right / len(asked)}
        return Judgement(loss, len(asked), scores, tuple(samples[:SAMPLES]))

    def _losses(
        self, logits: Sequence[torch.Tensor], asked: Sequence[tuple[Clip, Question]]
    ) -> torch.Tensor:
        return torch.stack(
            [
                -functional.log_softmax(found, 0)[question.candidates.index(question.answer)]
                for found, (_, question) in zip(logits, asked, strict=True)
            ]
        )
