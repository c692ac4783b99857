"""Charades-STA: sentences with the span of the video that each describes.

Read from a folder with one or both of ``charades_sta_train.txt`` and ``charades_sta_test.txt``, a
sentence a line::

    NAME START END##sentence

Each line is a moment of its own, called by the video's name and its number among the video's lines
from 0, as in ``AO8RW:0``; the release has no validation split. ``Charades_v1_train.csv`` and
``Charades_v1_test.csv`` of the underlying data set, where they are there, tell a video's duration
(``length``, which may be blank) and, as its topic, where it plays (``scene``). Numbers are written
with all their digits, where the release has one decimal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from core.errors import DataError
from data.video.formats.defects import Defects
from data.video.formats.entries import (
    Entry,
    clean,
    needed,
    read_lines,
    read_table,
    write_table,
    write_text,
)
from data.video.formats.files import VideoFiles
from data.video.records import Corpus, Moment, Span, Split, Video

NAME = "charades-sta"
_SPLITS: Mapping[str, Split] = {
    "charades_sta_train.txt": "train",
    "charades_sta_test.txt": "test",
}
FILES: tuple[str, ...] = tuple(_SPLITS)
"""Which files show that a folder is of this format."""

_LISTS: Mapping[Split, str] = {"train": "Charades_v1_train.csv", "test": "Charades_v1_test.csv"}
_COLUMNS = (
    *("id", "subject", "scene", "quality", "relevance", "verified", "script", "objects"),
    *("descriptions", "actions", "length"),
)
_LINE = re.compile(r"(\S+) (\S+) ([^\s#]+) ?## ?(.+)")


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
    found = needed(annotations, FILES, "Charades-STA")
    listed: dict[str, Video] = {}
    for file in found:
        split = _SPLITS[file.name]
        moments: dict[str, list[Moment]] = {}
        known = _known(annotations / _LISTS[split])
        for place, line in read_lines(file):
            name, query, told = _parsed(place, line)
            if name in listed:
                raise place.refused(
                    f"video {name} is in {found[0].name} too", "keep it in one of the files"
                )
            if known is not None and name not in known:
                raise place.refused(
                    f"video {name} is not in {_LISTS[split]}",
                    "restore that file as it was published, or remove it",
                )
            given = moments.setdefault(name, [])
            span = defects.mended(told, known[name][1] if known else None, place)
            if span is not None:
                given.append(Moment(f"{name}:{len(given)}", query, (span,)))
        for name, given in moments.items():
            topic, duration_s = known[name] if known else ("", None)
            listed[name] = Video(
                name=name,
                path=files.path_of(name),
                split=split,
                topic=topic,
                duration_s=duration_s,
                moments=tuple(given),
            )
    defects.tell()
    return Corpus(root=videos, name=NAME, videos=tuple(listed.values()))


def export(corpus: Corpus, folder: Path) -> list[Path]:
    """Write what of `corpus` the format can hold, in the layout of the release.

    Returns:
        The files, none where no video has anything for the format.

    Raises:
        DataError: A video's name has a space in it.
    """
    held = [video for video in map(projected, corpus.videos) if video is not None]
    for video in held:
        if re.search(r"\s", video.name):
            raise DataError(
                f"video {video.name!r} cannot be written for {NAME}: its lines are divided by "
                "spaces; give it a name without any"
            )
    written = []
    for name, split in _SPLITS.items():
        part = [video for video in held if video.split == split]
        if part:
            lines = [
                f"{video.name} {start_s!r} {end_s!r}##{moment.query}\n"
                for video in part
                for moment in video.moments
                for start_s, end_s in moment.spans
            ]
            written.append(write_text(folder / name, "".join(lines)))
            rows = [_row(video) for video in part]
            written.append(write_table(folder / _LISTS[split], rows, header=_COLUMNS))
    return written


def projected(video: Video) -> Video | None:
    """What of `video` the format can hold: topic, duration, and a moment for each span.

    A validation video is not held: the release has no such split.
    """
    told = [
        (clean(moment.query), span)
        for moment in video.moments
        if clean(moment.query)
        for span in moment.spans
    ]
    if not told or video.split == "validation":
        return None
    return Video(
        name=video.name,
        path=video.path,
        split=video.split,
        topic=clean(video.topic),
        duration_s=video.duration_s,
        moments=tuple(
            Moment(f"{video.name}:{number}", query, (span,))
            for number, (query, span) in enumerate(told)
        ),
    )


def _known(path: Path) -> dict[str, tuple[str, float | None]] | None:
    """Topic and duration by video; None without a list."""
    if not path.is_file():
        return None
    return {
        row.name("id"): (row.text("scene"), row.seconds("length") if row.text("length") else None)
        for row in read_table(path, ("id", "scene", "length"), header=True)
    }


def _parsed(place: Entry, line: str) -> tuple[str, str, Span]:
    """A line's video, sentence and span."""
    parts = _LINE.fullmatch(line)
    if parts is None:
        raise place.refused(f"{line!r} must be of the form NAME START END##sentence")
    name, start, end, query = parts.groups()
    span = place.as_number("START", start), place.as_number("END", end)
    return place.as_name(name), query, span


def _row(video: Video) -> list[object]:
    told = {
        "id": video.name,
        "scene": video.topic,
        "length": "" if video.duration_s is None else repr(video.duration_s),
    }
    return [told.get(column, "") for column in _COLUMNS]
