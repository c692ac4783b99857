"""Cutting clips with their text out of videos, and putting them into batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from data.video.records import Span, Utterance
from workloads.video.dataset import Clip
from workloads.video.text import Vocabulary
from workloads.video.vlm.model import Tokens, padded


@dataclass(frozen=True, slots=True)
class Pair:
    """A stretch of video and a text.

    Attributes:
        features: Shape (n, D), n from 0 to the most video tokens.
        words: Ids of the text, without its ``[SEP]``.
    """

    features: torch.Tensor
    words: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Batcher:
    """Makes batches of one vocabulary.

    Attributes:
        vocabulary: The vocabulary.
        max_video: Most video tokens of a sequence.
        max_text: Most tokens of a text, without its ``[SEP]``.
        device: Where batches lie.
    """

    vocabulary: Vocabulary
    max_video: int
    max_text: int
    device: torch.device

    def ids(self, text: str) -> tuple[int, ...]:
        """A text's tokens, cut to the most there may be."""
        return tuple(self.vocabulary.ids(text)[: self.max_text])

    def stretch(self, clip: Clip, span: Span | None) -> torch.Tensor:
        """Features of a span, shape (n, D), n at least 1 and at most `max_video`.

        All seconds that the span touches; where they are too many, evenly spaced ones.
        """
        features = clip.features
        if span is None:
            rows = range(len(features))
        else:
            first = min(max(0, math.floor(span[0])), len(features) - 1)
            last = min(max(first + 1, math.ceil(span[1])), len(features))
            rows = range(first, last)
        if len(rows) <= self.max_video:
            return features[rows.start : rows.stop]
        even = [rows[i * len(rows) // self.max_video] for i in range(self.max_video)]
        return features[even]

    def texts(self, words: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Text segments, each with its ``[SEP]``: ids and what is valid, both (B, T)."""
        rows = [torch.tensor([*one, self.vocabulary.sep], dtype=torch.int64) for one in words]
        ids, valid = padded(rows, fill=self.vocabulary.pad)
        return ids.to(self.device), valid.to(self.device)

    def tokens(self, pairs: Sequence[Pair]) -> Tokens:
        """A batch of pairs."""
        features, video_valid = padded([pair.features for pair in pairs])
        words, text_valid = self.texts([pair.words for pair in pairs])
        return Tokens(features, video_valid, words, text_valid)


def told(clip: Clip) -> tuple[Utterance, ...]:
    """What is said in a video, or where nothing is, captions with the time that they tell of."""
    video = clip.video
    if video.narration:
        return video.narration
    captioned = [Utterance(e.span, e.caption) for e in video.events if e.caption]
    whole = (0.0, float(len(clip.features)))
    return tuple(captioned or [Utterance(whole, caption) for caption in video.captions[:1]])


def sample_pairs(
    clip: Clip,
    count: int,
    batcher: Batcher,
    generator: torch.Generator,
    *,
    min_text: int,
    has_video: bool = True,
    has_text: bool = True,
) -> list[Pair]:
    """Clips of a video as pre-training draws them (section 4.2).

    A run of tokens of what is said, of a length drawn evenly between `min_text` and the most there
    may be, and the seconds in which it is said. A corpus of which nothing is said has captions
    told in its place. Where there are none either, or a client lacks text, a run of seconds without
    text; where it lacks video, the text alone.

    Args:
        clip: The video.
        count: How many.
        batcher: Says the most tokens of each kind.
        generator: Draws.
        min_text: Least tokens of a text; a shorter narration is taken whole.
        has_video: Whether the client has video.
        has_text: Whether the client has what is said.
    """
    timed = batcher.vocabulary.timed(told(clip)) if has_text or not has_video else []
    nothing = clip.features[:0]
    pairs = []
    for _ in range(count):
        if timed:
            most = min(batcher.max_text, len(timed))
            least = min(min_text, most)
            length = int(torch.randint(least, most + 1, (), generator=generator))
            start = int(torch.randint(len(timed) - length + 1, (), generator=generator))
            run = timed[start : start + length]
            # Utterances may overlap, so that a later word need not end later.
            span = (min(s for _, (s, _) in run), max(e for _, (_, e) in run))
            features = batcher.stretch(clip, span) if has_video else nothing
            pairs.append(Pair(features, tuple(one for one, _ in run)))
        elif has_video:
            most = min(batcher.max_video, len(clip.features))
            length = int(torch.randint(1, most + 1, (), generator=generator))
            start = int(torch.randint(len(clip.features) - length + 1, (), generator=generator))
            pairs.append(Pair(clip.features[start : start + length], ()))
    return pairs
