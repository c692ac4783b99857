"""A generated corpus without a file: its records, and features that tell what is seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data.video.records import Corpus, Split, Video
from data.video.shapestory.script import Narrating, Script, write_script
from data.video.shapestory.world import COLORS, MOTIONS, SHAPES, make_world

FPS = 4.0
WIDTH = len(COLORS) + len(SHAPES) + len(MOTIONS)


def features_of(script: Script) -> np.ndarray:
    """One-hot colour, shape and motion of what each second shows in its middle, (seconds, D)."""
    names = [*COLORS, *SHAPES, *MOTIONS]
    rows = np.zeros((round(script.duration_s), WIDTH), np.float32)
    for scene in script.scenes:
        for second in range(len(rows)):
            if scene.span[0] <= second + 0.5 < scene.span[1]:
                for thing in scene.things:
                    for name in (thing.color, thing.shape, thing.motion):
                        rows[second, names.index(name)] = 1
    return rows


def write_corpus(
    root: Path, *, train: int = 20, validation: int = 5, test: int = 5, seed: int = 0
) -> list[str]:
    """Write a corpus's manifest and features; the keys that read them, as ``key=value``."""
    world = make_world(seed)
    videos: list[Video] = []
    folder = root / "features"
    folder.mkdir(parents=True)
    counts: dict[Split, int] = {"train": train, "validation": validation, "test": test}
    for split, count in counts.items():
        for index in range(count):
            script = write_script(world, Narrating(), seed=seed, split=split, index=index, fps=FPS)
            np.save(folder / f"{script.name}.npy", features_of(script))
            videos.append(record_of(script))
    recipes = {topic.name: tuple(step.text for step in topic.steps) for topic in world.topics}
    Corpus(root, "shapestory", tuple(videos), recipes).write()
    return [f"video.source=shapestory:{root}", f"video.encoder=given:{folder}"]


def record_of(script: Script) -> Video:
    """A script as a record, without gold."""
    return Video(
        name=script.name,
        path=f"videos/{script.name}.mp4",
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
    )
