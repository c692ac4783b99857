from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings

from core.errors import DataError
from data.video.formats import charades_sta
from data.video.formats.defects import DefectWarning
from data.video.records import Corpus, Moment, Video
from tests.unit.data.video.formats.corpora import check_round_trip, corpora, write

HEADER = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length\n"


@given(corpora())
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_read_back(corpus: Corpus) -> None:
    check_round_trip(charades_sta, corpus)


def test_a_release_is_read(tmp_path: Path) -> None:
    write(
        tmp_path / "charades_sta_train.txt",
        "AO8RW 0.0 6.9##a person is putting a book on a shelf.\r\n"
        "Y6R7T 20.8 30.0##person begins to play on a phone.\r\n"
        "AO8RW 0.0 6.9##a person is putting a book on a shelf.\r\n"
        "AO8RW 3.5 9##a person ## sits.\r\n",
    )
    write(tmp_path / "charades_sta_test.txt", "3MSZA 24.3 30.4##person turn a light on.\n")
    rows = (
        'AO8RW,FZTQ,Bedroom,6,6,Yes,"A script, long.",book,desc,c019 11.90 21.20,33.67\n'
        "Y6R7T,FZTQ,Kitchen,6,6,Yes,script,phone;bag,desc,,30.0\n"
    )
    write(tmp_path / "Charades_v1_train.csv", HEADER + rows)
    write(tmp_path / "Charades_v1_480" / "AO8RW.mp4", "")
    book = "a person is putting a book on a shelf."
    assert charades_sta.read(tmp_path, tmp_path).videos == (
        Video(
            name="AO8RW",
            path="Charades_v1_480/AO8RW.mp4",
            split="train",
            topic="Bedroom",
            duration_s=33.67,
            moments=(
                Moment("AO8RW:0", book, ((0.0, 6.9),)),
                Moment("AO8RW:1", book, ((0.0, 6.9),)),
                Moment("AO8RW:2", "a person ## sits.", ((3.5, 9.0),)),
            ),
        ),
        Video(
            name="Y6R7T",
            path="videos/Y6R7T.mp4",
            split="train",
            topic="Kitchen",
            duration_s=30.0,
            moments=(Moment("Y6R7T:0", "person begins to play on a phone.", ((20.8, 30.0),)),),
        ),
        Video(
            name="3MSZA",
            path="videos/3MSZA.mp4",
            split="test",
            moments=(Moment("3MSZA:0", "person turn a light on.", ((24.3, 30.4),)),),
        ),
    )


def test_spans_are_cut_to_the_video_or_left_out(tmp_path: Path) -> None:
    write(tmp_path / "charades_sta_train.txt", "A 5 12##one.\nA 5 5##two.\nA 1 2##three.\n")
    write(tmp_path / "Charades_v1_train.csv", HEADER + "A,,,,,,,,,,10\n")
    with pytest.warns(DefectWarning) as told:
        (video,) = charades_sta.read(tmp_path, tmp_path).videos
    assert video.moments == (
        Moment("A:0", "one.", ((5.0, 10.0),)),
        Moment("A:1", "three.", ((1.0, 2.0),)),
    )
    assert [str(one.message).rpartition(", ")[2] for one in told] == ["line 1", "line 2"]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("A 1 2 three.\n", r"train.txt, line 1: 'A 1 2 three.' must be of the form NAME START END"),
        ("A 1 2##a.\n\nA 1##b.\n", "line 3: 'A 1##b.' must be of the form"),
        ("A 1 2## \n", "'A 1 2##' must be of the form"),
        ("A one 2##a.\n", "START='one' must be a finite number"),
        ("A 1 nan##a.\n", "END='nan' must be a finite number"),
        ("../A 1 2##a.\n", "'../A' cannot be a video's name"),
    ],
)
def test_lines_of_another_form_are_refused(tmp_path: Path, text: str, rule: str) -> None:
    write(tmp_path / "charades_sta_train.txt", text)
    with pytest.raises(DataError, match=rule):
        charades_sta.read(tmp_path, tmp_path)


def test_files_that_contradict_one_another_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "charades_sta_train.txt", "A 1 2##a.\n")
    write(tmp_path / "charades_sta_test.txt", "A 1 2##a.\n")
    with pytest.raises(
        DataError, match=r"video A is in charades_sta_train.txt too; keep it in one"
    ):
        charades_sta.read(tmp_path, tmp_path)
    write(tmp_path / "Charades_v1_train.csv", HEADER)
    with pytest.raises(
        DataError, match=r"line 1: video A is not in Charades_v1_train.csv; restore"
    ):
        charades_sta.read(tmp_path, tmp_path)


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has none of charades_sta_train.txt, charades_sta_test"):
        charades_sta.read(tmp_path, tmp_path)


def test_a_name_that_a_line_cannot_hold_is_refused(tmp_path: Path) -> None:
    moments = (Moment("1", "a person sits.", ((0.0, 1.0),)),)
    video = Video("my video", "videos/my video.mp4", "train", moments=moments)
    with pytest.raises(DataError, match="'my video' cannot be written for charades-sta: its lines"):
        charades_sta.export(Corpus(tmp_path, "own", (video,)), tmp_path)
    assert not list(tmp_path.iterdir())
