"""Small video files of which every frame tells its number, for tests to make."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

NUM_FRAMES = 40
FPS = 10
TONE_HZ = 440.0
WIDTH, HEIGHT = 64, 48
_DARKEST, _STEP = 20, 5


def film(
    path: Path,
    *,
    video: str = "libx264",
    audio: str | None = "aac",
    hz: int = 16000,
    num_frames: int = NUM_FRAMES,
    fps: int = FPS,
    sound_s: float | None = None,
    b_frames: int = 0,
    gop: int = 8,
    stamps_ms: Sequence[int] | None = None,
    rotation: int = 0,
    hflip: bool = False,
    first_s: int = 0,
    options: dict[str, str] | None = None,
) -> Path:
    """A film whose frame i is of brightness 20 + 5 i, but for a white corner at the top left.

    Its sound is a tone of 440 Hz, amplitude 0.5, as long as the film or `sound_s`. Both begin at
    timestamp `first_s`.
    """
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(video, rate=fps)
        assert isinstance(stream, av.VideoStream)
        stream.options = {"crf": "8", "bf": str(b_frames), "cpu-used": "8"}
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.gop_size, stream.thread_count = gop, 1
        if rotation or hflip:
            stream.set_display_rotation(rotation, hflip=hflip)
        base = Fraction(1, fps) if stamps_ms is None else Fraction(1, 1000)
        stream.codec_context.time_base = base
        tone: av.AudioStream | None = None
        if audio is not None:
            added = container.add_stream(audio, rate=hz)
            assert isinstance(added, av.AudioStream)
            tone, added.layout = added, "mono"
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(_picture(number), "rgb24")
            frame.pts = (number if stamps_ms is None else stamps_ms[number]) + int(first_s / base)
            frame.time_base = base
            container.mux(stream.encode(frame))
        if tone is not None:
            length_s = num_frames / fps if sound_s is None else sound_s
            samples = sine(0.0, length_s, hz)
            sound = av.AudioFrame.from_ndarray(samples[None], "fltp", "mono")
            sound.sample_rate, sound.pts, sound.time_base = hz, first_s * hz, Fraction(1, hz)
            as_taken = av.AudioResampler(tone.format.name, "mono", hz)
            for part in (*as_taken.resample(sound), *as_taken.resample(None)):
                container.mux(tone.encode(part))
            container.mux(tone.encode(None))
        container.mux(stream.encode(None))
    return path


def sine(start_s: float, end_s: float, hz: int) -> npt.NDArray[np.float32]:
    """The films' tone in a window."""
    times_s = start_s + np.arange(round((end_s - start_s) * hz)) / hz
    return (0.5 * np.sin(2 * np.pi * TONE_HZ * times_s)).astype(np.float32)


def numbers(frames: npt.NDArray[np.uint8]) -> list[int]:
    """Which frame of the film each of (T, S, S, 3) is, told from its middle."""
    side = frames.shape[1]
    middle = frames[:, side // 2, side // 2].mean(axis=-1)
    return [round(float(shade - _DARKEST) / _STEP) for shade in middle]


def cut(path: Path, to: Path, share: float) -> Path:
    """The first share of a file's bytes."""
    content = path.read_bytes()
    to.write_bytes(content[: int(len(content) * share)])
    return to


def _picture(number: int) -> npt.NDArray[np.uint8]:
    picture = np.full((HEIGHT, WIDTH, 3), _DARKEST + _STEP * number, np.uint8)
    picture[: HEIGHT // 4, : WIDTH // 4] = 255
    return picture
