"""A client's own videos: told as the federation tells its own, refused where they do not fit."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from core.config import RunConfig, parse_assignments
from core.errors import ConfigError, DataError
from core.tensor_file import read_tensors, write_tensors
from data.video.encoder import RECIPES, encoder_file, encoder_of, frozen_encoder
from data.video.formats.table import FORMATS
from data.video.records import Corpus, Event, Gold, Video
from pairing.configuration import parse_config
from tests.unit.data.video.films import film
from tests.unit.workloads.video.corpora import WIDTH, write_corpus
from workloads.table import open_workload
from workloads.video.dataset import Clip, VideoDataset
from workloads.video.loading import load_videos
from workloads.video.options import VideoOptions
from workloads.video.own import VideoForm, check_own_videos, load_own_videos
from workloads.video.vlm.workload import Vlm

TINY = {
    "workload": "vlm",
    "strategy": "fedavg",
    "partition.clients": "3",
    "vlm.width": "16",
    "vlm.layers": "1",
    "vlm.heads": "2",
    "vlm.feedforward": "16",
}
OPTIONS = VideoOptions()


def config_of(words: list[str], **keys: str) -> RunConfig:
    more = {name.replace("__", ".").replace("_", "-"): value for name, value in keys.items()}
    return parse_config({**TINY, **parse_assignments(words), **more})


@pytest.fixture
def federation(tmp_path: Path) -> Vlm:
    """The server's workload, features given."""
    config = config_of(write_corpus(tmp_path / "server"))
    found = open_workload(config, torch.device("cpu"))
    assert isinstance(found, Vlm)
    return found


@pytest.fixture
def form(federation: Vlm) -> VideoForm:
    return VideoForm.from_text(federation.form())


@pytest.fixture
def mine(tmp_path: Path, federation: Vlm) -> Path:
    """What one client brings: every third training video."""
    write_corpus(tmp_path / "mine")
    return change(tmp_path / "mine", lambda c: dataclasses.replace(c, videos=c.videos[::3]))


def change(root: Path, how: Callable[[Corpus], Corpus]) -> Path:
    how(Corpus.read(root)).write()
    return root


def with_first(root: Path, **fields: object) -> Path:
    """The same, with other fields of its first video."""

    def how(corpus: Corpus) -> Corpus:
        first = dataclasses.replace(corpus.videos[0], **fields)  # type: ignore[arg-type]
        return dataclasses.replace(corpus, videos=(first, *corpus.videos[1:]))

    return change(root, how)


def names(dataset: VideoDataset) -> list[str]:
    return [clip.video.name for clip in dataset.splits["train"]]


def test_videos_are_numbered_and_worded_as_the_federation_does(
    mine: Path, federation: Vlm, form: VideoForm
) -> None:
    found = load_own_videos(str(mine), OPTIONS, form)
    server = federation.dataset
    place = {clip.video.name: i for i, clip in enumerate(server.splits["train"])}
    assert 0 < len(names(found)) < len(place)
    assert names(found) == [v.name for v in Corpus.read(mine).of_split("train")]
    for i, clip in enumerate(found.splits["train"]):
        other = server.splits["train"][place[clip.video.name]]
        assert clip.video == other.video and torch.equal(clip.features, other.features)
        assert found.strata[i] == server.strata[place[clip.video.name]]
    assert found.num_examples == {"train": len(names(found)), "validation": 0, "test": 0}
    for part in ("vocabulary", "steps", "recipes", "class_names", "name", "feature_width"):
        assert getattr(found, part) == getattr(server, part)


@pytest.mark.parametrize("task", ["pretraining", "segmentation", "captioning"])
def test_a_client_makes_the_model_of_the_federation(mine: Path, federation: Vlm, task: str) -> None:
    config = config_of([], vlm__tasks=task)
    client = Vlm(config, Vlm.load_own(config, str(mine), federation.form()), federation.device)
    ours = client.build_model(3).state_dict()
    theirs = dataclasses.replace(federation, config=config).build_model(3).state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_a_client_has_a_vocabulary_of_the_federations_words_alone(
    mine: Path, form: VideoForm
) -> None:
    with_first(mine, captions=("a zebra gallops",))
    vocabulary = load_own_videos(str(mine), OPTIONS, form).vocabulary
    assert vocabulary.source == form.vocabulary
    assert vocabulary.ids("zebra") == [vocabulary.unk]


def test_a_public_format_is_read_as_its_own_folder_is(mine: Path, form: VideoForm) -> None:
    """COIN holds topics and steps; recipes that a share tells in part are the federation's."""
    theirs = load_own_videos(str(mine), OPTIONS, form)
    for path in FORMATS["coin"].export(Corpus.read(mine), mine / "annotations" / "coin"):
        assert path.is_file()
    (mine / "corpus.json").unlink()
    check_own_videos(f"coin:{mine}")
    found = load_own_videos(f"coin:{mine}", OPTIONS, form)
    assert set(names(found)) == set(names(theirs)) and found.recipes == form.recipes
    by_name = {clip.video.name: clip.video for clip in theirs.splits["train"]}
    for clip in found.splits["train"]:
        steps = [event.step for event in clip.video.events]
        assert steps == [event.step for event in by_name[clip.video.name].events]


def test_videos_of_other_splits_are_not_trained_on(mine: Path, form: VideoForm) -> None:
    corpus = Corpus.read(mine)
    others = {video.name for video in corpus.videos if video.split != "train"}
    assert others and not others & set(names(load_own_videos(str(mine), OPTIONS, form)))
    change(
        mine,
        lambda c: dataclasses.replace(c, videos=tuple(v for v in c.videos if v.name in others)),
    )
    for refuse in (
        lambda: check_own_videos(str(mine)),
        lambda: load_own_videos(str(mine), OPTIONS, form),
    ):
        with pytest.raises(DataError, match="none of its training split"):
            refuse()


def test_videos_without_features_are_left_out_and_counted(
    mine: Path, form: VideoForm, caplog: pytest.LogCaptureFixture
) -> None:
    first, *rest = names(load_own_videos(str(mine), OPTIONS, form))
    (mine / "features" / f"{first}.npy").unlink()
    with caplog.at_level(logging.WARNING, "tessera"):
        found = load_own_videos(str(mine), OPTIONS, form)
    assert names(found) == rest and found.num_left_out["train"] == 1
    assert f"1 of {len(rest) + 1} videos left out" in caplog.text


def test_gold_is_left_behind(mine: Path, form: VideoForm) -> None:
    with_first(mine, gold=Gold(swapped_sound=((0.0, 1.0),)))
    assert all(
        c.video.gold is None for c in load_own_videos(str(mine), OPTIONS, form).splits["train"]
    )


def test_nothing_is_seen_where_the_federation_shows_nothing(mine: Path, form: VideoForm) -> None:
    blind = load_own_videos(str(mine), VideoOptions(sight="none"), form)
    assert not any(clip.features.any() for clip in blind.splits["train"])
    assert blind.feature_width == WIDTH


def _a_step(root: Path) -> Path:
    first = Corpus.read(root).videos[0]
    event = dataclasses.replace(first.events[0], step="a grey cube melts")
    return with_first(root, events=(event, *first.events[1:]))


def _a_recipe(root: Path) -> Path:
    def how(corpus: Corpus) -> Corpus:
        topic = corpus.videos[0].topic
        recipe = (*corpus.recipes[topic], "a grey cube melts")
        return dataclasses.replace(corpus, recipes={**corpus.recipes, topic: recipe})

    return change(root, how)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda root: with_first(root, topic="cooking"), "topics 'cooking'.*the federation does"),
        (_a_step, "steps 'a grey cube melts'.*the federation does not have"),
        (_a_recipe, "steps 'a grey cube melts'.*the federation does not have"),
    ],
    ids=["topic", "step", "recipe"],
)
def test_what_the_federation_does_not_know_is_refused_with_what_it_knows(
    mine: Path, form: VideoForm, spoil: Callable[[Path], Path], told: str
) -> None:
    with pytest.raises(DataError, match=told + ".*leave these videos out, or name the"):
        load_own_videos(str(spoil(mine)), OPTIONS, form)


def test_a_topic_that_the_federation_has_for_tests_alone_cannot_be_counted(
    mine: Path, form: VideoForm
) -> None:
    topic = Corpus.read(mine).videos[0].topic
    fewer = dataclasses.replace(form, strata=tuple(s for s in form.strata if s != topic))
    with pytest.raises(DataError, match=f"videos of '{topic}', of which the federation has none"):
        load_own_videos(str(mine), OPTIONS, fewer)


def test_counting_by_narration_needs_videos_that_tell_of_it(mine: Path, tmp_path: Path) -> None:
    words = [f"video.source=shapestory:{tmp_path / 'server'}", "video.strata=narration"]
    options = config_of(
        [*words, f"video.encoder=given:{tmp_path / 'server' / 'features'}"]
    ).section(VideoOptions)
    form = VideoForm.of(load_videos(options), options)
    found = load_own_videos(str(mine), options, form)
    for clip, label in zip(found.splits["train"], found.strata.tolist(), strict=True):
        assert form.strata[label] == f"noise {clip.video.narration_noise:g}"
    with_first(mine, narration_noise=0.77)
    with pytest.raises(DataError, match=r"videos of 'noise 0.77'"):
        load_own_videos(str(mine), options, form)
    with_first(mine, narration_noise=None)
    with pytest.raises(DataError, match="does not tell how much of its narration is noise"):
        load_own_videos(str(mine), options, form)


def test_features_of_another_width_are_refused(mine: Path, form: VideoForm) -> None:
    for path in (mine / "features").iterdir():
        np.save(path, np.load(path)[:, :-1])
    with pytest.raises(DataError, match=f"have {WIDTH - 1} numbers .* have {WIDTH}"):
        load_own_videos(str(mine), OPTIONS, form)


def test_without_the_features_that_a_federation_needs_the_place_is_told(
    mine: Path, form: VideoForm
) -> None:
    shutil.rmtree(mine / "features")
    with pytest.raises(DataError, match=r"no folder .*mine/features; put there a file NAME\.npy"):
        load_own_videos(str(mine), OPTIONS, form)


def with_encoder(form: VideoForm, folder: Path) -> VideoForm:
    """The same federation, of an encoder whose weights it made in `folder`."""
    encoder = frozen_encoder("conv3d-random", folder)
    weights = encoder_file(encoder.name, folder).read_bytes()
    return dataclasses.replace(
        form,
        encoder=encoder.name,
        encoder_sha256=encoder.digest,
        encoder_weights=weights,
        feature_width=WIDTH,
    )


def test_weights_that_are_not_the_told_encoders_are_refused(
    mine: Path, form: VideoForm, tmp_path: Path
) -> None:
    seen = with_encoder(form, tmp_path / "servers")
    cache = tmp_path / "cache"
    for spoilt in (
        {"encoder_sha256": "a" * 64},
        {"encoder_weights": b""},
        {"encoder_weights": seen.encoder_weights[:-1]},
    ):
        with pytest.raises(DataError, match="weights of encoder conv3d-random were told"):
            load_own_videos(
                str(mine),
                VideoOptions(cache=str(cache)),
                dataclasses.replace(seen, **spoilt),
            )
        assert not [path for path in cache.iterdir() if path.suffix != ".lock"]


def test_features_are_made_by_the_federations_encoder_and_no_other(
    mine: Path, form: VideoForm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the configuration names, which is the server's."""
    asked: list[str] = []

    def features_for(corpus: Corpus, options: VideoOptions) -> dict[str, torch.Tensor]:
        asked.append(options.encoder)
        return {video.name: torch.zeros(4, WIDTH) for video in corpus.videos}

    monkeypatch.setattr("workloads.video.own.features_for", features_for)
    seen = with_encoder(form, tmp_path / "servers")
    cache = str(tmp_path / "cache")
    load_own_videos(str(mine), VideoOptions(encoder="conv3d-shapestory", cache=cache), seen)
    load_own_videos(str(mine), VideoOptions(encoder="given:/server"), form)
    assert asked == ["conv3d-random", f"given:{mine / 'features'}"]
    assert frozen_encoder("conv3d-random", tmp_path / "cache").digest == seen.encoder_sha256


def change_weights(path: Path) -> None:
    """As another version of torch might have trained or drawn them."""
    weights, about = read_tensors(path)
    write_tensors(path, {name: 1.01 * value for name, value in weights.items()}, about)


def test_files_are_seen_as_the_federation_sees_its_own_and_broken_ones_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Real files through the server's encoder, whose weights no client could make again."""
    for who in ("server", "client"):
        write_corpus(tmp_path / who, train=3, validation=1, test=1)
        shutil.rmtree(tmp_path / who / "features")
        for i, video in enumerate(Corpus.read(tmp_path / who).videos):
            (tmp_path / who / video.path).parent.mkdir(exist_ok=True)
            film(tmp_path / who / video.path, num_frames=20 + 5 * i)
    words = [f"video.source=shapestory:{tmp_path / 'server'}", "video.encoder=conv3d-random"]
    config = config_of(words, video__cache=str(tmp_path / "servers-cache"))
    encoder_of("conv3d-random", RECIPES["conv3d-random"], tmp_path / "servers-cache")
    change_weights(encoder_file("conv3d-random", tmp_path / "servers-cache"))
    server = open_workload(config, torch.device("cpu"))
    assert isinstance(server, Vlm)
    (tmp_path / "client" / Corpus.read(tmp_path / "client").videos[1].path).write_bytes(b"broken")
    at_client = config_of([], video__cache=str(tmp_path / "state" / "cache"))
    with caplog.at_level(logging.WARNING, "tessera"):
        found = Vlm.load_own(at_client, str(tmp_path / "client"), server.form())
    theirs = server.dataset.splits["train"]
    for clip, other in zip(found.splits["train"], (theirs[0], theirs[2]), strict=True):
        assert clip.video == other.video and torch.equal(clip.features, other.features)
    assert found.num_left_out["train"] == 1
    assert "is unreadable" in caplog.text and "1 of 3 videos left out" in caplog.text
    assert (tmp_path / "state" / "cache").is_dir()


@pytest.mark.parametrize("what", ["missing", "empty", "file", "unknown format", "no files"])
def test_a_place_without_videos_is_refused_at_once(mine: Path, tmp_path: Path, what: str) -> None:
    source = str(tmp_path / what)
    if what == "empty":
        Path(source).mkdir()
    if what == "file":
        Path(source).write_text("video")
    if what == "unknown format":
        source = f"kinetics:{mine}"
    if what == "no files":
        shutil.rmtree(mine / "features")
        source = str(mine)
    with pytest.raises(DataError, match=r"--data"):
        check_own_videos(source)


def test_one_file_is_enough_to_join(mine: Path) -> None:
    shutil.rmtree(mine / "features")
    file = mine / Corpus.read(mine).of_split("train")[0].path
    file.parent.mkdir()
    file.write_bytes(b"")
    check_own_videos(str(mine))


def test_videos_on_which_no_task_finds_anything_are_refused(mine: Path, federation: Vlm) -> None:
    def silent(video: Video) -> Video:
        return dataclasses.replace(
            video, questions=(), events=tuple(Event(event.span) for event in video.events)
        )

    change(
        mine, lambda c: dataclasses.replace(c, videos=tuple(silent(video) for video in c.videos))
    )
    config = config_of(["vlm.tasks=question-answering"])
    with pytest.raises(DataError, match=r"vlm\.tasks=question-answering could be trained on"):
        Vlm.load_own(config, str(mine), federation.form())


def test_the_form_of_a_federation_survives_the_wire(federation: Vlm, form: VideoForm) -> None:
    assert VideoForm.from_text(form.to_text()) == form
    assert form == VideoForm.of(federation.dataset, federation.config.section(VideoOptions))
    assert form.encoder == "given" and form.encoder_sha256 == "" and form.encoder_weights == b""
    for weights in (b"\x00\xff", b"x" * 1000):
        told = dataclasses.replace(form, encoder_weights=weights)
        assert VideoForm.from_text(told.to_text()) == told
    assert set(form.recipes) >= {clip.video.topic for clip in federation.dataset.splits["test"]}


def test_a_form_tells_nothing_of_where_the_servers_files_lie(
    federation: Vlm, tmp_path: Path
) -> None:
    assert str(tmp_path) not in federation.form()


@pytest.mark.parametrize(
    "spoilt",
    [
        {"steps": "abc"},
        {"steps": []},
        {"strata": []},
        {"recipes": [1]},
        {"recipes": {"a": ["nowhere"]}},
        {"feature_width": 0},
        {"feature_width": "x"},
        {"encoder": "s3d"},
        {"encoder": "given:/etc"},
        {"encoder_weights": "?"},
        {"encoder_weights": 7},
        {"topics": None},
    ],
)
def test_a_form_that_makes_no_sense_is_refused(form: VideoForm, spoilt: dict[str, object]) -> None:
    text = json.dumps({**json.loads(form.to_text()), **spoilt})
    with pytest.raises(DataError, match="expects of videos cannot be read"):
        VideoForm.from_text(text)
    with pytest.raises(DataError, match="expects of videos cannot be read"):
        VideoForm.from_text("no json")


def test_what_is_dealt_is_what_clients_hold(
    federation: Vlm, form: VideoForm, tmp_path: Path
) -> None:
    train = federation.dataset.splits["train"]
    dealt = [np.arange(0, len(train), 2), np.arange(1, len(train), 2), np.zeros(0, np.int64)]
    for _ in range(2):  # and again
        places = federation.write_shares(dealt, tmp_path / "dealt")
        assert [place.name for place in places] == ["client-0", "client-1", "client-2"]
        for place, indices in zip(places[:2], dealt, strict=False):
            check_own_videos(str(place))
            found = load_own_videos(str(place), OPTIONS, form)
            assert names(found) == [train[i].video.name for i in indices]
            for clip, i in zip(found.splits["train"], indices, strict=True):
                assert torch.equal(clip.features, train[i].features)
                assert clip.video == train[i].video
            assert torch.equal(found.strata, federation.dataset.strata[torch.from_numpy(indices)])


def test_times_of_a_clip_are_the_same_at_the_client_that_it_is_dealt_to(
    federation: Vlm, form: VideoForm, tmp_path: Path
) -> None:
    """They are told by the file's start on disk, and by the clip's in memory: moved once each."""
    plain = federation.dataset.splits["train"]
    train = tuple(
        Clip(dataclasses.replace(clip.record, clip=(3.0, 60.0)), clip.features) for clip in plain
    )
    splits = {**federation.dataset.splits, "train": train}
    dataset = dataclasses.replace(federation.dataset, splits=splits)
    (place,) = dataclasses.replace(federation, dataset=dataset).write_shares(
        [np.arange(len(train))], tmp_path / "dealt"
    )
    found = load_own_videos(str(place), OPTIONS, form).splits["train"]
    assert [clip.video for clip in found] == [clip.video for clip in train]
    assert found[0].video.events != plain[0].video.events


@pytest.mark.parametrize("part", ["encoder", "lm", "encoder.embeddings"])
@pytest.mark.parametrize("group", ["personal", "frozen"])
def test_what_bert_fills_reaches_every_client_that_brings_its_own(
    federation: Vlm, part: str, group: str
) -> None:
    model = federation.build_model(0)
    own = config_of(["partition.scheme=own", "vlm.bert=/server/bert", f"groups.{group}={part}"])
    with pytest.raises(ConfigError, match=rf"fills {part}.*leave one of both out"):
        dataclasses.replace(federation, config=own).groups(model)
    for words in (["partition.scheme=own", "vlm.bert=/server/bert"], [f"groups.{group}={part}"]):
        dataclasses.replace(federation, config=config_of(words)).groups(model)
