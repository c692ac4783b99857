from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings

from core.errors import DataError
from data.video.formats import crosstask
from data.video.formats.defects import DefectWarning
from data.video.records import Corpus, Event, Video
from tests.unit.data.video.formats.corpora import check_round_trip, corpora, held, write

TASKS = (
    "23521\nMake Jello Shots\nhttps://www.wikihow.com/Make-Jello-Shots\n3\n"
    "pour water,pour jello powder,stir mixture\n\n"
    "59684\nBuild Simple Floating Shelves\nhttps://www.wikihow.com/Shelves\n2\n"
    "cut shelve,assemble shelve\n\n"
)
VIDEOS = (
    "23521,0Zq-rTQ1XPM,https://www.youtube.com/watch?v=0Zq-rTQ1XPM\n"
    "23521,a_b,https://www.youtube.com/watch?v=a_b\n"
    "59684,none,https://www.youtube.com/watch?v=none\n"
)


def released(folder: Path) -> None:
    write(folder / "tasks_primary.txt", TASKS)
    write(folder / "videos.csv", VIDEOS)
    write(folder / "videos_val.csv", VIDEOS.split("\n")[1] + "\n")
    write(folder / "annotations" / "23521_0Zq-rTQ1XPM.csv", "3,41.5,45.01\n1,19.85,21.8\n1,50,51\n")
    write(folder / "annotations" / "23521_a_b.csv", "2,1.0,2.0\n")


@given(corpora())
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_read_back(corpus: Corpus) -> None:
    found = check_round_trip(crosstask, corpus)
    topics = {video.topic for video in held(crosstask, corpus)}
    told = {topic: steps for topic, steps in corpus.recipes.items() if topic in topics}
    assert (found.recipes if found else {}) == told


def test_a_release_is_read(tmp_path: Path) -> None:
    released(tmp_path)
    write(tmp_path / "downloads" / "23521" / "0Zq-rTQ1XPM.webm", "")
    found = crosstask.read(tmp_path, tmp_path)
    assert found.recipes == {
        "Make Jello Shots": ("pour water", "pour jello powder", "stir mixture"),
        "Build Simple Floating Shelves": ("cut shelve", "assemble shelve"),
    }
    assert found.videos == (
        Video(
            name="0Zq-rTQ1XPM",
            path="downloads/23521/0Zq-rTQ1XPM.webm",
            split="train",
            topic="Make Jello Shots",
            events=(
                Event((19.85, 21.8), step="pour water"),
                Event((41.5, 45.01), step="stir mixture"),
                Event((50.0, 51.0), step="pour water"),
            ),
        ),
        Video(
            name="a_b",
            path="videos/a_b.mp4",
            split="validation",
            topic="Make Jello Shots",
            events=(Event((1.0, 2.0), step="pour jello powder"),),
        ),
        Video(
            name="none",
            path="videos/none.mp4",
            split="train",
            topic="Build Simple Floating Shelves",
        ),
    )


def test_a_list_says_which_videos_are_for_test(tmp_path: Path) -> None:
    released(tmp_path)
    write(tmp_path / "videos_test.csv", "59684,none,\n")
    (video,) = crosstask.read(tmp_path, tmp_path).of_split("test")
    assert video.name == "none"
    write(tmp_path / "videos_test.csv", "23521,a_b,\n")
    with pytest.raises(DataError, match=r"line 1: video a_b is for validation and for test; keep"):
        crosstask.read(tmp_path, tmp_path)


def test_related_tasks_and_titles_that_are_alike(tmp_path: Path) -> None:
    released(tmp_path)
    block = "7\nMake Jello Shots\nhttps://\n1\nstir\n"
    write(tmp_path / "tasks_related.txt", block)
    write(tmp_path / "videos.csv", VIDEOS + "7,other,\n")
    found = crosstask.read(tmp_path, tmp_path)
    assert [video.topic for video in found.videos] == [
        "Make Jello Shots (23521)",
        "Make Jello Shots (23521)",
        "Build Simple Floating Shelves",
        "Make Jello Shots (7)",
    ]
    assert found.recipes["Make Jello Shots (7)"] == ("stir",)


def test_a_video_of_two_tasks_is_a_record_for_each(tmp_path: Path) -> None:
    released(tmp_path)
    write(tmp_path / "videos.csv", VIDEOS + "59684,a_b,\n")
    write(tmp_path / "annotations" / "59684_a_b.csv", "1,5,6\n")
    write(tmp_path / "videos" / "a_b.mp4", "")
    with pytest.warns(DefectWarning, match="videos of several tasks, a record for each: 2, the fi"):
        found = crosstask.read(tmp_path, tmp_path)
    several = [video for video in found.videos if video.path == "videos/a_b.mp4"]
    assert [(v.name, v.split, v.events[0].step) for v in several] == [
        ("23521_a_b", "validation", "pour jello powder"),
        ("59684_a_b", "validation", "cut shelve"),
    ]


def test_segments_without_a_length_are_left_out(tmp_path: Path) -> None:
    released(tmp_path)
    write(tmp_path / "annotations" / "23521_a_b.csv", "2,1.0,1.0\n1,3,2\n1,4,5\n")
    with pytest.warns(DefectWarning, match=r"left out: 2, the first at .*23521_a_b.csv, line 1"):
        found = crosstask.read(tmp_path, tmp_path)
    assert found.videos[1].events == (Event((4.0, 5.0), step="pour water"),)


@pytest.mark.parametrize(
    ("name", "text", "rule"),
    [
        ("annotations/23521_a_b.csv", "4,1,2\n", "line 1: step=4 must be 1 to 3, for task 'Make J"),
        ("annotations/23521_a_b.csv", "1,1,2\n0,1,2\n", "line 2: step=0 must be 1 to 3"),
        ("annotations/23521_a_b.csv", "1.5,1,2\n", "step='1.5' must be a whole number"),
        ("annotations/23521_a_b.csv", "1,2\n", "line 1: has 2 columns and must have 3: step, sta"),
        ("annotations/23521_a_b.csv", "1,a,2\n", "start='a' must be a finite number"),
        ("videos.csv", "1,a_b,\n", r"line 1: names task 1, which tasks_primary.txt and tasks_rel"),
        ("videos_val.csv", "23521,a/b,\n", "'a/b' cannot be a video's name"),
        ("tasks_primary.txt", "1\nA\nu\n3\na,b\n", "line 1: task 1 is to have '3' steps and has 2"),
        (
            "tasks_primary.txt",
            "\n1\nA\nu\n2\na,b\n2\n",
            "line 2: task 1 must be five lines, id, ti",
        ),
        ("tasks_primary.txt", "1\nA\nu\n2\na,\n", "task 1 must be five lines"),
        ("tasks_primary.txt", "1\nA\n", "task 1 must be five lines"),
        ("tasks_primary.txt", TASKS + TASKS, "line 13: task 23521 is told twice"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, name: str, text: str, rule: str) -> None:
    released(tmp_path)
    write(tmp_path / name, text)
    with pytest.raises(DataError, match=rule) as error:
        crosstask.read(tmp_path, tmp_path)
    assert str(error.value).startswith(str(tmp_path / name))


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    write(tmp_path / "tasks_primary.txt", TASKS)
    with pytest.raises(DataError, match=r"lacks tasks_primary.txt or videos.csv; put the annotat"):
        crosstask.read(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("name", "steps", "step", "rule"),
    [
        ("a b", ("stir",), "stir", "video 'a b' cannot be written for crosstask"),
        ("a,b", ("stir",), "stir", "video 'a,b' cannot be written for crosstask"),
        ("ab", ("stir", "mix, then rest"), "stir", "step 'mix, then rest' of 'cook' cannot be"),
        ("ab", ("mix",), "stir", "video ab has a step 'stir' that is not in the recipe of 'cook'"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(
    tmp_path: Path, name: str, steps: tuple[str, ...], step: str, rule: str
) -> None:
    video = Video(name, "a.mp4", "train", topic="cook", events=(Event((0.0, 1.0), step=step),))
    corpus = Corpus(tmp_path, "own", (video,), {"cook": steps})
    with pytest.raises(DataError, match=rule):
        crosstask.export(corpus, tmp_path)
    assert not list(tmp_path.iterdir())
