"""``folder:DIR``: image files in one folder per class.

Either ``DIR/train/CLASS/*`` with ``DIR/test/CLASS/*`` and ``DIR/validation/CLASS/*`` where there
are such, or ``DIR/CLASS/*``. Classes are numbered in the order of their names. A class folder holds
images and nothing else.
"""

from __future__ import annotations

from pathlib import Path

from core.config import DataConfig
from core.errors import DataError
from data.images import MEAN, STD, decode
from data.splits import Source, labelled

_SPLITS = ("train", "validation", "test")


def check(config: DataConfig) -> None:
    """Refuse a folder that is not laid out by class, without decoding an image.

    Raises:
        DataError: Names the file or folder that is missing, empty or out of place.
    """
    _list_splits(config)


def load(config: DataConfig, seed: int) -> Source:
    """Decode the images of all splits.

    Raises:
        DataError: As `check`; or an image is damaged or unlike the others.
    """
    splits = _list_splits(config)
    names = tuple(splits["train"])
    found = {}
    for title, classes in splits.items():
        files = [(file, names.index(name)) for name in classes for file in classes[name]]
        images = decode([(str(file), file) for file, _ in files])
        found[title] = labelled(images, [label for _, label in files], config.source)
    channels = found["train"].images.shape[1]
    return Source(names, (MEAN,) * channels, (STD,) * channels, **found)


def _list_splits(config: DataConfig) -> dict[str, dict[str, list[Path]]]:
    """Files by split and class name, in order."""
    root = Path(config.source.partition(":")[2]).expanduser()
    if not root.is_dir():
        raise DataError(f"data.source={config.source}: there is no folder {root}")
    split_folders = {title: root / title for title in _SPLITS if (root / title).is_dir()}
    if not split_folders:
        return {"train": _at_least_two(root, list_classes(root))}
    if "train" not in split_folders:
        raise DataError(
            f"data.source={config.source}: {root} has {', '.join(split_folders)} and no train "
            "folder; use DIR/train/CLASS and DIR/test/CLASS, or DIR/CLASS"
        )
    for entry in sorted(root.iterdir()):
        if entry.name not in split_folders:
            raise DataError(f"{entry} is none of the folders {', '.join(_SPLITS)}; move it away")
    splits = {
        title: _at_least_two(folder, list_classes(folder))
        for title, folder in split_folders.items()
    }
    for title, classes in splits.items():
        for name in classes.keys() - splits["train"].keys():
            raise DataError(
                f"{split_folders[title] / name} is a class without training images; add "
                f"{split_folders['train'] / name} or remove it"
            )
    return splits


def list_classes(folder: Path) -> dict[str, list[Path]]:
    """Image files by the name of their class folder, in order.

    Raises:
        DataError: Something lies there that is not a class folder, or one holds no image.
    """
    classes = {}
    for entry in _visible(folder):
        if not entry.is_dir():
            raise DataError(f"{entry} is not a class folder; {folder} may hold nothing else")
        files = _visible(entry)
        for file in files:
            if not file.is_file():
                raise DataError(f"{file} is not an image; a class folder may hold nothing else")
        if not files:
            raise DataError(f"class folder {entry} holds no image; add some or remove it")
        classes[entry.name] = files
    return classes


def _at_least_two(folder: Path, classes: dict[str, list[Path]]) -> dict[str, list[Path]]:
    if len(classes) < 2:
        raise DataError(f"{folder} has {len(classes)} class folders; there must be at least 2")
    return classes


def _visible(folder: Path) -> list[Path]:
    """What `folder` holds, without the hidden files that desktops leave everywhere."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
