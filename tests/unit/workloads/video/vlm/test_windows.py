"""Every second of a video: labels, windows that overlap, segmentation and localization."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.errors import DataError
from core.seeds import torch_generator
from data.video.records import Event
from tests.unit.workloads.video.handmade import clip_of
from tests.unit.workloads.video.vlm.models import SIZES, small_model, task_on
from workloads.video.dataset import Clip
from workloads.video.metrics.segmentation import window_starts
from workloads.video.vlm import localization, segmentation
from workloads.video.vlm.localization import Localization
from workloads.video.vlm.model import VideoLanguageModel
from workloads.video.vlm.segmentation import Segmentation
from workloads.video.vlm.windows import average_windows, over_windows

RED, BLUE, STAR = "a red square slides", "the blue circle blinks", "a star spins"
RECIPES = {"tea": (RED, BLUE, STAR), "coffee": (STAR, RED)}
STEPS = sorted([RED, BLUE, STAR])
STEP = 3
CLIPS = [
    clip_of(
        20,
        seed=1,
        double=True,
        topic="tea",
        events=(
            Event((1.2, 4.5), step=RED),
            Event((4.5, 6.4), caption="no step"),
            Event((9.0, 19.9), step=STAR),
        ),
    ),
    clip_of(5, seed=2, double=True, topic="tea"),
    clip_of(
        9,
        seed=3,
        double=True,
        topic="coffee",
        events=(Event((0, 3), step=STAR), Event((5, 8), step=RED)),
    ),
]
SECONDS = [
    ["", RED, RED, RED, "", "", "", "", "", *[STAR] * 11],
    [""] * 5,
    [STAR, STAR, STAR, "", "", RED, RED, RED, ""],
]
"""The step in the middle of each second: 1.2 s is before that of second 1, 4.5 s is not behind
that of second 4."""


def segmentation_on(clips: list[Clip]) -> Segmentation:
    task = task_on(Segmentation, clips, RECIPES, window_step=STEP)
    assert isinstance(task, Segmentation)
    return task


def localization_on(clips: list[Clip]) -> Localization:
    task = task_on(Localization, clips, RECIPES, window_step=STEP)
    assert isinstance(task, Localization)
    return task


def states_by_hand(model: VideoLanguageModel, clip: Clip) -> list[list[torch.Tensor]]:
    """Of each second the states that all windows of 8 seconds, every 3, have of it."""
    seconds, size = len(clip.features), SIZES.max_video
    starts = [start for start in range(0, seconds, STEP) if start + size <= seconds]
    if not starts or starts[-1] + size < seconds:
        starts.append(max(0, seconds - size))
    found: list[list[torch.Tensor]] = [[] for _ in range(seconds)]
    for start in starts:
        window = clip.features[start : start + size].unsqueeze(0)
        states = model.video_states(window, torch.ones(window.shape[:2], dtype=torch.bool))[0]
        for i in range(window.shape[1]):
            found[start + i].append(states[i])
    return found


def test_logits_of_long_videos_are_means_over_the_windows_that_hold_a_second() -> None:
    """20 seconds have windows from 0, 3, 6, 9 and 12; 5 and 9 seconds are padded beside them."""
    model = small_model(double=True, segments=4)
    head = model.heads["segmentation"]
    with torch.no_grad():
        found = segmentation_on(CLIPS).logits(model, CLIPS)
        for clip, logits in zip(CLIPS, found, strict=True):
            expected = [
                torch.stack([head(state) for state in states]).mean(0)
                for states in states_by_hand(model, clip)
            ]
            torch.testing.assert_close(logits, torch.stack(expected), rtol=1e-10, atol=1e-10)
    assert [len(s) for s in states_by_hand(model, CLIPS[0])][:10] == [1, 1, 1, 2, 2, 2, 3, 3, 2, 3]


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    size=st.integers(1, SIZES.max_video),
    data=st.data(),
)
def test_windows_of_states_that_do_not_differ_change_nothing(
    lengths: list[int], size: int, data: st.DataObject
) -> None:
    """Where a second has one logit in every window, that is its mean: none is lost or shifted."""
    step = data.draw(st.integers(1, size))
    clips = [clip_of(seconds, width=1, seed=i) for i, seconds in enumerate(lengths)]

    class Echo:
        def video_states(self, features: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.pad(features, (0, 0, 0, 1))

    found = over_windows(Echo(), clips, size, step, lambda index, states: states + index)  # type: ignore[arg-type]
    for index, (clip, logits) in enumerate(zip(clips, found, strict=True)):
        torch.testing.assert_close(logits, clip.features + index)


def test_labels_are_of_the_middle_of_each_second() -> None:
    task = segmentation_on(CLIPS)
    for clip, steps in zip(CLIPS, SECONDS, strict=True):
        expected = [STEPS.index(step) + 1 if step else 0 for step in steps]
        assert task.labels(clip).tolist() == expected
    assert [task.num_items(clip) for clip in CLIPS] == [20, 0, 9]


def test_segmentations_loss_is_of_every_second_of_videos_that_have_steps() -> None:
    model, task = small_model(double=True, segments=4), segmentation_on(CLIPS)
    with torch.no_grad():
        loss, measured = task.loss(model, CLIPS, torch_generator(0))
        found = task.logits(model, [CLIPS[0], CLIPS[2]])
        judged = task.judge(model, CLIPS)
    terms, right, within = [], [], []
    for logits, steps in zip(found, [SECONDS[0], SECONDS[2]], strict=True):
        for row, step in zip(logits.tolist(), steps, strict=True):
            label = STEPS.index(step) + 1 if step else 0
            terms.append(math.log(sum(map(math.exp, row))) - row[label])
            right.append(row[label] == max(row))
            within += [right[-1]] if step else []
    assert float(loss) == pytest.approx(sum(terms) / 29)
    assert judged.loss == pytest.approx(float(loss)) and judged.num_items == 29
    assert judged.scores == {
        "frame_accuracy": pytest.approx(sum(right) / 29),
        "step_frame_accuracy": pytest.approx(sum(within) / len(within)),
    }
    assert measured == {"loss/segmentation": pytest.approx(float(loss))}
    first = judged.samples[0].lines["gold"]
    assert first == f"0-1 s background; 1-4 s {RED}; 4-9 s background; 9-20 s {STAR}"


def test_what_happens_is_told_by_second_and_step_of_the_videos_own_recipe() -> None:
    task = localization_on(CLIPS)
    for clip, steps in zip(CLIPS, SECONDS, strict=True):
        recipe = RECIPES[clip.video.topic]
        expected = [[float(step == one) for one in recipe] for step in steps]
        assert task.happens(clip).tolist() == expected
    assert [task.num_items(clip) for clip in CLIPS] == [2, 0, 2]


def test_a_step_too_short_for_any_second_does_not_happen() -> None:
    """It cannot be found, so that such a video cannot be judged."""
    clip = clip_of(5, topic="tea", events=(Event((1.6, 2.4), step=RED),))
    task = localization_on([clip])
    assert task.num_items(clip) == 0 and not task.can_judge([clip])


def test_a_recipe_is_no_longer_than_its_video() -> None:
    clip = clip_of(2, topic="tea", events=(Event((0, 2), step=RED),))
    task = localization_on([clip])
    assert task.recipe(clip) == (RED, BLUE)
    with torch.no_grad():
        assert task.judge(small_model(), [clip]).num_items == 1


def scores_by_hand(model: VideoLanguageModel, task: Localization, clip: Clip) -> torch.Tensor:
    """Dot products of seconds' states with steps' mean states, the mean over windows."""
    texts = []
    for step in task.recipe(clip):
        ids = torch.tensor([[*task.batcher.ids(step), task.batcher.vocabulary.sep]])
        texts.append(model.text_states(ids, torch.ones_like(ids, dtype=torch.bool))[0].mean(0))
    return torch.stack(
        [
            torch.stack([torch.stack(states).mean(0) @ text for text in texts])
            for states in states_by_hand(model, clip)
        ]
    )


def best_places(scores: torch.Tensor) -> tuple[int, ...]:
    """One second for each step, ascending, of the highest sum: by trying all."""
    seconds, steps = scores.shape
    choices = list(itertools.combinations(range(seconds), steps))
    sums = [sum(float(scores[t, k]) for k, t in enumerate(choice)) for choice in choices]
    return choices[int(np.argmax(sums))]


def test_localization_by_hand() -> None:
    """Scores, the loss, log-softmax over steps, the assignment and the recall over topics."""
    model, task = small_model(double=True), localization_on(CLIPS)
    judgeable = [CLIPS[0], CLIPS[2]]
    with torch.no_grad():
        found = task.scores_of(model, judgeable)
        loss, measured = task.loss(model, CLIPS, torch_generator(0))
        judged = task.judge(model, CLIPS)
        expected = [scores_by_hand(model, task, clip) for clip in judgeable]
    terms, recalls = [], []
    for clip, scores, by_hand in zip(judgeable, found, expected, strict=True):
        torch.testing.assert_close(scores, by_hand, rtol=1e-9, atol=1e-9)
        steps = SECONDS[CLIPS.index(clip)]
        recipe = RECIPES[clip.video.topic]
        for row, step in zip(by_hand.tolist(), steps, strict=True):
            for score, one in zip(row, recipe, strict=True):
                p = 1 / (1 + math.exp(-score))
                terms.append(-math.log(p if step == one else 1 - p))
        logs = by_hand - by_hand.exp().sum(1, keepdim=True).log()
        places = best_places(logs)
        hits = [steps[place] == one for place, one in zip(places, recipe, strict=True)]
        recalls.append(sum(hits) / len(set(steps) - {""}))
        told = dict(judged.samples[judgeable.index(clip)].lines)
        assert [text.split(";")[0] for text in told.values()] == [f"second {t}" for t in places]
        assert list(told) == list(recipe)
    assert float(loss) == pytest.approx(sum(terms) / len(terms))
    assert judged.loss == pytest.approx(float(loss)) and judged.num_items == 2
    assert judged.scores == {"step_recall": pytest.approx(sum(recalls) / 2)}
    assert measured == {"loss/localization": pytest.approx(float(loss))}
    assert judged.samples[0].lines[BLUE].endswith("gold not in the video")


def test_localization_assigns_by_log_probabilities_among_steps() -> None:
    """A second that scores high for all steps is taken by none for it alone."""
    clip = clip_of(3, topic="coffee", events=(Event((0, 1), step=STAR), Event((1, 2), step=RED)))
    task = localization_on([clip])
    # Raw sums are highest at seconds 0 and 2; log-probabilities at 0 and 1.
    scores = torch.tensor([[5.0, 0.0], [0.0, 4.0], [9.0, 9.0]])
    object.__setattr__(task, "scores_of", lambda model, clips: [scores])
    assert best_places(scores) == (0, 2)
    assert task.judge(small_model(), [clip]).scores == {"step_recall": 1.0}


@pytest.mark.parametrize("module", [segmentation, localization])
def test_judging_in_chunks_changes_nothing(module: object, monkeypatch: pytest.MonkeyPatch) -> None:
    task = segmentation_on(CLIPS) if module is segmentation else localization_on(CLIPS)
    model = small_model(double=True, segments=4)
    with torch.no_grad():
        whole = task.judge(model, CLIPS)
        monkeypatch.setattr(module, "CHUNK", 1)
        parts = task.judge(model, CLIPS)
    assert parts.scores == whole.scores and parts.loss == pytest.approx(whole.loss)


def test_videos_without_a_step_cost_nothing_and_cannot_be_judged() -> None:
    model = small_model(double=True, segments=4)
    for task in (segmentation_on(CLIPS), localization_on(CLIPS)):
        loss, measured = task.loss(model, CLIPS[1:2], torch_generator(0))
        assert float(loss.detach()) == 0 and measured == {}
        with pytest.raises(DataError, match=f"{task.name}: no video"):
            task.judge(model, CLIPS[1:2])


def test_corpora_without_steps_or_recipes_are_told_apart() -> None:
    clip = clip_of(3)
    bare = task_on(Segmentation, [clip]).dataset
    assert "names no steps" in Segmentation.lacking(bare)
    assert "no recipes" in Localization.lacking(bare)
    full = task_on(Segmentation, [clip], RECIPES).dataset
    assert Segmentation.lacking(full) == Localization.lacking(full) == ""


@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 3), st.data())
def test_an_average_is_the_mean_of_what_windows_say(
    num_seconds: int, size: int, num_labels: int, data: st.DataObject
) -> None:
    starts = window_starts(num_seconds, size, data.draw(st.integers(1, size)))
    generator = torch_generator(data.draw(st.integers(0, 99)))
    windows = [
        torch.randn(min(size, num_seconds - start), num_labels, generator=generator).double()
        for start in starts
    ]
    found = average_windows(windows, starts, num_seconds)
    assert found.shape == (num_seconds, num_labels)
    for second in range(num_seconds):
        said = [
            window[second - start]
            for window, start in zip(windows, starts, strict=True)
            if start <= second < start + size
        ]
        torch.testing.assert_close(found[second], torch.stack(said).mean(0))


@given(st.integers(1, 30), st.integers(1, 8))
def test_windows_of_one_sequence_average_to_it(num_seconds: int, size: int) -> None:
    whole = torch.arange(2.0 * num_seconds).reshape(num_seconds, 2)
    starts = window_starts(num_seconds, size, max(1, size // 2))
    windows = [whole[start : start + size] for start in starts]
    torch.testing.assert_close(average_windows(windows, starts, num_seconds), whole)
