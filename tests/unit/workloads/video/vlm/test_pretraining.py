"""Pre-training as a task: what it draws, what it measures, and what it is judged by."""

from __future__ import annotations

import pytest
import torch

from core.errors import DataError
from core.seeds import torch_generator
from data.video.records import Event, Utterance
from tests.unit.workloads.video.handmade import clip_of
from tests.unit.workloads.video.vlm.models import VOCABULARY, small_model, task_on
from workloads.video.dataset import Clip
from workloads.video.vlm import pretraining
from workloads.video.vlm.clips import sample_pairs
from workloads.video.vlm.localization import Localization
from workloads.video.vlm.masking import mask_tokens, masked_loss
from workloads.video.vlm.pretraining import Pretraining
from workloads.video.vlm.retrieval import Retrieval

RED, STAR = "a red square slides to the left", "then a star spins"
RECIPES = {"tea": (RED, STAR)}


def clip(seed: int) -> Clip:
    return clip_of(
        6 + seed,
        seed=seed,
        topic="tea",
        narration=(Utterance((0.5, 3.0), RED), Utterance((3.0, 5.5), STAR)),
        events=(Event((0, 3), RED, RED), Event((3, 5), STAR, STAR)),
    )


CLIPS = [clip(seed) for seed in range(3)]


def pretraining_on(clips: list[Clip], **options: object) -> Pretraining:
    task = task_on(Pretraining, clips, RECIPES, **{"clips": 5, "min_text": 2, **options})
    assert isinstance(task, Pretraining)
    return task


@pytest.mark.parametrize("loss", ["masked-token", "mfm-mlm"])
def test_the_loss_is_that_of_masked_clips_drawn_from_every_video(loss: str) -> None:
    """The same draws in the same order, put together by hand."""
    task, model = pretraining_on(CLIPS, loss=loss, modality_rate=0.4, token_rate=0.3), small_model()
    found, measured = task.loss(model, CLIPS, torch_generator(5))
    generator = torch_generator(5)
    pairs = [
        pair for one in CLIPS for pair in sample_pairs(one, 5, task.batcher, generator, min_text=2)
    ]
    masked = mask_tokens(task.batcher.tokens(pairs), task.masking(), VOCABULARY, generator)
    expected = masked_loss(model, masked, joint=loss == "masked-token")
    assert torch.equal(found, expected.loss)
    assert (task.masking().modality_rate, task.masking().token_rate) == (0.4, 0.3)
    assert measured == {
        "loss/pretraining": float(expected.loss.detach()),
        "video_negatives": float(masked.visible_video.sum()),
        "masked_token_loss/video": pytest.approx(
            float(expected.video_sum) / int(masked.video.sum())
        ),
        "masked_token_loss/text": pytest.approx(float(expected.text_sum) / int(masked.text.sum())),
    }
    assert set(task.measures()) == set(measured)
    assert [task.num_items(one) for one in CLIPS] == [5] * 3


@pytest.mark.parametrize("lacking", ["video", "text"])
def test_clients_that_lack_a_modality_measure_the_other_alone(lacking: str) -> None:
    task, model = pretraining_on(CLIPS, token_rate=0.5), small_model()
    loss, measured = task.loss(
        model,
        CLIPS,
        torch_generator(0),
        has_video=lacking != "video",
        has_text=lacking != "text",
    )
    loss.backward()
    assert float(loss.detach()) > 0
    assert f"masked_token_loss/{lacking}" not in measured
    other = {"video": "text", "text": "video"}[lacking]
    assert measured[f"masked_token_loss/{other}"] > 0
    assert measured["loss/pretraining"] == pytest.approx(measured[f"masked_token_loss/{other}"])
    assert (measured["video_negatives"] == 0) == (lacking == "video")
    moved = [p.grad is not None and bool(p.grad.any()) for p in model.video.parameters()]
    assert all(moved) == (lacking == "text") and any(moved) == (lacking == "text")


def test_what_is_said_is_not_read_where_a_client_lacks_text() -> None:
    """The same seed gives the same loss whatever is said."""
    task, model = pretraining_on(CLIPS), small_model()
    other = Clip(clip_of(6, seed=0).video, CLIPS[0].features)
    losses = [
        float(task.loss(model, [one], torch_generator(1), has_text=False)[0].detach())
        for one in (CLIPS[0], other)
    ]
    assert losses[0] == losses[1]


def test_without_video_and_words_there_is_nothing_to_learn() -> None:
    silent = clip_of(4, topic="tea")
    task, model = pretraining_on([silent]), small_model()
    loss, measured = task.loss(model, [silent], torch_generator(0), has_video=False)
    loss.backward()
    assert float(loss.detach()) == 0 and measured == {}


def test_judged_by_zero_shot_retrieval_and_localization() -> None:
    task, model = pretraining_on(CLIPS), small_model()
    own = (task.options, task.dataset, task.batcher)
    with torch.no_grad():
        found = task.judge(model, CLIPS)
        retrieval, localization = (
            Retrieval(*own).judge(model, CLIPS),
            Localization(*own).judge(model, CLIPS),
        )
        again = task.judge(model, CLIPS)
    assert found.scores == {**retrieval.scores, **localization.scores}
    assert list(found.scores) == [score.name for score in task.scores]
    assert found.num_items == 3 and found.loss == again.loss
    assert len(found.samples) == len(retrieval.samples) + len(localization.samples)


def test_the_judged_loss_is_the_mean_over_videos_of_draws_that_never_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its generator goes on from chunk to chunk, and is another than training's."""
    monkeypatch.setattr(pretraining, "CHUNK", 2)
    task, model = pretraining_on(CLIPS), small_model()
    generator = torch_generator(pretraining.JUDGING_SEED)
    with torch.no_grad():
        found = task.judge(model, CLIPS)
        parts = [
            (len(few), float(task.loss(model, few, generator)[0])) for few in (CLIPS[:2], CLIPS[2:])
        ]
    assert found.loss == pytest.approx(sum(n * loss for n, loss in parts) / 3)


def test_it_is_judged_at_what_the_corpus_has_something_for() -> None:
    task = pretraining_on(CLIPS)
    plain = clip_of(5, topic="tea", captions=("a star",))
    shown = clip_of(5, topic="tea", events=(Event((0, 3), step=RED),))
    assert task.can_judge(CLIPS) and task.can_judge([plain, shown])
    assert not task.can_judge([plain]) and not task.can_judge([shown])
    assert task.judged_by() == (*Retrieval.scores, *Localization.scores)
    for clips, kind in (([plain], Retrieval), ([shown], Localization)):
        alone = pretraining_on(clips)
        assert alone.can_judge(clips) and alone.judged_by() == kind.scores
        with torch.no_grad():
            judged = alone.judge(small_model(), clips)
        assert set(judged.scores) == {score.name for score in kind.scores}
    assert not pretraining_on([clip_of(5)]).can_judge([clip_of(5)])
    with pytest.raises(DataError, match="no video to judge on"):
        task.judge(small_model(), [])
