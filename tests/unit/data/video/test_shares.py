"""Corpora dealt into folders: files as they are, gold left behind, nothing that is not dealt."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path

import pytest

from core.errors import DataError
from data.video.records import Corpus, Gold, Video
from data.video.shares import write_share


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Four videos of two topics, of which the last has no file."""
    root = tmp_path / "corpus"
    videos = tuple(
        Video(
            name=f"v{i}",
            path=f"videos/{'ab'[i % 2]}/v{i}.mp4",
            split="train",
            topic="ab"[i % 2],
            gold=Gold(swapped_sound=((0.0, 1.0),)),
        )
        for i in range(4)
    )
    for video in videos[:3]:
        (root / video.path).parent.mkdir(parents=True, exist_ok=True)
        (root / video.path).write_bytes(video.name.encode())
    (root / "given").mkdir()
    (root / "given" / "v0.npy").write_bytes(b"features of v0")
    return Corpus(root, "mine", videos, {"a": ("one",), "b": ("two",)})


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


SEAL = {"corpus.json", "manifest.jsonl"}


def test_a_share_is_a_corpus_of_its_own_without_gold(corpus: Corpus, tmp_path: Path) -> None:
    few = (corpus.videos[2], corpus.videos[0])
    share = Corpus.read(write_share(corpus, few, tmp_path / "to", client=1))
    assert share.videos == tuple(dataclasses.replace(video, gold=None) for video in few)
    assert share.recipes == {"a": ("one",)} and share.name == "mine"
    assert files(tmp_path / "to") == {"videos/a/v0.mp4", "videos/a/v2.mp4", *SEAL}
    for video in few:
        assert (share.root / video.path).read_bytes() == video.name.encode()


@pytest.mark.parametrize("links", [True, False])
def test_files_are_linked_where_they_can_be(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def link(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    if not links:
        monkeypatch.setattr("data.video.shares.os.link", link)
    video = corpus.videos[1]
    for _ in range(2):
        share = write_share(corpus, [video], tmp_path / "to", client=0)
        assert (share / video.path).samefile(corpus.root / video.path) == links
        assert (share / video.path).read_bytes() == b"v1"
        assert files(share) == {video.path, *SEAL}


def test_what_a_client_does_not_get_again_is_removed(corpus: Corpus, tmp_path: Path) -> None:
    for few in (corpus.videos[:2], corpus.videos[1:3]):
        share = write_share(corpus, few, tmp_path / "to", client=0, features=corpus.root / "given")
    (share / "notes.txt").write_text("mine")
    assert files(share) == {"videos/b/v1.mp4", "videos/a/v2.mp4", "notes.txt", *SEAL}
    assert files(corpus.root) >= {video.path for video in corpus.videos[:3]}


def test_features_go_with_their_videos(corpus: Corpus, tmp_path: Path) -> None:
    share = write_share(
        corpus, corpus.videos[:2], tmp_path / "to", client=0, features=corpus.root / "given"
    )
    assert (share / "features" / "v0.npy").read_bytes() == b"features of v0"
    assert not (share / "features" / "v1.npy").exists()


def test_a_missing_file_is_missed_by_its_client_too(corpus: Corpus, tmp_path: Path) -> None:
    share = write_share(corpus, corpus.videos[3:], tmp_path / "to", client=0)
    assert files(share) == SEAL and len(Corpus.read(share).videos) == 1


def test_a_corpus_that_was_not_dealt_is_not_overwritten(corpus: Corpus) -> None:
    corpus.write()
    before = files(corpus.root)
    with pytest.raises(DataError, match="holds a corpus that was not dealt; name another folder"):
        write_share(corpus, corpus.videos[:1], corpus.root, client=0)
    (corpus.root / "manifest.jsonl").write_text("torn")
    with pytest.raises(DataError, match="not dealt"):
        write_share(corpus, corpus.videos[:1], corpus.root, client=0)
    assert files(corpus.root) == before


def test_a_deal_that_was_cut_off_is_done_again(corpus: Corpus, tmp_path: Path) -> None:
    share = write_share(corpus, corpus.videos[:2], tmp_path / "to", client=0)
    (share / "manifest.jsonl").write_text("of the next deal")
    write_share(corpus, corpus.videos[1:3], share, client=0)
    assert [video.name for video in Corpus.read(share).videos] == ["v1", "v2"]


@pytest.mark.parametrize("is_first", [True, False])
def test_after_a_deal_that_was_cut_off_nobody_has_anothers_videos(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_first: bool
) -> None:
    share = tmp_path / "to"
    if not is_first:
        write_share(corpus, corpus.videos[1:2], share, client=0)

    def cut(self: Corpus) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Corpus, "write", cut)
        with pytest.raises(KeyboardInterrupt):
            write_share(corpus, corpus.videos[:1], share, client=0, features=corpus.root / "given")
    assert "videos/a/v0.mp4" in files(share)
    write_share(corpus, corpus.videos[2:3], share, client=0)
    assert files(share) == {"videos/a/v2.mp4", *SEAL}


@pytest.mark.parametrize("path", ["../out.mp4", "/etc/passwd", "videos/../../out.mp4"])
def test_files_outside_of_a_corpus_are_not_dealt(corpus: Corpus, tmp_path: Path, path: str) -> None:
    video = dataclasses.replace(corpus.videos[0], path=path)
    with pytest.raises(DataError, match="outside of its corpus's folder"):
        write_share(corpus, [video], tmp_path / "to", client=0)
    odd = dataclasses.replace(corpus.videos[0], name="../v0")
    with pytest.raises(DataError, match="a name that no file can have"):
        write_share(corpus, [odd], tmp_path / "to", client=0, features=corpus.root / "given")
    assert not (tmp_path / "to").exists()
