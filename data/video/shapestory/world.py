"""The world of ShapeStory: what there is, what is done in each topic, and how it is told.

A step is one object, of a colour and a shape, in one motion. Every object of a step is that of
others too, which differ in motion alone, so that only who sees it move can tell them apart. A topic
is a recipe: some steps in their order, which other topics use too, on a background and at a pace of
its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from core.seeds import derive_seed, numpy_generator
from data.video.records import Parse

COLORS: Mapping[str, tuple[int, int, int]] = {
    "red": (230, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 90, 240),
    "yellow": (245, 220, 50),
    "purple": (150, 60, 200),
    "orange": (250, 140, 30),
    "cyan": (40, 210, 220),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
MOTIONS: Mapping[str, tuple[str, str, str]] = {
    "slides-left": ("slides to the left", "moves left", "glides leftwards"),
    "slides-right": ("slides to the right", "moves right", "glides rightwards"),
    "rises": ("rises", "moves up", "floats upwards"),
    "falls": ("falls", "moves down", "sinks downwards"),
    "spins": ("spins", "turns around", "rotates quickly"),
    "blinks": ("blinks", "flashes repeatedly", "goes on and off"),
    "grows": ("grows", "gets bigger", "becomes larger"),
    "shakes": ("shakes", "trembles quickly", "jitters in place"),
}
"""Each motion's name, and three ways to tell it."""

TOPICS = (
    "breakfast", "garden", "harbour", "orchestra", "workshop",
    "market", "theatre", "laboratory", "railway", "festival",
)  # fmt: skip

OFF_TOPIC = (
    "please like this video and subscribe",
    "thanks to everyone who wrote to me",
    "it has been raining here all week",
    "i will tell you more about that next time",
    "let me get a cup of coffee first",
    "my neighbour asked me about this yesterday",
)
ORDER_WORDS = ("first", "then", "next", "after that", "then", "finally")


@dataclass(frozen=True, slots=True, order=True)
class Thing:
    """What moves: one object and its motion."""

    color: str
    shape: str
    motion: str

    @property
    def text(self) -> str:
        """The step's canonical text."""
        return f"{self.article} {self.color} {self.shape} {MOTIONS[self.motion][0]}"

    @property
    def article(self) -> str:
        """A or an."""
        return "an" if self.color[0] in "aeiou" else "a"


@dataclass(frozen=True, slots=True)
class Topic:
    """A recipe, and how its videos look.

    Attributes:
        name: The topic.
        steps: In their order, each once.
        background: Mean colour of the background, 0-255.
        stripes: Direction of the background's stripes, radians, and how many fit in a frame.
        pace: How fast things move; 1 is as they are described.
    """

    name: str
    steps: tuple[Thing, ...]
    background: tuple[int, int, int]
    stripes: tuple[float, int]
    pace: float


@dataclass(frozen=True, slots=True)
class World:
    """Topics, and what only test videos show.

    Attributes:
        topics: All topics.
        held_out: Things that only test videos show: objects of steps, each in a motion that it
            has in no step.
    """

    topics: tuple[Topic, ...]
    held_out: tuple[Thing, ...]


NUM_OBJECTS = 8
MOTIONS_OF_EACH = 3
NUM_STEPS = NUM_OBJECTS * MOTIONS_OF_EACH


def make_world(seed: int) -> World:
    """Draw steps, recipes and looks; each step is in two recipes or more.

    Args:
        seed: Of the corpus.
    """
    generator = numpy_generator(derive_seed(seed, "world"))
    objects = [(color, shape) for color in COLORS for shape in SHAPES]
    steps, held_out = [], []
    for i in generator.permutation(len(objects))[:NUM_OBJECTS].tolist():
        motions = [list(MOTIONS)[j] for j in generator.permutation(len(MOTIONS))]
        color, shape = objects[i]
        steps += [Thing(color, shape, motion) for motion in motions[:MOTIONS_OF_EACH]]
        held_out.append(Thing(color, shape, motions[MOTIONS_OF_EACH]))
    sizes = generator.integers(4, 7, len(TOPICS))
    # Steps are dealt round by round, so that all are used about equally often.
    rounds = -(-int(sizes.sum()) // NUM_STEPS) + 2
    deck = [i for _ in range(rounds) for i in generator.permutation(NUM_STEPS).tolist()]
    topics = []
    for name, size in zip(TOPICS, sizes.tolist(), strict=True):
        recipe: list[int] = []
        while len(recipe) < size:
            nearest = next(place for place, step in enumerate(deck) if step not in recipe)
            recipe.append(deck.pop(nearest))
        color = generator.integers(20, 80, 3).tolist()
        topics.append(
            Topic(
                name,
                tuple(steps[i] for i in recipe),
                (color[0], color[1], color[2]),
                (float(generator.uniform(0, np.pi)), int(generator.integers(3, 9))),
                float(generator.uniform(0.8, 1.25)),
            )
        )
    return World(tuple(topics), tuple(sorted(held_out)))


def tell(things: Sequence[Thing], phrasing: Sequence[int]) -> tuple[str, Parse]:
    """A caption of one or two things, each told in one of three ways, and its parse."""
    assert len(things) in (1, 2) and len(phrasing) == len(things)
    words: list[str] = []
    pos: list[str] = []
    heads: list[int] = []
    deps: list[str] = []
    verb_of_first = -1
    for number, (thing, way) in enumerate(zip(things, phrasing, strict=True)):
        if number:
            words.append("while")
            pos.append("SCONJ")
            heads.append(-1)
            deps.append("mark")
        start = len(words)
        predicate = MOTIONS[thing.motion][way].split()
        verb = start + 3
        if number:
            heads[start - 1] = verb
        words += [thing.article, thing.color, thing.shape, *predicate]
        pos += ["DET", "ADJ", "NOUN"]
        heads += [start + 2, start + 2, verb]
        deps += ["det", "amod", "nsubj"]
        tags = _PREDICATES[MOTIONS[thing.motion][way]]
        for offset, (tag, head, dep) in enumerate(tags):
            pos.append(tag)
            if offset == 0:
                heads.append(verb if not number else verb_of_first)
                deps.append("ROOT" if not number else "advcl")
            else:
                heads.append(verb + head)
                deps.append(dep)
        if not number:
            verb_of_first = verb
    return " ".join(words), Parse(tuple(words), tuple(pos), tuple(heads), tuple(deps))


_V = ("VERB", 0, "")
_PREDICATES: Mapping[str, tuple[tuple[str, int, str], ...]] = {
    "slides to the left": (_V, ("ADP", 0, "prep"), ("DET", 3, "det"), ("NOUN", 1, "pobj")),
    "slides to the right": (_V, ("ADP", 0, "prep"), ("DET", 3, "det"), ("NOUN", 1, "pobj")),
    "goes on and off": (_V, ("ADV", 0, "advmod"), ("CCONJ", 1, "cc"), ("ADV", 1, "conj")),
    "jitters in place": (_V, ("ADP", 0, "prep"), ("NOUN", 1, "pobj")),
    "gets bigger": (_V, ("ADJ", 0, "acomp")),
    "becomes larger": (_V, ("ADJ", 0, "acomp")),
    **{
        told: (_V, *[("ADV", 0, "advmod")] * (len(told.split()) - 1))
        for ways in MOTIONS.values()
        for told in ways
        if told
        not in {
            "slides to the left",
            "slides to the right",
            "goes on and off",
            "jitters in place",
            "gets bigger",
            "becomes larger",
        }
    },
}
"""Of each predicate's words: part of speech, head counted from the verb, and dependency."""
