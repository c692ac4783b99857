"""COIN: instructional videos of tasks whose steps are marked.

Read from a folder with ``COIN.json``::

    {"database": {NAME: {"class", "recipe_type", "subset", "duration", "start", "end", "video_url",
                         "annotation": [{"id", "label", "segment": [start, end]}]}}}

``start`` and ``end`` are the part of the video that is about the task. A class's recipe is its
labels in the order of their ids, as far as they occur. Numbers are written with all their digits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from data.video.formats.defects import Defects
from data.video.formats.entries import Entry, clean, needed, read_json, write_json
from data.video.formats.files import VideoFiles
from data.video.records import Corpus, Event, Span, Split, Video

NAME = "coin"
FILES: tuple[str, ...] = ("COIN.json",)
"""Which files show that a folder is of this format."""

_SPLITS: dict[str, Split] = {"training": "train", "validation": "validation", "testing": "test"}
_SUBSETS = {split: name for name, split in _SPLITS.items()}


def read(annotations: Path, videos: Path) -> Corpus:
    """Read a copy of the data set.

    Args:
        annotations: The folder with the file named above.
        videos: A folder with the videos somewhere below it.

    Raises:
        DataError: A file is missing, unreadable or contradicts itself.
    """
    defects = Defects(f"{NAME} in {annotations}")
    files = VideoFiles(videos)
    root = read_json(needed(annotations, FILES, "COIN")[0])
    found = []
    ids: dict[str, dict[str, int]] = {}
    for key, entry in root.inner("database", root.get("database")).members():
        name, topic = entry.as_name(key), entry.text("class")
        duration_s = None if entry.fields.get("duration") is None else entry.seconds("duration")
        found.append(
            Video(
                name=name,
                path=files.path_of(name),
                split=entry.split("subset", _SPLITS),
                topic=topic,
                duration_s=duration_s,
                clip=_clip(entry, duration_s, defects),
                events=_events(entry, duration_s, defects, ids.setdefault(topic, {})),
            )
        )
    defects.tell()
    recipes = {topic: tuple(sorted(of, key=lambda label: of[label])) for topic, of in ids.items()}
    return Corpus(root=videos, name=NAME, videos=tuple(found), recipes=recipes)


def export(corpus: Corpus, folder: Path) -> list[Path]:
    """Write what of `corpus` the format can hold, in the layout of the release.

    Returns:
        The file, or none where no video has anything for the format.
    """
    held = [video for video in map(projected, corpus.videos) if video is not None]
    if not held:
        return []
    recipes = {clean(topic): tuple(map(clean, of)) for topic, of in corpus.recipes.items()}
    labels = _labels(held, recipes)
    topics = sorted(labels)
    ids: dict[tuple[str, str], int] = {}
    for topic in topics:
        for label in labels[topic]:
            ids[topic, label] = len(ids) + 1
    database = {video.name: _listed(video, topics, ids) for video in held}
    return [write_json(folder / FILES[0], {"database": database})]


def projected(video: Video) -> Video | None:
    """What of `video` the format can hold: topic, duration, clip, and events that are steps."""
    told = [Event(event.span, step=clean(event.step)) for event in video.events]
    events = tuple(event for event in told if event.step)
    topic = clean(video.topic)
    if not events or not topic:
        return None
    return Video(
        name=video.name,
        path=video.path,
        split=video.split,
        topic=topic,
        duration_s=video.duration_s,
        clip=None if video.clip == (0.0, video.duration_s) else video.clip,
        events=events,
    )


def _clip(entry: Entry, duration_s: float | None, defects: Defects) -> Span | None:
    """The part that is meant; None for all of the video."""
    if entry.fields.get("start") is None or entry.fields.get("end") is None:
        return None
    told = entry.number("start"), entry.number("end")
    span = defects.mended(told, duration_s, f"{entry}.start")
    return None if span == (0.0, duration_s) else span


def _events(
    entry: Entry, duration_s: float | None, defects: Defects, ids: dict[str, int]
) -> tuple[Event, ...]:
    """The steps in order; notes in `ids` the least number that each label has."""
    events = []
    for one in entry.entries("annotation"):
        label, number = one.text("label"), one.whole("id")
        ids[label] = min(number, ids.get(label, number))
        span = defects.mended(one.as_span("segment", one.get("segment")), duration_s, one)
        if span is not None:
            events.append(Event(span, step=label))
    return tuple(sorted(events, key=lambda event: event.span[0]))


def _labels(
    held: Sequence[Video], recipes: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, None]]:
    """By topic the steps that occur, in the recipe's order; those not in it behind."""
    occur: dict[str, dict[str, None]] = {}
    for video in held:
        occur.setdefault(video.topic, {}).update(dict.fromkeys(e.step for e in video.events))
    return {
        topic: {step: None for step in (*recipes.get(topic, ()), *steps) if step in steps}
        for topic, steps in occur.items()
    }


def _listed(
    video: Video, topics: Sequence[str], ids: Mapping[tuple[str, str], int]
) -> dict[str, object]:
    content: dict[str, object] = {
        "class": video.topic,
        "recipe_type": topics.index(video.topic),
        "subset": _SUBSETS[video.split],
        "video_url": "",
        "annotation": [
            {
                "id": str(ids[video.topic, event.step]),
                "label": event.step,
                "segment": list(event.span),
            }
            for event in video.events
        ],
    }
    if video.duration_s is not None:
        content["duration"] = video.duration_s
    clip = video.clip
    if clip is None and video.duration_s is not None:
        clip = (0.0, video.duration_s)
    if clip is not None:
        content |= {"start": clip[0], "end": clip[1]}
    return content
