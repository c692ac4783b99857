"""Records: times of a clip are from its start, and what is damaged is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import DataError
from data.video.records import Corpus, Event, Moment, Question, Utterance, Video

WHOLE = Video(
    name="one",
    path="one.mp4",
    split="train",
    duration_s=100.0,
    clip=(20.0, 50.0),
    narration=(
        Utterance((1.0, 5.0), "before"),
        Utterance((18.0, 22.0), "across"),
        Utterance((30.0, 31.0), "in"),
    ),
    events=(
        Event((5.0, 20.0), step="before"),
        Event((21.5, 24.0), step="in"),
        Event((45.0, 60.0), step="across"),
        Event((50.0, 70.0), step="after"),
    ),
    captions=("all of it",),
    questions=(
        Question("what", "this"),
        Question("when", "now", span=(40.0, 41.0)),
        Question("then", "gone", span=(60.0, 61.0)),
    ),
    moments=(
        Moment("q0", "here", ((10.0, 25.0), (30.0, 35.0), (80.0, 90.0)), {5: (1, 1, 1)}),
        Moment("q1", "elsewhere", ((80.0, 90.0),)),
    ),
)


def test_times_of_a_clip_are_from_its_start_and_within_it() -> None:
    found = WHOLE.of_clip()
    assert [(u.span, u.text) for u in found.narration] == [
        ((0.0, 2.0), "across"),
        ((10.0, 11.0), "in"),
    ]
    assert [(e.span, e.step) for e in found.events] == [
        ((1.5, 4.0), "in"),
        ((25.0, 30.0), "across"),
    ]
    assert [(q.text, q.span) for q in found.questions] == [("what", None), ("when", (20.0, 21.0))]
    assert found.moments == (Moment("q0", "here", ((0.0, 5.0), (10.0, 15.0))),)
    assert (found.duration_s, found.clip, found.captions) == (30.0, WHOLE.clip, WHOLE.captions)


def test_a_video_without_a_clip_is_as_it_is() -> None:
    plain = replace(WHOLE, clip=None)
    assert plain.of_clip() is plain


@pytest.mark.parametrize("key", ["recipes", "name", "made_with"])
def test_a_description_that_lacks_something_is_refused(key: str, tmp_path: Path) -> None:
    Corpus(tmp_path, "own", (WHOLE,)).write()
    path = tmp_path / "corpus.json"
    description = json.loads(path.read_text())
    del description[key]
    path.write_text(json.dumps(description))
    with pytest.raises(DataError, match=f"lacks something: KeyError: '{key}'; make the corpus"):
        Corpus.read(tmp_path)
