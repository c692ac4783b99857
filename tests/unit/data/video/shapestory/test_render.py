"""Pictures and sound against what they are said to show."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.seeds import numpy_generator
from data.video.records import Box
from data.video.shapestory.render import (
    Background,
    Frames,
    pitch_of,
    random_background,
    random_clip,
    render_event,
    sound_of,
)
from data.video.shapestory.world import COLORS, MOTIONS, SHAPES, Thing

SIZE, FPS, HZ = 64, 4.0, 8000
DARK = Background((40, 40, 40), 0.0, 4)


def drawn(
    motion: str, *, color: str = "white", shape: str = "square", seed: int = 0
) -> tuple[Frames, list[tuple[Box, ...]]]:
    return render_event(
        [Thing(color, shape, motion)],
        DARK,
        num_frames=16,
        fps=FPS,
        size=SIZE,
        pace=1.0,
        generator=numpy_generator(seed),
    )


def is_white(frames: Frames) -> npt.NDArray[np.bool_]:
    white: npt.NDArray[np.bool_] = frames.min(axis=-1) > 180
    return white


@pytest.mark.parametrize("motion", list(MOTIONS))
@pytest.mark.parametrize("shape", SHAPES)
def test_a_thing_lies_within_its_box_and_reaches_its_edges(motion: str, shape: str) -> None:
    frames, (track,) = drawn(motion, shape=shape)
    for frame, box in zip(frames, track, strict=True):
        down, across = np.nonzero(is_white(frame))
        if not len(across):
            continue
        assert box.x0 - 1 <= across.min() and across.max() + 1 <= box.x1 + 1
        assert box.y0 - 1 <= down.min() and down.max() + 1 <= box.y1 + 1
        # Boxes hold a shape at any turn, so a shape fills at least 40% of each side.
        if box.x0 > 1 and box.x1 < SIZE - 1 and box.y0 > 1 and box.y1 < SIZE - 1:
            assert across.max() - across.min() > 0.4 * (box.x1 - box.x0)
            assert down.max() - down.min() > 0.4 * (box.y1 - box.y0)


@pytest.mark.parametrize(
    ("motion", "axis", "sign"),
    [("slides-left", 0, -1), ("slides-right", 0, 1), ("rises", 1, -1), ("falls", 1, 1)],
)
def test_things_move_as_they_are_told_to(motion: str, axis: int, sign: int) -> None:
    frames, _ = drawn(motion)
    centres = []
    for frame in frames[:4]:
        down, across = np.nonzero(is_white(frame))
        centres.append((across.mean(), down.mean()))
    steps = np.diff(np.array(centres), axis=0)
    middle = np.median(steps, axis=0)
    assert sign * middle[axis] > 1.5
    assert abs(middle[1 - axis]) < 1


def test_what_blinks_is_there_half_of_the_time_and_what_grows_grows() -> None:
    counts = np.array([is_white(frame).sum() for frame in drawn("blinks")[0]])
    assert 0.3 < (counts > 0).mean() < 0.7
    sizes = np.array([is_white(frame).sum() for frame in drawn("grows")[0]])
    assert (np.diff(sizes) > 0).mean() > 0.7


@pytest.mark.parametrize("color", list(COLORS))
def test_a_thing_has_its_colour(color: str) -> None:
    frames, (track,) = drawn("shakes", color=color)
    box = track[0]
    row, column = round((box.y0 + box.y1) / 2), round((box.x0 + box.x1) / 2)
    assert np.abs(frames[0, row, column].astype(int) - COLORS[color]).max() <= 6


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31 - 1))
def test_a_still_frame_does_not_tell_motions_apart(seed: int) -> None:
    """The first frame of an event is the same picture whatever moves next, but for pose."""
    stills = [drawn(m, seed=seed)[0][0] for m in ("slides-left", "slides-right", "rises", "falls")]
    for still in stills[1:]:
        assert np.array_equal(still, stills[0])


@pytest.mark.parametrize("color", list(COLORS))
@pytest.mark.parametrize("shape", SHAPES)
def test_pitch_is_the_colours_and_harmonics_fall_with_the_shape(color: str, shape: str) -> None:
    sound = sound_of([Thing(color, shape, "slides-right")], duration_s=2.0, hz=HZ, pace=1.0)
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
    hertz = np.fft.rfftfreq(len(sound), 1 / HZ)
    assert hertz[spectrum.argmax()] == pytest.approx(pitch_of(color), abs=1)
    time_s = np.arange(len(sound)) / HZ
    first, second = (
        abs(
            np.sum(
                sound * np.hanning(len(sound)) * np.exp(-2j * np.pi * n * pitch_of(color) * time_s)
            )
        )
        for n in (1, 2)
    )
    falling = 1.0 + 0.5 * SHAPES.index(shape)
    assert second / first == pytest.approx(2**-falling, rel=0.05)


def test_motions_sound_different_and_stay_within_bounds() -> None:
    envelopes = {}
    for motion in MOTIONS:
        sound = sound_of([Thing("red", "circle", motion)], duration_s=2.0, hz=HZ, pace=1.0)
        assert sound.dtype == np.float32 and np.abs(sound).max() <= 1
        loudness = np.sqrt((sound.reshape(-1, 200) ** 2).mean(1))
        envelopes[motion] = loudness / np.linalg.norm(loudness)
    names = list(envelopes)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            assert np.linalg.norm(envelopes[one] - envelopes[other]) > 0.25


def test_random_clips_show_their_factors_evenly() -> None:
    generator = numpy_generator(1)
    drawn_factors = [random_clip(generator, 1, FPS, 16)[1] for _ in range(800)]
    for place, names in enumerate((COLORS, SHAPES, MOTIONS)):
        counts = np.bincount([f[place] for f in drawn_factors], minlength=len(names))
        expected = 800 / len(names)
        assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)
    assert random_background(numpy_generator(0)) == random_background(numpy_generator(0))
