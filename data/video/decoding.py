"""Frames and sound of video files, by time.

All times are seconds from the start of the file's video track, for its sound as well, so that both
agree. What is shown at a time is the last frame that began by then. Timestamps alone decide; frames
and samples are never counted, for rates vary and codecs pad.

Nothing that is wrong with a file raises: a `FaultLog` is told, and what can be read is. Files are
opened, read with one thread and closed within one call, so that worker processes share nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, cast

import av
import numpy as np
import numpy.typing as npt
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.sidedata.sidedata import SideData
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition, Stream
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation
from av.video.stream import VideoStream

from core.errors import DataError
from data.video.faults import FaultLog, VideoFault

Mode = Literal["uniform", "fps"]

_TIME_SLACK_S = 0.5e-3
"""How much before a frame's own time it may be asked for: containers round times to their ticks."""

_JITTER_S = 1e-3
"""Frames whose distances differ by no more than this, or one tick, are of one rate."""

_END_SLACK_S = 0.1
"""How much less than the declared length may be there in a file that is whole."""

_AUDIO_LEAD_S = 0.2
"""Decoders of sound need some packets before what they give is right; Opus asks for 80 ms."""

_RESAMPLER_MARGIN_S = 0.05
"""Sound on either side of a window that its resampling may look at."""

_SCALING = (
    Interpolation.BILINEAR
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
    | Interpolation.FULL_CHR_H_INT
)
"""Bilinear, and the same to the last bit on every processor."""


_THIS_FILE_ALONE = {"protocol_whitelist": "file"}
"""Some formats are lists of other files and addresses; only the file that is named is meant."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a video file is.

    Attributes:
        duration_s: Length of the video track, as declared; as found where nothing is declared.
        fps: Frames per second, on average.
        width: In pixels, as shown, after rotation.
        height: Likewise.
        rotation: By how many degrees frames are turned counter-clockwise before they are shown.
        audio_hz: Sampling rate of the sound; None without an audio track.
        variable_rate: Whether the time between frames varies by more than rounding.
    """

    duration_s: float
    fps: float
    width: int
    height: int
    rotation: int
    audio_hz: int | None
    variable_rate: bool


@dataclass(frozen=True, slots=True)
class Clip:
    """Frames of a video.

    Attributes:
        frames: uint8, shape (T, H, W, 3), RGB.
        times_s: float64, shape (T,): when each frame was asked for.
        shown_s: float64, shape (T,): when the frame that was shown then began.
    """

    frames: npt.NDArray[np.uint8]
    times_s: npt.NDArray[np.float64]
    shown_s: npt.NDArray[np.float64]


def probe(path: Path, log: FaultLog | None = None) -> FileFacts | None:
    """Find out what a file is. Reads it to its end, and decodes one frame.

    Args:
        path: The file.
        log: Is told what is wrong with the file; None for a log of this call alone, which warns.

    Returns:
        None where there is no file, or no video that can be read.
    """
    log = FaultLog() if log is None else log
    with _opened(path, log) as container:
        return None if container is None else _probe(container, path, log)


def read_clip(
    path: Path,
    start_s: float,
    end_s: float,
    *,
    num_frames: int | None = None,
    size: int,
    mode: Mode = "uniform",
    fps: float | None = None,
    log: FaultLog | None = None,
) -> Clip | None:
    """Read what a video shows at given times.

    Frames are decoded from the key frame before `start_s` on; they are the same to the last bit as
    if the file had been decoded from its start. Times before the first frame show the first, times
    after the last frame the last.

    Args:
        path: The file.
        start_s: From when.
        end_s: Until when, exclusive.
        num_frames: With ``uniform`` how many frames, at the middles of equal parts of the window;
            with ``fps`` the most frames, None for all.
        size: Height and width to scale to, bilinear; the aspect ratio is not kept.
        mode: How times are laid: ``uniform``, or ``fps`` for ``start_s + k / fps``, all < `end_s`.
        fps: Frames per second of ``fps``.
        log: As in `probe`.

    Returns:
        None where there is no file, or no frame that can be read.

    Raises:
        DataError: The window is empty, or a count or rate is not positive or not given.
    """
    log = FaultLog() if log is None else log
    times_s = sample_times(start_s, end_s, num_frames=num_frames, mode=mode, fps=fps)
    if size < 1:
        raise DataError(f"size={size} must be at least 1 pixel")
    with _opened(path, log) as container:
        return None if container is None else _read_clip(container, path, times_s, size, log)


def sample_times(
    start_s: float,
    end_s: float,
    *,
    num_frames: int | None,
    mode: Mode,
    fps: float | None,
) -> npt.NDArray[np.float64]:
    """The times, float64 (T,), that `read_clip` reads for the same arguments.

    Raises:
        DataError: As `read_clip`.
    """
    _check_window(start_s, end_s)
    if num_frames is not None and num_frames < 1:
        raise DataError(f"num_frames={num_frames} must be at least 1")
    if mode == "uniform":
        if num_frames is None:
            raise DataError("mode=uniform needs num_frames, how many frames to read")
        if fps is not None:
            raise DataError(f"fps={fps} is of mode=fps; leave it out with mode=uniform")
        middles = np.arange(num_frames, dtype=np.float64) + 0.5
        return start_s + middles * ((end_s - start_s) / num_frames)
    if mode != "fps":
        raise DataError(f"mode={mode!r} is none of uniform, fps")
    if fps is None or not (math.isfinite(fps) and fps > 0):
        raise DataError(f"fps={fps}: mode=fps needs a rate above 0")
    most = max(1, math.ceil((end_s - start_s) * fps - 1e-6))
    count = most if num_frames is None else min(num_frames, most)
    return start_s + np.arange(count, dtype=np.float64) / fps


def read_audio(
    path: Path, start_s: float, end_s: float, hz: int, log: FaultLog | None = None
) -> npt.NDArray[np.float32] | None:
    """Read the sound of a window: the mean of its channels, resampled.

    What codecs add before the start and after the end is cut off, and what the file does not have
    is silence. Times are as exact as the container's ticks, which are 1 ms in WebM.

    Args:
        path: The file.
        start_s: From when.
        end_s: Until when, exclusive.
        hz: Samples per second to return.
        log: As in `probe`.

    Returns:
        float32, shape (round((end_s - start_s) * hz),), nominally in [-1, 1]; None where there is
        no file, no audio track, or no sound that can be read.

    Raises:
        DataError: The window is empty or `hz` is not positive.
    """
    _check_window(start_s, end_s)
    if hz < 1:
        raise DataError(f"hz={hz} must be at least 1")
    log = FaultLog() if log is None else log
    with _opened(path, log) as container:
        return None if container is None else _read_audio(container, path, start_s, end_s, hz, log)


def _check_window(start_s: float, end_s: float) -> None:
    if not (math.isfinite(start_s) and math.isfinite(end_s) and start_s < end_s):
        raise DataError(f"the window from {start_s} s to {end_s} s is empty; it must start first")


@contextlib.contextmanager
def _opened(path: Path, log: FaultLog) -> Iterator[InputContainer | None]:
    """The file's container; None, and told, where there is none."""
    if not path.is_file():
        log.note(VideoFault.MISSING, path)
        yield None
        return
    try:
        container = av.open(str(path.resolve()), "r", container_options=_THIS_FILE_ALONE)
    except (av.FFmpegError, OSError, ValueError) as error:
        log.note(VideoFault.UNREADABLE, path, _told(error))
        yield None
        return
    with container:
        yield container


def _told(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


@dataclass(slots=True)
class _Seen:
    """What showed while a file was read.

    Attributes:
        cut: The file ends within a packet, or cannot be followed further.
        num_lost: Packets and frames that could not be decoded.
        reason: Why, of the last one.
    """

    cut: bool = False
    num_lost: int = 0
    reason: str = ""

    def forget(self) -> None:
        """Start anew."""
        self.cut, self.num_lost, self.reason = False, 0, ""

    def lose(self, reason: str) -> None:
        """Count one loss."""
        self.num_lost += 1
        self.reason = reason

    def tell(self, path: Path, log: FaultLog) -> None:
        """Note what was lost."""
        if self.num_lost:
            log.note(VideoFault.DAMAGED, path, self.reason)


def _packets(
    container: InputContainer, streams: tuple[Stream, ...], seen: _Seen
) -> Iterator[av.Packet[Stream]]:
    """Packets that are whole, until the file ends or cannot be followed further."""
    packets = container.demux(streams)
    torn = False
    while True:
        try:
            packet = next(packets, None)
        except (av.FFmpegError, OSError):
            seen.cut = True
            return
        if packet is None:
            seen.cut |= torn
            return
        if packet.is_corrupt:
            torn = True
            continue
        if torn and packet.size:
            torn = False
            seen.lose("a packet is torn")
        yield packet


def _frames(container: InputContainer, track: _Track, seen: _Seen) -> Iterator[VideoFrame]:
    """Frames in the order they are shown, each from a key frame on, without a loss in between."""
    begun, whole, num_lost, last_pts = False, False, seen.num_lost, None
    for packet in _packets(container, (track.stream,), seen):
        frames: list[VideoFrame] = []
        try:
            frames = track.stream.decode(packet)
        except (av.FFmpegError, OSError) as error:
            seen.lose(_told(error))
        for frame in frames:
            begun = begun or frame.key_frame
            # Before the first key frame are such as lean on what lies before a seek.
            if frame.is_corrupt and begun:
                seen.lose("a frame is damaged")
            # What follows a loss is made from what was lost, until the next key frame.
            whole = not frame.is_corrupt and (
                frame.key_frame or (whole and seen.num_lost == num_lost)
            )
            num_lost = seen.num_lost
            pts = _pts(frame)
            if whole and pts is not None and (last_pts is None or pts > last_pts):
                last_pts = pts
                yield frame


def _pts(frame: VideoFrame) -> int | None:
    return frame.dts if frame.pts is None else frame.pts


@dataclass(frozen=True, slots=True)
class _Track:
    """A video track and its clock.

    Attributes:
        stream: The track.
        tick_s: Seconds of a unit of its timestamps.
        first: Its first timestamp, which is time 0.
        declared_end_s: Where it says that it ends; None where it does not say.
    """

    stream: VideoStream
    tick_s: Fraction
    first: int
    declared_end_s: float | None

    @classmethod
    def of(cls, container: InputContainer) -> _Track | None:
        """The first video track that has pictures to decode; None where there is none."""
        for stream in container.streams.video:
            cover = stream.disposition & Disposition.attached_pic
            if stream.codec_context is not None and stream.time_base is not None and not cover:
                stream.thread_count = 1
                first = stream.start_time or 0
                end_s = _declared_end_s(container, stream)
                return cls(stream, stream.time_base, first, end_s)
        return None

    def time_s(self, pts: int) -> float:
        """When a timestamp is."""
        return float((pts - self.first) * self.tick_s)

    def tick_by(self, time_s: float) -> int:
        """The last timestamp that a frame shown at `time_s` can have."""
        slack_s = min(_TIME_SLACK_S, float(self.tick_s) / 2)
        return self.first + math.floor((time_s + slack_s) / float(self.tick_s))

    def end_s(self, frame: VideoFrame) -> float:
        """When a frame ends."""
        pts = _pts(frame)
        assert pts is not None
        rate = self.stream.average_rate
        length = frame.duration * self.tick_s or (1 / rate if rate else 0)
        return self.time_s(pts) + float(length)


def _declared_end_s(container: InputContainer, stream: VideoStream | AudioStream) -> float | None:
    """Where a track says that it ends, from its own start; else where the file does."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    end_s = None if container.duration is None else container.duration / av.time_base
    if "matroska" not in container.format.name:
        return end_s
    # Matroska and WebM have a track's end among its tags, as hours:minutes:seconds, and tell ends
    # from time 0, where a track need not start.
    with contextlib.suppress(ValueError):
        hours, minutes, seconds = stream.metadata.get("DURATION", "").split(":")
        end_s = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    begins_s = float((stream.start_time or 0) * (stream.time_base or 0))
    return None if end_s is None or end_s <= begins_s else end_s - max(0.0, begins_s)


def _probe(container: InputContainer, path: Path, log: FaultLog) -> FileFacts | None:
    track = _Track.of(container)
    if track is None:
        log.note(VideoFault.UNREADABLE, path, "it has no video track")
        return None
    seen, stamps, picture = _Seen(), list[int](), None
    end, audio = track.first, _audio_stream(container)
    tracks = (track.stream,) if audio is None else (track.stream, audio)
    for packet in _packets(container, tracks, seen):
        if packet.stream is not track.stream:
            continue
        if packet.pts is not None and packet.size:
            stamps.append(packet.pts)
            end = max(end, packet.pts + (packet.duration or 0))
        if picture is None:
            try:
                picture = next(iter(track.stream.decode(packet)), None)
            except (av.FFmpegError, OSError) as error:
                seen.lose(_told(error))
    if picture is None:
        log.note(VideoFault.UNREADABLE, path, seen.reason or "it has no frames")
        return None
    stamps.sort()
    found_s = track.time_s(end)
    _tell_of_end(track, found_s, math.inf, seen, path, log)
    seen.tell(path, log)
    variable = _tell_of_rate(track, stamps, path, log)
    orientation = _Orientation.of(picture)
    orientation.tell(path, log)
    span_s = track.time_s(stamps[-1]) - track.time_s(stamps[0]) if stamps else 0.0
    width, height = picture.width, picture.height
    return FileFacts(
        duration_s=track.declared_end_s or found_s,
        fps=(len(stamps) - 1) / span_s if span_s > 0 else float(track.stream.average_rate or 0),
        width=height if orientation.turned else width,
        height=width if orientation.turned else height,
        rotation=picture.rotation,
        audio_hz=None if audio is None else audio.rate,
        variable_rate=variable,
    )


def _tell_of_end(
    track: _Track, found_s: float, needed_s: float, seen: _Seen, path: Path, log: FaultLog
) -> None:
    """Note a file that ends before it says, where what is missing was needed."""
    declared_s = track.declared_end_s
    rate = track.stream.average_rate
    slack_s = max(_END_SLACK_S, 1.5 / float(rate) if rate else 0)
    if declared_s is not None and found_s + slack_s < min(declared_s, needed_s):
        told = f"it says that it is {declared_s:.2f} s long and ends after {found_s:.2f} s"
        log.note(VideoFault.TRUNCATED, path, told)
    elif seen.cut:
        log.note(VideoFault.TRUNCATED, path, f"it ends after {found_s:.2f} s, within a packet")


def _tell_of_rate(track: _Track, stamps: list[int], path: Path, log: FaultLog) -> bool:
    """Whether timestamps, ascending, are of a variable rate, which is noted."""
    gaps_s = [float((b - a) * track.tick_s) for a, b in itertools.pairwise(stamps)]
    if not gaps_s or max(gaps_s) - min(gaps_s) <= max(_JITTER_S, float(track.tick_s)) * 1.001:
        return False
    told = f"its frames are {min(gaps_s):.3f} s to {max(gaps_s):.3f} s apart"
    log.note(VideoFault.VARIABLE_RATE, path, told)
    return True


@dataclass(frozen=True, slots=True)
class _Orientation:
    """How frames are turned before they are shown: one of the eight ways a square fits itself.

    Attributes:
        degrees: Counter-clockwise, as the file has it.
        turned: Whether rows and columns change places, before all else.
        flip_rows: Whether the rows are shown last to first.
        flip_columns: Whether the columns are.
    """

    degrees: int = 0
    turned: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    @classmethod
    def of(cls, frame: VideoFrame) -> _Orientation:
        """From the display matrix: x is shown at a x + c y, y at b x + d y."""
        sides = cast(Mapping[SideDataType, SideData], frame.side_data)
        if SideDataType.DISPLAYMATRIX not in sides:
            return cls()
        matrix = np.frombuffer(bytes(sides[SideDataType.DISPLAYMATRIX]), np.int32)
        a, b, _, c, d = (int(value) for value in matrix[:5])
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return cls(frame.rotation, False, d < 0, a < 0)
        return cls(frame.rotation, True, b < 0, c < 0)

    def apply(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Turn a frame (H, W, 3) upright."""
        shown = frame.swapaxes(0, 1) if self.turned else frame
        return shown[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]

    def tell(self, path: Path, log: FaultLog) -> None:
        """Note what is turned."""
        if self.turned or self.flip_rows or self.flip_columns:
            mirrored = (self.flip_rows == self.flip_columns) == self.turned
            told = f"by {self.degrees} degrees" + (" and mirrored" if mirrored else "")
            log.note(VideoFault.ROTATED, path, told)


def _read_clip(
    container: InputContainer,
    path: Path,
    times_s: npt.NDArray[np.float64],
    size: int,
    log: FaultLog,
) -> Clip | None:
    track = _Track.of(container)
    if track is None:
        log.note(VideoFault.UNREADABLE, path, "it has no video track")
        return None
    seen = _Seen()
    wanted = [track.tick_by(float(time_s)) for time_s in times_s]
    frames = np.empty((len(wanted), size, size, 3), np.uint8)
    shown_s = np.empty(len(wanted))
    stamps: list[int] = []
    # From here on `frame` is what is shown until `coming` begins.
    frame, taken, index = None, None, 0
    shown = _frames_before(container, path, track, wanted[0], seen)
    for coming in itertools.chain(shown, [None]):
        while frame is not None and index < len(wanted):
            if coming is not None and _stamp(coming) <= wanted[index]:
                break
            if taken is not frame:
                picture, taken = _picture(frame, size, path, log), frame
            frames[index], shown_s[index] = picture, track.time_s(_stamp(frame))
            index += 1
        if coming is None or index == len(wanted):
            break
        frame = coming
        stamps.append(_stamp(frame))
    if frame is None:
        log.note(VideoFault.UNREADABLE, path, seen.reason or "it has no frames")
        return None
    if coming is None:
        _tell_of_end(track, track.end_s(frame), float(times_s[-1]), seen, path, log)
    seen.tell(path, log)
    if not seen.num_lost:
        _tell_of_rate(track, stamps, path, log)
    return Clip(frames, times_s, shown_s)


def _stamp(frame: VideoFrame) -> int:
    pts = _pts(frame)
    assert pts is not None
    return pts


def _picture(frame: VideoFrame, size: int, path: Path, log: FaultLog) -> npt.NDArray[np.uint8]:
    """A frame as shown, (size, size, 3)."""
    scaled = frame.reformat(size, size, "rgb24", interpolation=_SCALING, threads=1)
    orientation = _Orientation.of(frame)
    orientation.tell(path, log)
    return orientation.apply(np.asarray(scaled.to_ndarray(), np.uint8))


def _frames_before(
    container: InputContainer, path: Path, track: _Track, wanted: int, seen: _Seen
) -> Iterator[VideoFrame]:
    """Frames from one that begins by `wanted` on, or else from the first."""
    target, back = wanted, math.ceil(1 / track.tick_s)
    while target > track.first and _seek(container, track.stream, target):
        seen.forget()
        frames = _frames(container, track, seen)
        first = next(frames, None)
        if first is not None and _stamp(first) <= wanted:
            yield first
            yield from frames
            return
        # A seek goes by the time of decoding, after which a key frame may be shown too late.
        target, back = target - back, 4 * back
    seen.forget()
    with _from_the_start(path, container, sought=target != wanted) as anew:
        first_track = _Track.of(anew)
        if first_track is not None:
            yield from _frames(anew, first_track, seen)


@contextlib.contextmanager
def _from_the_start(
    path: Path, container: InputContainer, *, sought: bool
) -> Iterator[InputContainer]:
    """A container that nothing was read of; formats without an index cannot seek to their start."""
    if not sought:
        yield container
        return
    with av.open(str(path.resolve()), "r", container_options=_THIS_FILE_ALONE) as anew:
        yield anew


def _seek(container: InputContainer, stream: VideoStream | AudioStream, tick: int) -> bool:
    """Go to the key frame before a timestamp; False where the format cannot."""
    try:
        container.seek(tick, stream=stream)
    except (av.FFmpegError, OSError):
        return False
    return True


def _audio_stream(container: InputContainer) -> AudioStream | None:
    for stream in container.streams.audio:
        if stream.codec_context is not None and stream.time_base is not None and stream.rate:
            stream.codec_context.thread_count = 1
            return stream
    return None


@dataclass(slots=True)
class _Window:
    """A stretch of a sound track, at its own rate, being filled.

    Attributes:
        first: Which sample of the track it starts with.
        samples: float32 (N,): the mean of its channels.
        found: From which sample to which the track was found to have sound, None before any was.
    """

    first: int
    samples: npt.NDArray[np.float32]
    found: tuple[int, int] | None = None

    def put(self, at: int, sound: npt.NDArray[np.float32]) -> bool:
        """Put what the track has from sample `at` on into its place; False once it is full."""
        self.found = (at if self.found is None else self.found[0], at + len(sound))
        low = max(at, self.first)
        high = min(at + len(sound), self.first + len(self.samples))
        if low < high:
            self.samples[low - self.first : high - self.first] = sound[low - at : high - at]
        return at + len(sound) < self.first + len(self.samples)

    def silence_from(self, at: int) -> None:
        """Silence what lies behind sample `at`."""
        self.samples[max(0, at - self.first) :] = 0


def _read_audio(
    container: InputContainer,
    path: Path,
    start_s: float,
    end_s: float,
    hz: int,
    log: FaultLog,
) -> npt.NDArray[np.float32] | None:
    stream = _audio_stream(container)
    if stream is None:
        log.note(VideoFault.NO_AUDIO, path)
        return None
    own_hz = stream.rate
    # A margin of whole periods of both rates, so that it can be cut off again exactly.
    common = math.gcd(own_hz, hz)
    periods = math.ceil(_RESAMPLER_MARGIN_S * common)
    margin = periods * (own_hz // common)
    first = round(start_s * own_hz) - margin
    count = math.ceil((end_s - start_s) * own_hz) + 2 * margin
    window, seen = _Window(first, np.zeros(count, np.float32)), _Seen()
    begins_s = _begins_s(container, stream)
    _fill(container, path, stream, begins_s, window, seen)
    seen.tell(path, log)
    if window.found is None:
        log.note(VideoFault.NO_AUDIO, path, seen.reason or "its audio track holds no sound")
        return None
    declared_s = _declared_end_s(container, stream)
    if declared_s is not None:
        ends_s, found_s = begins_s + declared_s, window.found[1] / own_hz
        window.silence_from(round(ends_s * own_hz))
        if seen.cut or found_s + _END_SLACK_S < min(ends_s, end_s):
            log.note(VideoFault.TRUNCATED, path, f"its sound ends after {found_s:.2f} s")
    cut = periods * (hz // common)
    num_samples = round((end_s - start_s) * hz)
    given = _resampled(window.samples, own_hz, hz)[cut : cut + num_samples]
    return np.pad(given, (0, num_samples - len(given)))


def _begins_s(container: InputContainer, stream: AudioStream) -> float:
    """When a sound track begins."""
    video = _Track.of(container)
    if video is None or stream.time_base is None:
        return 0.0
    return float((stream.start_time or 0) * stream.time_base - video.first * video.tick_s)


def _fill(
    container: InputContainer,
    path: Path,
    stream: AudioStream,
    begins_s: float,
    window: _Window,
    seen: _Seen,
) -> None:
    """Fill a window with what the track has of it."""
    assert stream.time_base is not None
    start, tick_s = stream.start_time or 0, float(stream.time_base)
    lead_s = window.first / stream.rate - begins_s - _AUDIO_LEAD_S
    if lead_s > 0 and _seek(container, stream, start + math.floor(lead_s / tick_s)):
        for at, sound in _sounds(container, stream, begins_s, seen, sought=True):
            if window.found is None and at > window.first:
                break
            if not window.put(at, sound):
                return
        if window.found is not None:
            return
        seen.forget()
    with _from_the_start(path, container, sought=lead_s > 0) as anew:
        same = _audio_stream(anew)
        if same is None:
            return
        for at, sound in _sounds(anew, same, begins_s, seen):
            if not window.put(at, sound):
                return


def _sounds(
    container: InputContainer,
    stream: AudioStream,
    begins_s: float,
    seen: _Seen,
    *,
    sought: bool = False,
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Which sample of the track a stretch of sound starts at, and the mean of its channels."""
    assert stream.time_base is not None
    start, tick_s, hz = stream.start_time or 0, float(stream.time_base), stream.rate
    # Ticks may be coarser than samples: what comes within this of the last follows on it.
    slack = max(2 * tick_s, _JITTER_S) * hz
    as_floats = av.AudioResampler("fltp")
    expected: int | None = None
    # What comes first after a seek has lost its start, so that its time was rounded twice.
    skip = sought
    for packet in _packets(container, (stream,), seen):
        try:
            frames = [part for f in stream.decode(packet) for part in as_floats.resample(f)]
        except (av.FFmpegError, OSError, ValueError) as error:
            seen.lose(_told(error))
            continue
        for frame in frames:
            sound = frame.to_ndarray().mean(axis=0, dtype=np.float32)
            if not np.isfinite(sound).all():
                seen.lose("its sound holds numbers that are not finite")
                sound = np.nan_to_num(sound, nan=0.0, posinf=0.0, neginf=0.0)
            at = expected
            if frame.pts is not None and frame.time_base is not None:
                time_s = float(frame.pts * frame.time_base) - start * tick_s + begins_s
                at = round(time_s * hz)
                if expected is not None and abs(at - expected) <= slack:
                    at = expected
            if at is None or skip:
                skip = False
                continue
            expected = at + len(sound)
            yield at, sound


def _resampled(samples: npt.NDArray[np.float32], own_hz: int, hz: int) -> npt.NDArray[np.float32]:
    """Sound at another rate; its first sample is of the same time."""
    if own_hz == hz:
        return samples
    frame = av.AudioFrame.from_ndarray(samples[None], "fltp", "mono")
    frame.sample_rate = own_hz
    resampler = av.AudioResampler("fltp", "mono", hz)
    parts = [*resampler.resample(frame), *resampler.resample(None)]
    return np.concatenate([part.to_ndarray()[0] for part in parts]).astype(np.float32)
