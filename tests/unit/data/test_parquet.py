from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from core.config import DataConfig
from core.errors import DataError
from data.sources import check_source, load_dataset


def png(shade: int, mode: str = "RGB", side: int = 4) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((side, side), shade, dtype=np.uint8)).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def write(
    file: Path,
    images: list[Any],
    labels: list[Any],
    names: list[str] | None = None,
    *,
    image: str = "img",
    label: str = "label",
    raw: bool = False,
    extra: dict[str, Any] | None = None,
) -> None:
    """A file as the hub writes it; `raw` has bytes in place of the struct of bytes and path."""
    file.parent.mkdir(parents=True, exist_ok=True)
    column = images if raw else [i and {"bytes": i, "path": "x.png"} for i in images]
    table = pa.table({image: column, label: labels, **(extra or {})})
    if names is not None:
        features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": info})
    pq.write_table(table, file)


def config_of(folder: Path) -> DataConfig:
    return DataConfig(source=f"parquet:{folder}", validation_fraction=0.5)


def shades(images: torch.Tensor) -> list[int]:
    return [int(shade) for shade in images[:, 0, 0, 0]]


FOUR = [png(shade) for shade in (0, 1, 2, 3)]


@pytest.mark.parametrize("folder", ["", "data"])
@pytest.mark.parametrize("raw", [False, True])
def test_the_hubs_layout(folder: str, raw: bool, tmp_path: Path) -> None:
    at = tmp_path / folder
    write(at / "train-00000-of-00002.parquet", FOUR, [0, 0, 1, 1], ["ant", "bee"], raw=raw)
    more = [png(shade) for shade in (4, 5)]
    write(at / "train-00001-of-00002.parquet", more, [1, 0], ["ant", "bee"], raw=raw)
    write(at / "test-00000-of-00001.parquet", [png(9), png(8)], [1, 0], ["ant", "bee"], raw=raw)
    write(at / "validation-0.parquet", [png(7), png(6)], [0, 1], ["ant", "bee"], raw=raw)
    check_source(config_of(tmp_path))
    dataset = load_dataset(config_of(tmp_path), seed=0)
    assert dataset.class_names == ("ant", "bee")
    assert dataset.image_shape == (3, 4, 4)
    assert (dataset.mean, dataset.std) == ((0.5,) * 3, (0.25,) * 3)
    assert shades(dataset.train.images) == [0, 1, 2, 3, 4, 5]
    assert dataset.train.labels.tolist() == [0, 0, 1, 1, 1, 0]
    assert shades(dataset.validation.images) == [7, 6]
    assert shades(dataset.test.images) == [9, 8] and dataset.test.labels.tolist() == [1, 0]


def test_splits_that_are_missing_are_held_out(tmp_path: Path) -> None:
    images = [png(shade, mode="L") for shade in range(20)]
    write(tmp_path / "train.parquet", images, [0, 1] * 10)
    dataset = load_dataset(config_of(tmp_path), seed=0)
    assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == [8, 8, 4]
    assert dataset.class_names == ("0", "1") and dataset.image_shape == (1, 4, 4)
    for part in (dataset.train, dataset.validation, dataset.test):
        assert [shade % 2 for shade in shades(part.images)] == part.labels.tolist()


def test_columns_are_found_by_name_and_then_by_type(tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    extra = {"coarse_label": [9, 9, 9, 9], "thumb": [b"no"] * 4}
    write(file, FOUR, [0, 0, 1, 1], image="image", label="fine_label", extra=extra)
    write(tmp_path / "test.parquet", FOUR, [1, 1, 0, 0], image="image", label="fine_label")
    dataset = load_dataset(config_of(tmp_path), 0)
    assert dataset.test.labels.tolist() == [1, 1, 0, 0] and shades(dataset.test.images)[3] == 3
    extra = {"note": ["a"] * 4}
    write(file, FOUR, [0, 0, 1, 1], image="picture", label="kind", extra=extra)
    write(tmp_path / "test.parquet", FOUR, [1, 1, 0, 0], image="picture", label="kind")
    dataset = load_dataset(config_of(tmp_path), 0)
    assert dataset.test.labels.tolist() == [1, 1, 0, 0] and shades(dataset.test.images)[3] == 3
    write(file, FOUR, [0, 0, 1, 1], image="picture", extra={"thumb": [b"no"] * 4})
    with pytest.raises(DataError, match=r"image column .* must be called img or image .* thumb"):
        check_source(config_of(tmp_path))
    write(file, FOUR, ["a", "a", "b", "b"])
    with pytest.raises(DataError, match=r"label column .* must be called label or .* label \(str"):
        check_source(config_of(tmp_path))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ([*FOUR[:3], png(3, side=5)], [0, 0, 1, 1], r"row 3 is 3x5x5 .* row 0 is 3x4x4"),
        ([*FOUR[:3], png(3, mode="L")], [0, 0, 1, 1], r"row 3 is 1x4x4"),
        ([*FOUR[:3], b"text"], [0, 0, 1, 1], r"row 3 is not an image that can be read"),
        ([*FOUR[:3], FOUR[3][:50]], [0, 0, 1, 1], r"row 3 is not an image that can be read"),
        ([*FOUR[:3], None], [0, 0, 1, 1], r"row 3 has no img"),
        (FOUR, [0, 0, None, 1], r"row 2 has no label"),
        (FOUR, [0, 0, -1, 1], r"training image has label -1; labels must be 0 to 1"),
        (FOUR, [0, 0, 2, 2], r"class '1' has no training image"),
        (FOUR, [0, 0, 10**12, 1], r"has label 1000000000000 and there are 4 training images"),
        (FOUR, [-1, -1, -1, -1], r"has label -1"),
    ],
)
def test_bad_rows_are_named(
    images: list[Any], labels: list[Any], message: str, tmp_path: Path
) -> None:
    write(tmp_path / "train.parquet", images, labels)
    check_source(config_of(tmp_path))
    with pytest.raises(DataError, match=message):
        load_dataset(config_of(tmp_path), seed=0)


def test_images_outside_the_file_are_refused(tmp_path: Path) -> None:
    images = pa.array([{"bytes": None, "path": "a.png"}], pa.struct({"bytes": pa.binary()}))
    pq.write_table(pa.table({"img": images, "label": [0]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="row 0 has no bytes in img; images must be in the file"):
        load_dataset(config_of(tmp_path), seed=0)


def test_labels_beyond_the_named_classes_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", FOUR, [0, 0, 1, 1], ["ant"])
    with pytest.raises(DataError, match="training image has label 1; labels must be 0 to 0"):
        load_dataset(config_of(tmp_path), seed=0)


def test_a_test_class_without_training_images_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", FOUR, [0, 0, 1, 1])
    write(tmp_path / "test.parquet", FOUR, [0, 0, 2, 1])
    with pytest.raises(DataError, match="test image has label 2; labels must be 0 to 1"):
        load_dataset(config_of(tmp_path), seed=0)


def test_missing_foreign_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither .* nor .*data holds a file train\*.parquet"):
        check_source(config_of(tmp_path))
    file = tmp_path / "train.parquet"
    file.write_bytes(b"text")
    with pytest.raises(DataError, match=r"train.parquet is not a parquet file"):
        check_source(config_of(tmp_path))
    empty = pa.schema([("img", pa.binary()), ("label", pa.int64())]).empty_table()
    pq.write_table(empty, file)
    with pytest.raises(DataError, match=r"train.parquet holds no train image"):
        load_dataset(config_of(tmp_path), seed=0)


def test_files_that_disagree_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", FOUR, [0, 0, 1, 1], ["ant", "bee"])
    write(tmp_path / "test.parquet", FOUR, [0, 0, 1, 1], ["bee", "ant"])
    with pytest.raises(DataError, match=r"test.parquet and .*train.parquet differ in"):
        check_source(config_of(tmp_path))


def test_damaged_metadata_is_refused(tmp_path: Path) -> None:
    table = pa.table({"img": FOUR, "label": [0, 0, 1, 1]})
    table = table.replace_schema_metadata({"huggingface": "{"})
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(DataError, match="huggingface metadata does not describe 'label'"):
        check_source(config_of(tmp_path))


@pytest.mark.skipif(
    "TESSERA_CIFAR10" not in os.environ,
    reason="set TESSERA_CIFAR10 to a folder with CIFAR-10 in the hub's parquet layout",
)
def test_real_cifar10() -> None:
    config = DataConfig(source=f"parquet:{os.environ['TESSERA_CIFAR10']}")
    dataset = load_dataset(config, seed=0)
    assert dataset.image_shape == (3, 32, 32) and dataset.num_classes == 10
    assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == [
        45_000,
        5_000,
        10_000,
    ]
    assert torch.bincount(dataset.test.labels).tolist() == [1000] * 10
    mean = torch.stack([dataset.train.images[:, c].float().mean() / 255 for c in range(3)])
    assert torch.allclose(mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=2e-3)
