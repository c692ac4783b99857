"""YouCook2: cooking videos whose steps are marked and described.

Read from a folder with ``youcookii_annotations_trainval.json``, and with one of
``youcookii_annotations_test.json`` and ``youcookii_annotations_test_segments_only.json`` where
there is one::

    {"database": {NAME: {"duration", "subset", "recipe_type", "video_url",
                         "annotations": [{"id", "segment": [start, end], "sentence"}]}}}

``label_foodtype.csv``, where it is there, has a recipe's number and name a row. The published test
segments have no sentences and are read as events without a caption. Numbers are written with all
their digits, where the release has whole seconds.
"""

from __future__ import annotations

from pathlib import Path

from data.video.formats.defects import Defects
from data.video.formats.entries import (
    Entry,
    clean,
    needed,
    present,
    read_json,
    read_table,
    write_json,
    write_table,
)
from data.video.formats.files import VideoFiles
from data.video.records import Corpus, Event, Split, Video

NAME = "youcook2"
_TRAIN = "youcookii_annotations_trainval.json"
_TEST = ("youcookii_annotations_test.json", "youcookii_annotations_test_segments_only.json")
FILES: tuple[str, ...] = (_TRAIN, *_TEST)
"""Which files show that a folder is of this format."""

_LABELS = "label_foodtype.csv"
_FIRST_LABEL = 101
_SPLITS: dict[str, Split] = {"training": "train", "validation": "validation", "testing": "test"}
_SUBSETS = {split: name for name, split in _SPLITS.items()}


def read(annotations: Path, videos: Path) -> Corpus:
    """Read a copy of the data set.

    Args:
        annotations: The folder with the files named above.
        videos: A folder with the videos somewhere below it.

    Raises:
        DataError: A file is missing, unreadable or contradicts itself.
    """
    defects = Defects(f"{NAME} in {annotations}")
    files = VideoFiles(videos)
    needed(annotations, FILES, "YouCook2")
    found = [*present(annotations, (_TRAIN,)), *present(annotations, _TEST)[:1]]
    topics = _topics(annotations)
    listed: dict[str, Video] = {}
    for file in found:
        root = read_json(file)
        for key, entry in root.inner("database", root.get("database")).members():
            name = entry.as_name(key)
            if name in listed:
                raise entry.refused(
                    f"video {name} is in {found[0].name} too, as {listed[name].split}",
                    "keep it in one of the files",
                )
            label = entry.text_or("recipe_type", "")
            duration_s = entry.seconds("duration")
            listed[name] = Video(
                name=name,
                path=files.path_of(name),
                split=entry.split("subset", _SPLITS),
                topic=topics.get(label, label),
                duration_s=duration_s,
                events=_events(entry, duration_s, defects),
            )
    defects.tell()
    return Corpus(root=videos, name=NAME, videos=tuple(listed.values()))


def export(corpus: Corpus, folder: Path) -> list[Path]:
    """Write what of `corpus` the format can hold, in the layout of the release.

    Returns:
        The files, none where no video has anything for the format.
    """
    held = [video for video in map(projected, corpus.videos) if video is not None]
    topics = sorted({video.topic for video in held if video.topic})
    labels = {topic: str(_FIRST_LABEL + number) for number, topic in enumerate(topics)}
    parts = {
        _TRAIN: [video for video in held if video.split != "test"],
        _TEST[0]: [video for video in held if video.split == "test"],
    }
    written = [
        write_json(
            folder / name, {"database": {video.name: _listed(video, labels) for video in videos}}
        )
        for name, videos in parts.items()
        if videos
    ]
    if labels:
        rows = [(label, topic) for topic, label in labels.items()]
        written.append(write_table(folder / _LABELS, rows))
    return written


def projected(video: Video) -> Video | None:
    """What of `video` the format can hold: topic, duration and events with their captions.

    A video of unknown duration is not held: the format has one for each.
    """
    if not video.events or video.duration_s is None:
        return None
    return Video(
        name=video.name,
        path=video.path,
        split=video.split,
        topic=clean(video.topic),
        duration_s=video.duration_s,
        events=tuple(Event(event.span, clean(event.caption)) for event in video.events),
    )


def _topics(annotations: Path) -> dict[str, str]:
    return {
        row.text("number"): row.text("name")
        for file in present(annotations, (_LABELS,))
        for row in read_table(file, ("number", "name"), header=False)
    }


def _events(entry: Entry, duration_s: float, defects: Defects) -> tuple[Event, ...]:
    events = []
    for one in entry.entries("annotations"):
        told = one.as_span("segment", one.get("segment"))
        span = defects.mended(told, duration_s, one)
        if span is not None:
            events.append(Event(span, one.text_or("sentence", "")))
    return tuple(sorted(events, key=lambda event: event.span[0]))


def _listed(video: Video, labels: dict[str, str]) -> dict[str, object]:
    annotations = [
        {"id": number, "segment": list(event.span)}
        | ({"sentence": event.caption} if event.caption else {})
        for number, event in enumerate(video.events)
    ]
    content: dict[str, object] = {
        "duration": video.duration_s,
        "subset": _SUBSETS[video.split],
        "annotations": annotations,
        "video_url": "",
    }
    if video.topic:
        content["recipe_type"] = labels[video.topic]
    return content
