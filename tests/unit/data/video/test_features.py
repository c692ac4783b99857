from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from core.errors import DataError
from data.video import encoder as encoder_module
from data.video import features as features_module
from data.video.encoder import FrozenEncoder, Recipe, encoder_of, frozen_encoder
from data.video.faults import FaultLog, VideoFault
from data.video.features import (
    FeatureCache,
    features_of,
    frames_of,
    given_features,
    tell_of_lengths,
)
from data.video.records import Corpus, Video
from tests.unit.data.video.films import cut, film


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> FrozenEncoder:
    return frozen_encoder("conv3d-random", tmp_path_factory.mktemp("weights"))


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Films of 4.0 s, one of 2.3 s, one cut short, one of noise, and one that is not there."""
    root = tmp_path / "corpus"
    root.mkdir()
    film(root / "long.mp4")
    film(root / "short.mp4", num_frames=23)
    cut(film(root / "whole.mp4", options={"movflags": "faststart"}), root / "cut.mp4", 0.6)
    (root / "noise.mp4").write_bytes(b"noise" * 100)
    names = ("long", "noise", "short", "cut", "gone")
    videos = tuple(Video(name=name, path=f"{name}.mp4", split="train") for name in names)
    return Corpus(root, "films", videos)


def only(corpus: Corpus, *names: str) -> Corpus:
    return dataclasses.replace(
        corpus, videos=tuple(video for video in corpus.videos if video.name in names)
    )


def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a file was decoded")

    monkeypatch.setattr(features_module, "read_clip", fail)


def test_videos_that_can_be_read_have_a_vector_per_second(
    corpus: Corpus, encoder: FrozenEncoder, tmp_path: Path
) -> None:
    log = FaultLog()
    found = features_of(corpus, encoder, tmp_path / "kept", log=log)
    assert list(found) == ["long", "short", "cut"]
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "long": (4, 512),
        "short": (3, 512),
        "cut": (4, 512),
    }
    assert all(value.dtype == torch.float32 for value in found.values())
    assert log.counts() == {
        VideoFault.MISSING: 1,
        VideoFault.UNREADABLE: 1,
        VideoFault.TRUNCATED: 1,
    }


def test_features_are_the_encoders_of_frames_at_four_a_second(
    corpus: Corpus, encoder: FrozenEncoder, tmp_path: Path
) -> None:
    video = corpus.videos[0]
    frames = frames_of(corpus.root / video.path, video, FaultLog())
    assert frames is not None and frames.shape == (16, 64, 64, 3)
    found = features_of(only(corpus, "long"), encoder, tmp_path / "kept", log=FaultLog())
    np.testing.assert_array_equal(found["long"].numpy(), encoder.encode(frames))


def test_of_a_clip_only_that_is_read(
    corpus: Corpus, encoder: FrozenEncoder, tmp_path: Path
) -> None:
    """The clip starts between frames of 4 a second, so that its own times count, not the file's."""
    video = corpus.videos[0]
    clip = dataclasses.replace(video, clip=(1.1, 3.1))
    frames = frames_of(corpus.root / video.path, clip, FaultLog())
    assert frames is not None and len(frames) == 8
    brightness = frames[:, 32, 32].mean(-1)
    expected = [20 + 5 * int((1.1 + k / 4) * 10 + 1e-6) for k in range(8)]
    np.testing.assert_allclose(brightness, expected, atol=2)
    folder = tmp_path / "kept"
    whole = features_of(only(corpus, "long"), encoder, folder, log=FaultLog())["long"]
    part = features_of(
        dataclasses.replace(corpus, videos=(clip,)), encoder, folder, log=FaultLog()
    )["long"]
    assert part.shape == (2, 512)
    np.testing.assert_array_equal(part.numpy(), encoder.encode(frames))
    assert np.abs(whole[1:3].numpy() - part.numpy()).max() > 1e-3


@pytest.mark.parametrize(
    ("clip", "fault", "told", "num_frames"),
    [
        ((4.0, 6.0), VideoFault.UNREADABLE, "its clip starts at 4 s and it ends after 4.00 s", 0),
        ((1.0, 1e300), VideoFault.UNREADABLE, "to be read for 1e+300 s; at most 21600 s", 0),
        ((3.0, 6.0), VideoFault.TRUNCATED, "its clip ends at 6 s and it ends after 4.00 s", 12),
        ((3.0, 4.5), None, "", 6),
    ],
)
def test_clips_that_are_not_in_their_file_are_told_of(
    corpus: Corpus,
    clip: tuple[float, float],
    fault: VideoFault | None,
    told: str,
    num_frames: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    log, video = FaultLog(), dataclasses.replace(corpus.videos[0], clip=clip)
    frames = frames_of(corpus.root / video.path, video, log)
    assert (0 if frames is None else len(frames)) == num_frames
    assert log.counts() == ({fault: 1} if fault else {})
    assert told in caplog.text


def test_a_file_that_says_that_it_lasts_for_days_is_told_of(tmp_path: Path) -> None:
    """Frames for all of that would fill any memory."""
    path = film(tmp_path / "days.mkv", audio=None)
    content = path.read_bytes()
    assert content.count(b"00:00:04.0") == 1
    path.write_bytes(content.replace(b"00:00:04.0", b"99:00:04.0"))
    log = FaultLog()
    assert frames_of(path, Video("days", "days.mkv", "train"), log) is None
    assert log.counts() == {VideoFault.UNREADABLE: 1, VideoFault.TRUNCATED: 1}


def test_what_was_kept_is_not_made_again(
    corpus: Corpus, encoder: FrozenEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some, folder = only(corpus, "long", "short"), tmp_path / "kept"
    first = features_of(some, encoder, folder, log=FaultLog())
    no_decoding(monkeypatch)
    second = features_of(some, encoder, folder, log=FaultLog())
    assert list(second) == list(first)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=0)
    assert sorted(path.name for path in (folder / encoder.digest).iterdir()) == [
        "long.json",
        "long.npy",
        "short.json",
        "short.npy",
    ]
    np.testing.assert_array_equal(np.load(folder / encoder.digest / "long.npy"), first["long"])


def test_another_encoder_and_single_frames_are_kept_apart(
    corpus: Corpus, encoder: FrozenEncoder, tmp_path: Path
) -> None:
    some, folder = only(corpus, "long"), tmp_path / "kept"
    other = encoder_of("other", Recipe(seed=9), tmp_path / "weights")
    moving = features_of(some, encoder, folder, log=FaultLog())["long"]
    still = features_of(some, encoder, folder, log=FaultLog(), single_frame=True)["long"]
    others = features_of(some, other, folder, log=FaultLog())["long"]
    assert (moving != still).any() and (moving != others).any()
    again = features_of(some, encoder, folder, log=FaultLog())["long"]
    torch.testing.assert_close(again, moving, rtol=0, atol=0)
    assert len(list(folder.iterdir())) == 3
    frames = frames_of(corpus.root / "long.mp4", some.videos[0], FaultLog())
    assert frames is not None
    np.testing.assert_array_equal(still.numpy(), encoder.encode(frames, single_frame=True))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("flip", "is damaged"),
        ("cut", "is damaged"),
        ("shape", "holds float32 (4, 3)"),
        ("no-json", None),
        ("torn-json", "cannot be read"),
        ("list-json", "another file"),
    ],
)
def test_what_was_kept_and_is_of_no_use_is_made_again(
    corpus: Corpus,
    encoder: FrozenEncoder,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: str,
    told: str | None,
) -> None:
    some, folder = only(corpus, "long"), tmp_path / "kept"
    first = features_of(some, encoder, folder, log=FaultLog())["long"]
    cache = FeatureCache(folder, encoder)
    path = cache.path("long")
    about = path.with_suffix(".json")
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-100])
    elif damage == "shape":
        source = json.loads(about.read_text())["source"]
        cache.write("long", np.zeros((4, 3), np.float32), source)
    elif damage == "no-json":
        about.unlink()
    else:
        about.write_text("[]" if damage == "list-json" else about.read_text()[:20])
    caplog.clear()
    again = features_of(some, encoder, folder, log=FaultLog())["long"]
    torch.testing.assert_close(again, first, rtol=0, atol=0)
    assert np.load(path).shape == (4, 512)
    assert [told in record.getMessage() for record in caplog.records] == ([True] if told else [])  # type: ignore[operator]


def test_features_of_a_file_that_was_replaced_are_made_again(
    corpus: Corpus, encoder: FrozenEncoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    some, folder = only(corpus, "long"), tmp_path / "kept"
    features_of(some, encoder, folder, log=FaultLog())
    film(corpus.root / "long.mp4", num_frames=20)
    again = features_of(some, encoder, folder, log=FaultLog())["long"]
    assert again.shape == (2, 512)
    assert "another file of that name" in caplog.text


def test_a_video_that_is_gone_is_left_out_though_its_features_were_kept(
    corpus: Corpus, encoder: FrozenEncoder, tmp_path: Path
) -> None:
    some, folder = only(corpus, "long", "short"), tmp_path / "kept"
    features_of(some, encoder, folder, log=FaultLog())
    (corpus.root / "short.mp4").unlink()
    log = FaultLog()
    assert list(features_of(some, encoder, folder, log=log)) == ["long"]
    assert log.counts() == {VideoFault.MISSING: 1}


def test_names_stay_within_the_folder(encoder: FrozenEncoder, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, encoder)
    for name in ("../up", "/etc/x", "a/b", "..", "v_-1.x y"):
        path = cache.path(name)
        assert path.parent == tmp_path / encoder.digest
        assert path.resolve().parent == path.parent
    assert cache.path("v_-1.x y").name == "v_-1.x y.npy"
    features = np.ones((2, 512), np.float32)
    cache.write("a.b/c", features, {"num_bytes": 1})
    cache.write("a.d/c", features * 2, {"num_bytes": 1})
    kept = cache.read("a.b/c", {"num_bytes": 1})
    assert kept is not None
    np.testing.assert_array_equal(kept, features)


def test_a_long_name_is_that_of_a_file_all_the_same(encoder: FrozenEncoder, tmp_path: Path) -> None:
    """Each of these signs is one character, and nine in an address."""
    cache, one, other = FeatureCache(tmp_path, encoder), "猫" * 60, "猫" * 59 + "犬"
    for number, name in enumerate((one, other)):
        cache.write(name, np.full((1, 512), number, np.float32), {})
    for number, name in enumerate((one, other)):
        kept = cache.read(name, {})
        assert kept is not None and (kept == number).all()


def test_a_folder_that_cannot_be_written_is_refused(encoder: FrozenEncoder, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be written.*another folder"):
        FeatureCache(tmp_path / "file", encoder).write("a", np.zeros((1, 512), np.float32), {})
    with pytest.raises(DataError, match=r"cannot be written.*another folder"):
        frozen_encoder("conv3d-random", tmp_path / "file")


def test_an_encoder_that_is_there_is_read_where_no_lock_can_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as in a folder that many machines may read and none may write."""
    made = frozen_encoder("conv3d-random", tmp_path)

    def no_lock(path: Path) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(encoder_module, "FileLock", no_lock)
    assert frozen_encoder("conv3d-random", tmp_path).digest == made.digest
    with pytest.raises(DataError, match="cannot be written"):
        frozen_encoder("conv3d-random", tmp_path / "other")


def test_features_of_another_length_than_the_video_are_told_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    videos = [
        Video("whole", "", "train", duration_s=99.2),
        Video("half", "", "train", duration_s=100.0),
        Video("clip", "", "train", duration_s=500.0, clip=(20.0, 120.0)),
        Video("unknown", "", "train"),
        Video("gone", "", "train", duration_s=5.0),
    ]
    seconds = {"whole": 100, "half": 50, "clip": 100, "unknown": 7}
    features = {name: torch.zeros(number, 2) for name, number in seconds.items()}
    tell_of_lengths(videos, features)
    (told,) = caplog.messages
    assert told.startswith("1 of 3 videos")
    assert told.endswith("half (features of 50 s, said to be 100.0 s)")
    caplog.clear()
    tell_of_lengths([videos[0], videos[2]], features)
    assert not caplog.messages


def test_a_corpus_of_which_nothing_can_be_read_is_refused(
    corpus: Corpus, encoder: FrozenEncoder, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"none of the 2 videos of corpus films.*1 missing, 1 un"):
        features_of(only(corpus, "gone", "noise"), encoder, tmp_path / "kept", log=FaultLog())


def test_two_videos_of_one_name_are_refused(
    corpus: Corpus, encoder: FrozenEncoder, tmp_path: Path
) -> None:
    twice = dataclasses.replace(corpus, videos=(corpus.videos[0],) * 2)
    with pytest.raises(DataError, match="two videos named 'long'"):
        features_of(twice, encoder, tmp_path / "kept", log=FaultLog())


def test_given_features_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    generator = np.random.default_rng(0)
    arrays: dict[str, npt.NDArray[Any]] = {
        "b": generator.normal(size=(3, 7)),
        "a": np.ones((5, 7), np.float16),
    }
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    found = given_features(tmp_path, ["b", "a"])
    assert list(found) == ["b", "a"]
    for name, array in arrays.items():
        assert found[name].dtype == torch.float32
        np.testing.assert_array_equal(found[name].numpy(), array.astype(np.float32))
    assert not caplog.records
    assert list(given_features(tmp_path, ["x", "a", "y"])) == ["a"]
    assert "2 of 3 videos have no features" in caplog.text and "x, y" in caplog.text


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.zeros(4), r"shape \(4,\)"),
        (np.zeros((0, 4)), r"shape \(0, 4\)"),
        (np.zeros((2, 4), np.int64), "int64"),
        (np.array([[1.0, np.nan], [0.0, 0.0]]), "in second 0"),
        (np.array([[1.0, 2.0], [0.0, np.inf]]), "in second 1"),
        (np.array([[1.0, 2.0], [0.0, 1e39]]), "in second 1"),
        (np.array([[{}]], dtype=object), "cannot|can be read"),
        (b"no array", "can be read"),
        (b"", "can be read"),
    ],
)
def test_given_features_that_are_none_are_refused(
    tmp_path: Path, array: npt.NDArray[Any] | bytes, told: str
) -> None:
    path = tmp_path / "a.npy"
    if isinstance(array, bytes):
        path.write_bytes(array)
    else:
        np.save(path, array, allow_pickle=True)
    with pytest.raises(DataError, match=told) as refused:
        given_features(tmp_path, ["a"])
    assert str(path) in str(refused.value)


def test_given_features_of_two_widths_or_of_nothing_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 4)))
    np.save(tmp_path / "b.npy", np.zeros((2, 5)))
    with pytest.raises(DataError, match=r"b\.npy has 5 numbers .*a\.npy has 4"):
        given_features(tmp_path, ["a", "b"])
    with pytest.raises(DataError, match=r"features of no video, such as c\.npy"):
        given_features(tmp_path, ["c"])
    with pytest.raises(DataError, match="there is no folder"):
        given_features(tmp_path / "none", ["a"])
