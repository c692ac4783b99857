"""QVHighlights: queries with the windows that answer them and how well each clip shows them.

Read from a folder with one or more of ``highlight_train_release.jsonl``,
``highlight_val_release.jsonl`` and ``highlight_test_with_gt.jsonl`` or else
``highlight_test_release.jsonl``, a query a line::

    {"qid", "query", "vid", "duration", "relevant_windows": [[start, end]],
     "relevant_clip_ids": [clip], "saliency_scores": [[score, score, score]]}

A clip is two seconds long and counted from 0; each of three raters gave 0 (very bad) to 4 (very
good). Queries of the released test file have no windows: they are left out and counted, and so are
queries on a video of which a later split, in the order train, validation, test, has queries too.
Numbers are written with all their digits, where the release has whole windows of two seconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.video.formats.defects import Defects
from data.video.formats.entries import Entry, clean, needed, present, read_json_lines, write_text
from data.video.formats.files import VideoFiles
from data.video.records import SPLITS, Corpus, Moment, Split, Video

NAME = "qvhighlights"
_FILES: Mapping[Split, tuple[str, ...]] = {
    "train": ("highlight_train_release.jsonl",),
    "validation": ("highlight_val_release.jsonl",),
    "test": ("highlight_test_with_gt.jsonl", "highlight_test_release.jsonl"),
}
FILES: tuple[str, ...] = tuple(name for split in SPLITS for name in _FILES[split])
"""Which files show that a folder is of this format."""

CLIP_S = 2.0
"""How long a clip is that a score is given for."""

_RATERS, _BEST = 3, 4
_UNANSWERED = "queries without windows, left out"
_LATER = "queries on videos that a later split has queries on, left out"


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
    needed(annotations, FILES, "QVHighlights")
    lines = {
        split: [
            (line.name("vid"), line)
            for file in present(annotations, names)[:1]
            for line in read_json_lines(file)
        ]
        for split, names in _FILES.items()
    }
    split_of: dict[str, Split] = {name: split for split in SPLITS for name, _ in lines[split]}
    durations: dict[str, float] = {}
    moments: dict[str, list[Moment]] = {}
    places: dict[str, Entry] = {}
    for split in SPLITS:
        for name, line in lines[split]:
            if split_of[name] != split:
                defects.count(_LATER, line)
                continue
            duration_s = line.seconds("duration")
            if durations.setdefault(name, duration_s) != duration_s:
                raise line.refused(
                    f"duration={duration_s} of video {name} is {durations[name]} in a line before"
                )
            moment = _moment(line, duration_s, defects)
            if moment is None:
                continue
            if moment.name in places:
                raise line.refused(f"qid={moment.name} is that of {places[moment.name]} too")
            places[moment.name] = line
            moments.setdefault(name, []).append(moment)
    defects.tell()
    return Corpus(
        root=videos,
        name=NAME,
        videos=tuple(
            Video(
                name=name,
                path=files.path_of(name),
                split=split_of[name],
                duration_s=durations[name],
                moments=tuple(given),
            )
            for name, given in moments.items()
        ),
    )


def export(corpus: Corpus, folder: Path) -> list[Path]:
    """Write what of `corpus` the format can hold, in the layout of the release.

    A test file with windows is called as its authors call theirs.

    Returns:
        The files, none where no video has anything for the format.
    """
    held = [video for video in map(projected, corpus.videos) if video is not None]
    return [
        write_text(
            folder / _FILES[split][0],
            "".join(
                json.dumps(_line(video, moment)) + "\n"
                for video in held
                if video.split == split
                for moment in video.moments
            ),
        )
        for split in SPLITS
        if any(video.split == split for video in held)
    ]


def projected(video: Video) -> Video | None:
    """What of `video` the format can hold: duration and moments.

    A video of unknown duration is not held: the format has one for each.
    """
    moments = tuple(
        Moment(clean(moment.name), clean(moment.query), moment.spans, dict(moment.saliency))
        for moment in video.moments
        if clean(moment.query)
    )
    if not moments or video.duration_s is None:
        return None
    return Video(
        name=video.name,
        path=video.path,
        split=video.split,
        duration_s=video.duration_s,
        moments=moments,
    )


def _moment(line: Entry, duration_s: float, defects: Defects) -> Moment | None:
    name, query = line.text("qid"), line.text("query")
    if line.fields.get("relevant_windows") is None:
        defects.count(_UNANSWERED, line)
        return None
    spans = []
    for window in line.items("relevant_windows"):
        told = line.as_span("relevant_windows", window)
        span = defects.mended(told, duration_s, line)
        if span is not None:
            spans.append(span)
    if not spans or not query:
        defects.count(_UNANSWERED, line)
        return None
    return Moment(name, query, tuple(sorted(spans)), _saliency(line))


def _saliency(line: Entry) -> dict[int, tuple[int, ...]]:
    if line.fields.get("saliency_scores") is None:
        return {}
    clips, scores = line.items("relevant_clip_ids"), line.items("saliency_scores")
    if len(clips) != len(scores):
        raise line.refused(
            f"has {len(clips)} relevant_clip_ids and {len(scores)} saliency_scores, which must be "
            "as many"
        )
    for clip in clips:
        if type(clip) is not int or clip < 0 or clips.count(clip) > 1:
            raise line.refused(f"relevant_clip_ids={clip!r} must be a number of its own, 0 or more")
    for given in scores:
        if (
            not isinstance(given, list)
            or len(given) != _RATERS
            or any(type(score) is not int or not 0 <= score <= _BEST for score in given)
        ):
            raise line.refused(
                f"saliency_scores={given!r} must be {_RATERS} whole numbers, 0 to {_BEST}"
            )
    return {clip: tuple(given) for clip, given in zip(clips, scores, strict=True)}


def _line(video: Video, moment: Moment) -> dict[str, Any]:
    content: dict[str, Any] = {
        "qid": int(moment.name) if _is_number(moment.name) else moment.name,
        "query": moment.query,
        "duration": video.duration_s,
        "vid": video.name,
        "relevant_windows": [list(span) for span in moment.spans],
    }
    if moment.saliency:
        clips = sorted(moment.saliency)
        content["relevant_clip_ids"] = clips
        content["saliency_scores"] = [list(moment.saliency[clip]) for clip in clips]
    return content


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal() and str(int(name)) == name
