"""The 1k-A split of MSR-VTT for retrieval: 1,000 videos to find, each by one sentence.

Read from a folder with the files of `data.video.formats.msrvtt` and
``MSRVTT_JSFUSION_test.csv`` (``key,vid_key,video_id,sentence``), which lists the test videos and
the sentence that asks for each. Training videos are those of ``MSRVTT_train.9k.csv``, or else of
``MSRVTT_train.7k.csv``, column ``video_id``; without either, all videos that are not for test.
Videos in neither list are left out, and there is no validation split. The lists are those of Yu et
al. 2018 (see `data.video.formats.msrvtt`) and Miech et al. 2019 ("HowTo100M").
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from data.video.formats import msrvtt
from data.video.formats.defects import Defects
from data.video.formats.entries import Entry, present, read_table, write_table
from data.video.records import Corpus, Video

NAME = "msrvtt-1k-a"
FILES: tuple[str, ...] = ("MSRVTT_JSFUSION_test.csv",)
"""Which files show that a folder is of this format."""

_TEST = FILES[0]
_TRAIN = ("MSRVTT_train.9k.csv", "MSRVTT_train.7k.csv")
_COLUMNS = ("key", "vid_key", "video_id", "sentence")


def read(annotations: Path, videos: Path) -> Corpus:
    """Read a copy of the data set.

    Args:
        annotations: The folder with the files named above.
        videos: A folder with the videos somewhere below it.

    Raises:
        DataError: A file is missing, unreadable or contradicts itself.
    """
    defects = Defects(f"{NAME} in {annotations}")
    listed = {video.name: video for video in msrvtt.described(annotations, videos, defects)}
    queries: dict[str, list[str]] = {}
    for row in read_table(annotations / _TEST, ("video_id", "sentence"), header=True):
        queries.setdefault(_known(row, listed), []).append(row.text("sentence"))
    found = [
        dataclasses.replace(listed[name], split="test", captions=tuple(sentences))
        for name, sentences in queries.items()
    ]
    for name in _training(annotations, listed, queries):
        found.append(dataclasses.replace(listed[name], split="train"))
    defects.tell()
    order = {name: number for number, name in enumerate(listed)}
    return Corpus(
        root=videos,
        name=NAME,
        videos=tuple(sorted(found, key=lambda video: order[video.name])),
    )


def export(corpus: Corpus, folder: Path) -> list[Path]:
    """Write what of `corpus` the format can hold, in the layout of the release.

    Returns:
        The files, none where no video has anything for the format.
    """
    held = [video for video in map(projected, corpus.videos) if video is not None]
    if not held:
        return []
    rows = [
        (re.sub(r"^video(?=\d+$)", "msr", video.name), video.name, caption)
        for video in held
        if video.split == "test"
        for caption in video.captions
    ]
    keyed = [(f"ret{number}", *row) for number, row in enumerate(rows)]
    train = [(video.name,) for video in held if video.split == "train"]
    return [
        *msrvtt.write_described({msrvtt.ALL: held}, folder),
        write_table(folder / _TEST, keyed, header=_COLUMNS),
        write_table(folder / _TRAIN[0], train, header=("video_id",)),
    ]


def projected(video: Video) -> Video | None:
    """What of `video` the format can hold: as MSR-VTT, but one caption of a test video."""
    held = msrvtt.projected(video)
    if held is None or not held.captions or held.split == "validation":
        return None
    captions = held.captions[:1] if held.split == "test" else held.captions
    return dataclasses.replace(held, captions=captions, questions=())


def _training(
    annotations: Path, listed: dict[str, Video], queries: dict[str, list[str]]
) -> list[str]:
    for file in present(annotations, _TRAIN)[:1]:
        names: dict[str, None] = {}
        for row in read_table(file, ("video_id",), header=True):
            name = _known(row, listed)
            if name in queries:
                raise row.refused(
                    f"video {name} is for training here and for test in {_TEST}",
                    "use the two lists as they were published, which share no video",
                )
            names[name] = None
        return list(names)
    return [name for name in listed if name not in queries]


def _known(row: Entry, listed: dict[str, Video]) -> str:
    name = row.name("video_id")
    if name not in listed:
        raise row.refused(
            f"names video {name}, which the annotations do not list",
            f"add {msrvtt.ALL} with all videos of MSR-VTT",
        )
    return name
