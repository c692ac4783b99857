"""Known defects of public annotations: mended or left out, counted, and told once each."""

from __future__ import annotations

import warnings

from data.video.records import Span

CLIPPED = "segments that reached beyond their video and were cut to it"
EMPTY = (
    "segments that end where they start or before, or lie outside their video, and were left out"
)


class DefectWarning(UserWarning):
    """Annotations had a defect that is known of public data; the text says which and how often."""


class Defects:
    """What was mended or left out while a source was read."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._counts: dict[str, int] = {}
        self._first: dict[str, str] = {}

    def count(self, kind: str, place: object) -> None:
        """One more of a kind, which reads as "N ..." would: the defect and what was done."""
        self._counts[kind] = self._counts.get(kind, 0) + 1
        self._first.setdefault(kind, str(place))

    def mended(self, span: Span, duration_s: float | None, place: object) -> Span | None:
        """`span` within its video, or None if nothing of it is; counts what it does.

        Args:
            span: As the source has it, seconds.
            duration_s: Of the video; None where the source does not tell.
            place: Where the span stands.
        """
        start_s = max(span[0], 0.0)
        end_s = span[1] if duration_s is None else min(span[1], duration_s)
        if end_s <= start_s:
            self.count(EMPTY, place)
            return None
        if (start_s, end_s) != span:
            self.count(CLIPPED, place)
        return start_s, end_s

    def tell(self) -> None:
        """Warn of each kind once, with its count and where the first one stands."""
        for kind, count in self._counts.items():
            text = f"{self._source}: {kind}: {count}, the first at {self._first[kind]}"
            warnings.warn(text, DefectWarning, stacklevel=3)
