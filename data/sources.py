"""Data sources by name, each loaded into train, validation and test."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Protocol, cast

from core.config import DataConfig
from core.errors import ConfigError, Problem
from core.plugins import is_plugin
from data.dataset import ImageDataset
from data.splits import Source, complete, equal_share


class _Loader(Protocol):
    def check(self, config: DataConfig) -> None: ...

    def load(self, config: DataConfig, seed: int) -> Source: ...


_LOADERS = {
    "digits": "data.digits",
    "mnist": "data.torchvision_sources",
    "fashion-mnist": "data.torchvision_sources",
    "cifar10": "data.torchvision_sources",
    "cifar100": "data.torchvision_sources",
    "parquet": "data.parquet",
    "folder": "data.folder",
}
"""Module of each source, imported when asked for: each needs other packages."""


def load_dataset(config: DataConfig, seed: int) -> ImageDataset:
    """Load the source that ``config.source`` names.

    Splits that a source lacks are held out by class under a constant seed, so that runs with
    different seeds are judged on the same images. `seed` draws the ``train_examples``, and is
    handed to a source in a user's file.

    Raises:
        DataError: Data is missing, damaged, contradicts itself or is too little for the
            configuration; says which file and what to do.
        ConfigError: The source is unknown, or the user's file does not do its part.
    """
    dataset = complete(_loader(config).load(config, seed), config)
    if config.train_examples == 0:
        return dataset
    train = equal_share(dataset.train, dataset.class_names, config.train_examples, seed)
    return dataclasses.replace(dataset, train=train)


def check_source(config: DataConfig) -> None:
    """Raise what `load_dataset` would raise for missing files, without decoding an image.

    Raises:
        DataError: Files are missing or out of place.
        ConfigError: The source is unknown, or the user's file does not load.
    """
    _loader(config).check(config)


def _loader(config: DataConfig) -> _Loader:
    name = config.source.partition(":")[0]
    module = "data.plugin" if is_plugin(config.source) else _LOADERS.get(name)
    if module is None:
        rule = f"must be one of {', '.join(_LOADERS)} or FILE.py:FUNCTION"
        raise ConfigError([Problem("data.source", config.source, rule)])
    return cast(_Loader, importlib.import_module(module))
