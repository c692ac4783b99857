"""Sizes and forms of messages, against Flower's own count and NumPy's own files."""

import io
from collections.abc import Mapping

import numpy as np
import pytest
from flwr.app import RecordDict
from hypothesis import given
from hypothesis import strategies as st

from core.wire import ArraySpec, Record, RecordSpec, Setting
from strategies.flower import from_flower, serialise, to_flower

NAMES = st.text("abcdefghijklmnop_.0123456789", min_size=1, max_size=20)
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
DTYPES = st.sampled_from(["float32", "float16", "float64", "uint8", "int64", "bool"])
SETTINGS = st.one_of(st.booleans(), st.integers(-(2**60), 2**60), st.text("abc", min_size=1))


def count_with_flower(content: RecordDict) -> int:
    return sum(part.count_bytes() for part in content.values())


@given(
    st.dictionaries(NAMES, st.tuples(SHAPES, DTYPES), max_size=4),
    st.dictionaries(NAMES, st.floats(allow_nan=False), max_size=4),
    st.dictionaries(NAMES, SETTINGS, max_size=4),
)
def test_size_is_flowers_own_count(
    arrays: Mapping[str, tuple[tuple[int, ...], str]],
    metrics: Mapping[str, float],
    settings: Mapping[str, Setting],
) -> None:
    filled = {name: np.ones(shape, dtype) for name, (shape, dtype) in arrays.items()}
    record = Record(filled, metrics, settings)
    assert record.num_bytes() == count_with_flower(to_flower(record))


def test_size_of_an_array_is_that_of_its_npy_file() -> None:
    array = np.zeros((7, 3, 32, 32), np.float32)
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    assert ArraySpec(array.shape, "float32").num_bytes() == len(buffer.getvalue())


def test_record_survives_the_wire_bit_for_bit() -> None:
    weights = np.array([[1.5, -0.0], [np.float32(1e-45), 3.0]], np.float32)
    record = Record({"w": weights.T, "n": np.array(3)}, {"loss": 0.1, "count": 7}, {"round": 2})
    returned = from_flower(to_flower(record))
    assert returned.metrics == record.metrics
    assert returned.settings == record.settings
    for name, array in record.arrays.items():
        assert returned.arrays[name].dtype == array.dtype
        assert returned.arrays[name].tobytes() == array.tobytes()


def test_one_serialised_array_record_serves_many_messages() -> None:
    arrays = serialise(Record({"w": np.zeros(3)}))
    first, second = to_flower(Record(), arrays), to_flower(Record(), arrays)
    assert first["arrays"] is second["arrays"]


@pytest.mark.parametrize("missing", ["arrays", "metrics", "settings"])
def test_message_without_a_part_is_refused(missing: str) -> None:
    content = to_flower(Record())
    del content[missing]
    with pytest.raises(ValueError, match=missing):
        from_flower(content)


def test_pickled_array_is_refused() -> None:
    content = to_flower(Record({"w": np.zeros(2)}))
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    content.array_records["arrays"]["w"].data = buffer.getvalue()
    with pytest.raises(ValueError, match="allow_pickle"):
        from_flower(content)


FORM = RecordSpec({"w": ArraySpec((2,), "float32")}, ("loss",))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (Record({}, {"loss": 0.0}), "'w' is missing"),
        (Record({"w": np.zeros(2, "f4"), "x": np.zeros(1)}, {"loss": 0.0}), "'x' was not asked"),
        (Record({"w": np.zeros(3, "f4")}, {"loss": 0.0}), r"shape \(3,\), expected \(2,\)"),
        (Record({"w": np.zeros(2, "f8")}, {"loss": 0.0}), "float64, expected float32"),
        (Record({"w": np.array([1, np.nan], "f4")}, {"loss": 0.0}), "NaN"),
        (Record({"w": np.array([1, np.inf], "f4")}, {"loss": 0.0}), "infinity"),
        (Record({"w": np.zeros(2, "f4")}, {}), "'loss' is missing"),
        (Record({"w": np.zeros(2, "f4")}, {"loss": 0.0, "x": 1}), "'x' was not asked"),
        (Record({"w": np.zeros(2, "f4")}, {"loss": float("inf")}), "'loss' is inf"),
        (Record({"w": np.zeros(2, "f4")}, {"loss": 2e9}), "'loss' is 2e[+]09, expected 0 to 1e"),
        (Record({"w": np.zeros(2, "f4")}, {"loss": -1e-9}), "'loss' is -1e-09, expected 0 to"),
        (Record({"w": np.array([0, -2e9], "f4")}, {"loss": 0.0}), "a magnitude above 1e[+]09"),
    ],
)
def test_each_departure_from_the_form_is_named(record: Record, reason: str) -> None:
    with pytest.raises(AssertionError, match=reason):
        assert not FORM.violations(record), FORM.violations(record)


def test_what_there_was_nothing_to_measure_of_may_be_nan_and_no_other_nonsense() -> None:
    form = RecordSpec({}, ("loss", "pace"), optional=frozenset({"pace"}))
    nothing = Record({}, {"loss": 0.0, "pace": float("nan")})
    assert form.violations(nothing) == []
    assert nothing.num_bytes() == form.num_bytes()
    for metrics in ({"loss": 0.0, "pace": float("inf")}, {"loss": float("nan"), "pace": 0.0}):
        assert len(form.violations(Record({}, metrics))) == 1
    assert form.violations(Record({}, {"loss": 0.0})) == ["metric 'pace' is missing"]


def test_a_record_fits_its_own_form() -> None:
    record = Record({"w": np.zeros(2, "f4")}, {"loss": 0.0})
    assert FORM.violations(record) == []
    assert record.spec().violations(record) == []
