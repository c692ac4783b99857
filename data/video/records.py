"""One internal record of a video and all that is told of it, whatever format told it.

What a model may be given or judged by are a video's own fields: its file, what is said in it, its
events, captions, questions and moments. What only a generator knows of it lies in `Gold`, apart, so
that code which makes inputs never comes near it.

All times are seconds from the start of the video's file, also where only a clip of it is meant
(`Video.of_clip` has them from the start of that); a span is ``(start_s, end_s)``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from core.errors import DataError
from core.records import write_whole

Span = tuple[float, float]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

MANIFEST = "manifest.jsonl"
DESCRIPTION = "corpus.json"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happens in a video.

    Attributes:
        span: From when to when.
        caption: A sentence that describes it; empty where the source has none.
        step: Which step of a recipe it is, by the step's text; empty where the source has none.
    """

    span: Span
    caption: str = ""
    step: str = ""


@dataclass(frozen=True, slots=True)
class Utterance:
    """A sentence that is said, as a speech recogniser would give it.

    Attributes:
        span: When it is said, which need not be when what it tells of happens.
        text: The words.
    """

    span: Span
    text: str


_Timed = TypeVar("_Timed", Event, Utterance)


@dataclass(frozen=True, slots=True)
class Question:
    """A question on a video.

    Attributes:
        text: The question.
        answer: The right answer.
        candidates: Of a multiple choice, all answers to choose from, the right one among them once;
            empty for an open question.
        span: What of the video it is about; None for all of it.
    """

    text: str
    answer: str
    candidates: tuple[str, ...] = ()
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class Moment:
    """A query and where in the video it is answered.

    Attributes:
        name: Of the query, as its source numbers it; unique in a corpus.
        query: The words.
        spans: All spans that answer it, ascending, at least one.
        saliency: For clips of two seconds, counted from the start of the video, how well each of
            three raters found it to show the query, 0 to 4; empty where the source has none.
    """

    name: str
    query: str
    spans: tuple[Span, ...]
    saliency: Mapping[int, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Box:
    """Where an object is at one time: corners in pixels, ``x`` to the right and ``y`` down."""

    time_s: float
    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True, slots=True)
class GoldObject:
    """An object of an event: its factors, and its boxes over time."""

    noun: str
    color: str
    motion: str
    track: tuple[Box, ...]


@dataclass(frozen=True, slots=True)
class Parse:
    """A caption's words with universal parts of speech and a dependency tree.

    Attributes:
        words: The caption's tokens.
        pos: Universal part of speech of each.
        heads: Index of each word's head; the root's is its own.
        deps: Label of each word's dependency.
    """

    words: tuple[str, ...]
    pos: tuple[str, ...]
    heads: tuple[int, ...]
    deps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Alignment:
    """How an utterance was made.

    Attributes:
        event: Index of the event that it tells of; None where it tells of none of this video's.
        aligned: Whether it tells of this video and its span overlaps that event's.
        shift_s: How much later than its event it starts; 0 where it tells of none.
    """

    event: int | None
    aligned: bool
    shift_s: float


@dataclass(frozen=True, slots=True)
class Gold:
    """What a generator knows of a video, for analysis alone; never an input, never a target.

    Attributes:
        objects: Of each event, its objects.
        parses: Of each event, its caption's parse.
        alignments: Of each utterance, how it was made.
        swapped_sound: Spans of which the sound was taken from elsewhere.
    """

    objects: tuple[tuple[GoldObject, ...], ...] = ()
    parses: tuple[Parse, ...] = ()
    alignments: tuple[Alignment, ...] = ()
    swapped_sound: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class Video:
    """One video and what is told of it. What a source does not tell is empty or None.

    Attributes:
        name: Unique in its corpus.
        path: Its file, relative to the corpus's folder, with forward slashes.
        split: Which split it is in.
        topic: What it is about: a category, a recipe or a task.
        duration_s: As the source has it; None where only the file knows.
        clip: The part of the file that is meant; None for all of it.
        narration: What is said, ascending by start.
        narration_noise: The share of utterances that were meant to tell of something else.
        events: What happens, ascending by start.
        captions: Sentences that describe it as a whole.
        paragraph: A text that tells its events in order.
        questions: Questions on it.
        moments: Queries and where they are answered.
        fps: Frames per second, as made.
        size: Width and height in pixels, as made.
        audio_hz: Sampling rate of its sound, as made.
        sha256: Of the file, as made.
        gold: What only a generator knows.
    """

    name: str
    path: str
    split: Split
    topic: str = ""
    duration_s: float | None = None
    clip: Span | None = None
    narration: tuple[Utterance, ...] = ()
    narration_noise: float | None = None
    events: tuple[Event, ...] = ()
    captions: tuple[str, ...] = ()
    paragraph: str = ""
    questions: tuple[Question, ...] = ()
    moments: tuple[Moment, ...] = ()
    fps: float | None = None
    size: tuple[int, int] | None = None
    audio_hz: int | None = None
    sha256: str = ""
    gold: Gold | None = None

    def of_clip(self) -> Video:
        """The same with times from the start of its clip, and with what lies in that alone.

        Spans are cut to the clip. Saliency, which counts clips of two seconds from the start of the
        file, is left out. A video without a clip is given back as it is.
        """
        if self.clip is None:
            return self
        first_s, last_s = self.clip

        def moved(span: Span) -> Span | None:
            start_s, end_s = max(span[0], first_s), min(span[1], last_s)
            return (start_s - first_s, end_s - first_s) if start_s < end_s else None

        def within(things: Sequence[_Timed]) -> tuple[_Timed, ...]:
            spans = [moved(thing.span) for thing in things]
            pairs = zip(things, spans, strict=True)
            return tuple(replace(thing, span=span) for thing, span in pairs if span)

        moments = []
        for moment in self.moments:
            spans = tuple(span for span in map(moved, moment.spans) if span)
            if spans:
                moments.append(Moment(moment.name, moment.query, spans))
        questions = [
            question if question.span is None else replace(question, span=moved(question.span))
            for question in self.questions
            if question.span is None or moved(question.span)
        ]
        return replace(
            self,
            duration_s=last_s - first_s,
            narration=within(self.narration),
            events=within(self.events),
            questions=tuple(questions),
            moments=tuple(moments),
        )

    def to_json(self) -> dict[str, Any]:
        """As a line of the manifest holds it; a box is a list of its five numbers."""
        value = dataclasses.asdict(self)
        for event in value["gold"]["objects"] if self.gold else ():
            for thing in event:
                thing["track"] = [list(box.values()) for box in thing["track"]]
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Video:
        """Read what `to_json` wrote.

        Raises:
            DataError: It is something else.
        """
        try:
            return _video(value)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            name = value.get("name", "a video") if isinstance(value, Mapping) else "a video"
            raise DataError(f"{name} cannot be read: {type(error).__name__}: {error}") from error


@dataclass(frozen=True, slots=True)
class Corpus:
    """Videos that belong together.

    Attributes:
        root: The folder that their paths are relative to.
        name: Of the source.
        videos: In the order of the source.
        recipes: By topic, the texts of its steps in their order, each once.
        made_with: Of a generated corpus, its seed and parameters.
    """

    root: Path
    name: str
    videos: tuple[Video, ...]
    recipes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    made_with: Mapping[str, Any] = field(default_factory=dict)

    def of_split(self, split: Split) -> tuple[Video, ...]:
        """The videos of one split, in order."""
        return tuple(video for video in self.videos if video.split == split)

    def write(self) -> None:
        """Write manifest and description, each whole; the description last, as a seal."""
        lines = "".join(json.dumps(video.to_json()) + "\n" for video in self.videos).encode()
        write_whole(self.root / MANIFEST, lines)
        description = {
            "schema": 1,
            "name": self.name,
            "num_videos": len(self.videos),
            "manifest_sha256": hashlib.sha256(lines).hexdigest(),
            "recipes": {topic: list(steps) for topic, steps in self.recipes.items()},
            "made_with": dict(self.made_with),
        }
        text = json.dumps(description, indent=2) + "\n"
        write_whole(self.root / DESCRIPTION, text.encode())

    @classmethod
    def read(cls, root: Path) -> Corpus:
        """Read what `write` wrote.

        Raises:
            DataError: It is missing, damaged, or not wholly written.
        """
        way_out = "make the corpus anew with tessera data make-shapestory"
        try:
            description = json.loads((root / DESCRIPTION).read_text())
            content = (root / MANIFEST).read_bytes()
        except FileNotFoundError as error:
            raise DataError(f"{error.filename} is missing; {way_out}") from error
        except (OSError, ValueError) as error:
            raise DataError(f"{root / DESCRIPTION} cannot be read: {error}; {way_out}") from error
        if not isinstance(description, dict) or description.get("schema") != 1:
            raise DataError(f"{root / DESCRIPTION} is not of schema 1; {way_out}")
        if hashlib.sha256(content).hexdigest() != description.get("manifest_sha256"):
            raise DataError(f"{root / MANIFEST} is not the one that was written; {way_out}")
        videos = tuple(Video.from_json(json.loads(line)) for line in content.splitlines())
        try:
            recipes = {topic: tuple(steps) for topic, steps in description["recipes"].items()}
            return cls(root, description["name"], videos, recipes, description["made_with"])
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{root / DESCRIPTION} lacks something: {type(error).__name__}: {error}; {way_out}"
            ) from error


def _span(value: Any) -> Span:
    start_s, end_s = value
    return float(start_s), float(end_s)


def _maybe_span(value: Any) -> Span | None:
    return None if value is None else _span(value)


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(str(text) for text in value)


def _moment(value: Mapping[str, Any]) -> Moment:
    saliency = {int(clip): tuple(map(int, s)) for clip, s in value["saliency"].items()}
    return Moment(value["name"], value["query"], tuple(map(_span, value["spans"])), saliency)


def _gold_object(value: Mapping[str, Any]) -> GoldObject:
    track = tuple(Box(*map(float, box)) for box in value["track"])
    return GoldObject(value["noun"], value["color"], value["motion"], track)


def _gold(value: Mapping[str, Any]) -> Gold:
    return Gold(
        objects=tuple(tuple(map(_gold_object, event)) for event in value["objects"]),
        parses=tuple(
            Parse(
                _texts(parse["words"]),
                _texts(parse["pos"]),
                tuple(map(int, parse["heads"])),
                _texts(parse["deps"]),
            )
            for parse in value["parses"]
        ),
        alignments=tuple(Alignment(**alignment) for alignment in value["alignments"]),
        swapped_sound=tuple(map(_span, value["swapped_sound"])),
    )


def _video(value: Mapping[str, Any]) -> Video:
    if value["split"] not in SPLITS:
        raise ValueError(f"split {value['split']!r} is none of {', '.join(SPLITS)}")
    special = {
        "clip": _maybe_span(value["clip"]),
        "narration": tuple(Utterance(_span(u["span"]), u["text"]) for u in value["narration"]),
        "events": tuple(Event(_span(e["span"]), e["caption"], e["step"]) for e in value["events"]),
        "captions": _texts(value["captions"]),
        "questions": tuple(
            Question(q["text"], q["answer"], _texts(q["candidates"]), _maybe_span(q["span"]))
            for q in value["questions"]
        ),
        "moments": tuple(map(_moment, value["moments"])),
        "size": None if value["size"] is None else (int(value["size"][0]), int(value["size"][1])),
        "gold": None if value["gold"] is None else _gold(value["gold"]),
    }
    return Video(**{**value, **special})
