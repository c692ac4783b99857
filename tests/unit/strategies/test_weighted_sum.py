"""Sums of replies against a loop that adds one number after the other in float64.

A number of float32 times a weight is exact there, so that the bits are the same.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import strategies.fedavg
from core.wire import Record
from strategies.fedavg import WeightedSum

NAMES = ("first", "second")


@given(
    held=st.lists(st.sets(st.sampled_from(NAMES)), max_size=5),
    weights=st.lists(st.integers(0, 10**6), min_size=5, max_size=5),
    length=st.integers(0, 7),
    dtype=st.sampled_from(["float32", "int64"]),
    seed=st.integers(0, 99),
)
def test_each_number_is_added_in_the_order_of_the_replies(
    held: list[set[str]], weights: list[int], length: int, dtype: str, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    replies: list[dict[str, npt.NDArray[np.generic]]] = [
        {name: (1000 * draw.standard_normal((length, 2))).astype(dtype) for name in sorted(names)}
        for names in held
    ]
    total = WeightedSum()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strategies.fedavg, "_BLOCK", 4)
        for arrays, weight in zip(replies, weights, strict=False):
            total.add(Record(arrays, {"loss": 0.5}), weight)
        found = {name: value.numpy() for name, value in total.arrays.items()}
    expected: dict[str, npt.NDArray[np.float64]] = {}
    for arrays, weight in zip(replies, weights, strict=False):
        for name, array in arrays.items():
            if weight:
                sums = expected.setdefault(name, np.zeros(array.shape))
                for index in np.ndindex(array.shape):
                    sums[index] = sums[index] + weight * float(array[index])
    assert found.keys() == expected.keys()
    for name, sums in expected.items():
        assert np.array_equal(found[name], sums)
    assert total.weight == sum(weights[: len(replies)])
    assert total.metrics == ({"loss": pytest.approx(0.5 * total.weight)} if replies else {})


def test_sums_can_be_read_while_they_are_made() -> None:
    total = WeightedSum()
    for count in range(1, 6):
        total.add(Record({"x": np.ones(3, dtype=np.float32)}), 2)
        assert total.arrays["x"].tolist() == [2.0 * count] * 3
        assert total.mean("x").tolist() == [1.0] * 3
