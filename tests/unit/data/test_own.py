"""A client's own images: read as they are, numbered as the federation numbers, refused if unfit."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from core.errors import DataError
from data.dataset import LabelledImages
from data.export import parquet_of
from data.own import DataForm, check_own, load_own

FORM = DataForm("shop", ("cat", "dog", "emu"), (0.5,), (0.25,), (1, 4, 4))


def pixels(count: int, channels: int = 1, side: int = 4, seed: int = 0) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    return torch.from_numpy(generator.integers(0, 256, (count, channels, side, side), np.uint8))


def png(image: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[0].numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def folders(root: Path, *names: str, count: int = 2) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        for n, image in enumerate(pixels(count, seed=len(name))):
            (root / name / f"{n}.png").write_bytes(png(image))
    return root


def bare_parquet(path: Path, labels: list[int]) -> Path:
    """A file that names no classes."""
    images = [png(image) for image in pixels(len(labels))]
    pq.write_table(pa.table({"image": images, "label": pa.array(labels, pa.int64())}), path)
    return path


def test_class_folders_are_numbered_by_their_names(tmp_path: Path) -> None:
    root = folders(tmp_path / "mine", "emu", "cat")
    images = load_own(root, FORM)
    assert images.labels.tolist() == [0, 0, 2, 2]
    np.testing.assert_array_equal(images.images[2:], pixels(2, seed=3))
    check_own(root)


def test_a_train_folder_is_taken_and_what_lies_beside_it_is_not(tmp_path: Path) -> None:
    folders(tmp_path / "mine" / "train", "dog")
    folders(tmp_path / "mine" / "test", "cat")
    assert load_own(tmp_path / "mine", FORM).labels.tolist() == [1, 1]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=12),
    st.permutations(FORM.class_names),
    st.sampled_from([1, 3]),
)
def test_what_is_written_is_read_back_under_the_federations_numbers(
    tmp_path: Path, labels: list[int], names: list[str], channels: int
) -> None:
    images = LabelledImages(pixels(len(labels), channels), torch.tensor(labels))
    path = tmp_path / "train.parquet"
    path.write_bytes(parquet_of(images, names))
    found = load_own(path, dataclasses.replace(FORM, image_shape=(channels, 4, 4)))
    assert torch.equal(found.images, images.images)
    assert [FORM.class_names[n] for n in found.labels] == [names[n] for n in labels]


@pytest.mark.parametrize("place", ["train.parquet", "data/train-00000-of-00001.parquet"])
def test_parquet_without_names_counts_by_number(tmp_path: Path, place: str) -> None:
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    bare_parquet(path, [2, 0, 1])
    assert load_own(tmp_path, FORM).labels.tolist() == [2, 0, 1]
    assert load_own(path, FORM).labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize(("labels", "told"), [([0, 3], "label 3"), ([-1, 0], "label -1")])
def test_numbers_of_no_class_are_refused(tmp_path: Path, labels: list[int], told: str) -> None:
    path = bare_parquet(tmp_path / "a.parquet", labels)
    with pytest.raises(DataError, match=rf"{told}.*3 classes, labels 0 to 2"):
        load_own(path, FORM)


def test_unknown_classes_are_named_beside_those_there_are(tmp_path: Path) -> None:
    root = folders(tmp_path / "mine", "cat", "wolf", "yak")
    with pytest.raises(DataError, match=r"'wolf', 'yak'.*'cat', 'dog', 'emu'"):
        load_own(root, FORM)
    file = tmp_path / "train.parquet"
    file.write_bytes(parquet_of(LabelledImages(pixels(2), torch.tensor([0, 1])), ["cat", "wolf"]))
    with pytest.raises(DataError, match=r"'wolf'.*'cat', 'dog', 'emu'"):
        load_own(file, FORM)


def test_a_class_that_is_named_and_not_held_does_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    file.write_bytes(parquet_of(LabelledImages(pixels(2), torch.tensor([0, 0])), ["cat", "wolf"]))
    assert load_own(file, FORM).labels.tolist() == [0, 0]


def test_another_size_is_refused_and_both_told(tmp_path: Path) -> None:
    root = folders(tmp_path / "mine", "cat")
    with pytest.raises(DataError, match=r"1x4x4 .*3x32x32"):
        load_own(root, dataclasses.replace(FORM, image_shape=(3, 32, 32)))


@pytest.mark.parametrize("what", ["missing", "empty", "file", "loose image", "empty class"])
def test_a_place_without_images_is_refused_without_decoding(tmp_path: Path, what: str) -> None:
    root = tmp_path / "mine"
    if what != "missing":
        root.mkdir()
    if what == "file":
        root = tmp_path / "images.txt"
        root.write_text("cat")
    if what == "loose image":
        (root / "0.png").write_bytes(png(pixels(1)[0]))
    if what == "empty class":
        (root / "cat").mkdir()
    with pytest.raises(DataError, match=r"mine|images\.txt"):
        check_own(root)
    with pytest.raises(DataError, match=r"mine|images\.txt"):
        load_own(root, FORM)


def test_the_form_of_a_federation_survives_the_wire() -> None:
    assert DataForm.from_text(FORM.to_text()) == FORM


@pytest.mark.parametrize(
    "change",
    [
        {"class_names": []},
        {"mean": [0.1, 0.2]},
        {"image_shape": [1, 4]},
        {"image_shape": "abc"},
        {"class_names": None},
        {"std": ["x"]},
    ],
)
def test_a_form_that_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    text = json.dumps({**json.loads(FORM.to_text()), **change})
    with pytest.raises(DataError, match="classes cannot be read"):
        DataForm.from_text(text)
    with pytest.raises(DataError):
        DataForm.from_text("no json")
