"""Small encoders and batches that the tests of VLM share."""

from __future__ import annotations

import torch

from core.seeds import seeded_globals, torch_generator
from workloads.video.text import Vocabulary
from workloads.video.vlm.model import EncoderSizes, Tokens, VideoLanguageModel

VOCABULARY = Vocabulary.of_texts(
    ["a red square slides to the left", "the blue circle blinks twice", "then a star spins"]
)
SIZES = EncoderSizes(
    num_words=VOCABULARY.num_tokens,
    feature_width=6,
    width=16,
    layers=2,
    heads=2,
    feedforward=24,
    dropout=0.0,
    max_video=8,
    max_text=10,
)


def small_model(*, double: bool = False, segments: int = 0, seed: int = 0) -> VideoLanguageModel:
    """An encoder in evaluation mode, of weights large enough that tokens matter to each other."""
    with seeded_globals(seed):
        model = VideoLanguageModel(SIZES, cls=VOCABULARY.cls, sep=VOCABULARY.sep, segments=segments)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.eval()
    return model.double() if double else model


def some_tokens(
    count: int = 4, videos: int = 5, texts: int = 7, *, seed: int = 0, double: bool = False
) -> Tokens:
    """A batch of videos and texts of differing lengths; each text ends with ``[SEP]``."""
    generator = torch_generator(seed)
    features = torch.randn(count, videos, SIZES.feature_width, generator=generator)
    lengths = torch.randint(1, videos + 1, (count, 1), generator=generator)
    words = torch.randint(5, VOCABULARY.num_tokens, (count, texts), generator=generator)
    ends = torch.randint(1, texts, (count, 1), generator=generator)
    places = torch.arange(texts)
    words = torch.where(places == ends, VOCABULARY.sep, words)
    words = torch.where(places > ends, VOCABULARY.pad, words)
    video_valid = torch.arange(videos) < lengths
    return Tokens(features.double() if double else features, video_valid, words, places <= ends)
