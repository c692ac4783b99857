"""Deals a corpus into folders, one per client, as clients of a network bring their own videos."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from core.errors import DataError
from core.records import write_whole
from data.video.records import DESCRIPTION, Corpus, Video

GIVEN_FEATURES = "features"
"""Folder of a client's corpus with its features, where a federation's encoder is its user's own."""

_DEALT = "dealt_to_client"

_IN_THE_MAKING = "dealing.json"
"""Paths of all files that an unfinished deal may have put into a folder, or not yet removed."""


def write_share(
    corpus: Corpus,
    videos: Sequence[Video],
    folder: Path,
    *,
    client: int,
    features: Path | None = None,
) -> Path:
    """Write a client's part of a corpus: its records without gold, its files, its recipes.

    Files are hard links where the file system has such, and copies elsewhere. Files of an earlier
    deal that the client does not get again are removed.

    Args:
        corpus: Where the videos are from.
        videos: The client's, in their order.
        folder: The client's own; made where it is missing.
        client: Its partition id.
        features: Folder of ``NAME.npy``, of which the client gets its videos'; None for none.

    Returns:
        `folder`.

    Raises:
        DataError: The folder holds a corpus that was not dealt, a video's file lies outside of the
            corpus's folder, or a file cannot be written.
    """
    before = _dealt_before(folder)
    files = {_inside(video): corpus.root / video.path for video in videos}
    if features is not None:
        files |= {_features(video): features / f"{video.name}.npy" for video in videos}
    topics = {video.topic for video in videos}
    share = Corpus(
        root=folder,
        name=corpus.name,
        videos=tuple(dataclasses.replace(video, gold=None) for video in videos),
        recipes={topic: steps for topic, steps in corpus.recipes.items() if topic in topics},
        made_with={_DEALT: client},
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        listed = sorted(str(path) for path in before | files.keys())
        write_whole(folder / _IN_THE_MAKING, (json.dumps(listed) + "\n").encode())
        for path in before - files.keys():
            (folder / path).unlink(missing_ok=True)
        for path, source in files.items():
            if source.is_file():  # a client survives a missing file as anybody does
                _link(source.resolve(), folder / path)
        share.write()
        (folder / _IN_THE_MAKING).unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error}; name another folder") from error
    return folder


def _dealt_before(folder: Path) -> set[PurePosixPath]:
    """Files of an earlier deal, also of one that was cut off.

    Raises:
        DataError: The folder holds a corpus that was not dealt.
    """
    before: set[PurePosixPath] = set()
    with contextlib.suppress(OSError, ValueError, TypeError):
        paths = map(PurePosixPath, json.loads((folder / _IN_THE_MAKING).read_bytes()))
        before |= {path for path in paths if not path.is_absolute() and ".." not in path.parts}
    if not (folder / DESCRIPTION).exists():
        return before
    try:
        was_dealt = _DEALT in json.loads((folder / DESCRIPTION).read_bytes())["made_with"]
    except (OSError, ValueError, KeyError, TypeError):
        was_dealt = False
    if not was_dealt:
        raise DataError(
            f"{folder} holds a corpus that was not dealt; name another folder, or remove it"
        )
    with contextlib.suppress(DataError):  # the deal was cut off
        for video in Corpus.read(folder).videos:
            before |= {_inside(video), _features(video)}
    return before


def _inside(video: Video) -> PurePosixPath:
    path = PurePosixPath(video.path)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(
            f"video {video.name} lies in {video.path}, outside of its corpus's folder, and cannot "
            "be dealt; move it there"
        )
    return path


def _features(video: Video) -> PurePosixPath:
    path = PurePosixPath(GIVEN_FEATURES, f"{video.name}.npy")
    if PurePosixPath(video.name).is_absolute() or ".." in path.parts:
        raise DataError(f"video {video.name!r} has a name that no file can have; give it another")
    return path


def _link(source: Path, target: Path) -> None:
    """Make `target` the file `source`, whole at once."""
    if target.exists() and target.samefile(source):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".dealt-", dir=target.parent) as place:
        whole = Path(place) / target.name
        try:
            os.link(source, whole)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, whole)
        whole.replace(target)
