"""Text-video retrieval: which clip a caption tells of (section 4.1).

A clip's vector is the mean state of its tokens and their ``[SEP]``, a text's likewise; both are
encoded apart, which is what isolated attention computes. Their similarity is the dot product.
Trained by cross-entropy over the clips of a batch, each text against all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from core.errors import DataError
from core.scores import Score
from data.video.records import Span
from workloads.video.dataset import Clip
from workloads.video.metrics.retrieval import median_rank, ranks, recall_at
from workloads.video.vlm.clips import Batcher
from workloads.video.vlm.model import VideoLanguageModel, mean_states, padded, with_sep
from workloads.video.vlm.task import Judgement, Sample, Task, nothing

KS = (1, 5, 10)
RETRIEVAL_SCORES = (
    *(Score(f"recall_at_{k}", f"R@{k}", is_percent=True) for k in KS),
    Score("median_rank", "median rank", is_percent=False, higher_is_better=False),
)
CHUNK = 256
SAMPLES = 6


def video_vectors(model: VideoLanguageModel, stretches: Sequence[torch.Tensor]) -> torch.Tensor:
    """A vector of each stretch of features, shapes (n_i, D) to (B, d)."""
    features, valid = padded(stretches)
    return mean_states(model.video_states(features, valid), with_sep(valid))


def text_vectors(
    model: VideoLanguageModel, batcher: Batcher, words: Sequence[Sequence[int]]
) -> torch.Tensor:
    """A vector of each text, shape (B, d)."""
    ids, valid = batcher.texts(words)
    return mean_states(model.text_states(ids, valid), valid)


class Retrieval(Task):
    """Clips by their captions, or videos by their paragraphs."""

    name = "retrieval"
    scores = RETRIEVAL_SCORES

    def items(self, clip: Clip) -> list[tuple[Span | None, str]]:
        """Stretches of a video and what is told of each."""
        video = clip.video
        if self.options.retrieval == "videos":
            told = video.paragraph or " ".join(video.captions[:1])
            told = told or " ".join(event.caption for event in video.events if event.caption)
            return [(None, told)] if told else []
        found: list[tuple[Span | None, str]] = [
            (event.span, event.caption) for event in video.events if event.caption
        ]
        return found or [(None, caption) for caption in video.captions[:1]]

    def num_items(self, clip: Clip) -> int:
        """Captioned stretches."""
        return len(self.items(clip))

    def loss(
        self, model: VideoLanguageModel, clips: Sequence[Clip], generator: torch.Generator
    ) -> tuple[torch.Tensor, Mapping[str, float]]:
        """Cross-entropy of each text's clip among those of the batch that other texts tell of."""
        stretches, texts = self._gather(clips)
        if not texts:
            return nothing(model), {}
        words = [self.batcher.ids(one) for one in texts]
        similarity = text_vectors(model, self.batcher, words) @ video_vectors(model, stretches).T
        twins = torch.from_numpy(_same(texts)).to(similarity.device)
        twins.fill_diagonal_(False)
        similarity = similarity.masked_fill(twins, torch.finfo(similarity.dtype).min)
        loss = functional.cross_entropy(
            similarity, torch.arange(len(texts), device=similarity.device)
        )
        return loss, {f"loss/{self.name}": float(loss.detach())}

    def judge(self, model: VideoLanguageModel, clips: Sequence[Clip]) -> Judgement:
        """Rank all clips of the split for each text; a clip that the same text tells of is right.

        The loss is the cross-entropy of a text's own clip among all.
        """
        stretches, texts = self._gather(clips)
        if not texts:
            raise DataError("retrieval: no video has a caption; use a corpus that has, or a task")
        words = [self.batcher.ids(one) for one in texts]
        by_text = torch.cat(
            [
                text_vectors(model, self.batcher, words[i : i + CHUNK])
                for i in range(0, len(words), CHUNK)
            ]
        )
        by_video = torch.cat(
            [video_vectors(model, stretches[i : i + CHUNK]) for i in range(0, len(words), CHUNK)]
        )
        similarity = by_text @ by_video.T
        own = torch.arange(len(texts), device=similarity.device)
        loss = float(functional.cross_entropy(similarity.double(), own))
        array = similarity.double().cpu().numpy()
        same = _same(texts)
        found = ranks(array, same)
        scores = {f"recall_at_{k}": recall_at(found, k) for k in KS}
        scores["median_rank"] = median_rank(found)
        return Judgement(loss, len(texts), scores, self._samples(clips, texts, array, same))

    def _gather(self, clips: Sequence[Clip]) -> tuple[list[torch.Tensor], list[str]]:
        stretches, texts = [], []
        for clip in clips:
            for span, told in self.items(clip):
                stretches.append(self.batcher.stretch(clip, span))
                texts.append(told)
        return stretches, texts

    def _samples(
        self,
        clips: Sequence[Clip],
        texts: Sequence[str],
        similarity: npt.NDArray[np.float64],
        same: npt.NDArray[np.bool_],
    ) -> tuple[Sample, ...]:
        places = [(clip, span) for clip in clips for span, _ in self.items(clip)]
        samples = []
        for query in range(0, len(texts), max(1, len(texts) // SAMPLES)):
            best = int(similarity[query].argmax())
            better = int((similarity[query] > similarity[query][same[query]].max()).sum())
            lines = {
                "query": texts[query],
                "text of the clip found": texts[best],
                "rank of the right clip": f"{better + 1} of {len(texts)}",
            }
            samples.append(Sample("Retrieval: the clip found", *places[best], lines))
        return tuple(samples[:SAMPLES])


def _same(texts: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Which texts are the same, bool, shape (N, N)."""
    numbers: dict[str, int] = {}
    ids = np.array([numbers.setdefault(one, len(numbers)) for one in texts])
    same: npt.NDArray[np.bool_] = ids[:, None] == ids[None, :]
    return same
