"""What models made of a few examples, as the report shows it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from core.exhibits import Exhibit
from report.loading import LoadedRun
from report.methods import Method


@dataclass(frozen=True, slots=True)
class Shown:
    """One exhibit.

    Attributes:
        title: What it is.
        images: PNG files in base64.
        lines: What is told of it, by what it is.
    """

    title: str
    images: tuple[str, ...]
    lines: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Showcase:
    """The exhibits of a method's first run that has some, by kind.

    Attributes:
        method: Whose.
        run: Of which run.
        kinds: Each kind with its exhibits.
    """

    method: Method
    run: LoadedRun
    kinds: tuple[tuple[str, tuple[Shown, ...]], ...]


def showcases(methods: Sequence[Method]) -> list[Showcase]:
    """One of each method that has exhibits."""
    found = []
    for method in methods:
        run = next((run for run in method.runs if run.exhibits), None)
        if run is not None:
            by_kind: dict[str, list[Shown]] = {}
            for exhibit in run.exhibits:
                by_kind.setdefault(exhibit.kind, []).append(_shown(exhibit))
            kinds = tuple((kind, tuple(shown)) for kind, shown in by_kind.items())
            found.append(Showcase(method, run, kinds))
    return found


def _shown(exhibit: Exhibit) -> Shown:
    images = tuple(base64.b64encode(image).decode() for image in exhibit.images)
    return Shown(exhibit.title, images, tuple(exhibit.lines.items()))
