from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core.config import DataConfig
from core.errors import DataError
from data.sources import check_source, load_dataset


def write_class(folder: Path, shades: list[int], mode: str = "RGB", side: int = 4) -> None:
    """Images of one shade each, so that an image tells where it came from."""
    folder.mkdir(parents=True)
    for number, shade in enumerate(shades):
        pixels = np.full((side, side), shade, dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{number:03}.png")


def config_of(folder: Path) -> DataConfig:
    return DataConfig(source=f"folder:{folder}", test_fraction=0.2, validation_fraction=0.25)


def shades(images: torch.Tensor) -> list[int]:
    return [int(shade) for shade in images[:, 0, 0, 0]]


def test_one_folder_per_class_with_test_held_out(tmp_path: Path) -> None:
    write_class(tmp_path / "bee", list(range(100, 120)))
    write_class(tmp_path / "ant", list(range(10)))
    check_source(config_of(tmp_path))
    dataset = load_dataset(config_of(tmp_path), seed=0)
    assert dataset.class_names == ("ant", "bee")
    assert dataset.image_shape == (3, 4, 4)
    assert (dataset.mean, dataset.std) == ((0.5,) * 3, (0.25,) * 3)
    parts = (dataset.train, dataset.validation, dataset.test)
    assert [len(part) for part in parts] == [18, 6, 6]
    for part in parts:
        assert [int(shade >= 100) for shade in shades(part.images)] == part.labels.tolist()
    found = [shade for part in parts for shade in shades(part.images)]
    assert sorted(found) == [*range(10), *range(100, 120)]
    again = load_dataset(config_of(tmp_path), seed=1)
    assert shades(again.test.images) == shades(dataset.test.images)


def test_own_splits_are_kept(tmp_path: Path) -> None:
    for split, offset in (("train", 0), ("validation", 50), ("test", 100)):
        write_class(tmp_path / split / "ant", [offset, offset + 1], mode="L")
        write_class(tmp_path / split / "bee", [offset + 2, offset + 3], mode="L")
    dataset = load_dataset(config_of(tmp_path), seed=0)
    assert dataset.image_shape == (1, 4, 4)
    assert shades(dataset.train.images) == [0, 1, 2, 3]
    assert shades(dataset.validation.images) == [50, 51, 52, 53]
    assert shades(dataset.test.images) == [100, 101, 102, 103]
    assert dataset.test.labels.tolist() == [0, 0, 1, 1]


def two_classes(folder: Path) -> None:
    write_class(folder / "ant", [1, 2, 3])
    write_class(folder / "bee", [4, 5, 6])


def test_another_size_is_refused_and_named(tmp_path: Path) -> None:
    two_classes(tmp_path)
    write_class(tmp_path / "cat", [1], side=5)
    check_source(config_of(tmp_path))
    with pytest.raises(DataError, match=r"cat/000.png is 3x5x5 .*ant/000.png is 3x4x4"):
        load_dataset(config_of(tmp_path), seed=0)


def test_another_mode_is_refused_and_named(tmp_path: Path) -> None:
    two_classes(tmp_path)
    write_class(tmp_path / "cat", [1], mode="L")
    with pytest.raises(DataError, match=r"cat/000.png is 1x4x4"):
        load_dataset(config_of(tmp_path), seed=0)


def test_16_bit_images_are_refused(tmp_path: Path) -> None:
    two_classes(tmp_path)
    Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(tmp_path / "ant" / "000.png")
    with pytest.raises(DataError, match=r"000.png has pixel mode I;16; use images of 8 bits"):
        load_dataset(config_of(tmp_path), seed=0)


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_a_file_that_is_no_image_is_named(content: bytes, tmp_path: Path) -> None:
    two_classes(tmp_path)
    (tmp_path / "bee" / "notes.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"bee/notes.txt is not an image that can be read"):
        load_dataset(config_of(tmp_path), seed=0)


def test_a_cut_off_image_is_named(tmp_path: Path) -> None:
    two_classes(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = tmp_path / "bee" / "001.png"
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(DataError, match=r"bee/001.png is not an image that can be read"):
        load_dataset(config_of(tmp_path), seed=0)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("labels.csv", r"labels.csv is not a class folder"),
        ("ant/more/001.png", r"ant/more is not an image"),
    ],
)
def test_strangers_are_named(file: str, message: str, tmp_path: Path) -> None:
    two_classes(tmp_path)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(b"x")
    for function in (check_source, lambda config: load_dataset(config, 0)):
        with pytest.raises(DataError, match=message):
            function(config_of(tmp_path))


def test_hidden_files_of_desktops_are_passed_over(tmp_path: Path) -> None:
    two_classes(tmp_path)
    plain = load_dataset(config_of(tmp_path), seed=0)
    for file in (".DS_Store", "ant/.DS_Store"):
        (tmp_path / file).write_bytes(b"x")
    again = load_dataset(config_of(tmp_path), seed=0)
    assert again.class_names == plain.class_names
    assert torch.equal(again.train.images, plain.train.images)


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder .*absent"):
        check_source(config_of(tmp_path / "absent"))
    with pytest.raises(DataError, match="has 0 class folders; there must be at least 2"):
        check_source(config_of(tmp_path))
    two_classes(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="cat holds no image"):
        check_source(config_of(tmp_path))


def test_splits_must_fit_together(tmp_path: Path) -> None:
    two_classes(tmp_path / "test")
    with pytest.raises(DataError, match="has test and no train folder"):
        check_source(config_of(tmp_path))
    two_classes(tmp_path / "train")
    check_source(config_of(tmp_path))
    write_class(tmp_path / "test" / "cat", [1])
    with pytest.raises(DataError, match=r"test/cat is a class without training images"):
        check_source(config_of(tmp_path))
    write_class(tmp_path / "train" / "cat", [1, 2])
    (tmp_path / "extra").mkdir()
    with pytest.raises(DataError, match="extra is none of the folders train, validation, test"):
        check_source(config_of(tmp_path))
