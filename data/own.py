"""Images that a client brings itself: checked against the federation's classes and image form.

``DIR/CLASS/*`` (or ``DIR/train/CLASS/*``) holds image files in one folder per class, named as the
federation names its classes. Else ``FILE.parquet``, ``DIR/*.parquet`` or ``DIR/data/*.parquet``
holds a column of encoded images and one of class numbers; where the file names its classes, as the
Hugging Face hub does, these names count, and otherwise the numbers. A client need not have every
class.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core.errors import DataError
from data.dataset import ImageDataset, LabelledImages
from data.folder import list_classes
from data.images import decode
from data.parquet import common_columns, read_files
from data.splits import describe_shape, labelled

_CLASSES_TOLD = 8


@dataclass(frozen=True, slots=True)
class DataForm:
    """What all clients of a federation agree on.

    Attributes:
        source: What the server calls its own images.
        class_names: One name per class, in label order.
        mean: Per channel, in [0, 1] pixel units; a constant, never computed from clients' data.
        std: Likewise.
        image_shape: Channels, height, width.
    """

    source: str
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_shape: tuple[int, int, int]

    @classmethod
    def of(cls, dataset: ImageDataset) -> DataForm:
        """The form of the server's own images."""
        return cls(
            dataset.name, dataset.class_names, dataset.mean, dataset.std, dataset.image_shape
        )

    def to_text(self) -> str:
        """As JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_text(cls, text: str) -> DataForm:
        """Read back `to_text`.

        Raises:
            DataError: It is none.
        """
        try:
            value: dict[str, Any] = json.loads(text)
            channels, height, width = (int(size) for size in value["image_shape"])
            form = cls(
                str(value["source"]),
                tuple(str(name) for name in value["class_names"]),
                tuple(float(number) for number in value["mean"]),
                tuple(float(number) for number in value["std"]),
                (channels, height, width),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"the federation's classes cannot be read: {error}") from error
        if not (form.class_names and len(form.mean) == len(form.std) == channels):
            raise DataError("the federation's classes cannot be read: they contradict themselves")
        return form

    def dataset(self, images: LabelledImages) -> ImageDataset:
        """A client's images as the training split of a data set; there are no others."""
        nothing = LabelledImages(images.images[:0], images.labels[:0])
        return ImageDataset(
            self.source, self.class_names, self.mean, self.std, images, nothing, nothing
        )


def check_own(path: Path) -> None:
    """Refuse what `load_own` would refuse without decoding an image or knowing the federation.

    Raises:
        DataError: There is nothing, or what is there is not laid out as it must be.
    """
    files = _parquet_files(path)
    if files:
        common_columns(files)
    else:
        _class_folders(path)


def load_own(path: Path, form: DataForm) -> LabelledImages:
    """Decode a client's images and number their classes as the federation does.

    Args:
        path: A folder, or a parquet file.
        form: What the federation expects.

    Raises:
        DataError: As `check_own`; or there is no image, one cannot be read or has another shape, or
            a class is not one of the federation's.
    """
    files = _parquet_files(path)
    images = _of_parquet(path, files, form) if files else _of_folders(path, form)
    shape = tuple(images.images.shape[1:])
    if shape != form.image_shape:
        raise DataError(
            f"images in {path} are {describe_shape(shape)} (channels, height, width) and the "
            f"federation's are {describe_shape(form.image_shape)}; bring them to that size first"
        )
    return images


def _of_folders(path: Path, form: DataForm) -> LabelledImages:
    classes = _class_folders(path)
    _refuse_other_classes(path, list(classes), form)
    numbers = {name: label for label, name in enumerate(form.class_names)}
    ordered = sorted(classes, key=numbers.__getitem__)
    files = [(file, numbers[name]) for name in ordered for file in classes[name]]
    pixels = decode([(str(file), file) for file, _ in files])
    return labelled(pixels, [label for _, label in files], str(path))


def _of_parquet(path: Path, files: list[Path], form: DataForm) -> LabelledImages:
    columns = common_columns(files)
    images = read_files(files, columns, "training")
    if columns.class_names is None:
        low, high = int(images.labels.min()), int(images.labels.max())
        if low < 0 or high >= len(form.class_names):
            raise DataError(
                f"{path} holds label {low if low < 0 else high}; the federation has "
                f"{len(form.class_names)} classes, labels 0 to {len(form.class_names) - 1}"
            )
        return images
    low, high = int(images.labels.min()), int(images.labels.max())
    if low < 0 or high >= len(columns.class_names):
        raise DataError(
            f"{path} holds label {low if low < 0 else high} and names "
            f"{len(columns.class_names)} classes; labels must count them from 0"
        )
    held = [columns.class_names[label] for label in images.labels.unique().tolist()]
    _refuse_other_classes(path, held, form)
    numbers = {name: label for label, name in enumerate(form.class_names)}
    renumbered = torch.tensor([numbers.get(name, -1) for name in columns.class_names])
    return LabelledImages(images.images, renumbered[images.labels])


def _refuse_other_classes(path: Path, names: list[str], form: DataForm) -> None:
    if unknown := [name for name in names if name not in form.class_names]:
        raise DataError(
            f"{path} holds {_listed(unknown)}, which the federation does not have: its classes are "
            f"{_listed(list(form.class_names))}; leave these images out, or name the class as the "
            "federation does"
        )


def _listed(names: list[str]) -> str:
    told = ", ".join(repr(name) for name in names[:_CLASSES_TOLD])
    return told + (f" and {len(names) - _CLASSES_TOLD} more" if len(names) > _CLASSES_TOLD else "")


def _parquet_files(path: Path) -> list[Path]:
    """The parquet files that are meant; none where `path` is a folder of class folders."""
    if path.is_file():
        return [path]
    for folder in (path, path / "data"):
        if found := sorted(folder.glob("*.parquet")):
            return found
    return []


def _class_folders(path: Path) -> dict[str, list[Path]]:
    if not path.is_dir():
        raise DataError(f"there is no folder or parquet file {path}; give the client its images")
    try:
        root = path / "train" if (path / "train").is_dir() else path
        classes = list_classes(root)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if not classes:
        raise DataError(
            f"{path} holds no class folder and no parquet file; use DIR/CLASS/IMAGE or "
            "DIR/*.parquet"
        )
    return classes
