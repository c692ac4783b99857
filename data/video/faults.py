"""What can be wrong with a video file, and which files had it.

A corpus of thousands of files holds some that are not as they should be. None of them ends a run:
each is told of once, counted, and read as far as it goes.
"""

from __future__ import annotations

import logging
from enum import StrEnum
from pathlib import Path

log = logging.getLogger("tessera")


class VideoFault(StrEnum):
    """What is wrong with a file; its value names it to users."""

    MISSING = "missing"
    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    DAMAGED = "damaged"
    NO_AUDIO = "no-audio"
    VARIABLE_RATE = "variable-frame-rate"
    ROTATED = "rotated"

    @property
    def consequence(self) -> str:
        """What is done about it, as a clause."""
        return _CONSEQUENCES[self]


_CONSEQUENCES = {
    VideoFault.MISSING: "it is left out",
    VideoFault.UNREADABLE: "it is left out",
    VideoFault.TRUNCATED: "what is there is read, and its last frame stands for what is not",
    VideoFault.DAMAGED: "what cannot be decoded is skipped",
    VideoFault.NO_AUDIO: "it is used without sound",
    VideoFault.VARIABLE_RATE: "its frames are read by their times",
    VideoFault.ROTATED: "its frames are turned upright",
}


class FaultLog:
    """Counts the files that had each fault, and warns once for each fault of each file."""

    def __init__(self) -> None:
        self._files: dict[VideoFault, dict[str, str]] = {}

    def note(self, fault: VideoFault, path: Path, detail: str = "") -> None:
        """Count a fault of a file, and warn of it unless that was done before.

        Args:
            fault: What is wrong.
            path: The file.
            detail: What a decoder said, or in numbers what is wrong.
        """
        files = self._files.setdefault(fault, {})
        if str(path) in files:
            return
        files[str(path)] = detail
        told = f" ({detail})" if detail else ""
        log.warning("%s is %s%s: %s", path, _ADJECTIVES[fault], told, fault.consequence)

    def files(self, fault: VideoFault) -> tuple[str, ...]:
        """The files that had a fault, in the order in which they were found to have it."""
        return tuple(self._files.get(fault, ()))

    def counts(self) -> dict[VideoFault, int]:
        """How many files had each fault; those that none had are left out."""
        return {fault: len(self._files[fault]) for fault in VideoFault if self._files.get(fault)}

    def __str__(self) -> str:
        counts = self.counts()
        if not counts:
            return "every file could be read as it is"
        return ", ".join(f"{count} {fault.value}" for fault, count in counts.items())


_ADJECTIVES = {
    VideoFault.MISSING: "missing",
    VideoFault.UNREADABLE: "unreadable",
    VideoFault.TRUNCATED: "truncated",
    VideoFault.DAMAGED: "damaged",
    VideoFault.NO_AUDIO: "without an audio track",
    VideoFault.VARIABLE_RATE: "of variable frame rate",
    VideoFault.ROTATED: "rotated",
}
