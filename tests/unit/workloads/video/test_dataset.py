"""Data sets of videos: what they hold, what they are known by, and what never reaches them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from core.config import PartitionConfig
from core.errors import ConfigError, DataError
from data.partitioners import load_or_make_partition
from data.video.faults import FaultLog, VideoFault
from data.video.records import (
    Alignment,
    Box,
    Corpus,
    Gold,
    GoldObject,
    Parse,
    Question,
    Utterance,
    Video,
)
from pairing.configuration import parse_config
from tests.unit.workloads.video.corpora import write_corpus
from tests.unit.workloads.video.handmade import clip_of, dataset_with
from workloads.video import loading
from workloads.video.dataset import Clip, VideoDataset, on_device, texts_of
from workloads.video.loading import load_videos
from workloads.video.options import VideoOptions
from workloads.video.vlm.segmentation import step_of_seconds

GOLD = Gold(
    objects=((GoldObject("square", "red", "spins", (Box(0.0, 1.0, 2.0, 3.0, 4.0),)),),),
    parses=(Parse(("a",), ("DET",), (0,), ("root",)),),
    alignments=(Alignment(0, True, 0.5),),
    swapped_sound=((0.0, 1.0),),
)


def options_of(keys: list[str], **more: str) -> VideoOptions:
    flat = dict(key.split("=", 1) for key in keys)
    config = parse_config(
        {
            "strategy": "fedavg",
            "workload": "vlm",
            **flat,
            **{f"video.{name}": value for name, value in more.items()},
        }
    )
    return config.section(VideoOptions)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "made", train=12)


@pytest.fixture(scope="module")
def loaded(keys: list[str]) -> VideoDataset:
    return load_videos(options_of(keys))


def root_of(keys: list[str]) -> Path:
    return Path(keys[0].partition(":")[2])


def test_gold_never_reaches_a_data_set(
    keys: list[str], loaded: VideoDataset, tmp_path: Path
) -> None:
    """The same corpus with all that its generator knows is the same data set, to the bit."""
    plain = Corpus.read(root_of(keys))
    told = tuple(dataclasses.replace(video, gold=GOLD) for video in plain.videos)
    dataclasses.replace(plain, root=tmp_path, videos=told).write()
    assert Corpus.read(tmp_path).videos[0].gold == GOLD
    found = load_videos(options_of([f"video.source=shapestory:{tmp_path}", keys[1]]))
    assert found.sha256() == loaded.sha256()
    everything = torch.arange(12)
    assert torch.equal(found.content(everything)[0], loaded.content(everything)[0])
    for split in found.splits:
        pairs = zip(found.splits[split], loaded.splits[split], strict=True)
        for clip, same in pairs:
            assert clip.video == same.video and clip.video.gold is None
            assert torch.equal(clip.features, same.features)
    assert found.vocabulary == loaded.vocabulary
    with pytest.raises(AssertionError, match="gold"):
        Clip(told[0], loaded.splits["train"][0].features)


def test_splits_and_strata_are_those_of_the_records(keys: list[str], loaded: VideoDataset) -> None:
    corpus = Corpus.read(root_of(keys))
    assert loaded.num_examples == {"train": 12, "validation": 5, "test": 5}
    for split in ("train", "validation", "test"):
        names = [clip.video.name for clip in loaded.splits[split]]
        assert names == [video.name for video in corpus.videos if video.split == split]
    topics = [loaded.class_names[label] for label in loaded.train_labels.tolist()]
    assert topics == [clip.video.topic for clip in loaded.splits["train"]]
    assert list(loaded.class_names) == sorted(set(topics))
    assert loaded.recipes == corpus.recipes and loaded.root == root_of(keys)
    assert list(loaded.steps) == sorted({s for steps in corpus.recipes.values() for s in steps})
    assert loaded.name == "shapestory" and not any(loaded.num_left_out.values())


def test_videos_are_dealt_by_the_noise_of_their_narration(
    keys: list[str], loaded: VideoDataset
) -> None:
    found = load_videos(options_of(keys, strata="narration"))
    noises = [clip.video.narration_noise for clip in found.splits["train"]]
    names = [found.class_names[label] for label in found.train_labels.tolist()]
    assert names == [f"noise {noise:g}" for noise in noises] and len(set(names)) > 1
    assert found.sha256() == loaded.sha256()


def test_strata_that_the_corpus_does_not_tell_are_refused(keys: list[str], tmp_path: Path) -> None:
    corpus = Corpus.read(root_of(keys))
    first = dataclasses.replace(corpus.videos[0], narration_noise=None)
    dataclasses.replace(corpus, root=tmp_path, videos=(first, *corpus.videos[1:])).write()
    with pytest.raises(ConfigError, match="does not tell how much of a narration is noise"):
        load_videos(
            options_of([f"video.source=shapestory:{tmp_path}", keys[1]], strata="narration")
        )


def test_videos_without_a_topic_are_of_one_stratum(keys: list[str], tmp_path: Path) -> None:
    corpus = Corpus.read(root_of(keys))
    bare = tuple(dataclasses.replace(video, topic="") for video in corpus.videos)
    dataclasses.replace(corpus, root=tmp_path, videos=bare).write()
    found = load_videos(options_of([f"video.source=shapestory:{tmp_path}", keys[1]]))
    assert found.class_names == ("no topic",) and found.train_labels.tolist() == [0] * 12


def some_features(keys: list[str], folder: Path, left_out: set[str]) -> str:
    """Features of all but some videos; the key that reads them."""
    folder.mkdir()
    for path in Path(keys[1].partition("given:")[2]).iterdir():
        if path.stem not in left_out:
            (folder / path.name).write_bytes(path.read_bytes())
    return f"video.encoder=given:{folder}"


def test_videos_that_cannot_be_read_are_left_out_and_counted(
    keys: list[str], loaded: VideoDataset, tmp_path: Path
) -> None:
    lost = [*loaded.splits["train"][:2], loaded.splits["test"][3]]
    encoder = some_features(keys, tmp_path / "some", {clip.video.name for clip in lost})
    found = load_videos(options_of([keys[0], encoder]))
    assert dict(found.num_left_out) == {"train": 2, "validation": 0, "test": 1}
    assert found.num_examples == {"train": 10, "validation": 5, "test": 4}
    kept = [clip.video.name for clip in loaded.splits["train"][2:]]
    assert [clip.video.name for clip in found.splits["train"]] == kept
    assert len(found.train_labels) == 10


def test_a_split_of_which_no_video_can_be_read_is_refused(
    keys: list[str], loaded: VideoDataset, tmp_path: Path
) -> None:
    lost = {clip.video.name for clip in loaded.splits["validation"]}
    encoder = some_features(keys, tmp_path / "some", lost)
    with pytest.raises(DataError, match="holds no readable validation video"):
        load_videos(options_of([keys[0], encoder]))


def test_a_data_set_published_without_a_split_drops_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """COIN has no validation videos."""
    annotation = [{"id": "1", "label": "boil", "segment": [1.0, 3.0]}]
    entry = {"class": "Tea", "duration": 4.0, "annotation": annotation}
    subsets = {f"v{i}": "training" if i < 20 else "testing" for i in range(25)}
    database = {name: {**entry, "subset": subset} for name, subset in subsets.items()}
    (tmp_path / "COIN.json").write_text(json.dumps({"database": database}))
    (tmp_path / "features").mkdir()
    for name in subsets:
        np.save(tmp_path / "features" / f"{name}.npy", np.eye(4))
    keys = [f"video.source=coin:{tmp_path}", f"video.encoder=given:{tmp_path}/features"]
    found = load_videos(options_of(keys))
    assert found.num_examples == {"train": 18, "validation": 2, "test": 5}
    assert len(found.train_labels) == 18
    assert "2 of 20 training videos are for validation" in caplog.text
    assert load_videos(options_of(keys)).sha256() == found.sha256()


def test_nothing_is_seen_of_a_video_where_sight_is_none(
    keys: list[str], loaded: VideoDataset
) -> None:
    blind = load_videos(options_of(keys, sight="none"))
    for clip, seen in zip(blind.splits["train"], loaded.splits["train"], strict=True):
        assert clip.features.shape == seen.features.shape and not clip.features.any()
        assert seen.features.any() and clip.video == seen.video
    assert blind.sha256() != loaded.sha256()


def test_the_digest_is_of_features_texts_recipes_and_vocabulary() -> None:
    plain = clip_of(topic="tea", captions=("a red square",))
    recipes = {"tea": ("boil", "pour")}
    base = dataset_with([plain], recipes)
    assert base.sha256() == dataset_with([plain], recipes).sha256()
    moved = Clip(plain.video, plain.features + torch.eye(6))
    told = Clip(dataclasses.replace(plain.video, captions=("a blue square",)), plain.features)
    others = [
        dataset_with([moved], recipes),
        dataset_with([told], recipes, vocabulary=base.vocabulary),
        dataset_with([plain], {"tea": ("pour", "boil")}, vocabulary=base.vocabulary),
        dataset_with([plain], recipes, vocabulary=dataset_with([told]).vocabulary),
    ]
    assert len({base.sha256(), *(other.sha256() for other in others)}) == 5


def test_content_is_one_digest_for_each_video(loaded: VideoDataset) -> None:
    (rows,) = loaded.content(torch.tensor([3, 0, 3]))
    assert rows.shape == (3, 32) and rows.dtype == torch.uint8
    assert torch.equal(rows[0], rows[2]) and not torch.equal(rows[0], rows[1])
    assert loaded.content(torch.tensor([], dtype=torch.int64))[0].shape == (0, 32)


def test_a_vocabulary_is_of_training_videos_alone() -> None:
    clips = [
        clip_of(seed=1, captions=("seen",)),
        clip_of(seed=2, split="test", captions=("hidden",)),
        clip_of(seed=3, split="validation", captions=("held",)),
    ]
    words = dataset_with(clips).vocabulary
    assert words.unk not in words.ids("seen")
    assert words.ids("hidden held") == [words.unk] * 2


def test_every_text_of_a_video_is_told() -> None:
    video = Video(
        name="one",
        path="one.mp4",
        split="train",
        topic="tea",
        narration=(Utterance((0, 1), "said"),),
        captions=("whole",),
        paragraph="in order",
        questions=(Question("what", "this", ("this", "that")),),
    )
    found = texts_of(video, {"tea": ("boil",), "coffee": ("grind",)})
    assert sorted(found) == sorted(
        ["said", "whole", "in order", "what", "this", "this", "that", "boil"]
    )


def test_examples_are_whole_videos(loaded: VideoDataset) -> None:
    clips = loaded.splits["train"][:3]
    examples = on_device(clips, torch.device("cpu"))
    assert len(examples) == 3
    assert examples.num_bytes == sum(4 * clip.features.numel() for clip in clips)
    assert [clip.video for clip in examples.clips] == [clip.video for clip in clips]
    assert loaded.feature_width == clips[0].features.shape[1]
    assert np.isfinite(clips[0].features.numpy()).all()


@pytest.mark.parametrize(("sight", "single"), [("full", False), ("single-frame", True)])
def test_features_are_made_by_the_configured_encoder(
    keys: list[str], sight: str, single: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder's weights and what it makes lie in one folder, at home where it says so."""
    asked: dict[str, object] = {}

    def frozen_encoder(name: str, folder: Path) -> str:
        asked.update(name=name, weights=folder)
        return "the encoder"

    def features_of(
        corpus: Corpus, encoder: str, folder: Path, *, log: FaultLog, single_frame: bool
    ) -> dict[str, torch.Tensor]:
        asked.update(encoder=encoder, folder=folder, single=single_frame)
        return {video.name: torch.ones(4, 3) for video in corpus.videos}

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(loading, "frozen_encoder", frozen_encoder)
    monkeypatch.setattr(loading, "features_of", features_of)
    options = options_of(keys[:1], encoder="conv3d-random", cache="~/kept", sight=sight)
    assert load_videos(options).feature_width == 3
    assert asked == {
        "name": "conv3d-random",
        "weights": tmp_path / "kept",
        "encoder": "the encoder",
        "folder": tmp_path / "kept",
        "single": single,
    }


def test_faults_of_files_are_counted_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def made(
        corpus: Corpus, encoder: object, folder: Path, *, log: FaultLog, **_: object
    ) -> object:
        for name in ("a.mp4", "b.mp4"):
            log.note(VideoFault.UNREADABLE, folder / name)
        log.note(VideoFault.ROTATED, folder / "c.mp4")
        return {}

    monkeypatch.setattr(loading, "features_of", made)
    monkeypatch.setattr(loading, "frozen_encoder", lambda name, folder: None)
    options = VideoOptions(source="shapestory:here", cache=str(tmp_path))
    assert loading.features_for(Corpus(tmp_path, "corpus", ()), options) == {}
    assert "2 unreadable, 1 rotated" in caplog.messages[-1]


def test_what_is_told_of_a_clip_is_told_by_its_features_seconds(tmp_path: Path) -> None:
    """COIN's tasks start within their videos; row 0 is of their first second, not of the file's."""
    annotation = [{"id": "1", "label": "boil", "segment": [12.0, 14.0]}]
    entry = {"class": "Tea", "duration": 40.0, "start": 10.0, "end": 16.0, "annotation": annotation}
    subsets = {"a": "training", "b": "validation", "c": "testing"}
    database = {name: {**entry, "subset": subset} for name, subset in subsets.items()}
    (tmp_path / "COIN.json").write_text(json.dumps({"database": database}))
    (tmp_path / "features").mkdir()
    for name in subsets:
        np.save(tmp_path / "features" / f"{name}.npy", np.eye(6))
    found = load_videos(
        options_of([f"video.source=coin:{tmp_path}", f"video.encoder=given:{tmp_path}/features"])
    )
    (clip,) = found.splits["train"]
    assert step_of_seconds(clip) == ["", "", "boil", "boil", "", ""]
    assert clip.record.events[0].span == (12.0, 14.0)
    (moved,) = on_device([clip], torch.device("cpu")).clips
    assert moved.video == clip.video and moved.record == clip.record


def test_records_of_one_file_are_dealt_to_one_client(tmp_path: Path) -> None:
    """CrossTask lists some videos under several tasks; so do clips of one file belong together."""
    plain = [clip_of(seed=seed, topic="tea") for seed in range(12)]
    clips = [
        Clip(
            dataclasses.replace(
                clip.record, name=f"r{i}", path=f"f{i // 3}.mp4", clip=(10.0 * (i % 3), 60.0)
            ),
            clip.features,
        )
        for i, clip in enumerate(plain)
    ]
    dataset = dataset_with(clips)
    assert dataset.train_units.tolist() == [i // 3 for i in range(12)]
    config = PartitionConfig(scheme="iid", clients=2, min_examples=1)
    partition = load_or_make_partition(dataset, config, seed=0)
    files = [{i // 3 for i in mine.tolist()} for mine in partition.clients]
    assert not files[0] & files[1] and [len(mine) for mine in partition.clients] == [6, 6]
    swapped = (np.arange(5), np.arange(5, 12))
    counts = np.array([[5], [7]])
    file = tmp_path / "partition.json"
    dataclasses.replace(partition, clients=swapped, class_counts=counts).write(file)
    with pytest.raises(DataError, match="it divides 1 units of examples that belong together"):
        load_or_make_partition(dataset, dataclasses.replace(config, file=str(file)), seed=0)
