"""``FILE.py:FUNCTION``: a data source in a user's file.

``FUNCTION(config: DataConfig, seed: int) -> ImageDataset``, all three splits given. The name of
what it returns is replaced by the configured one, and ``train_examples`` is applied to it.
"""

from __future__ import annotations

from core.config import DataConfig
from core.errors import ConfigError, DataError, Problem, TesseraError
from core.plugins import load_plugin
from data.dataset import ImageDataset
from data.splits import Source


def check(config: DataConfig) -> None:
    """Refuse a file that does not import or a name that is no function.

    Raises:
        ConfigError: Says which.
    """
    function = load_plugin("data.source", config.source)
    if not callable(function):
        rule = f"must name a function; it is a {type(function).__name__}"
        raise ConfigError([Problem("data.source", config.source, rule)])


def load(config: DataConfig, seed: int) -> Source:
    """Call the function.

    Raises:
        DataError: The function failed.
        ConfigError: As `check`; or it returned something else.
    """
    check(config)
    try:
        dataset = load_plugin("data.source", config.source)(config, seed)
    except TesseraError:
        raise
    except Exception as error:
        raise DataError(
            f"data.source={config.source} failed: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(dataset, ImageDataset):
        rule = f"must return a data.dataset.ImageDataset; it returned a {type(dataset).__name__}"
        raise ConfigError([Problem("data.source", config.source, rule)])
    return Source(
        class_names=dataset.class_names,
        mean=dataset.mean,
        std=dataset.std,
        train=dataset.train,
        validation=dataset.validation,
        test=dataset.test,
    )
