"""``parquet:DIR``: a data set in the Hugging Face hub's layout.

``DIR`` or ``DIR/data`` holds ``train*.parquet``, and ``validation*.parquet`` and ``test*.parquet``
where there are such. Each file has a column of encoded images (bytes, or the hub's struct with a
field ``bytes``) and a column of class numbers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from core.config import DataConfig
from core.errors import DataError
from data.dataset import LabelledImages
from data.images import MEAN, STD, decode
from data.splits import Source, labelled

_IMAGE_NAMES = ("img", "image")
_LABEL_NAMES = ("label", "labels", "fine_label")


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns hold what, and the names of the classes where the file tells them."""

    image: str
    label: str
    class_names: tuple[str, ...] | None


def check(config: DataConfig) -> None:
    """Refuse a folder without the files and columns, reading only the files' footers.

    Raises:
        DataError: Names what is missing.
    """
    common_columns(_files(_list_splits(config)))


def load(config: DataConfig, seed: int) -> Source:
    """Decode the images of all splits.

    Raises:
        DataError: As `check`; or an image or label is missing, damaged or unlike the others.
    """
    splits = _list_splits(config)
    columns = common_columns(_files(splits))
    found = {title: read_files(files, columns, title) for title, files in splits.items()}
    names = columns.class_names or _numbered(found["train"], config.source)
    channels = found["train"].images.shape[1]
    return Source(names, (MEAN,) * channels, (STD,) * channels, **found)


def _numbered(train: LabelledImages, name: str) -> tuple[str, ...]:
    highest = int(train.labels.max())
    if not 0 <= highest < len(train):
        raise DataError(
            f"{name}: a training image has label {highest} and there are {len(train)} training "
            "images; labels must count the classes from 0"
        )
    return tuple(str(label) for label in range(highest + 1))


def _list_splits(config: DataConfig) -> dict[str, list[Path]]:
    """Files by split, in the order of their names."""
    root = Path(config.source.partition(":")[2]).expanduser()
    for folder in (root, root / "data"):
        splits = {
            title: sorted(folder.glob(f"{title}*.parquet"))
            for title in ("train", "validation", "test")
        }
        if splits["train"]:
            return {title: files for title, files in splits.items() if files}
    raise DataError(
        f"data.source={config.source}: neither {root} nor {root / 'data'} holds a file "
        "train*.parquet; put the hub's parquet files there"
    )


def _files(splits: dict[str, list[Path]]) -> list[Path]:
    return [file for files in splits.values() for file in files]


def common_columns(files: list[Path]) -> Columns:
    """The columns of files of one data set, from their footers; at least one file.

    Raises:
        DataError: A file is none, lacks a column, or has others than the first.
    """
    first: Columns | None = None
    for file in files:
        try:
            schema = pq.read_schema(file)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{file} is not a parquet file: {error}") from error
        found = _columns_of(schema, file)
        first = first or found
        if found != first:
            raise DataError(
                f"{file} and {files[0]} differ in image column, label column or class "
                "names; files of one data set must agree"
            )
    assert first is not None
    return first


def _columns_of(schema: pa.Schema, file: Path) -> Columns:
    images = [field.name for field in schema if _holds_images(field.type)]
    labels = [field.name for field in schema if pa.types.is_integer(field.type)]
    return Columns(
        image=_select(images, _IMAGE_NAMES, f"{file}: image column (bytes)", schema),
        label=(label := _select(labels, _LABEL_NAMES, f"{file}: label column (integers)", schema)),
        class_names=_class_names(schema, label, file),
    )


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_images(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _select(found: list[str], preferred: tuple[str, ...], what: str, schema: pa.Schema) -> str:
    """The column of a usual name, or else the only one of the right type."""
    named = [name for name in preferred if name in found]
    if named:
        return named[0]
    if len(found) == 1:
        return found[0]
    described = ", ".join(f"{field.name} ({field.type})" for field in schema)
    raise DataError(
        f"{what} must be called {' or '.join(preferred)} or be the only one of its type; "
        f"the file has {described}"
    )


def _class_names(schema: pa.Schema, label: str, file: Path) -> tuple[str, ...] | None:
    """Names that the hub writes into the schema as the label's ClassLabel feature."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return None
    try:
        feature = json.loads(text)["info"]["features"][label]
        names = feature.get("names")
        return None if names is None else tuple(str(name) for name in names)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: its huggingface metadata does not describe {label!r}") from error


def read_files(files: list[Path], columns: Columns, title: str) -> LabelledImages:
    """Decode all rows, in order.

    Args:
        files: At least one.
        columns: As `common_columns` found them.
        title: What the images are for, for the error message.

    Raises:
        DataError: An image or label is missing, damaged or unlike the others.
    """
    items: list[tuple[str, bytes | Path]] = []
    labels = []
    for file in files:
        try:
            table = pq.ParquetFile(file).read(columns=[columns.image, columns.label])
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{file} cannot be read: {error}") from error
        for kind in (columns.image, columns.label):
            if table[kind].null_count:
                row = table[kind].is_null().to_pylist().index(True)
                raise DataError(f"{file} row {row} has no {kind}; each row needs both")
        for row, value in enumerate(table[columns.image].to_pylist()):
            content = value["bytes"] if isinstance(value, dict) else value
            if content is None:
                raise DataError(
                    f"{file} row {row} has no bytes in {columns.image}; images must be in the file"
                )
            items.append((f"{file} row {row}", content))
        labels.append(table[columns.label].to_numpy())
    if not items:
        raise DataError(f"{files[0]} holds no {title} image")
    return labelled(decode(items), np.concatenate(labels), str(files[0]))
