"""From the ``video`` section to a data set: records, frozen features, strata and a vocabulary."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch

from core.errors import ConfigError, DataError, Problem
from data.video.encoder import frozen_encoder
from data.video.faults import FaultLog
from data.video.features import features_of, given_features, tell_of_lengths
from data.video.formats.table import read_corpus
from data.video.records import SPLITS, Corpus, Video
from data.video.splits import with_all_splits
from workloads.video.dataset import VideoDataset, dataset_of
from workloads.video.options import GIVEN, VideoOptions
from workloads.video.text import Vocabulary

logger = logging.getLogger("tessera")


def load_videos(options: VideoOptions, vocabulary: Vocabulary | None = None) -> VideoDataset:
    """Read the corpus and its features. Splits that it lacks are held out of its training videos.

    Args:
        options: The ``video`` section.
        vocabulary: What texts are made of; None makes one of the training videos' words.

    Raises:
        DataError: The corpus or its features are missing or unfit.
        ConfigError: Strata are asked for that the corpus does not tell.
    """
    as_published = read_corpus(options.source)
    features = seen(features_for(as_published, options), options)
    corpus = with_all_splits(as_published, features)
    missing = [split for split in SPLITS if not _of_split(corpus, features, split)]
    if missing:
        raise DataError(
            f"video.source={options.source} holds no readable {missing[0]} video; each of "
            f"{', '.join(SPLITS)} needs some; see to its files, or take its list out of the "
            "annotations, so that videos are held out for it"
        )
    return dataset_of(
        corpus,
        features,
        name=options.source.partition(":")[0],
        stratum_of=_strata(corpus, options),
        vocabulary=vocabulary,
    )


def features_for(corpus: Corpus, options: VideoOptions) -> Mapping[str, torch.Tensor]:
    """Frozen features of every readable video, float32, shape (seconds, D)."""
    features = _features(corpus, options)
    tell_of_lengths(corpus.videos, features)
    return features


def _features(corpus: Corpus, options: VideoOptions) -> Mapping[str, torch.Tensor]:
    if options.encoder.startswith(GIVEN):
        folder = Path(options.encoder.removeprefix(GIVEN)).expanduser()
        return given_features(folder, [video.name for video in corpus.videos])
    cache = Path(options.cache).expanduser()
    encoder = frozen_encoder(options.encoder, cache)
    single = options.seen == "single-frame"
    log = FaultLog()
    features = features_of(corpus, encoder, cache, log=log, single_frame=single)
    if log.counts():
        logger.warning("%s: files that are not as they should be: %s", options.source, log)
    return features


def seen(features: Mapping[str, torch.Tensor], options: VideoOptions) -> Mapping[str, torch.Tensor]:
    """Zeros of the same shapes, where nothing is to be seen of a video."""
    if options.seen != "none":
        return features
    return {name: torch.zeros_like(value) for name, value in features.items()}


def _of_split(corpus: Corpus, features: Mapping[str, torch.Tensor], split: str) -> bool:
    return any(video.split == split and video.name in features for video in corpus.videos)


def _strata(corpus: Corpus, options: VideoOptions) -> dict[str, str]:
    """What partitioners deal each training video by."""
    found = {}
    for video in corpus.of_split("train"):
        stratum = stratum_of(video, options)
        if stratum is None:
            rule = f"video.source={options.source} does not tell how much of a narration is noise"
            raise ConfigError([Problem("video.strata", options.strata, rule + "; deal by topic")])
        found[video.name] = stratum
    return found


def stratum_of(video: Video, options: VideoOptions) -> str | None:
    """What a training video is dealt and counted by; None where it does not tell."""
    if options.strata == "topic":
        return video.topic or "no topic"
    return None if video.narration_noise is None else f"noise {video.narration_noise:g}"
