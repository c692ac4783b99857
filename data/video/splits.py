"""Splits that a source does not have: held out of its training videos, by whole files.

Several data sets are published without a validation split, or without labels of their test split.
As is customary, the published validation videos are then those that results are told of.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Container
from dataclasses import replace
from pathlib import PurePosixPath

from core.errors import DataError
from data.video.records import SPLITS, Corpus, Split, Video

logger = logging.getLogger("tessera")

HELD_OUT = 0.1
"""Share of the training files that becomes a missing split."""


def file_of(video: Video) -> str:
    """What tells a video's file from others wherever the files lie: its name without a suffix."""
    return PurePosixPath(video.path).stem


def with_all_splits(corpus: Corpus, readable: Container[str]) -> Corpus:
    """The same corpus with videos in each split; one that has some in each is given back as it is.

    Where nothing is for test, what is for validation is. Of splits that are empty then, test comes
    first: a tenth of the training files each, at least one, drawn by their names alone, so that the
    same files are drawn in any folder and whatever the run's seed.

    Args:
        corpus: As its source has it.
        readable: Names of videos that can be read; of others none is held out.

    Raises:
        DataError: There are too few training files to hold out of.
    """
    split_of: dict[str, Split] = {video.name: video.split for video in corpus.videos}
    told = []
    if not corpus.of_split("test") and corpus.of_split("validation"):
        moved = {name for name, split in split_of.items() if split == "validation"}
        split_of |= dict.fromkeys(moved, "test")
        told.append(f"its {len(moved)} validation videos are for test")
    for split in ("test", "validation"):
        if split in split_of.values() or not corpus.videos:
            continue
        train = [video for video in corpus.videos if split_of[video.name] == "train"]
        files = {file_of(video) for video in train if video.name in readable}
        if len(files) < 2:
            raise DataError(
                f"{corpus.name} in {corpus.root} has no {split} videos and {len(files)} readable "
                "training files, of which none can be spared for that; it takes at least "
                f"{len(SPLITS)} files in all"
            )
        drawn = set(sorted(files, key=_place)[: max(1, round(HELD_OUT * len(files)))])
        held = [video.name for video in train if file_of(video) in drawn]
        split_of |= dict.fromkeys(held, split)
        told.append(f"{len(held)} of {len(train)} training videos are for {split}")
    if not told:
        return corpus
    logger.warning("%s in %s lacks a split: %s", corpus.name, corpus.root, "; ".join(told))
    videos = tuple(replace(video, split=split_of[video.name]) for video in corpus.videos)
    return replace(corpus, videos=videos)


def _place(file: str) -> bytes:
    return hashlib.sha256(f"held out {file}".encode()).digest()
