"""Videos that a client brings itself: told as the federation tells its own, through its encoder.

A client names a folder that a corpus was written or dealt to (``corpus.json``), or ``FORMAT:DIR``
for a copy of a public data set. It trains on the training videos there; those of other splits are
not looked at. Features come from the federation's frozen encoder. Where the federation's were given
by its user, the client's lie in its folder as ``features/NAME.npy``.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from core.errors import DataError
from data.video.encoder import encoder_file, frozen_encoder, told_encoder
from data.video.formats.table import FORMATS, GENERATED, read_corpus
from data.video.records import DESCRIPTION, SPLITS, Corpus
from data.video.shares import GIVEN_FEATURES
from workloads.video.dataset import Clip, VideoDataset
from workloads.video.loading import features_for, seen, stratum_of
from workloads.video.options import ENCODERS, GIVEN, SOURCES, VideoOptions
from workloads.video.text import Vocabulary

log = logging.getLogger("tessera")

_TOLD = 8


@dataclass(frozen=True, slots=True)
class VideoForm:
    """What all clients of a federation agree on.

    Attributes:
        source: What the server calls its own corpus.
        vocabulary: The tokenizer as JSON.
        topics: Of all videos.
        steps: Texts of all steps, in label order.
        recipes: By topic, its steps in their order.
        strata: What videos are counted by, in label order.
        feature_width: Width of a feature (D).
        encoder: Name of the frozen encoder; ``given`` where a user's features take its place.
        encoder_sha256: Its digest; empty where features are given.
        encoder_weights: The file of its weights; likewise.
    """

    source: str
    vocabulary: str
    topics: tuple[str, ...]
    steps: tuple[str, ...]
    recipes: Mapping[str, tuple[str, ...]]
    strata: tuple[str, ...]
    feature_width: int
    encoder: str
    encoder_sha256: str
    encoder_weights: bytes

    @classmethod
    def of(cls, dataset: VideoDataset, options: VideoOptions) -> VideoForm:
        """The form of the server's own videos."""
        clips = [clip for split in SPLITS for clip in dataset.splits[split]]
        encoder, weights = None, b""
        if not options.encoder.startswith(GIVEN):
            encoder = frozen_encoder(options.encoder, _folder(options.cache))
            weights = encoder_file(encoder.name, _folder(options.cache)).read_bytes()
        return cls(
            source=dataset.name,
            vocabulary=dataset.vocabulary.source,
            topics=tuple(sorted({clip.video.topic for clip in clips})),
            steps=dataset.steps,
            recipes=dataset.recipes,
            strata=dataset.class_names,
            feature_width=dataset.feature_width,
            encoder=encoder.name if encoder else _GIVEN,
            encoder_sha256=encoder.digest if encoder else "",
            encoder_weights=weights,
        )

    def to_text(self) -> str:
        """As JSON, weights in base64."""
        weights = base64.b64encode(self.encoder_weights).decode()
        told = {"recipes": dict(self.recipes), "encoder_weights": weights}
        return json.dumps({**dataclasses.asdict(self), **told})

    @classmethod
    def from_text(cls, text: str) -> VideoForm:
        """Read back `to_text`.

        Raises:
            DataError: It is none, or contradicts itself.
        """
        told = "what the federation expects of videos cannot be read"
        try:
            value: dict[str, Any] = json.loads(text)
            form = cls(
                source=str(value["source"]),
                vocabulary=str(value["vocabulary"]),
                topics=_texts(value["topics"]),
                steps=_texts(value["steps"]),
                recipes={str(t): _texts(steps) for t, steps in value["recipes"].items()},
                strata=_texts(value["strata"]),
                feature_width=int(value["feature_width"]),
                encoder=str(value["encoder"]),
                encoder_sha256=str(value["encoder_sha256"]),
                encoder_weights=base64.b64decode(value["encoder_weights"], validate=True),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{told}: {type(error).__name__}: {error}") from error
        if form.encoder not in (*ENCODERS, _GIVEN):
            raise DataError(f"{told}: it has no encoder {form.encoder!r}; install the same Tessera")
        foreign = {s for steps in form.recipes.values() for s in steps} - set(form.steps)
        if foreign or form.feature_width < 1 or not form.strata:
            raise DataError(f"{told}: it contradicts itself")
        return form


_GIVEN = GIVEN.removesuffix(":")


def check_own_videos(source: str) -> None:
    """Refuse what `load_own_videos` would refuse without a video read or the federation known.

    Raises:
        DataError: There is no corpus, it lacks training videos, or the files of all of them.
    """
    corpus = _own_corpus(source)
    if (corpus.root / GIVEN_FEATURES).is_dir():
        return
    if not any((corpus.root / video.path).is_file() for video in corpus.videos):
        first = corpus.root / corpus.videos[0].path
        raise DataError(
            f"{source} holds no file of its {len(corpus.videos)} training videos, such as {first}; "
            "put them below the folder that --data names"
        )


def load_own_videos(source: str, options: VideoOptions, form: VideoForm) -> VideoDataset:
    """A client's videos as the training split of a data set; there are no others.

    Videos that cannot be read are left out and counted.

    Args:
        source: ``DIR`` or ``FORMAT:DIR``.
        options: How videos are seen and dealt; where features are kept.
        form: What the federation expects.

    Raises:
        DataError: As `check_own_videos`; or no video can be read, topics, steps or strata are not
            the federation's, or its encoder is another.
    """
    corpus = _own_corpus(source)
    _refuse_unknown(source, corpus, form)
    strata = _strata(source, corpus, options, form)
    features = seen(_features(source, corpus, options, form), options)
    clips = tuple(
        Clip(dataclasses.replace(video, gold=None), features[video.name])
        for video in corpus.videos
        if video.name in features
    )
    left_out = len(corpus.videos) - len(clips)
    if left_out:
        log.warning("%s: %d of %d videos left out", source, left_out, len(corpus.videos))
    number = {stratum: i for i, stratum in enumerate(form.strata)}
    labels = [number[strata[clip.video.name]] for clip in clips]
    return VideoDataset(
        name=form.source,
        root=corpus.root,
        class_names=form.strata,
        splits=MappingProxyType({"train": clips, "validation": (), "test": ()}),
        strata=torch.tensor(labels, dtype=torch.int64),
        vocabulary=Vocabulary.of_source(form.vocabulary),
        steps=form.steps,
        recipes=form.recipes,
        num_left_out=MappingProxyType({"train": left_out, "validation": 0, "test": 0}),
    )


def _own_corpus(source: str) -> Corpus:
    """The training videos there.

    Raises:
        DataError: There is none, or no corpus.
    """
    name, colon, _ = source.partition(":")
    named = bool(colon) and name in SOURCES
    folder = _folder(source)
    if not named and not (folder / DESCRIPTION).is_file():
        raise DataError(
            f"{source} holds no {DESCRIPTION}; where its annotations are of a public format, say "
            f"which: --data FORMAT:DIR, with one of {', '.join(FORMATS)}"
        )
    corpus = read_corpus(source if named else f"{GENERATED}:{folder}")
    train = corpus.of_split("train")
    if not train:
        raise DataError(
            f"{source} has {len(corpus.videos)} videos and none of its training split, on which a "
            "client trains; name others"
        )
    return dataclasses.replace(corpus, videos=train)


def _refuse_unknown(source: str, corpus: Corpus, form: VideoForm) -> None:
    """Refuse topics and steps that the federation has no number for."""
    topics = {video.topic for video in corpus.videos}
    told = {event.step for video in corpus.videos for event in video.events if event.step}
    listed = {step for topic in topics for step in corpus.recipes.get(topic, ())}
    for what, found, known in (
        ("topic", topics, sorted({*form.topics, *form.recipes})),
        ("step", told | listed, form.steps),
    ):
        if unknown := sorted(found - set(known)):
            raise DataError(
                f"{source} holds the {what}s {_listed(unknown)}, which the federation does not "
                f"have: its {what}s are {_listed(known)}; leave these videos out, or name the "
                f"{what} as the federation does"
            )


def _strata(
    source: str, corpus: Corpus, options: VideoOptions, form: VideoForm
) -> Mapping[str, str]:
    """By a video's name, what it is counted by."""
    key = f"video.strata={options.strata}"
    found = {}
    for video in corpus.videos:
        stratum = stratum_of(video, options)
        if stratum is None:
            raise DataError(
                f"video {video.name} of {source} does not tell how much of its narration is noise, "
                f"by which the federation counts videos ({key}); leave it out"
            )
        found[video.name] = stratum
    if unknown := sorted(set(found.values()) - set(form.strata)):
        raise DataError(
            f"{source} holds videos of {_listed(unknown)}, of which the federation has none to "
            f"train on: it counts {_listed(form.strata)} ({key}); leave these videos out"
        )
    return found


def _features(
    source: str, corpus: Corpus, options: VideoOptions, form: VideoForm
) -> Mapping[str, torch.Tensor]:
    """Features of readable videos, float32, shape (seconds, D), as the federation's are made."""
    if form.encoder == _GIVEN:
        folder = corpus.root / GIVEN_FEATURES
        if not folder.is_dir():
            raise DataError(
                f"{source}: the federation trains on features that its user made, and there is no "
                f"folder {folder}; put there a file NAME.npy for each video, made in the same way"
            )
        encoder = f"{GIVEN}{folder}"
    else:
        encoder = form.encoder
        cache = _folder(options.cache)
        told_encoder(encoder, form.encoder_weights, form.encoder_sha256, cache)
    found = features_for(corpus, dataclasses.replace(options, encoder=encoder))
    width = next(iter(found.values())).shape[1]
    if width != form.feature_width:
        raise DataError(
            f"features of {source} have {width} numbers per second and the federation's have "
            f"{form.feature_width}; make them in the same way"
        )
    return found


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError("a list of texts is none")
    return tuple(value)


def _listed(names: Sequence[str]) -> str:
    told = ", ".join(repr(name) for name in names[:_TOLD])
    return told + (f" and {len(names) - _TOLD} more" if len(names) > _TOLD else "")


def _folder(place: str) -> Path:
    return Path(place).expanduser().resolve()
