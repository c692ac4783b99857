"""MSR-VTT: short clips, each with sentences that describe it as a whole.

Read from a folder with ``MSRVTT_data.json``, or else with one or more of the released
``train_val_videodatainfo.json``, ``test_videodatainfo.json`` and ``*videodatainfo*.json``::

    {"videos": [{"video_id", "split", "category", "url", "start time", "end time"}],
     "sentences": [{"video_id", "caption", "sen_id"}]}

Beside them, where there are such: ``category.txt``, a category's name and number a line, and
``MSR_MC_test.csv``, the multiple choice of Yu et al. 2018 ("A joint sequence fusion model for video
question answering and retrieval"): tab-separated ``key, vid_key, a1 .. a5, answer`` with the right
one counted from 0 and videos called ``msr7010`` for ``video7010``.

The start and end times are those of the web video that a clip was cut from. The files are the cut
clips, so they tell its duration and nothing else. Numbers are written with all their digits.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from core.errors import DataError
from data.video.formats.defects import Defects
from data.video.formats.entries import (
    Entry,
    clean,
    present,
    read_json,
    read_lines,
    read_table,
    write_json,
    write_table,
    write_text,
)
from data.video.formats.files import VideoFiles
from data.video.records import Corpus, Question, Split, Video

NAME = "msrvtt"
ALL = "MSRVTT_data.json"
PARTS = "*videodatainfo*.json"
FILES: tuple[str, ...] = (ALL, PARTS)
"""Which files show that a folder is of this format."""

QUESTION = "Which of these sentences describes the video?"
"""What the multiple choice asks, in our words: its source has the choices alone."""

_TRAIN, _TEST = "train_val_videodatainfo.json", "test_videodatainfo.json"
_CATEGORIES, _CHOICES = "category.txt", "MSR_MC_test.csv"
_SPLITS: dict[str, Split] = {"train": "train", "validate": "validation", "test": "test"}
_NAMES = {split: name for name, split in _SPLITS.items()}
_ANSWERS = ("a1", "a2", "a3", "a4", "a5")
_COLUMNS = ("key", "vid_key", *_ANSWERS, "answer")

_DURATION = "videos that end where they start or before, and got no duration"
_BLANK = "sentences without a word, left out"
_ELSEWHERE = "questions on videos that no file lists, left out"
_TWICE = "questions that offer their right answer more than once, left out"


def read(annotations: Path, videos: Path) -> Corpus:
    """Read a copy of the data set.

    Args:
        annotations: The folder with the files named above.
        videos: A folder with the videos somewhere below it.

    Raises:
        DataError: A file is missing, unreadable or contradicts itself.
    """
    defects = Defects(f"{NAME} in {annotations}")
    listed = {video.name: video for video in described(annotations, videos, defects)}
    questions: dict[str, list[Question]] = {name: [] for name in listed}
    for file in present(annotations, (_CHOICES,)):
        for row in read_table(file, _COLUMNS, header=True, delimiter="\t"):
            name = re.sub(r"^msr(?=\d+$)", "video", row.text("vid_key"))
            if name not in listed:
                defects.count(_ELSEWHERE, row)
            elif (question := _question(row)) is None:
                defects.count(_TWICE, row)
            else:
                questions[name].append(question)
    defects.tell()
    return Corpus(
        root=videos,
        name=NAME,
        videos=tuple(
            dataclasses.replace(video, questions=tuple(questions[name]))
            for name, video in listed.items()
        ),
    )


def export(corpus: Corpus, folder: Path) -> list[Path]:
    """Write what of `corpus` the format can hold, in the layout of the release.

    Returns:
        The files, none where no video has anything for the format.
    """
    held = [video for video in map(projected, corpus.videos) if video is not None]
    parts = {
        _TRAIN: [video for video in held if video.split != "test"],
        _TEST: [video for video in held if video.split == "test"],
    }
    written = write_described(parts, folder)
    rows = [
        (
            re.sub(r"^video(?=\d+$)", "msr", video.name),
            *question.candidates,
            question.candidates.index(question.answer),
        )
        for video in held
        for question in video.questions
    ]
    if rows:
        keyed = [(f"mc{number}", *row) for number, row in enumerate(rows)]
        written.append(
            write_table(folder / _CHOICES, keyed, header=_COLUMNS, delimiter="\t"),
        )
    return written


def projected(video: Video) -> Video | None:
    """What of `video` the format can hold: topic, duration, captions, and choices among sentences.

    A choice must be of a test video and true of all of it: its answer is a sentence that the record
    has on the video, and of its other candidates none is. A video that is only a part of its file
    is not held, for nothing could say which part.
    """
    captions = tuple(filter(None, map(clean, video.captions)))
    questions = _choices(video) if video.split == "test" else ()
    if video.clip is not None or not (captions or questions):
        return None
    return Video(
        name=video.name,
        path=video.path,
        split=video.split,
        topic=clean(video.topic),
        duration_s=video.duration_s,
        captions=captions,
        questions=questions,
    )


def described(annotations: Path, videos: Path, defects: Defects) -> list[Video]:
    """The videos with their captions, in order, without questions; counts defects.

    Raises:
        DataError: As `read`.
    """
    files = VideoFiles(videos)
    parts = [read_json(file) for file in _parts(annotations)]
    topics = _topics(annotations / _CATEGORIES)
    listed: dict[str, Entry] = {}
    captions: dict[str, list[str]] = {}
    for part in parts:
        for entry in part.entries("videos"):
            name = entry.name("video_id")
            if name in listed:
                raise entry.refused(
                    f"video {name} is listed twice, first in {listed[name]}",
                    "keep one of the files that list it",
                )
            listed[name] = entry
            captions[name] = []
    for part in parts:
        for entry in part.entries("sentences") if "sentences" in part.fields else ():
            name, caption = entry.name("video_id"), entry.text("caption")
            if name not in listed:
                raise entry.refused(
                    f"describes video {name}, which no file lists",
                    "add the file that lists it, or remove this entry",
                )
            if caption:
                captions[name].append(caption)
            else:
                defects.count(_BLANK, entry)
    return [
        Video(
            name=name,
            path=files.path_of(name),
            split=entry.split("split", _SPLITS),
            topic=_topic(entry, topics),
            duration_s=_duration(entry, defects),
            captions=tuple(captions[name]),
        )
        for name, entry in listed.items()
    ]


def write_described(parts: dict[str, list[Video]], folder: Path) -> list[Path]:
    """Write videos and their captions, file by file, and the categories; nothing for no video."""
    held = [video for videos in parts.values() for video in videos]
    topics = sorted({video.topic for video in held if video.topic})
    written = []
    num_sentences = 0
    for name, videos in parts.items():
        if not videos:
            continue
        sentences = [(video.name, caption) for video in videos for caption in video.captions]
        content = {
            "videos": [_listed(video, topics) for video in videos],
            "sentences": [
                {"video_id": video, "caption": caption, "sen_id": num_sentences + number}
                for number, (video, caption) in enumerate(sentences)
            ],
        }
        num_sentences += len(sentences)
        written.append(write_json(folder / name, content))
    if topics:
        lines = "".join(f"{topic}\t{number}\n" for number, topic in enumerate(topics))
        written.append(write_text(folder / _CATEGORIES, lines))
    return written


def _parts(annotations: Path) -> list[Path]:
    found = present(annotations, (ALL,)) or sorted(annotations.glob(PARTS))
    if not found:
        raise DataError(
            f"{annotations} has neither {ALL} nor {_TRAIN}; put the annotations of MSR-VTT there"
        )
    return found


def _topics(path: Path) -> dict[str, str]:
    topics = {}
    for place, line in read_lines(path) if path.is_file() else ():
        topic, _, number = line.rpartition(" ")
        if not (topic and number.isdecimal()):
            raise place.refused(f"{line!r} must be a category's name and number")
        topics[number] = topic
    return topics


def _topic(entry: Entry, topics: dict[str, str]) -> str:
    category = entry.text_or("category", "")
    return topics.get(category, category)


def _duration(entry: Entry, defects: Defects) -> float | None:
    if entry.fields.get("start time") is None or entry.fields.get("end time") is None:
        return None
    duration_s = entry.number("end time") - entry.number("start time")
    if duration_s <= 0:
        defects.count(_DURATION, entry)
        return None
    return duration_s


def _question(row: Entry) -> Question | None:
    candidates = tuple(row.text(column) for column in _ANSWERS)
    index = row.whole("answer")
    if not 0 <= index < len(candidates):
        raise row.refused(f"answer={index} must be 0 to {len(candidates) - 1}")
    answer = candidates[index]
    return Question(QUESTION, answer, candidates) if candidates.count(answer) == 1 else None


def _choices(video: Video) -> tuple[Question, ...]:
    told = {clean(text) for text in video.captions}
    told |= {clean(text) for event in video.events for text in (event.caption, event.step)}
    held = []
    for question in video.questions:
        candidates = tuple(map(clean, question.candidates))
        answer = clean(question.answer)
        if len(candidates) != len(_ANSWERS) or candidates.count(answer) != 1 or "" in candidates:
            continue
        of_all = question.text == QUESTION and question.span is None
        if of_all or told.intersection(candidates) == {answer}:
            held.append(Question(QUESTION, answer, candidates))
    return tuple(held)


def _listed(video: Video, topics: Sequence[str]) -> dict[str, object]:
    content: dict[str, object] = {
        "video_id": video.name,
        "split": _NAMES[video.split],
        "url": "",
    }
    if video.topic:
        content["category"] = topics.index(video.topic)
    if video.duration_s is not None:
        content |= {"start time": 0.0, "end time": video.duration_s}
    return content
