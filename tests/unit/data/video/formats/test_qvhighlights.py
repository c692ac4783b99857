from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from core.errors import DataError
from data.video.formats import qvhighlights
from data.video.formats.defects import DefectWarning
from data.video.records import Corpus, Moment, Video
from tests.unit.data.video.formats.corpora import check_round_trip, corpora, write

TRAIN, VAL, TEST = (f"highlight_{split}_release.jsonl" for split in ("train", "val", "test"))


def line(qid: object = 7920, **changed: object) -> dict[str, Any]:
    return {
        "qid": qid,
        "query": "Woman talks to the camera.",
        "duration": 150,
        "vid": "_6hnl_BrFvs_60.0_210.0",
        "relevant_clip_ids": [67, 70],
        "saliency_scores": [[3, 4, 2], [0, 4, 1]],
        "relevant_windows": [[134, 136], [140, 142]],
    } | changed


def lines(path: Path, *entries: dict[str, Any]) -> None:
    write(path, "".join(json.dumps(entry) + "\n" for entry in entries))


@given(corpora())
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_read_back(corpus: Corpus) -> None:
    check_round_trip(qvhighlights, corpus)


def test_a_release_is_read(tmp_path: Path) -> None:
    lines(tmp_path / TRAIN, line(), line(7, query="A dog.", relevant_windows=[[4, 8], [0, 2]]))
    lines(tmp_path / VAL, line(8, vid="b_0.0_150.0", duration=142))
    write(tmp_path / "videos" / "_6hnl_BrFvs_60.0_210.0.mp4", "")
    saliency = {67: (3, 4, 2), 70: (0, 4, 1)}
    windows = ((134.0, 136.0), (140.0, 142.0))
    assert qvhighlights.read(tmp_path, tmp_path).videos == (
        Video(
            name="_6hnl_BrFvs_60.0_210.0",
            path="videos/_6hnl_BrFvs_60.0_210.0.mp4",
            split="train",
            duration_s=150.0,
            moments=(
                Moment("7920", "Woman talks to the camera.", windows, saliency),
                Moment("7", "A dog.", ((0.0, 2.0), (4.0, 8.0)), saliency),
            ),
        ),
        Video(
            name="b_0.0_150.0",
            path="videos/b_0.0_150.0.mp4",
            split="validation",
            duration_s=142.0,
            moments=(Moment("8", "Woman talks to the camera.", windows, saliency),),
        ),
    )


def test_queries_without_windows_are_left_out(tmp_path: Path) -> None:
    hidden = {key: line()[key] for key in ("qid", "query", "duration", "vid")}
    lines(tmp_path / TEST, hidden, hidden | {"qid": 3, "vid": "c"})
    outside = line(1, vid="d", relevant_windows=[[150, 152]])
    cut = line(2, vid="d", relevant_windows=[[148, 152]], saliency_scores=None)
    lines(tmp_path / TRAIN, outside, cut)
    with pytest.warns(DefectWarning) as told:
        (video,) = qvhighlights.read(tmp_path, tmp_path).videos
    assert (video.name, video.moments) == (
        "d",
        (Moment("2", "Woman talks to the camera.", ((148.0, 150.0),)),),
    )
    texts = [str(one.message) for one in told]
    assert any("queries without windows, left out: 3, the first at" in text for text in texts)
    assert len(texts) == 3
    # With windows for them, the test queries are read.
    lines(tmp_path / "highlight_test_with_gt.jsonl", line(9, vid="c"))
    with pytest.warns(DefectWarning):
        found = qvhighlights.read(tmp_path, tmp_path)
    assert [video.name for video in found.of_split("test")] == ["c"]


def test_a_video_of_two_splits_is_for_the_later_one(tmp_path: Path) -> None:
    lines(tmp_path / TRAIN, line(1), line(2, vid="a"))
    lines(tmp_path / VAL, line(3))
    with pytest.warns(DefectWarning, match=r"that a later split has queries on, left out: 1, the"):
        found = qvhighlights.read(tmp_path, tmp_path)
    assert {v.name: (v.split, [m.name for m in v.moments]) for v in found.videos} == {
        "a": ("train", ["2"]),
        "_6hnl_BrFvs_60.0_210.0": ("validation", ["3"]),
    }


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"duration": "long"}, "line 1: duration='long' must be a finite number"),
        ({"vid": "a/b"}, "'a/b' cannot be a video's name"),
        ({"relevant_windows": [3]}, "relevant_windows=3 must be a start and an end"),
        ({"relevant_clip_ids": [1]}, "has 1 relevant_clip_ids and 2 saliency_scores"),
        ({"relevant_clip_ids": [1, 1]}, "relevant_clip_ids=1 must be a number of its own"),
        ({"relevant_clip_ids": [-1, 1]}, "relevant_clip_ids=-1 must be a number of its own"),
        ({"saliency_scores": [[1, 1, 5]] * 2}, "must be 3 whole numbers, 0 to 4"),
        ({"saliency_scores": [[1, 1]] * 2}, "must be 3 whole numbers, 0 to 4"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, changed: Any, text: str) -> None:
    lines(tmp_path / TRAIN, line(**changed))
    with pytest.raises(DataError, match=text):
        qvhighlights.read(tmp_path, tmp_path)


def test_lines_that_contradict_one_another_are_refused(tmp_path: Path) -> None:
    lines(tmp_path / TRAIN, line(1), line(1))
    with pytest.raises(DataError, match=r"line 2: qid=1 is that of .*, line 1 too"):
        qvhighlights.read(tmp_path, tmp_path)
    lines(tmp_path / TRAIN, line(1), line(2, duration=149))
    with pytest.raises(
        DataError, match=r"line 2: duration=149.0 of video _6hnl.* is 150.0 in a li"
    ):
        qvhighlights.read(tmp_path, tmp_path)
    write(tmp_path / TRAIN, "\n[]\n")
    with pytest.raises(DataError, match="line 2: must be an object"):
        qvhighlights.read(tmp_path, tmp_path)


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has none of highlight_train_release.jsonl, highlight_v"):
        qvhighlights.read(tmp_path, tmp_path)


def test_names_keep_their_zeros(tmp_path: Path) -> None:
    moments = tuple(
        Moment(name, "a dog", ((0.0, 1.0),)) for name in ("007", "7", "0", "q7", "\u0667")
    )
    video = Video("v", "videos/v.mp4", "train", duration_s=2.0, moments=moments)
    found = check_round_trip(qvhighlights, Corpus(tmp_path, "own", (video,)))
    assert found is not None and found.videos[0].moments == moments
