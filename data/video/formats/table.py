"""Public formats by name, and corpora by where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from core.errors import DataError
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

        Known defects of public data are mended or left out, each kind with one `DefectWarning`
        that has its count.

        Raises:
            DataError: Says which file and entry, what is wrong and what to do.
        """

    def export(self, corpus: Corpus, folder: Path) -> list[Path]:
        """Write what the format can hold; gives back the files, none where it holds nothing.

        Raises:
            DataError: A text or name cannot be written in this format.
        """

    def projected(self, video: Video) -> Video | None:
        """What of a video is read back after it was exported; None if nothing is.

        Texts have single spaces and none around them. A name that is not its file's without the
        suffix is read back with the path that a missing file has.
        """


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
"""Each public format by the name that a source has it under."""

GENERATED = "shapestory"
"""What a source of a generated corpus starts with."""


def export_all(corpus: Corpus, folder: Path) -> list[Path]:
    """Write `corpus` in every public format that can hold something of it, each in a folder.

    Args:
        corpus: What to write.
        folder: Where a folder for each format is made, with the format's name.

    Returns:
        The files.

    Raises:
        DataError: A format cannot hold a text or a name; says which.
    """
    return [file for name, kind in FORMATS.items() for file in kind.export(corpus, folder / name)]


def read_corpus(source: str) -> Corpus:
    """Read a corpus.

    Args:
        source: ``shapestory:DIR`` for a generated corpus, or ``FORMAT:DIR`` for a copy of a public
            data set or an export in its form. Its annotations lie in ``DIR``, in
            ``DIR/annotations`` or in ``DIR/annotations/FORMAT``, its videos anywhere below ``DIR``.

    Raises:
        DataError: The format is unknown, or the folder lacks something or contradicts itself.
    """
    name, colon, place = source.partition(":")
    if not (colon and place) or name not in (GENERATED, *FORMATS):
        raise DataError(
            f"{source!r} names no corpus; it must be NAME:DIR with a name among "
            f"{', '.join((GENERATED, *FORMATS))}"
        )
    root = Path(place).expanduser()
    if not root.is_dir():
        raise DataError(f"{source}: there is no folder {root}; name the one that has the corpus")
    if name == GENERATED:
        return Corpus.read(root)
    return FORMATS[name].read(_annotations(name, root), root)


def _annotations(name: str, root: Path) -> Path:
    places = [root, root / "annotations", root / "annotations" / name]
    found = [place for place in places if _holds(place, FORMATS[name].FILES)]
    if len(found) > 1:
        raise DataError(
            f"{found[0]} and {found[1]} both have annotations of {name}; keep one of them, or name "
            "a folder that has one"
        )
    if not found:
        raise DataError(
            f"no annotations of {name} in {', '.join(map(str, places))}; put there at least one of "
            f"{', '.join(FORMATS[name].FILES)}"
        )
    return found[0]


def _holds(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(True for pattern in patterns for _ in folder.glob(pattern))
