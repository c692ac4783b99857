"""Pictures and sound as the bytes of a video file: the same bytes for the same input."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import Flags
from av.video.stream import VideoStream

from data.video.shapestory.render import Frames, Sound

Container = Literal["mp4", "webm"]
KEY_FRAME_EVERY = 8
SAMPLES_AT_ONCE = 1024
TICKS = 1000
_Options = dict[str, str]
_CODECS: dict[Container, tuple[str, _Options, tuple[str, _Options]]] = {
    "mp4": ("libx264", {"crf": "18", "preset": "veryfast"}, ("aac", {"aac_coder": "fast"})),
    "webm": (
        "libvpx-vp9",
        {"crf": "24", "b": "0", "deadline": "realtime", "cpu-used": "6"},
        ("libopus", {}),
    ),
}


def encode(
    frames: Frames,
    *,
    fps: float,
    container: Container,
    sound: Sound | None,
    hz: int,
    times_s: Sequence[float] | None = None,
    rotation: int = 0,
) -> bytes:
    """Encode a video.

    Args:
        frames: uint8, shape (T, H, W, 3).
        fps: Frames per second.
        container: Of the file; decides the codecs.
        sound: Float32, shape (N,), within -1 and 1; None leaves the track out.
        hz: The sound's sampling rate; Opus is resampled to 48 kHz, which it takes.
        times_s: When each frame is shown, where they are not evenly spaced.
        rotation: Degrees, counterclockwise, by which a player turns the frames.
    """
    codec, options, (sound_codec, sound_options) = _CODECS[container]
    layout = {"movflags": "faststart"} if container == "mp4" else {}
    # In a file of its own, since the index is put in front once all else is written.
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"video.{container}"
        with av.open(str(path), "w", format=container, options=layout) as file:
            file.flags |= Flags.bitexact.value  # type: ignore[operator]
            height, width = frames.shape[1:3]
            video = file.add_stream(
                codec, rate=Fraction(fps).limit_denominator(TICKS), options=options
            )
            assert isinstance(video, VideoStream)
            video.width, video.height, video.pix_fmt = width, height, "yuv420p"
            context = video.codec_context
            context.gop_size, context.max_b_frames, context.thread_count = KEY_FRAME_EVERY, 0, 1
            context.time_base = Fraction(1, TICKS)
            context.flags |= 1 << 23  # bitexact: no version of the encoder in the stream
            if rotation:
                video.set_display_rotation(rotation)
            audio: AudioStream | None = None
            if sound is not None:
                rate = 48_000 if container == "webm" else hz
                made = file.add_stream(sound_codec, rate=rate, options=sound_options, layout="mono")
                assert isinstance(made, AudioStream)
                audio = made
                audio.codec_context.thread_count = 1
                audio.codec_context.flags |= 1 << 23
            for number, pixels in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                shown_s = number / fps if times_s is None else times_s[number]
                frame.pts, frame.time_base = round(shown_s * TICKS), Fraction(1, TICKS)
                file.mux(video.encode(frame))
            file.mux(video.encode(None))
            if audio is not None and sound is not None:
                for piece in _pieces(sound, hz, audio.rate):
                    file.mux(audio.encode(piece))
                file.mux(audio.encode(None))
        return path.read_bytes()


def _pieces(sound: Sound, hz: int, rate: int) -> Sequence[AudioFrame]:
    pieces = []
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=rate)
    for start in range(0, len(sound), SAMPLES_AT_ONCE):
        piece = AudioFrame.from_ndarray(
            np.ascontiguousarray(sound[None, start : start + SAMPLES_AT_ONCE]),
            format="fltp",
            layout="mono",
        )
        piece.sample_rate, piece.pts = hz, start
        piece.time_base = Fraction(1, hz)
        pieces += resampler.resample(piece)
    return pieces + resampler.resample(None)
