"""Text-video retrieval: the loss as a sum, and ranks of vectors made by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from core.errors import DataError
from core.seeds import torch_generator
from data.video.records import Event
from tests.unit.workloads.video.handmade import clip_of
from tests.unit.workloads.video.vlm.models import small_model, task_on, vectors
from workloads.video.dataset import Clip
from workloads.video.vlm import retrieval
from workloads.video.vlm.model import VideoLanguageModel
from workloads.video.vlm.retrieval import Retrieval

TWIN = "a red square slides"
CLIPS = [
    clip_of(
        9,
        seed=1,
        double=True,
        events=(Event((0, 2.5), TWIN), Event((3, 4)), Event((5, 9), "the blue circle")),
    ),
    clip_of(3, seed=2, double=True),
    clip_of(12, seed=3, double=True, captions=(TWIN, "never read")),
]
PAIRS = [(0, 0, 3, TWIN), (0, 5, 9, "the blue circle"), (2, None, None, TWIN)]
"""What is retrieved of `CLIPS`: the video, its seconds, the text."""


def mean_vectors(
    model: VideoLanguageModel, task: Retrieval
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Of each pair, one at a time without padding: mean states with their ``[SEP]``."""
    videos, texts = [], []
    for index, first, last, told in PAIRS:
        features = CLIPS[index].features
        features = (
            features[first:last] if first is not None else features[:12][[0, 1, 3, 4, 6, 7, 9, 10]]
        )
        one = torch.ones(1, len(features), dtype=torch.bool)
        videos.append(model.video_states(features.unsqueeze(0), one)[0].mean(0))
        ids = torch.tensor([[*task.batcher.ids(told), task.batcher.vocabulary.sep]])
        texts.append(model.text_states(ids, torch.ones_like(ids, dtype=torch.bool))[0].mean(0))
    return videos, texts


def test_the_loss_is_a_sum_over_the_clips_that_other_texts_tell_of() -> None:
    """Cross-entropy of each text's clip; the clip of a twin is neither right nor wrong."""
    model = small_model(double=True)
    task = task_on(Retrieval, CLIPS)
    assert isinstance(task, Retrieval)
    with torch.no_grad():
        loss, measured = task.loss(model, CLIPS, torch_generator(0))
        videos, texts = mean_vectors(model, task)
    terms = []
    for i, text in enumerate(texts):
        scores = [
            float(text @ video)
            for j, video in enumerate(videos)
            if j == i or PAIRS[j][3] != PAIRS[i][3]
        ]
        own = float(text @ videos[i])
        terms.append(math.log(sum(math.exp(score) for score in scores)) - own)
    assert float(loss) == pytest.approx(sum(terms) / 3, rel=1e-10)
    assert measured == {"loss/retrieval": pytest.approx(float(loss))}
    assert task.measures() == tuple(measured)


def test_twins_do_not_push_each_other_apart() -> None:
    """With one caption for all there is nothing to tell apart, and the loss is zero."""
    clips = [clip_of(4, seed=seed, captions=(TWIN,)) for seed in range(3)]
    loss, _ = task_on(Retrieval, clips).loss(small_model(), clips, torch_generator(0))
    assert float(loss.detach()) == pytest.approx(0, abs=1e-7)
    loss.backward()


def test_items_are_captioned_events_or_else_the_first_caption() -> None:
    task = task_on(Retrieval, CLIPS)
    assert isinstance(task, Retrieval)
    assert task.items(CLIPS[0]) == [((0, 2.5), TWIN), ((5, 9), "the blue circle")]
    assert [task.num_items(clip) for clip in CLIPS] == [2, 0, 1]
    assert task.can_judge(CLIPS) and not task.can_judge(CLIPS[1:2])


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"paragraph": "in order", "captions": ("whole",)}, "in order"),
        ({"captions": ("whole", "other")}, "whole"),
        ({"events": (Event((0, 1), "first"), Event((1, 2)), Event((2, 3), "then"))}, "first then"),
        ({}, None),
    ],
)
def test_whole_videos_are_told_by_a_paragraph_a_caption_or_their_events(
    told: dict[str, Any], expected: str | None
) -> None:
    clip = clip_of(5, **told)
    task = task_on(Retrieval, [clip], retrieval="videos")
    assert isinstance(task, Retrieval)
    assert task.items(clip) == ([] if expected is None else [(None, expected)])


def judged_clips(vectors_of: list[list[float]], captions: list[str]) -> list[Clip]:
    return [
        Clip(clip.video, torch.tensor([vector]))
        for clip, vector in zip(
            [clip_of(1, seed=i, captions=(caption,)) for i, caption in enumerate(captions)],
            vectors_of,
            strict=True,
        )
    ]


BY_WORD = {"red": [1.0, 0.0], "blue": [0.0, 1.0], "star": [1.0, 1.0], "circle": [0.0, 0.0]}


def test_ranks_are_those_of_dot_products() -> None:
    """Similarities, by hand (texts down, clips across):

    red   3 1 2  its own first
    blue  0 2 3  its own second
    star  3 3 5  its own first
    """
    clips = judged_clips([[3.0, 0.0], [1.0, 2.0], [2.0, 3.0]], ["red", "blue", "star"])
    found = task_on(Retrieval, clips).judge(vectors(BY_WORD), clips)
    assert found.num_items == 3
    assert found.scores == {
        "recall_at_1": pytest.approx(2 / 3),
        "recall_at_5": 1.0,
        "recall_at_10": 1.0,
        "median_rank": 1.0,
    }
    rows = [([3, 1, 2], 3), ([0, 2, 3], 2), ([3, 3, 5], 5)]
    terms = [math.log(sum(math.exp(s) for s in row)) - own for row, own in rows]
    assert found.loss == pytest.approx(sum(terms) / 3)
    assert [dict(sample.lines)["rank of the right clip"] for sample in found.samples] == [
        "1 of 3",
        "2 of 3",
        "1 of 3",
    ]
    assert found.samples[1].lines["text of the clip found"] == "star"
    assert found.samples[1].title == "video-2, 0.0 to 1.0 s"


def test_every_clip_that_the_same_text_tells_of_is_right() -> None:
    clips = judged_clips([[1.0, 0.0], [4.0, 0.0], [3.0, 5.0]], ["red", "red", "blue"])
    found = task_on(Retrieval, clips).judge(vectors(BY_WORD), clips)
    # To either text "red" the second clip is first, and the first one third.
    assert found.scores["recall_at_1"] == 1.0
    assert found.scores["median_rank"] == 1.0


def test_a_text_to_which_all_clips_are_alike_counts_by_chance() -> None:
    clips = judged_clips([[1.0, 0.0], [2.0, 0.0], [3.0, 5.0]], ["circle", "red", "blue"])
    found = task_on(Retrieval, clips).judge(vectors(BY_WORD), clips)
    assert found.scores["recall_at_1"] == pytest.approx((1 / 3 + 0 + 1) / 3)
    assert found.scores["median_rank"] == 2.0


def test_judging_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [
        clip_of(2 + seed % 4, seed=seed, captions=(" ".join(["star"] * (1 + seed)),))
        for seed in range(7)
    ]
    task, model = task_on(Retrieval, clips), small_model()
    with torch.no_grad():
        whole = task.judge(model, clips)
        monkeypatch.setattr(retrieval, "CHUNK", 3)
        parts = task.judge(model, clips)
    assert parts.scores == whole.scores
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)


def test_videos_without_a_text_cost_nothing_and_cannot_be_judged() -> None:
    task, model = task_on(Retrieval, CLIPS), small_model()
    loss, measured = task.loss(model, CLIPS[1:2], torch_generator(0))
    loss.backward()
    assert float(loss.detach()) == 0 and measured == {}
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    with pytest.raises(DataError, match="no video has a caption"):
        task.judge(model, CLIPS[1:2])
