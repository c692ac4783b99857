from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torchvision.datasets

from core.config import DataConfig
from core.errors import DataError
from data.sources import check_source, load_dataset
from data.torchvision_sources import PUBLISHED

Bytes = npt.NDArray[np.uint8]


def write_idx(file: Path, array: Bytes) -> None:
    """The format of http://yann.lecun.com/exdb/mnist/, byte for byte."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    file.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


def draw(num_examples: int, shape: tuple[int, ...], num_classes: int) -> tuple[Bytes, Bytes]:
    generator = np.random.default_rng(num_examples)
    images = generator.integers(0, 256, (num_examples, *shape), dtype=np.uint8)
    return images, (np.arange(num_examples) % num_classes).astype(np.uint8)


@pytest.mark.parametrize("source", sorted(PUBLISHED))
def test_files_are_those_torchvision_asks_for(source: str) -> None:
    published = PUBLISHED[source]
    kind = getattr(torchvision.datasets, published.dataset)
    if "mnist" in source:
        wanted = [name.removesuffix(".gz") for name, _ in kind.resources]
        assert published.folder == f"{published.dataset}/raw"
    else:
        wanted = [name for name, _ in kind.train_list + kind.test_list] + [kind.meta["filename"]]
        assert published.folder == kind.base_folder
    assert sorted(published.files) == sorted(wanted)


@pytest.mark.parametrize("source", sorted(PUBLISHED))
def test_offline_error_says_which_files_to_put_where(source: str, tmp_path: Path) -> None:
    published = PUBLISHED[source]
    config = DataConfig(source=source, root=str(tmp_path))
    for function in (check_source, lambda config: load_dataset(config, 0)):
        with pytest.raises(DataError) as caught:
            function(config)
        message = str(caught.value)
        assert str(tmp_path / published.folder) in message
        assert all(name in message for name in published.files)
        assert "data.download=true" in message
    assert not list(tmp_path.iterdir())


def test_only_missing_files_are_listed(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    (folder / "train").touch()
    with pytest.raises(DataError, match="lacks test, meta;"):
        check_source(DataConfig(source="cifar100", root=str(tmp_path)))


@pytest.mark.parametrize("source", ["mnist", "fashion-mnist"])
def test_idx_files(source: str, tmp_path: Path) -> None:
    raw = tmp_path / PUBLISHED[source].folder
    raw.mkdir(parents=True)
    train, train_labels = draw(200, (28, 28), 10)
    test, test_labels = draw(30, (28, 28), 10)
    write_idx(raw / "train-images-idx3-ubyte", train)
    write_idx(raw / "train-labels-idx1-ubyte", train_labels)
    write_idx(raw / "t10k-images-idx3-ubyte", test)
    write_idx(raw / "t10k-labels-idx1-ubyte", test_labels)
    config = DataConfig(source=source, root=str(tmp_path))
    check_source(config)
    dataset = load_dataset(config, seed=0)
    assert dataset.image_shape == (1, 28, 28)
    assert np.array_equal(dataset.test.images.numpy()[:, 0], test)
    assert np.array_equal(dataset.test.labels.numpy(), test_labels)
    assert (len(dataset.train), len(dataset.validation)) == (180, 20)
    assert torch.bincount(dataset.validation.labels).tolist() == [2] * 10
    expected = "7" if source == "mnist" else "Sneaker"
    assert dataset.class_names[7] == expected


def test_a_damaged_idx_file_is_refused(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in PUBLISHED["mnist"].files:
        (raw / name).write_bytes(b"\0\0\x08\x03 and so on")
    with pytest.raises(DataError, match=r"data.source=mnist cannot be read from .*MNIST/raw"):
        load_dataset(DataConfig(source="mnist", root=str(tmp_path)), seed=0)


def test_a_cifar_file_of_the_wrong_checksum_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in PUBLISHED["cifar100"].files:
        (folder / name).write_bytes(b"not it")
    config = DataConfig(source="cifar100", root=str(tmp_path))
    check_source(config)
    with pytest.raises(DataError, match=r"cifar100 cannot be read .* corrupted"):
        load_dataset(config, seed=0)


@pytest.mark.parametrize("source", ["cifar10", "cifar100"])
def test_cifar_files(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published format, with torchvision told these files' checksums."""
    published, kind = PUBLISHED[source], torchvision.datasets.CIFAR10
    num_classes = 10 if source == "cifar10" else 100
    if source == "cifar100":
        kind = torchvision.datasets.CIFAR100
    folder = tmp_path / published.folder
    folder.mkdir()

    def write(name: str, content: dict[str, Any]) -> str:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    images, labels = draw(1000, (3, 32, 32), num_classes)
    key = "labels" if source == "cifar10" else "fine_labels"
    checksums: dict[str, list[list[str]]] = {}
    for title in ("train_list", "test_list"):
        names = [name for name, _ in getattr(kind, title)]
        step = 1000 // len(names)
        checksums[title] = [
            [
                name,
                write(
                    name,
                    {
                        "data": images[i * step : (i + 1) * step].reshape(step, -1),
                        key: labels[i * step : (i + 1) * step].tolist(),
                    },
                ),
            ]
            for i, name in enumerate(names)
        ]
        monkeypatch.setattr(kind, title, checksums[title])
    class_names = [f"class {number}" for number in range(num_classes)]
    md5 = write(kind.meta["filename"], {kind.meta["key"]: class_names})
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5})

    dataset = load_dataset(DataConfig(source=source, root=str(tmp_path)), seed=0)
    assert dataset.class_names == tuple(class_names)
    assert np.array_equal(dataset.test.images.numpy(), images)
    assert np.array_equal(dataset.test.labels.numpy(), labels)
    assert dataset.test.images.is_contiguous()
    assert (len(dataset.train), len(dataset.validation)) == (900, 100)
    assert len(dataset.mean) == len(dataset.std) == 3
