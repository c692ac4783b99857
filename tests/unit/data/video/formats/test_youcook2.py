from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from core.errors import DataError
from data.video.formats import youcook2
from data.video.formats.defects import DefectWarning
from data.video.records import Corpus, Event, Video
from tests.unit.data.video.formats.corpora import check_round_trip, corpora, write

TRAIN = "youcookii_annotations_trainval.json"
SEGMENTS = "youcookii_annotations_test_segments_only.json"


def released() -> dict[str, Any]:
    return {
        "database": {
            "GLd3aX16zBg": {
                "duration": 241.62,
                "subset": "training",
                "recipe_type": "113",
                "annotations": [
                    {"segment": [90, 102], "id": 0, "sentence": "spread margarine on bread"},
                    {"segment": [114, 127], "id": 1, "sentence": "place a slice of cheese"},
                ],
                "video_url": "https://www.youtube.com/watch?v=GLd3aX16zBg",
            },
            "-goR00": {
                "duration": 50.5,
                "subset": "validation",
                "recipe_type": "405",
                "annotations": [],
            },
        }
    }


@given(corpora())
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_read_back(corpus: Corpus) -> None:
    check_round_trip(youcook2, corpus)


def test_a_release_is_read(tmp_path: Path) -> None:
    write(tmp_path / TRAIN, released())
    hidden = {"duration": 9, "subset": "testing", "annotations": [{"segment": [1, 3], "id": 0}]}
    write(tmp_path / SEGMENTS, {"database": {"xyz": hidden}})
    write(tmp_path / "label_foodtype.csv", '113,grilled cheese\n106,"pasta, baked"\n')
    write(tmp_path / "raw_videos" / "training" / "113" / "GLd3aX16zBg.mkv", "")
    assert youcook2.read(tmp_path, tmp_path).videos == (
        Video(
            name="GLd3aX16zBg",
            path="raw_videos/training/113/GLd3aX16zBg.mkv",
            split="train",
            topic="grilled cheese",
            duration_s=241.62,
            events=(
                Event((90.0, 102.0), "spread margarine on bread"),
                Event((114.0, 127.0), "place a slice of cheese"),
            ),
        ),
        Video("-goR00", "videos/-goR00.mp4", "validation", topic="405", duration_s=50.5),
        Video("xyz", "videos/xyz.mp4", "test", duration_s=9.0, events=(Event((1.0, 3.0)),)),
    )


def test_segments_are_cut_to_the_video_or_left_out(tmp_path: Path) -> None:
    content = released()
    entry = content["database"]["GLd3aX16zBg"]
    times = [[240, 250], [-1, 3], [5, 5], [9, 8], [300, 310], [7, 9]]
    entry["annotations"] = [
        {"segment": time, "id": number, "sentence": str(number)}
        for number, time in enumerate(times)
    ]
    write(tmp_path / TRAIN, content)
    with pytest.warns(DefectWarning) as told:
        found = youcook2.read(tmp_path, tmp_path)
    assert [(event.span, event.caption) for event in found.videos[0].events] == [
        ((0.0, 3.0), "1"),
        ((7.0, 9.0), "5"),
        ((240.0, 241.62), "0"),
    ]
    place = f"{tmp_path / TRAIN}, database.GLd3aX16zBg.annotations"
    assert [str(one.message) for one in told] == [
        f"youcook2 in {tmp_path}: segments that reached beyond their video and were cut to it: 2, "
        f"the first at {place}[0]",
        f"youcook2 in {tmp_path}: segments that end where they start or before, or lie outside "
        f"their video, and were left out: 3, the first at {place}[2]",
    ]


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("subset", "train", "GLd3aX16zBg: subset='train' must be one of training, validation, te"),
        ("duration", 0, "duration=0 must be above 0 seconds"),
        ("duration", None, "duration is missing"),
        ("annotations", {}, "annotations must be a list"),
        ("annotations", [{"id": 0}], r"annotations\[0\]: segment is missing"),
        ("annotations", [{"segment": [1]}], r"segment=\[1\] must be a start and an end in seconds"),
        ("annotations", [{"segment": [1, True]}], "segment=True must be a finite number"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, key: str, value: object, text: str) -> None:
    content = released()
    content["database"]["GLd3aX16zBg"][key] = value
    write(tmp_path / TRAIN, content)
    with pytest.raises(DataError, match=text):
        youcook2.read(tmp_path, tmp_path)


def test_a_video_of_two_files_is_refused(tmp_path: Path) -> None:
    write(tmp_path / TRAIN, released())
    write(tmp_path / SEGMENTS, released())
    with pytest.raises(
        DataError, match=r"GLd3aX16zBg is in youcookii_annotations_trainval.json to"
    ):
        youcook2.read(tmp_path, tmp_path)


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"has none of youcookii_annotations_trainval.json, youcook"
    ):
        youcook2.read(tmp_path, tmp_path)
    write(tmp_path / TRAIN, {"videos": []})
    with pytest.raises(DataError, match="database is missing"):
        youcook2.read(tmp_path, tmp_path)
