"""Which file belongs to which video: the one with its name, at any depth."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from core.errors import DataError

SUFFIXES = frozenset(
    (
        ".3gp",
        ".avi",
        ".flv",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpg",
        ".mpeg",
        ".ogv",
        ".webm",
        ".wmv",
    )
)
"""What names of video files end with, in lower case."""


class VideoFiles:
    """The video files below a folder by name without suffix, listed once.

    Links to folders are followed, once each; names that start with a dot are not looked at.

    Raises:
        DataError: The folder is missing.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise DataError(f"{root} is no folder; name one that has the videos somewhere below it")
        self._root = root
        self._paths: dict[str, list[str]] = {}
        seen: set[str] = set()
        for folder, folders, files in os.walk(root, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                path = PurePosixPath(Path(folder, name).relative_to(root).as_posix())
                if path.suffix.lower() in SUFFIXES and not name.startswith("."):
                    self._paths.setdefault(path.stem, []).append(str(path))

    def path_of(self, name: str) -> str:
        """Path of the video called `name`, relative to the folder, with forward slashes.

        A video without a file gets the path ``videos/NAME.mp4``, where it would be looked for.

        Raises:
            DataError: Several files have the name.
        """
        found = self._paths.get(name, [])
        if len(found) > 1:
            raise DataError(
                f"{self._root} has {len(found)} files for video {name}: {', '.join(found)}; keep "
                "one of them, or name a folder that has one"
            )
        return found[0] if found else f"videos/{name}.mp4"
