"""Exhibits: a few examples of what a model made, kept with a run for people to look at."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Exhibit:
    """One example.

    Attributes:
        kind: What all of a kind stand under, such as ``Captions``.
        title: What it is, such as a video's name.
        images: PNG files, in order.
        lines: What is told of it, by what it is: ``{"gold": ..., "model": ...}``.
    """

    kind: str
    title: str
    images: tuple[bytes, ...]
    lines: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """A JSON object; images in base64."""
        return {
            "kind": self.kind,
            "title": self.title,
            "images": [base64.b64encode(image).decode() for image in self.images],
            "lines": dict(self.lines),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Exhibit:
        """Read back `to_json`.

        Raises:
            ValueError: It is something else.
        """
        try:
            images = tuple(base64.b64decode(image, validate=True) for image in value["images"])
            lines = {str(name): str(text) for name, text in value["lines"].items()}
            return cls(str(value["kind"]), str(value["title"]), images, lines)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no exhibit: {type(error).__name__}: {error}") from error
