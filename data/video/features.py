"""Features of videos, one vector per second: made by a frozen encoder and kept, or given.

What an encoder makes lies in a folder::

    ENCODER/NAME.npy     float32, (seconds, 512); ENCODER is the encoder's digest
    ENCODER/NAME.json    which file it was made of, and the sha256 of NAME.npy

with ``-single-frame`` behind the digest where all motion was taken out. Both are written whole and
renamed into place, the second last, so that a process that is killed leaves nothing that counts.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import torch

from core.errors import DataError
from core.records import write_whole
from data.video.decoding import probe, read_clip
from data.video.encoder import FPS, SIZE, WIDTH, FrozenEncoder
from data.video.faults import FaultLog, VideoFault
from data.video.records import Corpus, Video

logger = logging.getLogger("tessera")

Features = npt.NDArray[np.float32]

LONGEST_S = 6 * 3600.0
"""Frames of no longer video or clip are taken: those of as much are 1 GB."""

_TOLD = 3
"""How many names of many are told."""

_LONGEST_NAME = 150
"""Characters of a name of a file in the folder; file systems take 255 bytes with what is added."""


@dataclass(frozen=True, slots=True)
class FeatureCache:
    """Features that one encoder made, on disk.

    Attributes:
        folder: Where all encoders' features lie.
        encoder: The encoder.
        single_frame: Whether each second's features are those of one still frame.
    """

    folder: Path
    encoder: FrozenEncoder
    single_frame: bool = False

    def path(self, name: str) -> Path:
        """Where the features of a video are, by the video's name."""
        seen = self.encoder.digest + ("-single-frame" if self.single_frame else "")
        quoted = quote(name, safe=" ")
        if len(quoted) > _LONGEST_NAME:
            quoted = f"{quoted[:80]}-{hashlib.sha256(name.encode()).hexdigest()}"
        return self.folder / seen / f"{quoted}.npy"

    def read(self, name: str, source: Mapping[str, Any]) -> Features | None:
        """What was kept of a video; None where nothing was, or nothing of use, which is told.

        Args:
            name: The video's.
            source: What `source_of` says of its file now.
        """
        path = self.path(name)
        try:
            about = json.loads(path.with_suffix(".json").read_text())
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            logger.warning("%s cannot be read and is made again: %s", path, error)
            return None
        if not isinstance(about, dict) or about.get("source") != dict(source):
            logger.warning("%s was made of another file of that name and is made again", path)
            return None
        if hashlib.sha256(content).hexdigest() != about.get("sha256"):
            logger.warning("%s is damaged and is made again", path)
            return None
        try:
            features = np.load(io.BytesIO(content), allow_pickle=False)
        except (OSError, ValueError) as error:
            logger.warning("%s cannot be read and is made again: %s", path, error)
            return None
        if features.dtype != np.float32 or features.ndim != 2 or features.shape[1] != WIDTH:
            told = f"{features.dtype} {features.shape}"
            logger.warning("%s holds %s and is made again", path, told)
            return None
        return np.asarray(features, np.float32)

    def write(self, name: str, features: Features, source: Mapping[str, Any]) -> None:
        """Keep the features of a video.

        Raises:
            DataError: The folder cannot be written.
        """
        path, content = self.path(name), io.BytesIO()
        np.save(content, features, allow_pickle=False)
        about = {
            "source": dict(source),
            "sha256": hashlib.sha256(content.getvalue()).hexdigest(),
        }
        try:
            write_whole(path, content.getvalue())
            write_whole(path.with_suffix(".json"), (json.dumps(about, indent=2) + "\n").encode())
        except OSError as error:
            raise DataError(
                f"{path} cannot be written: {error}; name another folder for features"
            ) from error


def source_of(path: Path, video: Video) -> dict[str, Any]:
    """What tells a video's file and clip from others, without reading it: size, time of change."""
    facts = path.stat()
    clip = None if video.clip is None else list(video.clip)
    return {"num_bytes": facts.st_size, "changed_ns": facts.st_mtime_ns, "clip": clip}


def features_of(
    corpus: Corpus,
    encoder: FrozenEncoder,
    folder: Path,
    *,
    log: FaultLog,
    single_frame: bool = False,
) -> dict[str, torch.Tensor]:
    """Features of every video of a corpus that can be read.

    What `folder` does not hold yet is decoded, encoded and kept there. Of a video with a clip, only
    that is read, and second 0 is the clip's first.

    Args:
        corpus: Its videos' files are looked for.
        encoder: What makes the features.
        folder: Where features are kept.
        log: Is told of files that cannot be read, which are left out, and of other faults. Of files
            whose features were kept, only whether they are missing.
        single_frame: Show the encoder one still frame of each second instead of moving pictures: a
            baseline for what can be told without motion.

    Returns:
        By name, float32, shape (seconds, 512), in the order of the corpus.

    Raises:
        DataError: None of its videos can be read, or two have one name.
    """
    cache = FeatureCache(folder, encoder, single_frame)
    found: dict[str, torch.Tensor] = {}
    for video in corpus.videos:
        if video.name in found:
            raise DataError(f"corpus {corpus.name} has two videos named {video.name!r}")
        features = _features(cache, corpus.root / video.path, video, log)
        if features is not None:
            found[video.name] = torch.from_numpy(features)
    if corpus.videos and not found:
        raise DataError(
            f"none of the {len(corpus.videos)} videos of corpus {corpus.name} in {corpus.root} can "
            f"be read: {log}"
        )
    return found


def _features(cache: FeatureCache, path: Path, video: Video, log: FaultLog) -> Features | None:
    if not path.is_file():
        log.note(VideoFault.MISSING, path)
        return None
    source = source_of(path, video)
    kept = cache.read(video.name, source)
    if kept is not None:
        return kept
    frames = frames_of(path, video, log)
    if frames is None:
        return None
    features = cache.encoder.encode(frames, single_frame=cache.single_frame)
    cache.write(video.name, features, source)
    return features


def frames_of(path: Path, video: Video, log: FaultLog) -> npt.NDArray[np.uint8] | None:
    """The frames of a video, or of its clip, as encoders take them.

    Args:
        path: Its file.
        video: Its clip is read, or else all of it.
        log: Is told what is wrong with the file.

    Returns:
        uint8, shape (T, 64, 64, 3), 4 a second; None where the file cannot be read.
    """
    facts = probe(path, log)
    if facts is None:
        return None
    start_s, end_s = (0.0, facts.duration_s) if video.clip is None else video.clip
    if end_s - start_s > LONGEST_S:
        told = f"it is to be read for {end_s - start_s:.6g} s; at most {LONGEST_S:g} s are"
        log.note(VideoFault.UNREADABLE, path, told)
        return None
    if start_s >= facts.duration_s > 0:
        told = f"its clip starts at {start_s:g} s and it ends after {facts.duration_s:.2f} s"
        log.note(VideoFault.UNREADABLE, path, told)
        return None
    # Annotations are often in whole seconds.
    if end_s >= facts.duration_s + 1:
        told = f"its clip ends at {end_s:g} s and it ends after {facts.duration_s:.2f} s"
        log.note(VideoFault.TRUNCATED, path, told)
    # What is left of a last second shorter than the time between two frames is no second.
    num_frames = max(1, int((end_s - start_s) * FPS + 1e-6))
    end_s = max(end_s, start_s + 1 / FPS)
    clip = read_clip(
        path, start_s, end_s, mode="fps", fps=FPS, num_frames=num_frames, size=SIZE, log=log
    )
    return None if clip is None else clip.frames


def given_features(folder: Path, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """A user's own features instead of an encoder's: ``NAME.npy``, one row per second.

    Args:
        folder: Where they lie.
        names: Of the videos. Those without a file are left out, which is told.

    Returns:
        By name, float32, shape (seconds, D), one D for all, in the order of `names`.

    Raises:
        DataError: A file is no finite floating-point array of seconds by D with at least one row,
            one has another D than the others, or there is none at all.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; features lie in FOLDER/NAME.npy")
    found: dict[str, torch.Tensor] = {}
    missing: list[str] = []
    first = ""
    for name in names:
        path = folder / f"{name}.npy"
        if not path.is_file():
            missing.append(name)
            continue
        found[name] = torch.from_numpy(_given(path))
        first = first or name
        width, expected = found[name].shape[1], found[first].shape[1]
        if width != expected:
            raise DataError(
                f"{path} has {width} numbers per second and {folder / f'{first}.npy'} has "
                f"{expected}; all videos need features of one kind"
            )
    if not found:
        told = ", ".join(f"{name}.npy" for name in missing[:_TOLD])
        raise DataError(f"{folder} holds features of no video, such as {told or 'NAME.npy'}")
    if missing:
        told = ", ".join(missing[:_TOLD]) + (", ..." if len(missing) > _TOLD else "")
        logger.warning(
            "%d of %d videos have no features in %s and are left out: %s",
            len(missing),
            len(missing) + len(found),
            folder,
            told,
        )
    return found


def _given(path: Path) -> Features:
    try:
        features = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is no array of NumPy that can be read: {error}") from error
    if not isinstance(features, np.ndarray) or not np.issubdtype(features.dtype, np.floating):
        kind = getattr(features, "dtype", "an archive")
        raise DataError(f"{path} holds {kind}; features must be an array of floating point")
    if features.ndim != 2 or 0 in features.shape:
        raise DataError(
            f"{path} has shape {features.shape}; features must have shape (seconds, D), with a "
            "row for each second"
        )
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(features, dtype=np.float32)
    if not np.isfinite(found).all():
        second = int(np.flatnonzero(~np.isfinite(found).all(axis=1))[0])
        raise DataError(f"{path} has a number in second {second} that is no finite float32")
    return found


def tell_of_lengths(videos: Iterable[Video], features: Mapping[str, torch.Tensor]) -> None:
    """Warn of videos whose features are longer or shorter than they are said to be.

    What is told of such a video, by its times, is looked for in the wrong place: the file is
    another cut, or the features are not one a second.

    Args:
        videos: Those without features, or without a length, are passed over.
        features: By name, shape (seconds, D).
    """
    odd: list[str] = []
    num_videos = 0
    for video in videos:
        expected_s = video.duration_s if video.clip is None else video.clip[1] - video.clip[0]
        if expected_s is None or video.name not in features:
            continue
        num_videos += 1
        seconds = len(features[video.name])
        if abs(seconds - expected_s) > 2 + 0.05 * expected_s:
            odd.append(f"{video.name} (features of {seconds} s, said to be {expected_s:.1f} s)")
    if odd:
        logger.warning(
            "%d of %d videos have features of another length than they are said to be, so that "
            "what is told of them is looked for at the wrong time: %s",
            len(odd),
            num_videos,
            ", ".join(odd[:_TOLD]) + (", ..." if len(odd) > _TOLD else ""),
        )
