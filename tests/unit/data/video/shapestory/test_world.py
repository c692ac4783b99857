"""The world: recipes, things that only motion tells apart, and captions that parse."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.video.shapestory.world import (
    COLORS,
    MOTIONS,
    SHAPES,
    TOPICS,
    Thing,
    make_world,
    tell,
)

THINGS = st.builds(
    Thing, st.sampled_from(list(COLORS)), st.sampled_from(SHAPES), st.sampled_from(list(MOTIONS))
)


@given(seed=st.integers(0, 2**31 - 1))
def test_recipes_have_four_to_six_steps_each_once_and_share_them(seed: int) -> None:
    world = make_world(seed)
    assert [topic.name for topic in world.topics] == list(TOPICS)
    uses = Counter(step for topic in world.topics for step in topic.steps)
    for topic in world.topics:
        assert 4 <= len(topic.steps) <= 6
        assert len(set(topic.steps)) == len(topic.steps)
    assert sum(uses.values()) / len(uses) > 1.5


@given(seed=st.integers(0, 2**31 - 1))
def test_every_step_has_a_twin_that_only_motion_tells_apart(seed: int) -> None:
    world = make_world(seed)
    steps = {step for topic in world.topics for step in topic.steps}
    by_object = Counter((step.color, step.shape) for step in steps)
    assert min(by_object.values()) >= 2
    for thing in world.held_out:
        assert thing not in steps
        assert (thing.color, thing.shape) in by_object


@given(
    things=st.lists(THINGS, min_size=1, max_size=2),
    ways=st.lists(st.integers(0, 2), min_size=2, max_size=2),
)
def test_a_caption_is_its_parse_and_the_parse_a_tree(things: list[Thing], ways: list[int]) -> None:
    caption, parse = tell(things, ways[: len(things)])
    assert caption == " ".join(parse.words)
    assert len(parse.words) == len(parse.pos) == len(parse.heads) == len(parse.deps)
    roots = [i for i, head in enumerate(parse.heads) if head == i]
    assert [parse.deps[i] for i in roots] == ["ROOT"] == [d for d in parse.deps if d == "ROOT"]
    for word in range(len(parse.words)):
        seen = set()
        while parse.heads[word] != word:
            assert word not in seen
            seen.add(word)
            word = parse.heads[word]
        assert word == roots[0]
    assert parse.pos[roots[0]] == "VERB"
    subjects = [i for i, dep in enumerate(parse.deps) if dep == "nsubj"]
    assert [parse.words[i] for i in subjects] == [thing.shape for thing in things]
    for subject, thing in zip(subjects, things, strict=True):
        chunk = [parse.words[i] for i in range(len(parse.words)) if parse.heads[i] == subject]
        assert chunk == [thing.article, thing.color]


@pytest.mark.parametrize("told", [told for ways in MOTIONS.values() for told in ways])
def test_ways_of_telling_are_one_motions_alone(told: str) -> None:
    assert sum(told in ways for ways in MOTIONS.values()) == 1
