"""Stills: pictures of the times that are meant."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from data.video.records import Span, Video
from data.video.stills import stills
from tests.unit.data.video.films import film, numbers


def shown(root: Path, clip: Span | None, span: Span | None) -> list[int]:
    video = Video("one", "one.mp4", "train", clip=clip)
    pictures = [np.asarray(Image.open(io.BytesIO(p))) for p in stills(root, video, span, count=2)]
    return numbers(np.stack(pictures)) if pictures else []


def test_spans_are_from_the_start_of_the_clip(tmp_path: Path) -> None:
    """Of 4 s at 10 frames a second, at a quarter and at three quarters of what is meant."""
    film(tmp_path / "one.mp4")
    assert shown(tmp_path, None, None) == [10, 30]
    assert shown(tmp_path, None, (1.0, 2.0)) == [12, 17]
    assert shown(tmp_path, (2.0, 3.0), None) == [22, 27]
    assert shown(tmp_path, (2.0, 4.0), (1.0, 1.8)) == [32, 36]


def test_a_file_that_cannot_be_read_has_none(tmp_path: Path) -> None:
    assert shown(tmp_path, None, None) == []
    (tmp_path / "one.mp4").write_bytes(b"noise")
    assert shown(tmp_path, None, None) == []
