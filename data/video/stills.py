"""A few frames of a video as pictures, for people to look at."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from data.video.decoding import probe, read_clip
from data.video.records import Span, Video

SIZE_PX = 96


def stills(root: Path, video: Video, span: Span | None, *, count: int) -> tuple[bytes, ...]:
    """Frames at even times of a span, as PNG files; none where the file cannot be read.

    Args:
        root: The corpus's folder.
        video: Which video.
        span: What of it is meant, seconds from the start of its clip; None for all.
        count: How many.
    """
    path = root / video.path
    if not path.is_file():
        return ()
    facts = probe(path)
    if facts is None:
        return ()
    begin_s, end_s = video.clip or (0.0, facts.duration_s)
    start_s, stop_s = span or (0.0, end_s - begin_s)
    clip = read_clip(path, begin_s + start_s, begin_s + stop_s, num_frames=count, size=SIZE_PX)
    return () if clip is None else tuple(_png(frame) for frame in clip.frames)


def _png(frame: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")  # type: ignore[arg-type]
    return buffer.getvalue()
