"""Public formats by name, and corpora by where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from data.video.formats import (
    activitynet,
    charades_sta,
    coin,
    crosstask,
    msrvtt,
    msrvtt_1k_a,
    qvhighlights,
    youcook2,
)
from data.video.records import Corpus, Video


class Format(Protocol):
    """What a public format does; each is a module."""

    @property
    def FILES(self) -> tuple[str, ...]:  # noqa: N802 - a module's constant
        """Patterns of names of which one shows that a folder is of this format."""

    def read(self, annotations: Path, videos: Path) -> Corpus:
        """Read annotations, with the videos somewhere below another folder.

        Raises:
            DataError: Says which file and entry, what is wrong and what to do.
        """

    def export(self, corpus: Corpus, folder: Path) -> list[Path]:
        """Write what the format can hold; gives back the files, none where it holds nothing.

        Raises:
            DataError: A text or name cannot be written in this format.
        """

    def projected(self, video: Video) -> Video | None:
        """What of a video is read back after it was exported; None if nothing is."""


FORMATS: Mapping[str, Format] = {
    "msrvtt": msrvtt,
    "msrvtt-1k-a": msrvtt_1k_a,
    "youcook2": youcook2,
    "activitynet": activitynet,
    "qvhighlights": qvhighlights,
    "charades-sta": charades_sta,
    "crosstask": crosstask,
    "coin": coin,
}
