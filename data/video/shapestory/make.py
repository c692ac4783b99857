"""Making a corpus: every video from its script, written whole, in any number of processes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from core.errors import DataError
from core.records import write_whole
from core.seeds import derive_seed, numpy_generator
from data.video.records import (
    DESCRIPTION,
    SPLITS,
    Box,
    Corpus,
    Gold,
    GoldObject,
    Split,
    Video,
)
from data.video.shapestory.encode import Container, encode
from data.video.shapestory.render import (
    Background,
    Frames,
    Sound,
    render_background,
    render_event,
    sound_of,
)
from data.video.shapestory.script import Narrating, Script, name_of, write_script
from data.video.shapestory.world import Topic, make_world

logger = logging.getLogger("tessera")

NAME = "shapestory"
VERSION = 1
SIZES = {"smoke": (24, 8, 8), "standard": (600, 100, 200)}
"""Videos in train, validation and test."""

FPS, SIZE_PX, AUDIO_HZ = 4.0, 64, 8_000
WEBM_EVERY = 10
FADE_FRAMES = 2
IN_THE_MAKING = "making.json"
LONGEST_DELAY_S = 3600
"""More than any video lasts."""
HIGHEST_SNR_DB = 200
"""More than floating point tells apart."""

Oddity = Literal["no-sound", "variable-rate", "rotated", "truncated", "corrupt"]
ODDITIES: tuple[Oddity, ...] = ("no-sound", "variable-rate", "rotated", "truncated", "corrupt")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """All that a corpus is made from.

    Attributes:
        seed: Of everything.
        train: Training videos.
        validation: Validation videos.
        test: Test videos.
        odd_files: Whether the last training videos are odd as files in the wild are: one each of
            `ODDITIES`.
        narrating: How videos are narrated and sound.
    """

    seed: int = 0
    train: int = SIZES["smoke"][0]
    validation: int = SIZES["smoke"][1]
    test: int = SIZES["smoke"][2]
    odd_files: bool = True
    narrating: Narrating = field(default_factory=Narrating)

    def __post_init__(self) -> None:
        """Refuse what cannot be made.

        Raises:
            DataError: Says what.
        """
        least = len(ODDITIES) + 1 if self.odd_files else 1
        rules = [
            (self.train >= least, f"train={self.train}: must be at least {least}"),
            (self.validation >= 1, f"validation={self.validation}: must be at least 1"),
            (self.test >= 1, f"test={self.test}: must be at least 1"),
            (0 <= self.seed < 2**31, f"seed={self.seed}: must be from 0 to {2**31 - 1}"),
            (bool(self.narrating.noise), "narration-noise: must name at least one share"),
            *(
                (0 <= share <= 1, f"narration-noise={share:g}: must be a share from 0 to 1")
                for share in self.narrating.noise
            ),
            *(
                (0 <= value <= 1, f"{name}={value:g}: must be a probability from 0 to 1")
                for name, value in (
                    ("drop", self.narrating.drop),
                    ("swapped-sound", self.narrating.swapped_sound),
                )
            ),
            (
                0 <= self.narrating.delay_std_s <= LONGEST_DELAY_S,
                f"delay-std={self.narrating.delay_std_s:g}: must be from 0 to {LONGEST_DELAY_S} "
                "seconds",
            ),
            (
                abs(self.narrating.delay_mean_s) <= LONGEST_DELAY_S,
                f"delay-mean={self.narrating.delay_mean_s:g}: must be from -{LONGEST_DELAY_S} to "
                f"{LONGEST_DELAY_S} seconds",
            ),
            (
                abs(self.narrating.snr_db) <= HIGHEST_SNR_DB,
                f"snr={self.narrating.snr_db:g}: must be from -{HIGHEST_SNR_DB} to "
                f"{HIGHEST_SNR_DB} decibels",
            ),
        ]
        for holds, rule in rules:
            if not holds:
                raise DataError(rule)

    @property
    def videos(self) -> list[tuple[Split, int]]:
        """Split and number of every video."""
        counts = dict(zip(SPLITS, (self.train, self.validation, self.test), strict=True))
        return [(split, index) for split in SPLITS for index in range(counts[split])]

    def oddity(self, split: Split, index: int) -> Oddity | None:
        """What is odd about a file."""
        place = index - (self.train - len(ODDITIES))
        return ODDITIES[place] if self.odd_files and split == "train" and place >= 0 else None

    def made_with(self) -> dict[str, Any]:
        """As the description tells it."""
        return json.loads(json.dumps({"version": VERSION, **dataclasses.asdict(self)}))  # type: ignore[no-any-return]


def make_corpus(
    recipe: Recipe, root: Path, *, workers: int = 1, made: Callable[[], None] = lambda: None
) -> Corpus:
    """Make a corpus, or finish one that was cut off; files that are there are kept.

    Of a finished one, files that have changed since are made again, which is told.

    Args:
        recipe: What it is made from; the same gives the same bytes.
        root: Its folder.
        workers: Processes.
        made: Called after every video.

    Raises:
        DataError: The folder holds something else, or cannot be written.
    """
    _refuse_other(recipe, root)
    before = _digests(root)
    making = (json.dumps(recipe.made_with(), indent=2) + "\n").encode()
    try:
        write_whole(root / IN_THE_MAKING, making)
    except OSError as error:
        raise DataError(f"{root} cannot be written: {error}; name another folder") from error
    world = make_world(recipe.seed)
    videos = []
    with _mapped(workers) as mapped:
        tasks = [(recipe, root, before.get(name_of(*one), ""), *one) for one in recipe.videos]
        for video in mapped(_make_video, tasks):
            videos.append(video)
            made()
    recipes = {topic.name: tuple(step.text for step in topic.steps) for topic in world.topics}
    about = {
        **recipe.made_with(),
        "held_out": [thing.text for thing in world.held_out],
        "odd": {
            name_of(split, index): oddity
            for split, index in recipe.videos
            if (oddity := recipe.oddity(split, index))
        },
    }
    corpus = Corpus(root, NAME, tuple(videos), recipes, about)
    corpus.write()
    # Another process may be making the same.
    (root / IN_THE_MAKING).unlink(missing_ok=True)
    return corpus


def _refuse_other(recipe: Recipe, root: Path) -> None:
    """Refuse a folder of another corpus, or of none."""
    if root.is_file():
        raise DataError(f"{root} is a file; name a folder")
    ours = recipe.made_with()
    for name in (IN_THE_MAKING, DESCRIPTION):
        path = root / name
        if not path.is_file():
            continue
        try:
            value = json.loads(path.read_text())
            theirs = value["made_with"] if name == DESCRIPTION else value
            same = {key: theirs.get(key) for key in ours} == ours
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            same = False
        if not same:
            raise DataError(
                f"{root} holds a corpus that was made otherwise; name another folder, or remove it"
            )
        return
    if root.is_dir() and any(root.iterdir()):
        raise DataError(f"{root} holds other files; name an empty or a new folder")


def _digests(root: Path) -> dict[str, str]:
    """SHA-256 of every file of a finished corpus by its video's name; else nothing."""
    if not (root / DESCRIPTION).is_file():
        return {}
    try:
        return {video.name: video.sha256 for video in Corpus.read(root).videos}
    except DataError:  # it is written anew
        return {}


@contextmanager
def _mapped(workers: int) -> Iterator[Callable[..., Iterator[Video]]]:
    if workers == 1:
        yield lambda function, arguments: map(function, arguments)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context)
    try:
        yield lambda function, arguments: pool.map(function, arguments, chunksize=4)
    finally:
        pool.shutdown(cancel_futures=True)


def _make_video(which: tuple[Recipe, Path, str, Split, int]) -> Video:
    """Make one video, unless its file is there as it was made; its record in any case."""
    recipe, root, before, split, index = which
    world = make_world(recipe.seed)
    script = write_script(
        world, recipe.narrating, seed=recipe.seed, split=split, index=index, fps=FPS
    )
    container: Container = "webm" if index % WEBM_EVERY == WEBM_EVERY - 1 else "mp4"
    oddity = recipe.oddity(split, index)
    if oddity in ("rotated", "truncated"):
        container = "mp4"
    path = f"videos/{script.topic.name}/{script.name}.{container}"
    seed = derive_seed(recipe.seed, "pictures", split, index)
    frames, tracks = _draw(script, numpy_generator(seed))
    file = root / path
    content = file.read_bytes() if file.is_file() else None
    if content is not None and before not in ("", _sha256(content)):
        logger.warning("%s has changed since it was made and is made again", file)
        content = None
    if content is None:
        noise = numpy_generator(derive_seed(recipe.seed, "sound", split, index))
        sound = _sound(script, recipe.narrating, noise)
        content = _file(frames, sound, container, oddity, numpy_generator(seed))
        write_whole(file, content)
    return _record(script, path, tracks, _sha256(content), has_sound=oddity != "no-sound")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _background(topic: Topic) -> Background:
    return Background(topic.background, *topic.stripes)


def _draw(
    script: Script, generator: np.random.Generator
) -> tuple[Frames, list[tuple[tuple[Box, ...], ...]]]:
    """All frames, uint8, shape (T, S, S, 3), and the boxes of every scene's things."""
    background = _background(script.topic)
    total = round(script.duration_s * FPS)
    frames = render_background(background, num_frames=total, size=SIZE_PX, generator=generator)
    tracks: list[tuple[tuple[Box, ...], ...]] = []
    for scene in script.scenes:
        first, last = round(scene.span[0] * FPS), round(scene.span[1] * FPS)
        drawn, boxes = render_event(
            scene.things,
            background,
            num_frames=last - first,
            fps=FPS,
            size=SIZE_PX,
            pace=script.topic.pace,
            generator=generator,
        )
        if script.fades:
            for step in range(min(FADE_FRAMES, len(drawn))):
                share = (step + 1) / (FADE_FRAMES + 1)
                before = frames[max(0, first - 1)].astype(np.float64)
                mixed = share * drawn[step] + (1 - share) * before
                drawn[step] = np.rint(mixed).astype(np.uint8)
        frames[first:last] = drawn
        moved = (
            tuple(dataclasses.replace(b, time_s=round(b.time_s + scene.span[0], 6)) for b in track)
            for track in boxes
        )
        tracks.append(tuple(moved))
    return frames, tracks


def _sound(script: Script, narrating: Narrating, generator: np.random.Generator) -> Sound:
    """The sound track, float32, shape (N,): events with noise, and silence between them."""
    total = np.zeros(round(script.duration_s * AUDIO_HZ), np.float32)
    for scene in script.scenes:
        start, end = (round(edge * AUDIO_HZ) for edge in scene.span)
        duration_s = scene.span[1] - scene.span[0]
        clean = sound_of(scene.sound, duration_s=duration_s, hz=AUDIO_HZ, pace=script.topic.pace)[
            : end - start
        ]
        power = float(np.mean(clean.astype(np.float64) ** 2))
        noise_std = (power / 10 ** (narrating.snr_db / 10)) ** 0.5
        noisy = clean + generator.normal(0, noise_std, len(clean))
        total[start : start + len(clean)] = np.clip(noisy, -1, 1)
    return total


def _file(
    frames: Frames,
    sound: Sound,
    container: Container,
    oddity: Oddity | None,
    generator: np.random.Generator,
) -> bytes:
    """The video's bytes, odd or not."""
    times_s: list[float] | None = None
    rotation = 0
    if oddity == "variable-rate":
        kept = [0, *(i for i in range(1, len(frames) - 1) if generator.random() < 0.6)]
        kept.append(len(frames) - 1)
        frames, times_s = frames[kept], [i / FPS for i in kept]
    if oddity == "rotated":
        # Stored a quarter turn clockwise, and turned back by the player.
        frames, rotation = np.ascontiguousarray(np.rot90(frames, -1, (1, 2))), 90
    content = encode(
        frames,
        fps=FPS,
        container=container,
        sound=None if oddity == "no-sound" else sound,
        hz=AUDIO_HZ,
        times_s=times_s,
        rotation=rotation,
    )
    if oddity == "truncated":
        return content[: len(content) * 3 // 5]
    if oddity == "corrupt":
        return hashlib.shake_256(content).digest(len(content) // 4)
    return content


def _record(
    script: Script,
    path: str,
    tracks: list[tuple[tuple[Box, ...], ...]],
    sha256: str,
    *,
    has_sound: bool,
) -> Video:
    objects = tuple(
        tuple(
            GoldObject(thing.shape, thing.color, thing.motion, track)
            for thing, track in zip(scene.things, boxes, strict=True)
        )
        for scene, boxes in zip(script.scenes, tracks, strict=True)
    )
    return Video(
        name=script.name,
        path=path,
        split=script.split,
        topic=script.topic.name,
        duration_s=script.duration_s,
        narration=tuple(utterance for utterance, _ in script.narration),
        narration_noise=script.narration_noise,
        events=script.events,
        captions=script.captions,
        paragraph=script.paragraph,
        questions=script.questions,
        moments=script.moments,
        fps=FPS,
        size=(SIZE_PX, SIZE_PX),
        audio_hz=AUDIO_HZ if has_sound else None,
        sha256=sha256,
        gold=Gold(
            objects,
            tuple(scene.parse for scene in script.scenes),
            tuple(alignment for _, alignment in script.narration),
            tuple(scene.span for scene in script.scenes if scene.sound != scene.things),
        ),
    )
