from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings

from core.errors import DataError
from data.video.formats import table
from data.video.formats.table import FORMATS, Format, export_all, read_corpus
from data.video.records import Corpus, Event, Moment, Question, Video
from tests.unit.data.video.formats.corpora import by_name, check_round_trip, corpora, held, write

EVENTS = (
    Event((0.5, 3.0), "a red square spins", "a red square spins"),
    Event((4.0, 6.25), "the blue ball falls down", "a blue circle falls"),
)
OTHERS = ("a cat", "a dog", "a cow", "a pig")


def small(root: Path) -> Corpus:
    """A corpus with something for each format, as a generator would make it, with its files."""
    videos = []
    for number, split in enumerate(["train", "validation", "test"] * 2):
        name = f"story-{number}"
        video = Video.from_json(
            Video(
                name=name,
                path=f"videos/garden/{name}.mp4",
                split="train",
                topic="garden",
                duration_s=8.0,
                events=EVENTS,
                captions=("shapes move about",),
                questions=(
                    Question("What is seen?", EVENTS[0].caption, (EVENTS[0].caption, *OTHERS)),
                ),
                moments=(
                    Moment(str(number), "a square", ((0.5, 3.0),), {0: (4, 3, 4), 1: (2, 2, 1)}),
                ),
            ).to_json()
            | {"split": split}
        )
        write(root / video.path, "")
        videos.append(video)
    recipe = ("a red square spins", "a green star blinks", "a blue circle falls")
    return Corpus(root, "shapestory", tuple(videos), {"garden": recipe}, {"seed": 0})


def test_what_is_exported_is_read_by_each_name(tmp_path: Path) -> None:
    corpus = small(tmp_path)
    corpus.write()
    written = export_all(corpus, tmp_path / "annotations")
    assert len(written) == len(set(written)) and all(file.is_file() for file in written)
    assert {file.relative_to(tmp_path / "annotations").parts[0] for file in written} == set(FORMATS)
    assert read_corpus(f"shapestory:{tmp_path}") == corpus
    for name, kind in FORMATS.items():
        found = read_corpus(f"{name}:{tmp_path}")
        assert by_name(found.videos) == held(kind, corpus)
        assert (found.root, found.name) == (tmp_path, name)
        assert {video.split for video in found.videos} >= {"train", "test"}


def test_a_copy_is_found_beside_its_annotations(tmp_path: Path) -> None:
    corpus = small(tmp_path / "made")
    for name, kind in FORMATS.items():
        for place in (tmp_path / name, tmp_path / f"{name}-2" / "annotations"):
            kind.export(corpus, place)
        assert read_corpus(f"{name}:{tmp_path / name}").videos
        assert read_corpus(f"{name}:{tmp_path / name}-2").videos


@given(corpora())
@settings(max_examples=15, deadline=None)
def test_every_format_gives_back_what_it_holds(corpus: Corpus) -> None:
    for kind in FORMATS.values():
        check_round_trip(kind, corpus)


def test_a_format_never_tells_what_only_a_generator_knows(tmp_path: Path) -> None:
    for video in small(tmp_path).videos:
        for kind in FORMATS.values():
            told = kind.projected(dataclasses.replace(video, sha256="1" * 64, fps=4.0))
            assert told is None or (told.gold, told.sha256, told.fps) == (None, "", None)


def test_a_corpus_without_anything_is_not_written(tmp_path: Path) -> None:
    empty = Corpus(tmp_path, "own", (Video("v", "v.mp4", "train"),))
    assert export_all(empty, tmp_path) == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("source", ["msr-vtt:data", "msrvtt", "msrvtt:", "", ":data"])
def test_unknown_sources_are_refused(source: str) -> None:
    with pytest.raises(
        DataError, match=r"names no corpus; it must be NAME:DIR with a name among s"
    ):
        read_corpus(source)
    with pytest.raises(
        DataError, match="shapestory, msrvtt, msrvtt-1k-a, youcook2, activitynet, q"
    ):
        read_corpus(source)


def test_folders_without_a_corpus_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"coin:.*gone: there is no folder .*gone; name the one that"
    ):
        read_corpus(f"coin:{tmp_path / 'gone'}")
    with pytest.raises(
        DataError, match=r"no annotations of coin in .*, .*/annotations/coin; put th"
    ):
        read_corpus(f"coin:{tmp_path}")
    with pytest.raises(DataError, match="is missing; make the corpus anew"):
        read_corpus(f"shapestory:{tmp_path}")
    for folder in (tmp_path, tmp_path / "annotations"):
        write(folder / "COIN.json", {"database": {}})
    with pytest.raises(
        DataError, match="both have annotations of coin; keep one of them, or name a"
    ):
        read_corpus(f"coin:{tmp_path}")


def test_formats_are_named_as_their_modules_say() -> None:
    modules: dict[str, Format] = dict(FORMATS)
    assert [vars(table)[name.replace("-", "_")].NAME for name in modules] == list(modules)
