"""Scripts: what is told of a video is true of it, and what is false is so by design."""

from __future__ import annotations

import math
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.video.records import Split
from data.video.shapestory.script import Narrating, Script, write_script
from data.video.shapestory.world import Thing, make_world

WORLD = make_world(0)
SPLITS = st.sampled_from(["train", "validation", "test"])
COUNT = 600


def script(index: int, split: str = "train", narrating: Narrating | None = None) -> Script:
    return write_script(
        WORLD,
        narrating or Narrating(),
        seed=0,
        split=cast(Split, split),
        index=index,
        fps=4.0,
    )


@settings(max_examples=60)
@given(index=st.integers(0, 10_000), split=SPLITS)
def test_scenes_follow_each_other_and_are_as_long_as_they_may_be(index: int, split: str) -> None:
    found = script(index, split)
    edges = [edge for scene in found.scenes for edge in scene.span]
    assert edges == sorted(edges)
    assert all((edge * 4).is_integer() for edge in edges)
    assert 3 <= len(found.scenes) <= 6
    assert all(2 <= scene.span[1] - scene.span[0] <= 8 for scene in found.scenes)
    assert 16 <= found.duration_s <= 32.5
    assert edges[-1] <= found.duration_s
    steps = [scene.things[0] for scene in found.scenes if scene.is_step]
    places = [found.topic.steps.index(step) for step in dict.fromkeys(steps)]
    assert places == sorted(places)


@settings(max_examples=60)
@given(index=st.integers(0, 10_000), split=SPLITS)
def test_only_test_videos_show_what_is_held_out(index: int, split: str) -> None:
    held_out = {scene.things[0] for scene in script(index, split).scenes} & set(WORLD.held_out)
    assert split == "test" or not held_out


def test_some_test_videos_show_what_is_held_out() -> None:
    shown = [any(not s.is_step for s in script(i, "test").scenes) for i in range(200)]
    assert 0.1 < sum(shown) / 200 < 0.4


@settings(max_examples=60)
@given(index=st.integers(0, 10_000), split=SPLITS)
def test_distractors_differ_in_one_factor_and_are_not_seen(index: int, split: str) -> None:
    found = script(index, split)
    by_text = {
        Thing(color, shape, motion).text: (color, shape, motion)
        for color in _colors()
        for shape in _shapes()
        for motion in _motions()
    }
    for question in found.questions:
        if not question.candidates:
            continue
        assert len(set(question.candidates)) == 5
        assert question.candidates.count(question.answer) == 1
        right = by_text[question.answer]
        (scene,) = [s for s in found.scenes if s.span == question.span]
        assert scene.things[0].text == question.answer
        for candidate in question.candidates:
            if candidate != question.answer:
                differing = sum(a != b for a, b in zip(by_text[candidate], right, strict=True))
                assert differing == 1
                assert candidate not in {thing.text for thing in scene.things}


@settings(max_examples=60)
@given(index=st.integers(0, 10_000), split=SPLITS)
def test_open_questions_are_answered_by_what_is_seen(index: int, split: str) -> None:
    found = script(index, split)
    texts = [scene.things[0].text for scene in found.scenes]
    for question in found.questions:
        if question.text == "how many objects are there":
            (scene,) = [s for s in found.scenes if s.span == question.span]
            assert question.answer == {1: "one", 2: "two"}[len(scene.things)]
        elif question.text.startswith("what colour is the "):
            (scene,) = [s for s in found.scenes if s.span == question.span]
            (thing,) = scene.things
            assert question.text.endswith(thing.shape) and question.answer == thing.color
        elif question.text.startswith("what happens after "):
            before = question.text.removeprefix("what happens after ")
            assert texts[texts.index(before) + 1] == question.answer


@settings(max_examples=60)
@given(index=st.integers(0, 10_000))
def test_moments_are_all_spans_that_show_the_query(index: int) -> None:
    found = script(index)
    for moment in found.moments:
        spans = [s.span for s in found.scenes if moment.query in {t.text for t in s.things}]
        assert list(moment.spans) == spans and spans
        for clip, raters in moment.saliency.items():
            middle = 2 * clip + 1
            assert any(start <= middle < end for start, end in spans)
            assert len(raters) == 3 and all(0 <= score <= 4 for score in raters)


def test_moments_recur_now_and_then() -> None:
    assert any(len(m.spans) > 1 for i in range(50) for m in script(i).moments)


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0])
def test_narration_strays_delays_and_drops_as_often_as_told(noise: float) -> None:
    narrating = Narrating(noise=(noise,), delay_mean_s=1.0, delay_std_s=0.5, drop=0.2)
    scripts = [script(i, narrating=narrating) for i in range(COUNT // 4)]
    num_events = sum(len(s.scenes) for s in scripts)
    told = [pair for s in scripts for pair in s.narration]
    assert abs(len(told) / num_events - 0.8) < 5 * math.sqrt(0.16 / num_events)
    strayed = sum(alignment.event is None for _, alignment in told) / len(told)
    assert abs(strayed - noise) <= 5 * math.sqrt(noise * (1 - noise) / len(told))
    shifts = [a.shift_s for s in scripts for u, a in s.narration if a.event is not None
              and u.span[0] > 0 and u.span[1] < s.duration_s - 0.01]  # fmt: skip
    if shifts:
        mean = sum(shifts) / len(shifts)
        assert abs(mean - 1.0) < 0.1 + 5 * 0.5 / math.sqrt(len(shifts))


@settings(max_examples=60)
@given(index=st.integers(0, 10_000))
def test_alignment_is_what_it_says(index: int) -> None:
    found = script(index)
    starts = [utterance.span for utterance, _ in found.narration]
    assert starts == sorted(starts)
    foreign = {s.text for t in WORLD.topics for s in t.steps} - {s.text for s in found.topic.steps}
    for utterance, alignment in found.narration:
        assert 0 <= utterance.span[0] < utterance.span[1] <= found.duration_s
        if alignment.event is None:
            assert not alignment.aligned
        else:
            span = found.scenes[alignment.event].span
            overlaps = utterance.span[0] < span[1] and utterance.span[1] > span[0]
            assert alignment.aligned == overlaps
            assert alignment.shift_s == pytest.approx(utterance.span[0] - span[0], abs=2e-3)
    assert foreign


def test_a_script_does_not_depend_on_others() -> None:
    assert script(7) == script(7)
    assert script(7) != script(17)


def _colors() -> list[str]:
    from data.video.shapestory.world import COLORS

    return list(COLORS)


def _shapes() -> tuple[str, ...]:
    from data.video.shapestory.world import SHAPES

    return SHAPES


def _motions() -> list[str]:
    from data.video.shapestory.world import MOTIONS

    return list(MOTIONS)
