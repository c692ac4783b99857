"""Nested settings become flat keys."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError
from experiments import settings
from experiments.settings import flat_settings

NAMES = st.text("abc-", min_size=1, max_size=4)


def test_the_example_in_the_docstring() -> None:
    assert doctest.testmod(settings).attempted > 0
    assert doctest.testmod(settings).failed == 0


@given(st.dictionaries(NAMES, st.dictionaries(NAMES, st.integers(), min_size=1), min_size=1))
def test_flat_names_lead_back_to_the_nested_values(nested: dict[str, dict[str, int]]) -> None:
    flat = flat_settings(nested)
    assert len(flat) == sum(len(table) for table in nested.values())
    for title, table in nested.items():
        for key, value in table.items():
            assert flat[f"{title}.{key}"] == value


def test_flat_settings_stay_as_they_are() -> None:
    flat = {"rounds": 2, "data.source": "digits"}
    assert flat_settings(flat) == flat


def test_a_key_given_twice_is_refused_with_both_values() -> None:
    with pytest.raises(ConfigError) as caught:
        flat_settings({"train": {"momentum": 0.5}, "train.momentum": 0.9})
    (problem,) = caught.value.problems
    assert problem.key == "train.momentum"
    assert "0.5" in str(problem)
    assert "0.9" in str(problem)
