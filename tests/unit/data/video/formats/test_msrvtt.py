from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from core.errors import DataError
from data.video.formats import msrvtt, msrvtt_1k_a
from data.video.formats.defects import DefectWarning
from data.video.records import Corpus, Event, Question, Video
from tests.unit.data.video.formats.corpora import check_round_trip, corpora, write

CHOICES = "key\tvid_key\ta1\ta2\ta3\ta4\ta5\tanswer\n"


def released() -> dict[str, Any]:
    return {
        "info": {"year": "2016", "version": "1.0"},
        "videos": [
            {
                "category": 9,
                "url": "https://www.youtube.com/watch?v=9lZi22qLlEo",
                "video_id": "video0",
                "start time": 137.72,
                "end time": 149.44,
                "split": "train",
                "id": 0,
            },
            {"category": 16, "video_id": "video1", "split": "validate", "id": 1, "url": ""},
            {
                "category": 6,
                "video_id": "video2",
                "split": "test",
                "start time": 4,
                "end time": 14,
            },
        ],
        "sentences": [
            {"caption": "a car is shown", "video_id": "video0", "sen_id": 0},
            {"caption": "a man  cooks ", "video_id": "video1", "sen_id": 1},
            {"caption": "a person talks", "video_id": "video2", "sen_id": 2},
            {"caption": "in a frame a car drives", "video_id": "video0", "sen_id": 3},
        ],
    }


@given(corpora())
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_read_back(corpus: Corpus) -> None:
    check_round_trip(msrvtt, corpus)
    check_round_trip(msrvtt_1k_a, corpus)


def test_a_release_is_read(tmp_path: Path) -> None:
    whole = released()
    parts = {"train_val": whole["videos"][:2], "test": whole["videos"][2:]}
    for part, videos in parts.items():
        names = [video["video_id"] for video in videos]
        told = [one for one in whole["sentences"] if one["video_id"] in names]
        write(tmp_path / f"{part}_videodatainfo.json", {"videos": videos, "sentences": told})
    write(tmp_path / "category.txt", "vehicles/autos\t9\ntv shows\t6\n")
    row = 'mc0\tmsr2\tanimals\t"a, b"\ta person talks\ta dog\ta cat\t2\n'
    write(tmp_path / "MSR_MC_test.csv", CHOICES + row)
    write(tmp_path / "deep" / "er" / "video0.webm", "")
    found = msrvtt.read(tmp_path, tmp_path)
    assert found.root == tmp_path and found.name == "msrvtt"
    candidates = ("animals", "a, b", "a person talks", "a dog", "a cat")
    assert {video.name: video for video in found.videos} == {
        "video0": Video(
            name="video0",
            path="deep/er/video0.webm",
            split="train",
            topic="vehicles/autos",
            duration_s=149.44 - 137.72,
            captions=("a car is shown", "in a frame a car drives"),
        ),
        "video1": Video(
            name="video1",
            path="videos/video1.mp4",
            split="validation",
            topic="16",
            captions=("a man cooks",),
        ),
        "video2": Video(
            name="video2",
            path="videos/video2.mp4",
            split="test",
            topic="tv shows",
            duration_s=10.0,
            captions=("a person talks",),
            questions=(Question(msrvtt.QUESTION, "a person talks", candidates),),
        ),
    }


def test_the_file_of_all_videos_goes_before_its_parts(tmp_path: Path) -> None:
    write(tmp_path / "MSRVTT_data.json", released())
    write(tmp_path / "train_val_videodatainfo.json", released())
    assert [v.name for v in msrvtt.read(tmp_path, tmp_path).videos] == [
        "video0",
        "video1",
        "video2",
    ]


def test_choices_are_true_of_the_whole_video() -> None:
    first = Event((0.0, 1.0), "a red square spins", "red square spins")
    video = Video("v", "videos/v.mp4", "test", events=(first, Event((1.0, 2.0), "a ball falls")))
    others = ("a dog", "a cat", "a cow", "a pig")
    good = Question("What is seen?", first.caption, (first.caption, *others), first.span)
    by_step = Question("What is seen?", first.step, (*others, first.step), first.span)
    also_true = Question("?", first.caption, (first.caption, "a ball falls", *others[:3]), (0, 1))
    no_sentence = Question("What colour?", "red", ("red", "blue", "green", "pink", "grey"))
    short = Question("What is seen?", first.caption, (first.caption, "a dog"))
    asked = (good, by_step, also_true, no_sentence, short, Question("How many?", "two"))
    held = msrvtt.projected(dataclasses.replace(video, questions=asked))
    assert held is not None
    assert held.questions == (
        Question(msrvtt.QUESTION, good.answer, good.candidates),
        Question(msrvtt.QUESTION, by_step.answer, by_step.candidates),
    )
    check_round_trip(msrvtt, Corpus(Path("nowhere"), "made", (held, video)))
    for without in ({"split": "train"}, {"clip": (0.0, 1.0)}):
        changed: Any = {"questions": (good,), **without}
        assert msrvtt.projected(dataclasses.replace(video, **changed)) is None


def test_defects_are_counted(tmp_path: Path) -> None:
    content = released()
    content["videos"][0]["end time"] = 100
    content["sentences"] += [{"caption": " ", "video_id": "video1", "sen_id": 9}] * 2
    write(tmp_path / "MSRVTT_data.json", content)
    rows = "k\tmsr7\ta\tb\tc\td\te\t0\nk\tmsr1\ta\ta\tc\td\te\t0\n"
    write(tmp_path / "MSR_MC_test.csv", CHOICES + rows)
    with pytest.warns(DefectWarning) as told:
        found = msrvtt.read(tmp_path, tmp_path)
    texts = sorted(str(one.message).partition(f"{tmp_path}: ")[2] for one in told)
    assert texts == [
        f"questions on videos that no file lists, left out: 1, the first at "
        f"{tmp_path / 'MSR_MC_test.csv'}, line 2",
        f"questions that offer their right answer more than once, left out: 1, the first at "
        f"{tmp_path / 'MSR_MC_test.csv'}, line 3",
        f"sentences without a word, left out: 2, the first at "
        f"{tmp_path / 'MSRVTT_data.json'}, sentences[4]",
        f"videos that end where they start or before, and got no duration: 1, the first at "
        f"{tmp_path / 'MSRVTT_data.json'}, videos[0]",
    ]
    assert found.videos[0].duration_s is None and not any(v.questions for v in found.videos)


@pytest.mark.parametrize(
    ("where", "key", "value", "text"),
    [
        (("videos", 1), "split", "valid", r"videos\[1\]: split='valid' must be one of train, val"),
        (("videos", 1), "video_id", "video0", r"videos\[1\]: video video0 is listed twice, first"),
        (("videos", 1), "video_id", "../video0", "'../video0' cannot be a video's name"),
        (("videos", 0), "end time", "late", r"videos\[0\]: end time='late' must be a finite num"),
        (("videos", 0), "end time", float("inf"), "end time=inf must be a finite number"),
        (("sentences", 1), "video_id", "video9", r"sentences\[1\]: describes video video9, which"),
        (("sentences", 1), "caption", ["a"], r"caption=\['a'\] must be a text"),
        (("sentences", 1), "caption", None, "caption is missing; restore the file"),
    ],
)
def test_contradictions_are_refused(
    tmp_path: Path, where: tuple[str, int], key: str, value: object, text: str
) -> None:
    content = released()
    content[where[0]][where[1]][key] = value
    write(tmp_path / "MSRVTT_data.json", content)
    with pytest.raises(DataError, match=text) as error:
        msrvtt.read(tmp_path, tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'MSRVTT_data.json'}, {where[0]}[{where[1]}]: ")


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("MSRVTT_data.json", "{", "MSRVTT_data.json: is not JSON: Expecting property name"),
        ("MSRVTT_data.json", [], "must be an object with named fields; restore"),
        ("MSRVTT_data.json", {"videos": 3}, "videos must be a list"),
        ("MSRVTT_data.json", {"videos": [3]}, r"videos\[0\]: must be an object with named"),
        ("category.txt", "music\n", "category.txt, line 1: 'music' must be a category's name and"),
        ("MSR_MC_test.csv", "key\tvid_key\n", "line 1: must name the column a1 and names key, vid"),
        ("MSR_MC_test.csv", CHOICES + "k\tmsr1\n", "line 2: has 2 columns and must have 8: key"),
        (
            "MSR_MC_test.csv",
            CHOICES + "k\tmsr1\ta\tb\tc\td\te\t5\n",
            "line 2: answer=5 must be 0 to 4",
        ),
        (
            "MSR_MC_test.csv",
            CHOICES + "k\tmsr1\ta\tb\tc\td\te\t1.5\n",
            "answer='1.5' must be a whole number",
        ),
    ],
)
def test_files_of_another_form_are_refused(
    tmp_path: Path, name: str, content: object, text: str
) -> None:
    write(tmp_path / "MSRVTT_data.json", released())
    write(tmp_path / name, content)
    with pytest.raises(DataError, match=text):
        msrvtt.read(tmp_path, tmp_path)


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has neither MSRVTT_data.json nor train_val_videodatai"):
        msrvtt.read(tmp_path, tmp_path)
    with pytest.raises(DataError, match="gone is no folder; name one that has the videos"):
        msrvtt.read(tmp_path, tmp_path / "gone")
    (tmp_path / "MSRVTT_data.json").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"MSRVTT_data.json cannot be read: .*; it must be a read"):
        msrvtt.read(tmp_path, tmp_path)


def test_two_files_of_one_video_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "MSRVTT_data.json", released())
    for name in ("a/video1.mp4", "b/video1.mkv", ".hidden/video1.mp4", "b/video1.txt"):
        write(tmp_path / name, "")
    with pytest.raises(DataError, match=r"has 2 files for video video1: a/video1.mp4, b/video1.m"):
        msrvtt.read(tmp_path, tmp_path)


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    write(tmp_path / "MSRVTT_data.json", released())
    write(tmp_path / "elsewhere" / "video1.mp4", "")
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "all").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "elsewhere")
    assert msrvtt.read(tmp_path, videos).videos[1].path == "all/video1.mp4"


def write_1k_a(folder: Path, train: str | None) -> None:
    write(folder / "MSRVTT_data.json", released())
    rows = 'key,vid_key,video_id,sentence\nret0,msr2,video2,"so, one talks"\n'
    write(folder / "MSRVTT_JSFUSION_test.csv", rows)
    if train is not None:
        write(folder / "MSRVTT_train.9k.csv", "video_id\n" + train)


@pytest.mark.parametrize(
    ("train", "names"), [(None, ["video0", "video1"]), ("video1\n", ["video1"]), ("", [])]
)
def test_the_retrieval_split_is_read(tmp_path: Path, train: str | None, names: list[str]) -> None:
    write_1k_a(tmp_path, train)
    found = msrvtt_1k_a.read(tmp_path, tmp_path)
    assert [video.name for video in found.of_split("train")] == names
    assert not found.of_split("validation")
    (test,) = found.of_split("test")
    assert (test.name, test.captions, test.topic) == ("video2", ("so, one talks",), "6")
    assert all(video.captions for video in found.videos)


def test_lists_of_the_retrieval_split_that_contradict_are_refused(tmp_path: Path) -> None:
    write_1k_a(tmp_path, "video2\n")
    with pytest.raises(DataError, match=r"train.9k.csv, line 2: video video2 is for training here"):
        msrvtt_1k_a.read(tmp_path, tmp_path)
    write_1k_a(tmp_path, "video77\n")
    with pytest.raises(DataError, match="names video video77, which the annotations do not list"):
        msrvtt_1k_a.read(tmp_path, tmp_path)


def test_a_test_video_is_asked_for_by_one_sentence() -> None:
    video = Video("v", "videos/v.mp4", "test", captions=("a man cooks", "somebody cooks"))
    for split, captions in {"test": video.captions[:1], "train": video.captions}.items():
        changed: Any = {"split": split}
        held = msrvtt_1k_a.projected(dataclasses.replace(video, **changed))
        assert held is not None and held.captions == captions
    assert msrvtt_1k_a.projected(dataclasses.replace(video, split="validation")) is None
