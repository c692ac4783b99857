"""CrossTask: instructional videos of tasks whose ordered steps are known.

Read from a folder with ``tasks_primary.txt`` and, where it is there, ``tasks_related.txt``, blocks
of five lines with a blank line between::

    a task's id
    its title
    a page that tells it
    how many steps it has
    its steps, with commas between

``videos.csv`` and ``videos_val.csv`` list ``task,video,url``, a video of the second being for
validation, and ``annotations/TASK_VIDEO.csv`` has ``step,start,end`` a row, steps counted from 1. A
listed video without annotations has no events. The release has no test split, papers draw one: a
third list in the same form, ``videos_test.csv``, says which videos are for test.

The topic of a video is its task's title, with the task's id behind it where another task has the
same title. A video of several tasks is one record each, called ``TASK_VIDEO``; if one of them is
held out, all are. Numbers are written with all their digits, where the release has two decimals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.errors import DataError
from data.video.formats.defects import Defects
from data.video.formats.entries import (
    Entry,
    clean,
    present,
    read_table,
    read_text,
    write_table,
    write_text,
)
from data.video.formats.files import VideoFiles
from data.video.records import Corpus, Event, Split, Video

NAME = "crosstask"
_TASKS = ("tasks_primary.txt", "tasks_related.txt")
FILES: tuple[str, ...] = _TASKS[:1]
"""Which files show that a folder is of this format."""

_VIDEOS = "videos.csv"
_HELD_OUT: Mapping[str, Split] = {"videos_val.csv": "validation", "videos_test.csv": "test"}
_FIRST_TASK = 10001
_COLUMNS = ("task", "video", "url")

_SEVERAL = "videos of several tasks, a record for each"


@dataclass(frozen=True, slots=True)
class _Task:
    title: str
    steps: tuple[str, ...]


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
    tasks = _tasks(annotations)
    splits: dict[str, Split] = {}
    pairs: dict[tuple[str, str], Entry] = {}
    for file in present(annotations, (_VIDEOS, *_HELD_OUT)):
        for row in read_table(file, _COLUMNS, header=False):
            task, name = row.text("task"), row.name("video")
            if task not in tasks:
                raise row.refused(
                    f"names task {task}, which {' and '.join(_TASKS)} do not tell",
                    "restore those files as they were published",
                )
            pairs.setdefault((task, name), row)
            split = _HELD_OUT.get(file.name, "train")
            if splits.get(name, "train") != "train" and splits[name] != split:
                raise row.refused(
                    f"video {name} is for {splits[name]} and for {split}",
                    "keep it in one of the lists",
                )
            splits[name] = split
    times = Counter(name for _, name in pairs)
    topics = _topics(tasks)
    found = []
    for (task, name), row in pairs.items():
        if times[name] > 1:
            defects.count(_SEVERAL, row)
        found.append(
            Video(
                name=name if times[name] == 1 else f"{task}_{name}",
                path=files.path_of(name),
                split=splits[name],
                topic=topics[task],
                events=_events(annotations / _file(task, name), tasks[task], defects),
            )
        )
    defects.tell()
    recipes = {
        topics[task]: tuple(dict.fromkeys(tasks[task].steps))
        for task in dict.fromkeys(task for task, _ in pairs)
    }
    return Corpus(root=videos, name=NAME, videos=tuple(found), recipes=recipes)


def export(corpus: Corpus, folder: Path) -> list[Path]:
    """Write what of `corpus` the format can hold, in the layout of the release.

    Returns:
        The files, none where no video has anything for the format.

    Raises:
        DataError: An event's step is not of the recipe of its video's topic, or a name or step has
            a sign that divides the format's lines.
    """
    held = [video for video in map(projected, corpus.videos) if video is not None]
    if not held:
        return []
    recipes = {
        clean(topic): tuple(map(clean, steps))
        for topic, steps in corpus.recipes.items()
        if any(video.topic == clean(topic) for video in held)
    }
    _check_writable(held, recipes)
    tasks = {topic: str(_FIRST_TASK + number) for number, topic in enumerate(recipes)}
    blocks = [
        f"{task}\n{topic}\n-\n{len(recipes[topic])}\n{','.join(recipes[topic])}\n\n"
        for topic, task in tasks.items()
    ]
    rows = {video.name: (tasks[video.topic], video.name, "") for video in held}
    written = [
        write_text(folder / _TASKS[0], "".join(blocks)),
        write_table(folder / _VIDEOS, list(rows.values())),
    ]
    for name, split in _HELD_OUT.items():
        part = [rows[video.name] for video in held if video.split == split]
        if part:
            written.append(write_table(folder / name, part))
    for video in held:
        steps = recipes[video.topic]
        content = [
            (steps.index(event.step) + 1, repr(event.span[0]), repr(event.span[1]))
            for event in video.events
        ]
        file = folder / _file(tasks[video.topic], video.name)
        written.append(write_table(file, content))
    return written


def projected(video: Video) -> Video | None:
    """What of `video` the format can hold: topic, and events that are steps."""
    told = [Event(event.span, step=clean(event.step)) for event in video.events]
    events = tuple(event for event in told if event.step)
    topic = clean(video.topic)
    if not events or not topic:
        return None
    return Video(video.name, video.path, video.split, topic=topic, events=events)


def _file(task: str, name: str) -> str:
    return f"annotations/{task}_{name}.csv"


def _tasks(annotations: Path) -> dict[str, _Task]:
    tasks: dict[str, _Task] = {}
    if not (annotations / _TASKS[0]).is_file() or not (annotations / _VIDEOS).is_file():
        raise DataError(
            f"{annotations} lacks {_TASKS[0]} or {_VIDEOS}; put the annotations of CrossTask there"
        )
    for file in present(annotations, _TASKS):
        text = read_text(file).replace("\r\n", "\n").replace("\r", "\n")
        lines = [clean(line) for line in text.split("\n")]
        start = 0
        while start < len(lines):
            if not lines[start]:
                start += 1
                continue
            place = Entry(file, f"line {start + 1}", {})
            task, title, _, number, steps, *_ = [*lines[start : start + 5], *[""] * 5]
            start += 5
            split = tuple(clean(step) for step in steps.split(","))
            if not title or "" in split or any(lines[start : start + 1]):
                raise place.refused(
                    f"task {task} must be five lines, id, title, page, number of steps and steps, "
                    "and a blank one"
                )
            if number != str(len(split)):
                raise place.refused(f"task {task} is to have {number!r} steps and has {len(split)}")
            if task in tasks:
                raise place.refused(f"task {task} is told twice", "keep it once")
            tasks[task] = _Task(title, split)
    return tasks


def _topics(tasks: Mapping[str, _Task]) -> dict[str, str]:
    times = Counter(task.title for task in tasks.values())
    return {
        number: task.title if times[task.title] == 1 else f"{task.title} ({number})"
        for number, task in tasks.items()
    }


def _events(path: Path, task: _Task, defects: Defects) -> tuple[Event, ...]:
    events = []
    if path.is_file():
        for row in read_table(path, ("step", "start", "end"), header=False):
            step = row.whole("step")
            if not 1 <= step <= len(task.steps):
                raise row.refused(
                    f"step={step} must be 1 to {len(task.steps)}, for task {task.title!r} has as "
                    "many steps"
                )
            told = row.number("start"), row.number("end")
            span = defects.mended(told, None, row)
            if span is not None:
                events.append(Event(span, step=task.steps[step - 1]))
    return tuple(sorted(events, key=lambda event: event.span[0]))


def _check_writable(held: Sequence[Video], recipes: Mapping[str, Sequence[str]]) -> None:
    for video in held:
        if any(sign.isspace() or sign in ',"' for sign in video.name):
            raise DataError(
                f"video {video.name!r} cannot be written for {NAME}: its lists are divided by "
                "commas and lines; give it a name without spaces, commas and quotes"
            )
        for event in video.events:
            if event.step not in recipes.get(video.topic, ()):
                raise DataError(
                    f"video {video.name} has a step {event.step!r} that is not in the recipe of "
                    f"{video.topic!r}, which {NAME} needs; add it to the corpus's recipes"
                )
    for topic, steps in recipes.items():
        for step in steps:
            if "," in step or not step:
                raise DataError(
                    f"step {step!r} of {topic!r} cannot be written for {NAME}: its steps have "
                    "commas between; give it a text without"
                )
