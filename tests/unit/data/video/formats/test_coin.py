from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from core.errors import DataError
from data.video.formats import coin
from data.video.formats.defects import DefectWarning
from data.video.records import Corpus, Event, Video
from tests.unit.data.video.formats.corpora import check_round_trip, corpora, held, write


def released() -> dict[str, Any]:
    return {
        "database": {
            "LtRSn-ntcLY": {
                "duration": 131.0309,
                "class": "ReplaceCDDriveWithSSD",
                "video_url": "https://www.youtube.com/embed/LtRSn-ntcLY",
                "start": 56.640895694775196,
                "annotation": [
                    {"id": "216", "segment": [71.0, 82.0], "label": "insert the tray"},
                    {"id": "212", "segment": [60.0, 69.0], "label": "take out the CD drive"},
                ],
                "subset": "training",
                "end": 85.714362947023,
                "recipe_type": 131,
            },
            "other": {
                "duration": 20,
                "class": "ReplaceCDDriveWithSSD",
                "start": 0,
                "end": 20,
                "annotation": [{"id": "99", "segment": [1, 2], "label": "unscrew"}],
                "subset": "testing",
                "recipe_type": 131,
            },
        }
    }


@given(corpora())
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_read_back(corpus: Corpus) -> None:
    found = check_round_trip(coin, corpus)
    occur: dict[str, set[str]] = {}
    for video in held(coin, corpus):
        occur.setdefault(video.topic, set()).update(event.step for event in video.events)
    told = {
        topic: tuple(step for step in steps if step in occur[topic])
        for topic, steps in corpus.recipes.items()
        if topic in occur
    }
    assert (found.recipes if found else {}) == told


def test_steps_of_no_recipe_come_behind() -> None:
    events = tuple(Event((n, n + 1.0), step=step) for n, step in enumerate(["c", "b", "d", "a"]))
    video = Video("v", "videos/v.mp4", "train", topic="t", events=events)
    found = check_round_trip(coin, Corpus(Path("nowhere"), "own", (video,), {"t": ("a", "b", "x")}))
    assert found is not None and found.recipes == {"t": ("a", "b", "c", "d")}


def test_a_release_is_read(tmp_path: Path) -> None:
    write(tmp_path / "COIN.json", released())
    write(tmp_path / "videos" / "131" / "LtRSn-ntcLY.mp4", "")
    found = coin.read(tmp_path, tmp_path)
    assert found.recipes == {
        "ReplaceCDDriveWithSSD": ("unscrew", "take out the CD drive", "insert the tray")
    }
    assert found.videos == (
        Video(
            name="LtRSn-ntcLY",
            path="videos/131/LtRSn-ntcLY.mp4",
            split="train",
            topic="ReplaceCDDriveWithSSD",
            duration_s=131.0309,
            clip=(56.640895694775196, 85.714362947023),
            events=(
                Event((60.0, 69.0), step="take out the CD drive"),
                Event((71.0, 82.0), step="insert the tray"),
            ),
        ),
        Video(
            name="other",
            path="videos/other.mp4",
            split="test",
            topic="ReplaceCDDriveWithSSD",
            duration_s=20.0,
            events=(Event((1.0, 2.0), step="unscrew"),),
        ),
    )


def test_times_are_cut_to_the_video(tmp_path: Path) -> None:
    content = released()
    entry = content["database"]["other"]
    entry["start"], entry["end"] = 5, 21
    entry["annotation"][0]["segment"] = [19, 25]
    write(tmp_path / "COIN.json", content)
    with pytest.warns(DefectWarning, match=r"cut to it: 2, the first at .*COIN.json, database.oth"):
        found = coin.read(tmp_path, tmp_path)
    assert found.videos[1].clip == (5.0, 20.0)
    assert found.videos[1].events == (Event((19.0, 20.0), step="unscrew"),)


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("subset", "train", "database.other: subset='train' must be one of training, validation"),
        ("class", None, "class is missing"),
        ("start", "x", "start='x' must be a finite number"),
        ("annotation", [{"id": "a", "label": "b", "segment": [0, 1]}], "id='a' must be a finite"),
        ("annotation", [{"id": 1, "label": "b", "segment": 3}], "segment=3 must be a start and an"),
        ("annotation", [{"id": 1, "segment": [0, 1]}], r"annotation\[0\]: label is missing"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, key: str, value: object, rule: str) -> None:
    content = released()
    content["database"]["other"][key] = value
    write(tmp_path / "COIN.json", content)
    with pytest.raises(DataError, match=rule):
        coin.read(tmp_path, tmp_path)


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no COIN.json; put the annotations of COIN there"):
        coin.read(tmp_path, tmp_path)


def test_a_clip_of_all_of_the_video_is_none(tmp_path: Path) -> None:
    event = Event((1.0, 2.0), step="b")
    video = Video(
        "v", "v.mp4", "train", topic="t", duration_s=9.0, clip=(0.0, 9.0), events=(event,)
    )
    told = coin.projected(video)
    assert told is not None and told.clip is None
    check_round_trip(
        coin, Corpus(tmp_path, "own", (dataclasses.replace(video, path="videos/v.mp4"),))
    )


def test_a_label_of_two_ids_stands_where_the_lesser_is(tmp_path: Path) -> None:
    content = released()
    content["database"]["other"]["annotation"] += [
        {"id": "300", "segment": [3, 4], "label": "unscrew"},
        {"id": "98", "segment": [5, 6], "label": "look"},
    ]
    write(tmp_path / "COIN.json", content)
    (recipe,) = coin.read(tmp_path, tmp_path).recipes.values()
    assert recipe == ("look", "unscrew", "take out the CD drive", "insert the tray")
