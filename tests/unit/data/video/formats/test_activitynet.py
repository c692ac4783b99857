from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from core.errors import DataError
from data.video.formats import activitynet
from data.video.formats.defects import DefectWarning
from data.video.records import Corpus, Event, Video
from tests.unit.data.video.formats.corpora import check_round_trip, corpora, write


def told(duration: float, *timed: tuple[float, float, str]) -> dict[str, Any]:
    return {
        "duration": duration,
        "timestamps": [[start, end] for start, end, _ in timed],
        "sentences": [sentence for _, _, sentence in timed],
    }


@given(corpora())
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_read_back(corpus: Corpus) -> None:
    check_round_trip(activitynet, corpus)


def test_a_release_is_read(tmp_path: Path) -> None:
    dance = told(
        82.73,
        (0.83, 19.86, "A young woman is seen standing in a room."),
        (17.37, 60.81, " The girl dances around the room."),
        (0, 82.73, " She ends by laying on the floor."),
    )
    write(tmp_path / "train.json", {"v_QOlSCBRmfWY": dance})
    write(tmp_path / "val_1.json", {"v_one": told(10, (0, 4, "A man runs."))})
    write(tmp_path / "val_2.json", {"v_two": told(20, (0, 4, "A dog runs."))})
    write(tmp_path / "train_ids.json", ["v_QOlSCBRmfWY"])
    write(tmp_path / "Activity_Videos" / "v_QOlSCBRmfWY.mp4", "")
    first, second, third = activitynet.read(tmp_path, tmp_path).videos
    assert first == Video(
        name="v_QOlSCBRmfWY",
        path="Activity_Videos/v_QOlSCBRmfWY.mp4",
        split="train",
        duration_s=82.73,
        events=(
            Event((0.0, 82.73), "She ends by laying on the floor."),
            Event((0.83, 19.86), "A young woman is seen standing in a room."),
            Event((17.37, 60.81), "The girl dances around the room."),
        ),
        paragraph=(
            "A young woman is seen standing in a room. The girl dances around the room. "
            "She ends by laying on the floor."
        ),
    )
    assert (second.split, third.split) == ("validation", "test")


def test_a_video_that_two_annotators_told_is_one_record_in_test(tmp_path: Path) -> None:
    one = told(10, (0, 4, "A man runs."), (4, 9, "He falls."))
    two = told(9.5, (1, 9, "Somebody runs and falls."))
    write(tmp_path / "val_1.json", {"v_both": one, "v_one": one})
    write(tmp_path / "val_2.json", {"v_both": two})
    with pytest.warns(DefectWarning, match=r"with the events of both: 1, the first at .*, v_both"):
        found = activitynet.read(tmp_path, tmp_path)
    (both,) = found.of_split("test")
    assert [event.caption for event in both.events] == [
        "A man runs.",
        "Somebody runs and falls.",
        "He falls.",
    ]
    assert (both.name, both.paragraph) == ("v_both", "A man runs. He falls.")
    assert both.duration_s == 10.0
    assert [video.name for video in found.of_split("validation")] == ["v_one"]
    (tmp_path / "val_2.json").unlink()
    alone = activitynet.read(tmp_path, tmp_path)
    assert {video.name: video.split for video in alone.videos} == {
        "v_both": "validation",
        "v_one": "validation",
    }


def test_defects_are_counted(tmp_path: Path) -> None:
    timed = told(10, (3, 12, "Late."), (8, 2, "Turned."), (1, 2, " "), (0, 5, "Good."))
    write(tmp_path / "train.json", {"v": timed})
    with pytest.warns(DefectWarning) as messages:
        (video,) = activitynet.read(tmp_path, tmp_path).videos
    assert video.events == (Event((0.0, 5.0), "Good."), Event((3.0, 10.0), "Late."))
    counted = [str(one.message).rpartition(": ")[2] for one in messages]
    place = f"{tmp_path / 'train.json'}, v, sentences"
    assert counted == [f"1, the first at {place}[{number}]" for number in (0, 1, 2)]


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"duration": 3, "timestamps": [[0, 1]], "sentences": []}, "1 timestamps and 0 sentences"),
        (
            {"duration": 3, "timestamps": [[0]], "sentences": ["a"]},
            r"timestamps\[0\]=\[0\] must be",
        ),
        (
            {"duration": 3, "timestamps": [[0, 1]], "sentences": [1]},
            r"sentences\[0\]=1 must be a t",
        ),
        ({"duration": -3, "timestamps": [], "sentences": []}, "duration=-3 must be above 0"),
        ([], r"train.json, v: must be an object with named fields"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, entry: object, text: str) -> None:
    write(tmp_path / "train.json", {"v": entry})
    with pytest.raises(DataError, match=text):
        activitynet.read(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ('{"v": {"duration": 3}, "v": {"duration": 4}}', "'v' stands twice in one object; keep"),
        ('{"v": {"duration": 3, "duration": 4}}', "'duration' stands twice in one object"),
        (
            '{"v": {"duration": 3, "timestamps": [[0, 1]], "sentences": ["\\ud83d"]}}',
            "holds half of a sign",
        ),
        (
            '{"v\\udc00": {"duration": 3, "timestamps": [], "sentences": []}}',
            "holds half of a sign",
        ),
    ],
)
def test_what_json_readers_pass_over_is_refused(tmp_path: Path, text: str, rule: str) -> None:
    """Of two entries of a name the last counts, and half a sign is text until it is written."""
    write(tmp_path / "train.json", text)
    with pytest.raises(DataError, match=rule) as refused:
        activitynet.read(tmp_path, tmp_path)
    assert str(tmp_path / "train.json") in str(refused.value)
    str(refused.value).encode()


def test_a_training_video_is_for_nothing_else(tmp_path: Path) -> None:
    for name in ("train.json", "val_2.json"):
        write(tmp_path / name, {"v": told(10, (0, 4, "A man runs."))})
    with pytest.raises(DataError, match=r"val_2.json, v: video v is in train.json too; keep it"):
        activitynet.read(tmp_path, tmp_path)


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has none of train.json, val_1.json, val_2.json; put"):
        activitynet.read(tmp_path, tmp_path)
