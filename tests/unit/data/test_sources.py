from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from core.config import DataConfig
from core.errors import ConfigError, DataError
from data import digits
from data.dataset import ImageDataset
from data.sources import check_source, load_dataset


@pytest.fixture(scope="module")
def dataset() -> ImageDataset:
    return load_dataset(DataConfig(), seed=0)


def rows(*images: torch.Tensor) -> list[bytes]:
    return sorted(image.numpy().tobytes() for part in images for image in part)


def test_digits_are_scikit_learns(dataset: ImageDataset) -> None:
    parts = (dataset.train, dataset.validation, dataset.test)
    pixels = torch.from_numpy(load_digits().images)[:, None]
    scaled = torch.round(pixels * 255 / 16).to(torch.uint8)
    assert rows(*(part.images for part in parts)) == rows(scaled)
    assert sum(map(len, parts)) == 1797
    assert dataset.image_shape == (1, 8, 8) and dataset.num_classes == 10
    of_all = torch.bincount(torch.from_numpy(load_digits().target))
    assert torch.equal(torch.bincount(torch.cat([part.labels for part in parts])), of_all)
    # Held out by class: 20% for test and then 10% for validation, to within rounding.
    assert bool(((torch.bincount(dataset.test.labels) - 0.2 * of_all).abs() <= 0.5).all())
    assert bool(((torch.bincount(dataset.validation.labels) - 0.08 * of_all).abs() <= 1).all())


def test_digits_keep_their_labels(dataset: ImageDataset) -> None:
    target = {
        np.rint(image * (255 / 16)).astype(np.uint8).tobytes(): label
        for image, label in zip(load_digits().images, load_digits().target, strict=True)
    }
    for image, label in zip(dataset.test.images, dataset.test.labels, strict=True):
        assert target[image.numpy().tobytes()] == int(label)


def test_digits_constants_are_near_the_real_ones() -> None:
    pixels = np.rint(load_digits().images * (255 / 16)) / 255
    assert abs(pixels.mean() - digits.MEAN) < 1e-3
    assert abs(pixels.std() - digits.STD) < 1e-3


def test_normalise_gives_about_zero_mean_and_unit_deviation(dataset: ImageDataset) -> None:
    inputs = dataset.normalise(dataset.train.images)
    assert abs(float(inputs.mean())) < 0.02 and abs(float(inputs.std()) - 1) < 0.02
    assert torch.equal(dataset.to_pixels(inputs), dataset.train.images)


def test_held_out_images_do_not_depend_on_the_seed(dataset: ImageDataset) -> None:
    other = load_dataset(DataConfig(train_examples=100), seed=7)
    assert torch.equal(other.test.images, dataset.test.images)
    assert torch.equal(other.validation.images, dataset.validation.images)
    assert len(other.train) == 100
    third = load_dataset(DataConfig(train_examples=100), seed=8)
    assert not torch.equal(other.train.images, third.train.images)


def test_importing_needs_little_more_than_torch() -> None:
    code = (
        "import sys, data.sources\n"
        "print([m for m in ('PIL', 'pyarrow', 'sklearn', 'torchvision') if m in sys.modules])"
    )
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_unknown_source_is_refused() -> None:
    for function in (check_source, lambda config: load_dataset(config, 0)):
        with pytest.raises(ConfigError, match=r"data.source=imagenet: must be one of digits"):
            function(DataConfig(source="imagenet"))


def write_plugin(folder: Path, body: str) -> DataConfig:
    file = folder / "mine.py"
    file.write_text(
        "import dataclasses\n"
        "import torch\n"
        "from core.config import DataConfig\n"
        "from data.sources import load_dataset\n\n"
        f"def images(config, seed):\n{body}\n"
    )
    return DataConfig(source=f"{file}:images", validation_fraction=0.2)


def test_a_users_function_is_called_with_config_and_seed(tmp_path: Path) -> None:
    config = write_plugin(
        tmp_path,
        "    digits = load_dataset(DataConfig(), 0)\n"
        "    label = torch.full_like(digits.test.labels, seed)\n"
        "    assert config.validation_fraction == 0.2\n"
        "    return dataclasses.replace(\n"
        "        digits, test=dataclasses.replace(digits.test, labels=label))",
    )
    check_source(config)
    dataset = load_dataset(dataclasses.replace(config, train_examples=50), seed=3)
    assert dataset.name == config.source
    assert set(dataset.test.labels.tolist()) == {3}
    assert torch.bincount(dataset.train.labels).tolist() == [5] * 10
    with pytest.raises(DataError, match="test image has label 10"):
        load_dataset(config, seed=10)


def test_a_users_function_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mine.py:images failed: ZeroDivisionError"):
        load_dataset(write_plugin(tmp_path, "    return 1 / 0"), seed=0)


def test_a_users_function_must_return_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must return a data.dataset.ImageDataset.* a list"):
        load_dataset(write_plugin(tmp_path, "    return []"), seed=0)


def test_a_users_file_is_checked_without_calling_it(tmp_path: Path) -> None:
    check_source(write_plugin(tmp_path, "    raise AssertionError"))
    with pytest.raises(ConfigError, match="there is no file"):
        check_source(DataConfig(source=str(tmp_path / "absent.py:images")))
    (tmp_path / "number.py").write_text("images = 3\n")
    with pytest.raises(ConfigError, match="must name a function; it is a int"):
        check_source(DataConfig(source=str(tmp_path / "number.py:images")))
