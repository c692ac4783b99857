"""What happens in one video, and all that is told of it: drawn before a picture is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.seeds import derive_seed, numpy_generator
from data.video.records import (
    Alignment,
    Event,
    Moment,
    Parse,
    Question,
    Span,
    Split,
    Utterance,
)
from data.video.shapestory.world import (
    COLORS,
    MOTIONS,
    OFF_TOPIC,
    ORDER_WORDS,
    SHAPES,
    Thing,
    Topic,
    World,
    tell,
)

NUM_CANDIDATES = 5
SHORTEST_S, LONGEST_S = 16.0, 32.0
EVENT_S = (2.0, 8.0)
GAP_S = (1.0, 3.0)
FEWEST_EVENTS, MOST_EVENTS = 3, 6
STEP_KEPT, STEP_RECURS, HAS_GAP, HAS_SECOND, IS_HELD_OUT = 0.8, 0.25, 0.35, 0.2, 0.3
WORD_S = 0.3
CLIP_S = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Narrating:
    """How videos are narrated, and what their sound is like.

    Attributes:
        noise: Shares of utterances that tell of something else; each video has one of them, half
            of what it says of nothing in any video and half of what another one might.
        delay_mean_s: Mean of the delay of an utterance behind its event.
        delay_std_s: Its standard deviation.
        drop: Probability that an event is not told of.
        swapped_sound: Probability that an event sounds like another.
        snr_db: Of sound above noise.
    """

    noise: tuple[float, ...] = (0.0, 0.25, 0.5)
    delay_mean_s: float = 0.5
    delay_std_s: float = 1.0
    drop: float = 0.1
    swapped_sound: float = 0.0
    snr_db: float = 20.0


@dataclass(frozen=True, slots=True)
class Scene:
    """One event.

    Attributes:
        things: What is seen, the step's thing first.
        span: When.
        is_step: Whether the first thing is a step of the recipe.
        caption: What is told of it.
        parse: The caption's.
        sound: What is heard; other things where the sound was swapped.
    """

    things: tuple[Thing, ...]
    span: Span
    is_step: bool
    caption: str
    parse: Parse
    sound: tuple[Thing, ...]


@dataclass(frozen=True, slots=True)
class Script:
    """One video.

    Attributes:
        name: Of the video.
        split: Its split.
        topic: Its topic.
        scenes: In their order; between them nothing happens.
        duration_s: Of the whole.
        fades: Whether scenes fade into each other.
        narration_noise: Share of utterances that were meant to tell of something else.
        narration: What is said, and how each utterance was made.
        captions: Of the whole.
        paragraph: Of the whole, in order.
        questions: On it.
        moments: In it.
    """

    name: str
    split: Split
    topic: Topic
    scenes: tuple[Scene, ...]
    duration_s: float
    fades: bool
    narration_noise: float
    narration: tuple[tuple[Utterance, Alignment], ...]
    captions: tuple[str, ...]
    paragraph: str
    questions: tuple[Question, ...]
    moments: tuple[Moment, ...]

    @property
    def events(self) -> tuple[Event, ...]:
        """The scenes as a record has them."""
        return tuple(
            Event(scene.span, scene.caption, scene.things[0].text if scene.is_step else "")
            for scene in self.scenes
        )


def name_of(split: Split, index: int) -> str:
    """A video's name, by its number within its split."""
    return f"{split}-{index:05d}"


def write_script(
    world: World, narrating: Narrating, *, seed: int, split: Split, index: int, fps: float
) -> Script:
    """Draw one video: a pure function of its arguments, whatever other videos there are.

    Args:
        world: Topics and steps.
        narrating: How it is narrated.
        seed: Of the corpus.
        split: Its split.
        index: Its number within the split; topics take turns.
        fps: Frames per second; scenes begin and end with a frame.
    """
    generator = numpy_generator(derive_seed(seed, "script", split, index))
    topic = world.topics[index % len(world.topics)]
    cast = _cast(world, topic, split, generator)
    spans, duration_s = _spans(len(cast), fps, generator)
    scenes = []
    for (things, is_step), span in zip(cast, spans, strict=True):
        caption, parse = tell(things, generator.integers(3, size=len(things)).tolist())
        swapped = generator.random() < narrating.swapped_sound
        sound = (_other(world, things[0], generator),) if swapped else things
        scenes.append(Scene(things, span, is_step, caption, parse, sound))
    noise = float(generator.choice(np.array(narrating.noise)))
    narration = _narration(world, topic, scenes, noise, duration_s, narrating, generator)
    told = [tell(s.things, generator.integers(3, size=len(s.things)).tolist())[0] for s in scenes]
    return Script(
        name=name_of(split, index),
        split=split,
        topic=topic,
        scenes=tuple(scenes),
        duration_s=duration_s,
        fades=bool(generator.random() < 0.5),
        narration_noise=noise,
        narration=narration,
        captions=(" and ".join(told[:2]), f"{told[-1]} in the {topic.name}"),
        paragraph=_paragraph(told),
        questions=_questions(scenes, generator),
        moments=_moments(name_of(split, index), scenes, duration_s, generator),
    )


def _cast(
    world: World, topic: Topic, split: Split, generator: np.random.Generator
) -> list[tuple[tuple[Thing, ...], bool]]:
    """Who is in each scene, and whether it is a step of the recipe."""
    kept = [step for step in topic.steps if generator.random() < STEP_KEPT]
    while len(kept) < FEWEST_EVENTS:
        missing = [step for step in topic.steps if step not in kept]
        kept.append(missing[int(generator.integers(len(missing)))])
    kept.sort(key=topic.steps.index)
    cast = [((step,), True) for step in kept[:MOST_EVENTS]]
    if len(cast) < MOST_EVENTS and generator.random() < STEP_RECURS:
        cast.append(cast[int(generator.integers(len(cast) - 1))])
    if split == "test" and len(cast) < MOST_EVENTS and generator.random() < IS_HELD_OUT:
        thing = world.held_out[int(generator.integers(len(world.held_out)))]
        cast.insert(int(generator.integers(len(cast) + 1)), ((thing,), False))
    whole: list[tuple[tuple[Thing, ...], bool]] = []
    for things, is_step in cast:
        second = _other(world, things[0], generator)
        alone = generator.random() >= HAS_SECOND or second.color == things[0].color
        whole.append((things if alone else (things[0], second), is_step))
    return whole


def _other(world: World, thing: Thing, generator: np.random.Generator) -> Thing:
    """A step's thing of another colour or shape."""
    steps = sorted({step for topic in world.topics for step in topic.steps})
    others = [s for s in steps if (s.color, s.shape) != (thing.color, thing.shape)]
    return others[int(generator.integers(len(others)))]


def _spans(count: int, fps: float, generator: np.random.Generator) -> tuple[list[Span], float]:
    """When each scene is, in whole frames, and how long the video is."""
    lengths = generator.uniform(*EVENT_S, count)
    gaps = generator.uniform(*GAP_S, count + 1) * (generator.random(count + 1) < HAS_GAP)
    total = float(lengths.sum() + gaps.sum())
    wanted = min(max(total, SHORTEST_S), LONGEST_S)
    if total > wanted:
        gaps *= max(0.0, wanted - float(lengths.sum())) / max(float(gaps.sum()), 1e-9)
    lengths = np.clip(lengths * (wanted - float(gaps.sum())) / float(lengths.sum()), *EVENT_S)
    frames = np.rint(np.stack([gaps[:-1], lengths], 1).ravel() * fps).astype(int)
    ends = np.cumsum(frames)
    spans = [(float(ends[2 * i] / fps), float(ends[2 * i + 1] / fps)) for i in range(count)]
    last = spans[-1][1] + float(np.rint(gaps[-1] * fps)) / fps
    return spans, max(last, SHORTEST_S)


def _narration(
    world: World,
    topic: Topic,
    scenes: Sequence[Scene],
    noise: float,
    duration_s: float,
    narrating: Narrating,
    generator: np.random.Generator,
) -> tuple[tuple[Utterance, Alignment], ...]:
    found: list[tuple[Utterance, Alignment]] = []
    foreign = [t for other in world.topics if other is not topic for t in other.steps]
    foreign = [t for t in foreign if t not in topic.steps]
    for number, scene in enumerate(scenes):
        fate, dropped = generator.random(), generator.random() < narrating.drop
        delay_s = generator.normal(narrating.delay_mean_s, narrating.delay_std_s)
        phrasing = generator.integers(3, size=len(scene.things)).tolist()
        if dropped:
            continue
        event: int | None = None
        if fate < noise / 2:
            words = OFF_TOPIC[int(generator.integers(len(OFF_TOPIC)))]
        elif fate < noise:
            words = tell([foreign[int(generator.integers(len(foreign)))]], phrasing[:1])[0]
        else:
            words, event = tell(scene.things, phrasing)[0], number
        length_s = WORD_S * len(words.split())
        start_s = min(max(0.0, scene.span[0] + delay_s), max(0.0, duration_s - length_s))
        span = (round(start_s, 3), round(min(start_s + length_s, duration_s), 3))
        overlaps = span[0] < scene.span[1] and span[1] > scene.span[0]
        shift_s = 0.0 if event is None else round(span[0] - scene.span[0], 3)
        aligned = event is not None and overlaps
        found.append((Utterance(span, words), Alignment(event, aligned, shift_s)))
    return tuple(sorted(found, key=lambda pair: pair[0].span))


def _paragraph(told: Sequence[str]) -> str:
    middle = ORDER_WORDS[1:-1]
    words = [ORDER_WORDS[0], *(middle[i % len(middle)] for i in range(len(told) - 2))]
    ordered = [*words, ORDER_WORDS[-1]]
    return " . ".join(f"{word} {text}" for word, text in zip(ordered, told, strict=True)) + " ."


def _questions(scenes: Sequence[Scene], generator: np.random.Generator) -> tuple[Question, ...]:
    found = []
    for scene in scenes:
        answer = scene.things[0].text
        wrong = _distractors(scene, generator)
        order = generator.permutation(NUM_CANDIDATES)
        candidates = [answer, *wrong]
        shuffled = tuple(candidates[i] for i in order)
        found.append(Question("what happens", answer, shuffled, scene.span))
    scene = scenes[int(generator.integers(len(scenes)))]
    found.append(
        Question(
            "how many objects are there", ("one", "two")[len(scene.things) - 1], (), scene.span
        )
    )
    alone = [one for one in scenes if len(one.things) == 1]
    if alone:
        thing = alone[int(generator.integers(len(alone)))]
        question = f"what colour is the {thing.things[0].shape}"
        found.append(Question(question, thing.things[0].color, (), thing.span))
    number = int(generator.integers(len(scenes) - 1))
    before, after = scenes[number].things[0].text, scenes[number + 1].things[0].text
    if sum(one.things[0].text == before for one in scenes) == 1:
        found.append(Question(f"what happens after {before}", after))
    return tuple(found)


def _distractors(scene: Scene, generator: np.random.Generator) -> list[str]:
    """Four things that differ from the scene's first in exactly one factor, and are not in it."""
    thing = scene.things[0]
    others = [Thing(color, thing.shape, thing.motion) for color in COLORS if color != thing.color]
    others += [Thing(thing.color, shape, thing.motion) for shape in SHAPES if shape != thing.shape]
    motions = [Thing(thing.color, thing.shape, m) for m in MOTIONS if m != thing.motion]
    # Half of them differ in motion, which only time tells.
    half = NUM_CANDIDATES // 2
    drawn = [motions[i] for i in generator.permutation(len(motions))[:half]]
    others = [one for one in others if one not in scene.things]
    rest = NUM_CANDIDATES - 1 - half
    drawn += [others[i] for i in generator.permutation(len(others))[:rest]]
    return [one.text for one in drawn]


def _moments(
    name: str, scenes: Sequence[Scene], duration_s: float, generator: np.random.Generator
) -> tuple[Moment, ...]:
    found = []
    texts = list(dict.fromkeys(scene.things[0].text for scene in scenes))
    for number, text in enumerate(texts):
        shown = [s for s in scenes if any(thing.text == text for thing in s.things)]
        spans = tuple(scene.span for scene in shown)
        saliency = {}
        for clip in range(int(duration_s // CLIP_S)):
            middle = (clip + 0.5) * CLIP_S
            if any(start_s <= middle < end_s for start_s, end_s in spans):
                saliency[clip] = tuple(generator.integers(2, 5, 3).tolist())
        found.append(Moment(f"{name}-{number}", text, spans, saliency))
    return tuple(found)
