from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import DataError
from data.video.decoding import Clip, probe, read_audio, read_clip, sample_times
from data.video.faults import FaultLog, VideoFault
from tests.unit.data.video.films import FPS, HEIGHT, NUM_FRAMES, WIDTH, cut, film, numbers, sine

DURATION_S = NUM_FRAMES / FPS
KINDS: Mapping[str, Mapping[str, Any]] = {
    "h264.mp4": {},
    "b-frames.mp4": {"b_frames": 3, "gop": 12},
    "vp9.webm": {"video": "libvpx-vp9", "audio": "libopus", "hz": 48000},
    "pcm.mkv": {"b_frames": 2, "audio": "pcm_s16le"},
    "start.mp4": {"options": {"movflags": "faststart"}},
    "transport.ts": {"b_frames": 3, "gop": 12},
    "late.mkv": {"b_frames": 2, "audio": "pcm_s16le", "first_s": 3},
    "late.webm": {"video": "libvpx-vp9", "audio": "libopus", "hz": 48000, "first_s": 3},
    "late.ts": {"b_frames": 2, "first_s": 3},
}
UNEVEN_MS = [0, 100, 250, 300, 700, 750, 1200, *range(1300, 1300 + 33 * 100, 100)]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("films")
    found = {name: film(folder / name, **options) for name, options in KINDS.items()}
    found["uneven.mp4"] = film(folder / "uneven.mp4", stamps_ms=UNEVEN_MS, b_frames=2)
    found["silent.mp4"] = film(folder / "silent.mp4", audio=None)
    return found


def stamps(path: Path) -> npt.NDArray[np.float64]:
    """When each frame of a file begins after the first, by decoding all of it without a seek."""
    with av.open(str(path)) as container:
        found = [float(frame.time) for frame in container.decode(video=0)]
    return np.array(found, np.float64) - found[0]


def clip(path: Path, start_s: float, end_s: float, **options: Any) -> Clip:
    read = read_clip(path, start_s, end_s, **{"size": 16, **options})
    assert read is not None
    return read


def sound(path: Path, start_s: float, end_s: float, hz: int) -> npt.NDArray[np.float32]:
    read = read_audio(path, start_s, end_s, hz)
    assert read is not None
    assert read.dtype == np.float32
    return read


@pytest.mark.parametrize("name", KINDS)
def test_facts_of_a_film(films: dict[str, Path], name: str) -> None:
    log = FaultLog()
    facts = probe(films[name], log)
    assert facts is not None
    assert facts.duration_s == pytest.approx(DURATION_S, abs=0.01)
    assert facts.fps == pytest.approx(FPS, rel=1e-3)
    assert (facts.width, facts.height, facts.rotation) == (WIDTH, HEIGHT, 0)
    assert facts.audio_hz == KINDS[name].get("hz", 16000)
    assert not facts.variable_rate
    assert log.counts() == {}


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_is_shown_at_its_time(films: dict[str, Path], name: str) -> None:
    read = clip(films[name], 0, DURATION_S, mode="fps", fps=FPS)
    assert read.frames.shape == (NUM_FRAMES, 16, 16, 3)
    assert read.frames.dtype == np.uint8
    assert numbers(read.frames) == list(range(NUM_FRAMES))
    np.testing.assert_allclose(read.times_s, np.arange(NUM_FRAMES) / FPS)
    np.testing.assert_allclose(read.shown_s, read.times_s, atol=1e-3)


def test_between_frames_the_earlier_one_is_shown(films: dict[str, Path]) -> None:
    read = clip(films["h264.mp4"], 0.0, 1.0, num_frames=20)
    np.testing.assert_allclose(read.times_s, np.arange(20) / 20 + 0.025)
    assert numbers(read.frames) == [index // 2 for index in range(20)]
    just_before = clip(films["h264.mp4"], 1.599, 1.7, mode="fps", fps=1)
    assert numbers(just_before.frames) == [15]


def test_times_of_a_mode_are_as_defined() -> None:
    uniform = sample_times(2.0, 4.0, num_frames=4, mode="uniform", fps=None)
    assert uniform.tolist() == [2.25, 2.75, 3.25, 3.75]
    assert sample_times(2, 3, num_frames=None, mode="fps", fps=4).tolist() == [2, 2.25, 2.5, 2.75]
    assert sample_times(2, 3, num_frames=2, mode="fps", fps=4).tolist() == [2, 2.25]
    assert sample_times(2, 2.01, num_frames=None, mode="fps", fps=4).tolist() == [2]
    # 0.3 s at 10 frames a second are three, though 0.3 * 10 is a little more in binary.
    assert len(sample_times(0, 0.1 + 0.2, num_frames=None, mode="fps", fps=10)) == 3


@pytest.mark.parametrize("name", [*KINDS, "uneven.mp4"])
@settings(max_examples=15, deadline=None)
@given(
    start_s=st.floats(0, 4.5),
    length_s=st.floats(0.01, 2.5),
    num_frames=st.integers(1, 9),
)
def test_a_window_is_the_same_by_seek_and_from_the_start(
    films: dict[str, Path], name: str, start_s: float, length_s: float, num_frames: int
) -> None:
    began_s = stamps(films[name])
    whole = clip(films[name], 0, float(began_s[-1]) + 0.01, num_frames=1200)
    which = [int(np.abs(began_s - shown_s).argmin()) for shown_s in whole.shown_s]
    by_frame = dict(zip(which, whole.frames, strict=True))
    read = clip(films[name], start_s, start_s + length_s, num_frames=num_frames)
    for time_s, shown_s, frame in zip(read.times_s, read.shown_s, read.frames, strict=True):
        # What is shown is the last frame that began by then, by half a tick at most too early.
        shown = int(np.flatnonzero(began_s <= time_s + 0.5e-3)[-1])
        assert abs(began_s[shown] - shown_s) < 1e-9 or abs(began_s[shown] - time_s) < 0.5e-3
        number = int(np.abs(began_s - shown_s).argmin())
        assert numbers(frame[None]) == [number]
        np.testing.assert_array_equal(frame, by_frame[number])


def test_a_variable_rate_is_read_by_times(
    films: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    log = FaultLog()
    facts = probe(films["uneven.mp4"], log)
    assert facts is not None and facts.variable_rate
    assert facts.fps == pytest.approx(39 / 4.5)
    assert log.counts() == {VideoFault.VARIABLE_RATE: 1}
    assert "variable frame rate" in caplog.text
    read = read_clip(films["uneven.mp4"], 0, 4.6, mode="fps", fps=20, size=16, log=log)
    assert read is not None
    expected = [
        max(i for i in range(40) if UNEVEN_MS[i] <= 50 * k) for k in range(len(read.frames))
    ]
    assert numbers(read.frames) == expected
    assert len(caplog.records) == 1, "each fault of a file is told of once"


@pytest.mark.parametrize(
    ("rotation", "hflip", "corner"),
    [
        (0, False, (0, 0)),
        (90, False, (-1, 0)),
        (180, False, (-1, -1)),
        (-90, False, (0, -1)),
        (0, True, (0, -1)),
        (180, True, (-1, 0)),
        (90, True, (-1, -1)),
        (-90, True, (0, 0)),
    ],
)
def test_frames_are_turned_upright(
    tmp_path: Path, rotation: int, hflip: bool, corner: tuple[int, int]
) -> None:
    """Where the white corner at the top left goes, when turned counter-clockwise, then mirrored."""
    path = film(tmp_path / "turned.mp4", rotation=rotation, hflip=hflip, num_frames=3, audio=None)
    log = FaultLog()
    facts = probe(path, log)
    read = read_clip(path, 0, 0.3, num_frames=3, size=16, log=log)
    assert facts is not None and read is not None
    turned = rotation in (90, -90)
    assert (facts.width, facts.height) == ((HEIGHT, WIDTH) if turned else (WIDTH, HEIGHT))
    assert log.counts() == ({VideoFault.ROTATED: 1} if rotation or hflip else {})
    for y, x in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        bright = read.frames[0, y, x].min() > 200
        assert bright == ((y, x) == corner)


def test_a_turned_mirrored_frame_is_a_transposed_one(tmp_path: Path) -> None:
    """Turned by -90 degrees and mirrored, x and y change places: the oracle is NumPy."""
    plain = clip(film(tmp_path / "a.mp4", num_frames=1, audio=None), 0, 0.1, num_frames=1)
    other = film(tmp_path / "b.mp4", num_frames=1, audio=None, rotation=-90, hflip=True)
    turned = clip(other, 0, 0.1, num_frames=1)
    np.testing.assert_array_equal(turned.frames[0], plain.frames[0].swapaxes(0, 1))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("start.mp4", {"options": {"movflags": "faststart"}}),
        ("parts.mp4", {"options": {"movflags": "frag_keyframe+empty_moov"}, "audio": None}),
        ("vp9.webm", {"video": "libvpx-vp9", "audio": "libopus", "hz": 48000}),
    ],
)
def test_of_a_truncated_file_what_is_there_is_read(
    tmp_path: Path, name: str, options: Mapping[str, Any]
) -> None:
    path = cut(film(tmp_path / f"whole-{name}", **options), tmp_path / name, 0.6)
    log = FaultLog()
    read = read_clip(path, 0, DURATION_S, mode="fps", fps=FPS, size=16, log=log)
    assert read is not None
    found = numbers(read.frames)
    last = found[-1]
    assert 10 < last < 35
    assert found == [min(index, last) for index in range(NUM_FRAMES)]
    assert log.counts() == {VideoFault.TRUNCATED: 1}
    assert log.files(VideoFault.TRUNCATED) == (str(path),)
    again = FaultLog()
    assert probe(path, again) is not None
    assert again.counts() == {VideoFault.TRUNCATED: 1}
    late = clip(path, 3.0, 3.5, num_frames=2)
    np.testing.assert_array_equal(late.frames, np.stack([read.frames[-1]] * 2))
    if "audio" not in options or options["audio"]:
        tone = sound(path, 0, DURATION_S, 8000)
        assert np.abs(tone[: 8000 // 2]).max() > 0.4
        assert not tone[-8000:].any()


def test_a_window_of_a_truncated_file_that_is_there_is_no_fault(films: dict[str, Path]) -> None:
    path = cut(films["start.mp4"], films["start.mp4"].with_name("cut.mp4"), 0.6)
    log = FaultLog()
    assert read_clip(path, 0.2, 1.0, num_frames=3, size=16, log=log) is not None
    assert log.counts() == {}


def test_past_the_end_of_a_whole_film_the_last_frame_stays(films: dict[str, Path]) -> None:
    for name in KINDS:
        log = FaultLog()
        read = read_clip(films[name], 3.95, 9.0, num_frames=3, size=16, log=log)
        assert read is not None
        assert numbers(read.frames) == [39] * 3
        assert log.counts() == {}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_an_unreadable_file_is_told_of_and_left_out(
    films: dict[str, Path], tmp_path: Path, share: float, caplog: pytest.LogCaptureFixture
) -> None:
    """The index of this mp4 lies at its end, so that none of these opens."""
    path = cut(films["h264.mp4"], tmp_path / "cut.mp4", share)
    log = FaultLog()
    assert probe(path, log) is None
    assert read_clip(path, 0, 1, num_frames=1, size=8, log=log) is None
    assert read_audio(path, 0, 1, 8000, log) is None
    assert log.counts() == {VideoFault.UNREADABLE: 1}
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert str(path) in caplog.text and "left out" in caplog.text


@settings(max_examples=30, deadline=None)
@given(content=st.binary(max_size=400))
def test_no_bytes_raise(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "noise.mp4"
    path.write_bytes(content)
    log = FaultLog()
    assert read_clip(path, 0, 1, num_frames=1, size=8, log=log) is None
    assert log.counts() == {VideoFault.UNREADABLE: 1}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), num_bytes=st.integers(1, 60))
def test_bytes_overwritten_in_a_film_never_raise(
    films: dict[str, Path], seed: int, num_bytes: int
) -> None:
    generator = np.random.default_rng(seed)
    content = bytearray(films["start.mp4"].read_bytes())
    for position in generator.integers(0, len(content), num_bytes):
        content[position] = generator.integers(256)
    path = films["start.mp4"].with_name("overwritten.mp4")
    path.write_bytes(content)
    log = FaultLog()
    facts = probe(path, log)
    read = read_clip(path, 0.5, 3.5, num_frames=6, size=16, log=log)
    assert (facts is not None and read is not None) or log.counts()
    tone = read_audio(path, 0.5, 3.5, 8000, log)
    assert tone is None or (tone.shape == (24000,) and np.isfinite(tone).all())


def test_after_a_lost_packet_nothing_is_shown_until_the_next_key_frame(tmp_path: Path) -> None:
    path = film(tmp_path / "whole.mp4", audio=None, gop=8, options={"movflags": "faststart"})
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        lost, content = packets[19], bytearray(path.read_bytes())
        assert lost.pos is not None
        content[lost.pos : lost.pos + lost.size] = b"\xff" * lost.size
    path.write_bytes(content)
    log = FaultLog()
    read = read_clip(path, 0, DURATION_S, mode="fps", fps=FPS, size=16, log=log)
    assert read is not None
    found = numbers(read.frames)
    assert found == [*range(19), *[18] * 5, *range(24, 40)]
    assert log.counts() == {VideoFault.DAMAGED: 1}
    for start_s in (1.75, 2.05, 2.35, 2.45):
        by_seek = clip(path, start_s, start_s + 0.1, num_frames=1)
        assert numbers(by_seek.frames) == [found[int((start_s + 0.05) * FPS + 1e-6)]]


def test_a_missing_file_is_told_of(tmp_path: Path) -> None:
    log = FaultLog()
    assert read_clip(tmp_path / "none.mp4", 0, 1, num_frames=1, size=8, log=log) is None
    assert read_clip(tmp_path, 0, 1, num_frames=1, size=8, log=log) is None
    assert log.counts() == {VideoFault.MISSING: 2}
    assert log.files(VideoFault.MISSING) == (str(tmp_path / "none.mp4"), str(tmp_path))


def test_a_list_of_other_files_is_not_followed(films: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "list.m3u8"
    path.write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/film.ts\n#EXT-X-ENDLIST\n")
    log = FaultLog()
    assert read_clip(path, 0, 1, num_frames=1, size=8, log=log) is None
    assert log.counts() == {VideoFault.UNREADABLE: 1}


def test_a_file_of_sound_alone_has_no_frames(tmp_path: Path) -> None:
    path = tmp_path / "tone.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        assert isinstance(stream, av.AudioStream)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(
            (sine(0, 1, 8000)[None] * 32767).astype(np.int16), "s16", "mono"
        )
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    log = FaultLog()
    assert read_clip(path, 0, 1, num_frames=1, size=8, log=log) is None
    assert log.counts() == {VideoFault.UNREADABLE: 1}
    np.testing.assert_allclose(sound(path, 0.25, 0.75, 8000), sine(0.25, 0.75, 8000), atol=1e-4)


def test_a_film_without_sound_is_told_of(films: dict[str, Path]) -> None:
    log = FaultLog()
    facts = probe(films["silent.mp4"], log)
    assert facts is not None and facts.audio_hz is None
    assert log.counts() == {}, "only who asks for sound misses it"
    assert read_audio(films["silent.mp4"], 0, 1, 8000, log) is None
    assert log.counts() == {VideoFault.NO_AUDIO: 1}


@pytest.mark.parametrize(
    "name", ["h264.mp4", "pcm.mkv", "vp9.webm", "transport.ts", "late.mkv", "late.ts"]
)
@pytest.mark.parametrize("hz", [8000, 16000, 22050])
@pytest.mark.parametrize("window", [(0.0, 1.0), (0.37, 2.61), (1.5, 4.0)])
def test_sound_is_of_its_time(
    films: dict[str, Path], name: str, hz: int, window: tuple[float, float]
) -> None:
    read = sound(films[name], *window, hz)
    tone = sine(*window, hz)
    assert read.shape == tone.shape
    # WebM has ticks of 1 ms, and a window found by seeking is exact to half of one.
    lags = np.arange(-0.5e-3, 0.51e-3, 1 / 16000) if name == "vp9.webm" else np.zeros(1)
    times_s = window[0] + np.arange(len(tone)) / hz
    # AAC cannot follow a tone that sets in at once; what comes 100 ms later is right.
    inner = slice(hz // 10, -hz // 50)
    errors = [
        np.abs(read - 0.5 * np.sin(2 * np.pi * 440 * (times_s + lag)))[inner].max() for lag in lags
    ]
    assert min(errors) < (0.03 if name == "vp9.webm" else 0.005)


def test_padding_of_codecs_is_cut_off(tmp_path: Path) -> None:
    """2.000 s of sound encode to more, which may not be heard."""
    aac = film(tmp_path / "a.mp4", num_frames=40, sound_s=2.0)
    opus = film(tmp_path / "a.webm", video="libvpx-vp9", audio="libopus", hz=48000, sound_s=2.0)
    for path in (aac, opus):
        assert sound(path, 0, 2, 16000).shape == (32000,)
        longer = sound(path, -1, 3, 16000)
        assert longer.shape == (64000,)
        assert np.abs(longer[:15000]).max() < 1e-6
        assert np.abs(longer[17000:47000]).max() > 0.45
        assert np.abs(longer[48200:]).max() < 1e-6
    with av.open(str(aac)) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) > 32000


def test_channels_are_averaged(tmp_path: Path) -> None:
    path = tmp_path / "two.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        assert isinstance(stream, av.AudioStream)
        stream.layout = "stereo"
        tone = sine(0, 1, 8000)
        both = np.stack([tone, np.zeros_like(tone)], axis=1).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray((both * 32767).astype(np.int16), "s16", "stereo")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    np.testing.assert_allclose(sound(path, 0, 1, 8000), tone / 2, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"start_s": 2.0, "end_s": 2.0, "num_frames": 1}, "from 2.0 s to 2.0 s is empty"),
        ({"start_s": 0.0, "end_s": float("nan"), "num_frames": 1}, "nan"),
        ({"num_frames": 0}, "num_frames=0"),
        ({"num_frames": None}, "needs num_frames"),
        ({"num_frames": 2, "fps": 3.0}, "leave it out"),
        ({"mode": "fps"}, "fps=None"),
        ({"mode": "fps", "fps": 0.0}, "fps=0.0"),
        ({"mode": "middle"}, "'middle' is none of uniform, fps"),
        ({"num_frames": 1, "size": 0}, "size=0"),
    ],
)
def test_requests_without_sense_are_refused(
    films: dict[str, Path], options: dict[str, Any], told: str
) -> None:
    request = {"start_s": 0.0, "end_s": 1.0, "size": 8, **options}
    with pytest.raises(DataError, match=told):
        read_clip(films["h264.mp4"], **request)


def test_sound_at_no_rate_is_refused(films: dict[str, Path]) -> None:
    with pytest.raises(DataError, match="hz=0"):
        read_audio(films["h264.mp4"], 0, 1, 0)
