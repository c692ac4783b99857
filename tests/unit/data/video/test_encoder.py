from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from core.errors import DataError
from core.seeds import derive_seed, seeded_globals
from core.tensor_file import read_tensors, write_tensors
from data.video.encoder import (
    FACTORS,
    RECIPES,
    WIDTH,
    Conv3d,
    FrozenEncoder,
    Recipe,
    _batch,
    draw_clips,
    encoder_file,
    encoder_of,
    frozen_encoder,
    make,
    told_encoder,
    train,
    window_frames,
)
from data.video.shapestory.world import MOTIONS

TINY = Recipe(seed=5, num_clips=6, clip_frames=9, num_steps=3, batch_size=4, num_held_out=10)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> FrozenEncoder:
    return frozen_encoder("conv3d-random", tmp_path_factory.mktemp("weights"))


def noise(num_frames: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (num_frames, 64, 64, 3), np.uint8)


def test_a_second_is_told_from_the_two_seconds_about_its_middle() -> None:
    """By hand: second 1 is frames 4 to 7; half a second more on either side makes 2 to 9."""
    assert window_frames(12).tolist() == [
        [0, 0, 0, 1, 2, 3, 4, 5],
        [2, 3, 4, 5, 6, 7, 8, 9],
        [6, 7, 8, 9, 10, 11, 11, 11],
    ]
    assert window_frames(9, single_frame=True).tolist() == [[2] * 8, [6] * 8, [8] * 8]
    assert window_frames(1).tolist() == [[0] * 8]


def test_it_is_four_convolutions_of_about_a_million_parameters() -> None:
    network = Conv3d()
    assert sum(isinstance(module, nn.Conv3d) for module in network.modules()) == 4
    assert 0.8e6 < sum(parameter.numel() for parameter in network.parameters()) < 1.2e6


@settings(max_examples=10, deadline=None)
@given(num_frames=st.integers(1, 30))
def test_one_vector_of_mean_zero_and_variance_one_per_second(
    encoder: FrozenEncoder, num_frames: int
) -> None:
    features = encoder.encode(noise(num_frames))
    assert features.shape == (-(-num_frames // 4), WIDTH)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(features.var(1), 1, atol=1e-2)


@settings(max_examples=10, deadline=None)
@given(second=st.integers(0, 4), changed=st.integers(0, 19))
def test_a_vector_depends_on_its_window_and_on_nothing_else(
    encoder: FrozenEncoder, second: int, changed: int
) -> None:
    frames = noise(20)
    before = encoder.encode(frames)[second]
    frames[changed] = 255 - frames[changed]
    after = encoder.encode(frames)[second]
    if 4 * second - 2 <= changed <= 4 * second + 5:
        assert np.abs(before - after).max() > 1e-4
    else:
        np.testing.assert_allclose(before, after, atol=1e-5)


def test_a_single_frame_shows_no_motion(encoder: FrozenEncoder) -> None:
    """All frames but the one in the middle of each second may be anything."""
    frames = noise(12)
    still = encoder.encode(frames, single_frame=True)
    others = noise(12, seed=1)
    others[2::4] = frames[2::4]
    np.testing.assert_array_equal(encoder.encode(others, single_frame=True), still)
    assert np.abs(encoder.encode(others) - encoder.encode(frames)).max() > 0.01
    inner = encoder.encode(np.repeat(frames[2:3], 12, axis=0))[1]
    np.testing.assert_allclose(still[0], inner, atol=1e-5)


def test_frames_of_another_kind_are_refused(encoder: FrozenEncoder) -> None:
    for wrong in (noise(4)[:, :32], noise(4).astype(np.float32), noise(4)[0], noise(0)):
        with pytest.raises(DataError, match=r"frames"):
            encoder.encode(wrong)  # type: ignore[arg-type]


def test_an_encoder_is_frozen_and_the_same_in_every_folder(
    encoder: FrozenEncoder, tmp_path: Path
) -> None:
    assert not any(parameter.requires_grad for parameter in encoder.network.parameters())
    assert not encoder.network.training
    again = frozen_encoder("conv3d-random", tmp_path)
    assert again.digest == encoder.digest
    (file,) = tmp_path.glob("*.safetensors")
    assert file.name == f"conv3d-random-{RECIPES['conv3d-random'].digest[:12]}.safetensors"
    before = file.read_bytes()
    np.testing.assert_array_equal(again.encode(noise(5)), encoder.encode(noise(5)))
    assert frozen_encoder("conv3d-random", tmp_path).digest == encoder.digest
    assert file.read_bytes() == before


def test_the_digest_is_of_recipe_and_weights(encoder: FrozenEncoder, tmp_path: Path) -> None:
    digest = hashlib.sha256(RECIPES["conv3d-random"].digest.encode())
    for key, value in sorted(encoder.network.state_dict().items()):
        digest.update(key.encode() + value.numpy().tobytes())
    assert encoder.digest == digest.hexdigest()
    other = encoder_of("conv3d-random", Recipe(seed=1), tmp_path)
    assert other.digest != encoder.digest
    assert len({recipe.digest for recipe in RECIPES.values()}) == len(RECIPES)


def test_damaged_weights_are_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    digest = frozen_encoder("conv3d-random", tmp_path).digest
    (file,) = tmp_path.glob("*.safetensors")
    assert not caplog.records
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    for damaged in (bytes(content), bytes(content[:1000]), b""):
        file.write_bytes(damaged)
        caplog.clear()
        assert frozen_encoder("conv3d-random", tmp_path).digest == digest
        assert "made again" in caplog.text


def test_told_weights_take_the_place_of_ones_own(tmp_path: Path) -> None:
    theirs = frozen_encoder("conv3d-random", tmp_path / "theirs")
    file = encoder_file("conv3d-random", tmp_path / "theirs")
    weights, about = read_tensors(file)
    write_tensors(file, {name: 2 * value for name, value in weights.items()}, about)
    changed = frozen_encoder("conv3d-random", tmp_path / "theirs")
    assert changed.digest != theirs.digest
    for folder in (tmp_path / "new", tmp_path / "mine"):
        if folder.name == "mine":
            assert frozen_encoder("conv3d-random", folder).digest == theirs.digest
        for _ in range(2):
            told = told_encoder("conv3d-random", file.read_bytes(), changed.digest, folder)
            assert told.digest == changed.digest
            assert frozen_encoder("conv3d-random", folder).digest == changed.digest
    with pytest.raises(DataError, match=r"told whose digest is \w{12} and not aaaaaaaaaaaa"):
        told_encoder("conv3d-random", file.read_bytes(), "a" * 64, tmp_path / "mine")
    assert frozen_encoder("conv3d-random", tmp_path / "mine").digest == changed.digest


def test_weights_of_another_recipe_under_its_name_are_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = Recipe(seed=1), Recipe(seed=2)
    first = encoder_of("a", ours, tmp_path).digest
    encoder_of("a", theirs, tmp_path)
    (tmp_path / f"a-{theirs.digest[:12]}.safetensors").replace(
        tmp_path / f"a-{ours.digest[:12]}.safetensors"
    )
    assert encoder_of("a", ours, tmp_path).digest == first
    assert "not of the recipe" in caplog.text


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'s3d' is none of conv3d-random, conv3d-shapestory"):
        frozen_encoder("s3d", tmp_path)


def test_training_depends_on_its_recipe_alone(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(1)
    first = encoder_of("tiny", TINY, tmp_path / "a")
    torch.manual_seed(2)
    torch.set_num_threads(2)
    try:
        second = encoder_of("tiny", TINY, tmp_path / "b")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert first.digest == second.digest
    assert set(first.accuracy) == set(FACTORS)
    assert all(share * 10 == pytest.approx(round(share * 10)) for share in first.accuracy.values())
    assert encoder_of("tiny", TINY, tmp_path / "a").accuracy == first.accuracy
    changed = dataclasses.replace(TINY, seed=6)
    assert encoder_of("tiny", changed, tmp_path / "a").digest != first.digest


def test_training_learns_what_it_is_shown() -> None:
    """Better than by how often there is what among its clips, which is their entropy."""
    recipe = dataclasses.replace(TINY, num_clips=12, clip_frames=8, num_steps=90, batch_size=8)
    with seeded_globals(0):
        network, heads = Conv3d(), nn.Linear(WIDTH, sum(FACTORS.values()))
    losses = train(network, heads, recipe)
    weights = [recipe.shape_weight if name == "shape" else 1.0 for name in FACTORS]
    uniform = sum(w * np.log(count) for w, count in zip(weights, FACTORS.values(), strict=True))
    assert losses[0] == pytest.approx(uniform, rel=0.25)
    _, factors = draw_clips(12, 8, derive_seed(recipe.seed, "clips"))
    shares = [np.unique(column, return_counts=True)[1] / 12 for column in factors.T.numpy()]
    entropy = -sum(w * (p * np.log(p)).sum() for w, p in zip(weights, shares, strict=True))
    assert np.mean(losses[-10:]) < 0.8 * entropy


def test_untrained_weights_tell_no_accuracy() -> None:
    assert make(Recipe(seed=3))[1] == {}


@pytest.mark.parametrize("options", [{"clip_frames": 7}, {"num_steps": 1}, {"num_clips": 1}])
def test_recipes_without_sense_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(DataError):
        Recipe(seed=0, **options)


def test_what_a_mirror_shows_is_called_what_it_is() -> None:
    """A dot that moves one pixel a frame, whose direction is read from the pixels."""
    names = list(MOTIONS)
    ways = {"slides-left": (-1, 0), "slides-right": (1, 0), "rises": (0, -1), "falls": (0, 1)}
    clips = torch.zeros(len(ways), 8, 64, 64, 3, dtype=torch.uint8)
    for number, (x, y) in enumerate(ways.values()):
        for frame in range(8):
            clips[number, frame, 30 + y * frame, 20 + x * frame] = 255
    factors = torch.tensor([[3, 2, names.index(name)] for name in ways])
    windows, targets = _batch(clips, factors, 200, torch.Generator().manual_seed(0))
    assert (targets[:, :2] == torch.tensor([3, 2])).all()
    seen = set()
    for window, target in zip(windows, targets.tolist(), strict=True):
        places = window.sum(-1).nonzero()
        y, x = (places[1] - places[0])[1:].tolist()
        assert ways[names[target[2]]] == (x, y)
        seen.add((target[2], *places[0].tolist()))
    assert len(seen) > 16, "each of four is shown in all of eight ways"


def test_what_is_the_same_in_a_mirror_keeps_its_name() -> None:
    clips, factors = draw_clips(40, 8, seed=1)
    _, targets = _batch(clips, factors, 400, torch.Generator().manual_seed(0))
    turning = [list(MOTIONS).index(name) for name in ("spins", "blinks", "grows", "shakes")]
    for number in turning:
        share = float((factors[:, 2] == number).double().mean())
        drawn = float((targets[:, 2] == number).double().mean())
        assert drawn == pytest.approx(share, abs=4 * (share * (1 - share) / 400) ** 0.5 + 1e-9)


def test_clips_are_drawn_from_their_seed() -> None:
    clips, factors = draw_clips(3, 8, seed=1)
    assert clips.shape == (3, 8, 64, 64, 3) and clips.dtype == torch.uint8
    assert factors.shape == (3, 3)
    again, _ = draw_clips(3, 8, seed=1)
    torch.testing.assert_close(clips, again, rtol=0, atol=0)
    other, _ = draw_clips(3, 8, seed=2)
    assert (clips != other).any()
