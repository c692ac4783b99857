"""Small encoders and batches that the tests of VLM share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch

from core.seeds import seeded_globals, torch_generator
from tests.unit.workloads.video.handmade import dataset_with
from workloads.video.dataset import Clip
from workloads.video.text import Vocabulary
from workloads.video.vlm.clips import Batcher
from workloads.video.vlm.model import EncoderSizes, Tokens, VideoLanguageModel
from workloads.video.vlm.options import VlmOptions
from workloads.video.vlm.task import Task

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


def task_on(
    kind: type[Task],
    clips: Sequence[Clip],
    recipes: Mapping[str, tuple[str, ...]] | None = None,
    /,
    **options: object,
) -> Task:
    """A task on these clips, for encoders like `small_model`."""
    own = {
        "max_video": SIZES.max_video,
        "max_text": SIZES.max_text,
        "max_caption": 6,
        "window_step": 4,
        **options,
    }
    batcher = Batcher(VOCABULARY, SIZES.max_video, SIZES.max_text, torch.device("cpu"))
    dataset = dataset_with(list(clips), recipes, vocabulary=VOCABULARY)
    return kind(VlmOptions(**own), dataset, batcher)  # type: ignore[arg-type]


class _Vectors:
    def __init__(self, by_word: Mapping[str, Sequence[float]]) -> None:
        width = len(next(iter(by_word.values())))
        self.words = torch.zeros(VOCABULARY.num_tokens, width, dtype=torch.float64)
        for word, vector in by_word.items():
            (index,) = VOCABULARY.ids(word)
            self.words[index] = torch.tensor(vector, dtype=torch.float64)

    def video_states(self, features: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        return features[:, :1].double().expand(-1, features.shape[1] + 1, -1)

    def text_states(self, words: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        return self.words[words[:, :1]].expand(-1, words.shape[1], -1)


def vectors(by_word: Mapping[str, Sequence[float]]) -> VideoLanguageModel:
    """What stands for an encoder: each video is its first feature, each text its first word's."""
    return cast(VideoLanguageModel, _Vectors(by_word))
