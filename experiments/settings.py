"""Settings as TOML tables and Python dictionaries nest them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from core.errors import ConfigError, Problem


def flat_settings(nested: Mapping[str, object]) -> dict[str, object]:
    """Join nested tables into flat ``section.key`` names.

    Raises:
        ConfigError: A key is given twice, nested and flat.

    >>> flat_settings({"rounds": 3, "train": {"learning-rate": 0.1}, "data.source": "digits"})
    {'rounds': 3, 'train.learning-rate': 0.1, 'data.source': 'digits'}
    """
    found: dict[str, object] = {}
    problems = []
    for key, value in _leaves(nested, ""):
        if key in found:
            problems.append(Problem(key, str(value), f"given twice, before as {found[key]}"))
        found[key] = value
    if problems:
        raise ConfigError(problems)
    return found


def _leaves(nested: Mapping[str, object], prefix: str) -> Iterator[tuple[str, object]]:
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
