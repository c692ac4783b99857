"""Pictures and sound of things that move. Nothing here knows of files, topics or texts.

Things are drawn on a plane of unit size, with ``x`` to the right and ``y`` down. Where a thing is,
how large and how turned at a moment is drawn at random for each event, so that one still frame
tells its colour and shape and not its motion.

==============  ============================================================================
sound           what it tells
==============  ============================================================================
pitch           the colour: from 220 Hz, in steps of a whole tone
harmonics       the shape: how fast the amplitudes of harmonics fall
envelope        the motion: a tremolo of its own rate and depth, swelling or fading
==============  ============================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data.video.records import Box
from data.video.shapestory.world import COLORS, MOTIONS, SHAPES, Thing

Frames = npt.NDArray[np.uint8]
Sound = npt.NDArray[np.float32]

RADIUS = 0.14
SPEED = 0.22
"""Of sliding, rising and falling, in frame widths per second."""
SPIN = 2.4
SHAKE = 0.05
BLINK_HZ = 1.0
GROWTH = 0.35
FIRST_HZ = 220.0
NUM_HARMONICS = 5
GRAIN = 4


@dataclass(frozen=True, slots=True)
class Background:
    """Stripes.

    Attributes:
        color: Their mean colour, 0-255.
        angle: Their direction, radians.
        count: How many fit in a frame.
    """

    color: tuple[int, int, int]
    angle: float
    count: int


@dataclass(frozen=True, slots=True)
class _Place:
    x: float
    y: float
    phase: float
    turn: float
    size: float


def render_event(
    things: Sequence[Thing],
    background: Background,
    *,
    num_frames: int,
    fps: float,
    size: int,
    pace: float,
    generator: np.random.Generator,
) -> tuple[Frames, list[tuple[Box, ...]]]:
    """Draw one event.

    Args:
        things: One or two, each in its own half of the frame.
        background: What is behind them.
        num_frames: Number of frames (T).
        fps: Frames per second.
        size: Width and height in pixels (S).
        pace: How fast things move.
        generator: Draws places, phases and sizes.

    Returns:
        uint8, shape (T, S, S, 3), and of each thing its box in every frame, times from the event's
        start.
    """
    places = [_drawn(thing, i, len(things), generator) for i, thing in enumerate(things)]
    canvas = np.broadcast_to(_stripes(background, size), (num_frames, size, size, 3)).copy()
    tracks: list[list[Box]] = [[] for _ in things]
    for frame in range(num_frames):
        time_s = frame / fps
        for thing, place, track in zip(things, places, tracks, strict=True):
            x, y, radius, angle, opacity = _pose(thing.motion, place, time_s * pace)
            cover = opacity * _coverage(thing.shape, x, y, radius, angle, size)
            color = np.array(COLORS[thing.color], np.float64)
            canvas[frame] += cover[..., None] * (color - canvas[frame])
            reach = radius * (1.0 if thing.shape in ("circle", "ring") else 2**0.5)
            corners = np.clip([x - reach, y - reach, x + reach, y + reach], 0, 1) * size
            track.append(Box(round(time_s, 6), *(round(float(c), 2) for c in corners)))
    return _grainy(canvas, generator), [tuple(track) for track in tracks]


def render_background(
    background: Background, *, num_frames: int, size: int, generator: np.random.Generator
) -> Frames:
    """Nothing happens: uint8, shape (T, S, S, 3)."""
    canvas = np.broadcast_to(_stripes(background, size), (num_frames, size, size, 3))
    return _grainy(canvas, generator)


def random_background(generator: np.random.Generator) -> Background:
    """Stripes as topics have them."""
    color = generator.integers(20, 80, 3).tolist()
    return Background(
        (color[0], color[1], color[2]),
        float(generator.uniform(0, np.pi)),
        int(generator.integers(3, 9)),
    )


def random_clip(
    generator: np.random.Generator, num_frames: int, fps: float, size: int
) -> tuple[Frames, tuple[int, int, int]]:
    """A clip of one thing, drawn evenly, and the indices of its colour, shape and motion.

    For training a frozen encoder on clips that no corpus holds.
    """
    names = list(COLORS), SHAPES, list(MOTIONS)
    factors = tuple(int(generator.integers(len(one))) for one in names)
    thing = Thing(*(one[i] for one, i in zip(names, factors, strict=True)))
    frames, _ = render_event(
        [thing],
        random_background(generator),
        num_frames=num_frames,
        fps=fps,
        size=size,
        pace=float(generator.uniform(0.8, 1.25)),
        generator=generator,
    )
    return frames, (factors[0], factors[1], factors[2])


def sound_of(things: Sequence[Thing], *, duration_s: float, hz: int, pace: float) -> Sound:
    """What an event sounds like, float32, shape (N,), within -1 and 1."""
    time_s = np.arange(round(duration_s * hz)) / hz
    total = np.zeros(len(time_s))
    for thing in things:
        total += _envelope(thing.motion, time_s * pace, duration_s * pace) * _tone(thing, time_s)
    fade = np.minimum(1, np.minimum(time_s, duration_s - time_s) / 0.02)
    return (0.4 / len(things) * np.clip(fade, 0, 1) * total).astype(np.float32)


def pitch_of(color: str) -> float:
    """The pitch of a colour, hertz."""
    return FIRST_HZ * 2 ** (list(COLORS).index(color) / 6)


def _tone(thing: Thing, time_s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    falling = 1.0 + 0.5 * SHAPES.index(thing.shape)
    amplitudes = [n**-falling for n in range(1, NUM_HARMONICS + 1)]
    waves = [
        amplitude * np.sin(2 * np.pi * n * pitch_of(thing.color) * time_s)
        for n, amplitude in enumerate(amplitudes, start=1)
    ]
    total: npt.NDArray[np.float64] = np.sum(waves, axis=0) / sum(amplitudes)
    return total


def _envelope(
    motion: str, time_s: npt.NDArray[np.float64], duration_s: float
) -> npt.NDArray[np.float64]:
    along = time_s / duration_s
    wave = np.sin(2 * np.pi * time_s)
    shapes = {
        "slides-left": 1 - 0.7 * along,
        "slides-right": 0.3 + 0.7 * along,
        "rises": (0.3 + 0.7 * along) * (0.6 + 0.4 * np.sin(2 * np.pi * 2 * time_s)),
        "falls": (1 - 0.7 * along) * (0.6 + 0.4 * np.sin(2 * np.pi * 2 * time_s)),
        "spins": 0.65 + 0.35 * np.sin(2 * np.pi * 3 * time_s),
        "blinks": (wave > 0).astype(np.float64),
        "grows": (0.2 + 0.8 * along) * (0.6 + 0.4 * np.sin(2 * np.pi * 5 * time_s)),
        "shakes": 0.6 + 0.4 * np.sin(2 * np.pi * 9 * time_s),
    }
    found: npt.NDArray[np.float64] = shapes[motion]
    return found


def _drawn(thing: Thing, number: int, count: int, generator: np.random.Generator) -> _Place:
    """Where a thing starts; two things have the upper and the lower half."""
    low, high = (0.2, 0.8) if count == 1 else ((0.2, 0.35), (0.65, 0.8))[number]
    return _Place(
        x=float(generator.uniform(0.2, 0.8)),
        y=float(generator.uniform(low, high)),
        phase=float(generator.uniform(0, 1)),
        turn=float(generator.uniform(0, 2 * np.pi)),
        size=float(generator.uniform(0.8, 1.2)) * RADIUS * (1 if count == 1 else 0.8),
    )


def _pose(motion: str, place: _Place, time_s: float) -> tuple[float, float, float, float, float]:
    """Where a thing is: centre, radius, angle and opacity. What slides out comes in again."""
    x, y, radius, angle, opacity = place.x, place.y, place.size, place.turn, 1.0
    far = SPEED * time_s
    if motion == "slides-left":
        x = (x - far) % 1
    elif motion == "slides-right":
        x = (x + far) % 1
    elif motion == "rises":
        y = (y - far) % 1
    elif motion == "falls":
        y = (y + far) % 1
    elif motion == "spins":
        angle += SPIN * time_s
    elif motion == "blinks":
        opacity = 1.0 if (BLINK_HZ * time_s + place.phase) % 1 < 0.5 else 0.0
    elif motion == "grows":
        radius *= 0.7 + GROWTH * ((time_s + 2 * place.phase) % 2)
    else:
        assert motion == "shakes", motion
        x += SHAKE * np.sin(2 * np.pi * (1.7 * time_s + place.phase))
        y += SHAKE * np.cos(2 * np.pi * (1.3 * time_s + place.phase))
    return x, y, radius, angle, opacity


def _coverage(
    shape: str, x: float, y: float, radius: float, angle: float, size: int
) -> npt.NDArray[np.float64]:
    """How much of each pixel a shape covers, 0 to 1, shape (S, S)."""
    centres = (np.arange(size) + 0.5) / size
    across, down = np.meshgrid(centres - x, centres - y)
    cosine, sine = np.cos(angle), np.sin(angle)
    u, v = (cosine * across + sine * down) / radius, (cosine * down - sine * across) / radius
    far = np.hypot(u, v)
    if shape == "circle":
        # Spinning shows by a notch.
        inside = np.where((np.abs(v) < 0.18) & (u > 0.2), -0.2, 1 - far)
    elif shape == "square":
        inside = 0.9 - np.maximum(np.abs(u), np.abs(v))
    elif shape == "triangle":
        inside = np.minimum(0.5 - v, 0.5 + v / 2 - np.abs(u) * 3**0.5 / 2)
    elif shape == "diamond":
        inside = 0.75 - (np.abs(u) * 0.6 + np.abs(v))
    elif shape == "cross":
        arms = np.minimum(np.abs(u), np.abs(v))
        inside = np.minimum(0.32 - arms, 1 - np.maximum(np.abs(u), np.abs(v)))
    else:
        assert shape == "ring", shape
        inside = np.minimum(1 - far, far - 0.55)
        inside = np.where((np.abs(v) < 0.18) & (u > 0.2), -0.2, inside)
    edge = 1 / (radius * size)
    cover: npt.NDArray[np.float64] = np.clip(inside / edge + 0.5, 0, 1)
    return cover


def _grainy(canvas: npt.NDArray[np.float64], generator: np.random.Generator) -> Frames:
    """Pixels with a grain of a few levels, so that no two frames are the same."""
    grain = generator.integers(-GRAIN, GRAIN + 1, canvas.shape, np.int8)
    pixels: Frames = np.clip(np.rint(canvas) + grain, 0, 255).astype(np.uint8)
    return pixels


def _stripes(background: Background, size: int) -> npt.NDArray[np.float64]:
    """The background, shape (S, S, 3)."""
    centres = (np.arange(size) + 0.5) / size
    across, down = np.meshgrid(centres, centres)
    along = np.cos(background.angle) * across + np.sin(background.angle) * down
    wave = 12 * np.sin(2 * np.pi * background.count * along)
    canvas: npt.NDArray[np.float64] = np.array(background.color, np.float64) + wave[..., None]
    return canvas
