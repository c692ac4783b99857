"""Keys of every workload on video: which corpus, seen through which frozen encoder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast

from core.config import choice, text
from core.errors import Problem
from data.video.formats.table import FORMATS, GENERATED

SOURCES = (GENERATED, *FORMATS)
ENCODERS = ("conv3d-shapestory", "conv3d-random")
GIVEN = "given:"
Sight = Literal["full", "single-frame", "none"]


def _is_source(value: str) -> bool:
    name, separator, folder = value.partition(":")
    return name in SOURCES and bool(separator and folder)


def _is_encoder(value: str) -> bool:
    return value in ENCODERS or (value.startswith(GIVEN) and value != GIVEN)


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoOptions:
    """The ``video`` section."""

    source: str = text(
        "shapestory:.data/shapestory",
        "the corpus: FORMAT:DIR, where DIR holds annotations as published and the videos",
        f"one of {', '.join(SOURCES)}, a colon and a folder",
        _is_source,
        names_file=bool,
    )
    encoder: str = text(
        "conv3d-shapestory",
        "frozen encoder of one feature a second; given:DIR takes DIR/NAME.npy, shape (seconds, D)",
        f"one of {', '.join(ENCODERS)}, or given:DIR",
        _is_encoder,
        names_file=lambda value: value.startswith(GIVEN),
    )
    cache: str = text(
        ".data/features",
        "folder where features are kept by encoder, and the encoder's weights",
        is_cache=True,
    )
    sight: str = choice(
        "full",
        "what is seen of a video: all, one still frame for each second, or nothing at all",
        ["full", "single-frame", "none"],
    )
    strata: str = choice(
        "topic",
        "what partitions deal videos by: their topic, or how much of their narration is noise",
        ["topic", "narration"],
    )

    def problems(self) -> Iterable[Problem]:
        """Keys that do not go together."""
        if self.sight == "single-frame" and self.encoder.startswith(GIVEN):
            rule = (
                f"is what an encoder is shown, and video.encoder={self.encoder} was shown all "
                "there is; name features that were made of single frames, and leave this out"
            )
            yield Problem("video.sight", self.sight, rule)

    @property
    def seen(self) -> Sight:
        """`sight`, as a literal."""
        return cast(Sight, self.sight)
