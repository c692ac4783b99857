"""Splits that a source lacks: whole files, the same ones everywhere, told and counted."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import DataError
from data.video.records import Corpus, Split, Video
from data.video.splits import file_of, with_all_splits


def corpus_of(*splits: Split, files: int = 0) -> Corpus:
    """A video for each split that is named; `files` files for them in turn, or one each."""
    videos = [
        Video(f"v{i}", f"some/where/f{i % (files or len(splits))}.mp4", split)
        for i, split in enumerate(splits)
    ]
    return Corpus(Path("nowhere"), "own", tuple(videos))


def many(split: Split, count: int) -> list[Split]:
    return [split] * count


def names(corpus: Corpus) -> set[str]:
    return {video.name for video in corpus.videos}


def counts(corpus: Corpus) -> dict[str, int]:
    return dict(Counter(video.split for video in corpus.videos))


def test_a_corpus_with_all_splits_is_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    whole = corpus_of("train", "validation", "test")
    assert with_all_splits(whole, names(whole)) is whole
    assert not caplog.messages


def test_without_test_videos_those_of_validation_are(caplog: pytest.LogCaptureFixture) -> None:
    """As with QVHighlights and YouCook2, whose test labels are kept back."""
    given = corpus_of(*many("train", 30), *many("validation", 5))
    found = with_all_splits(given, names(given))
    assert counts(found) == {"train": 27, "validation": 3, "test": 5}
    assert {v.name for v in found.of_split("test")} == {
        v.name for v in given.of_split("validation")
    }
    assert {v.name for v in found.of_split("validation")} < {
        v.name for v in given.of_split("train")
    }
    (told,) = caplog.messages
    assert told == (
        "own in nowhere lacks a split: its 5 validation videos are for test; "
        "3 of 30 training videos are for validation"
    )


def test_without_validation_videos_some_of_training_are() -> None:
    """As with COIN and Charades-STA."""
    given = corpus_of(*many("train", 40), *many("test", 5))
    found = with_all_splits(given, names(given))
    assert counts(found) == {"train": 36, "validation": 4, "test": 5}
    assert found.of_split("test") == given.of_split("test")


@given(st.integers(3, 30), st.integers(0, 2**32))
def test_files_are_never_split_and_the_same_ones_are_drawn(files: int, shuffled: int) -> None:
    given = corpus_of(*many("train", 2 * files), files=files)
    found = with_all_splits(given, names(given))
    splits: dict[str, set[str]] = {}
    for video in found.videos:
        splits.setdefault(file_of(video), set()).add(video.split)
    assert all(len(some) == 1 for some in splits.values())
    assert set(counts(found)) == {"train", "validation", "test"}
    order = sorted(given.videos, key=lambda video: hash((video.name, shuffled)))
    moved = [dataclasses.replace(video, path=f"{file_of(video)}.webm") for video in order]
    again = with_all_splits(dataclasses.replace(given, videos=tuple(moved)), names(given))
    assert {v.name: v.split for v in again.videos} == {v.name: v.split for v in found.videos}


def test_what_cannot_be_read_is_not_held_out() -> None:
    given = corpus_of(*many("train", 30))
    readable = {"v3", "v14", "v27"}
    found = with_all_splits(given, readable)
    assert {v.split for v in found.videos if v.name in readable} == {"train", "validation", "test"}
    assert counts(found) == {"train": 28, "validation": 1, "test": 1}


def test_too_few_files_are_refused() -> None:
    few = corpus_of("train", "train", "test", files=1)
    with pytest.raises(DataError, match="no validation videos and 1 readable training files"):
        with_all_splits(few, names(few))
