"""ActivityNet Captions: untrimmed videos, each told in a paragraph of timed sentences.

Read from a folder with one or more of ``train.json``, ``val_1.json`` and ``val_2.json``::

    {NAME: {"duration", "timestamps": [[start, end]], "sentences": [sentence]}}

``val_1`` is for validation and ``val_2`` for test, as is customary. In the release both describe
the same videos, by two annotators. A video that is in both is one record: in test, with the events
of both, and with the paragraph of ``val_1``; what is chosen on validation is then never judged on
the same videos. For validation on ``val_1`` leave ``val_2.json`` out of the folder. Numbers are
written with all their digits, where the release has two decimals.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from data.video.formats.defects import Defects
from data.video.formats.entries import Entry, clean, needed, read_json, write_json
from data.video.formats.files import VideoFiles
from data.video.records import Corpus, Event, Split, Video

NAME = "activitynet"
_SPLITS: dict[str, Split] = {
    "train.json": "train",
    "val_1.json": "validation",
    "val_2.json": "test",
}
FILES: tuple[str, ...] = tuple(_SPLITS)
"""Which files show that a folder is of this format."""

_BOTH = "videos of val_1.json that val_2.json describes again, in test with the events of both"
_BLANK = "sentences without a word, left out"


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
    listed: dict[str, Video] = {}
    for file in needed(annotations, FILES, "ActivityNet Captions"):
        for key, entry in read_json(file).members():
            name = entry.as_name(key)
            video = _video(entry, name, files, _SPLITS[file.name], defects)
            before = listed.get(name, video)
            if before.split != video.split:
                if before.split == "train":
                    raise entry.refused(
                        f"video {name} is in train.json too", "keep it in one of the files"
                    )
                defects.count(_BOTH, entry)
                video = _merged(before, video)
            listed[name] = video
    defects.tell()
    return Corpus(root=videos, name=NAME, videos=tuple(listed.values()))


def export(corpus: Corpus, folder: Path) -> list[Path]:
    """Write what of `corpus` the format can hold, in the layout of the release.

    Returns:
        The files, none where no video has anything for the format.
    """
    held = [video for video in map(projected, corpus.videos) if video is not None]
    return [
        write_json(
            folder / name,
            {video.name: _listed(video) for video in held if video.split == split},
        )
        for name, split in _SPLITS.items()
        if any(video.split == split for video in held)
    ]


def projected(video: Video) -> Video | None:
    """What of `video` the format can hold: duration and events with a caption.

    The captions in order are its paragraph. A video of unknown duration is not held: the format
    has one for each.
    """
    told = [Event(event.span, clean(event.caption)) for event in video.events]
    events = tuple(event for event in told if event.caption)
    if not events or video.duration_s is None:
        return None
    return Video(
        name=video.name,
        path=video.path,
        split=video.split,
        duration_s=video.duration_s,
        events=events,
        paragraph=" ".join(event.caption for event in events),
    )


def _video(entry: Entry, name: str, files: VideoFiles, split: Split, defects: Defects) -> Video:
    duration_s = entry.seconds("duration")
    times, sentences = entry.items("timestamps"), entry.items("sentences")
    if len(times) != len(sentences):
        raise entry.refused(
            f"has {len(times)} timestamps and {len(sentences)} sentences, which must be as many"
        )
    events = []
    for number, (time, sentence) in enumerate(zip(times, sentences, strict=True)):
        place = f"{entry}, sentences[{number}]"
        caption = entry.as_text(f"sentences[{number}]", sentence)
        told = entry.as_span(f"timestamps[{number}]", time)
        if not caption:
            defects.count(_BLANK, place)
        elif (span := defects.mended(told, duration_s, place)) is not None:
            events.append(Event(span, caption))
    return Video(
        name=name,
        path=files.path_of(name),
        split=split,
        duration_s=duration_s,
        events=_in_order(events),
        paragraph=" ".join(event.caption for event in events),
    )


def _merged(first: Video, second: Video) -> Video:
    assert first.duration_s is not None and second.duration_s is not None
    return dataclasses.replace(
        second,
        duration_s=max(first.duration_s, second.duration_s),
        events=_in_order([*first.events, *second.events]),
        paragraph=first.paragraph or second.paragraph,
    )


def _in_order(events: list[Event]) -> tuple[Event, ...]:
    return tuple(sorted(events, key=lambda event: event.span[0]))


def _listed(video: Video) -> dict[str, object]:
    return {
        "duration": video.duration_s,
        "timestamps": [list(event.span) for event in video.events],
        "sentences": [event.caption for event in video.events],
    }
