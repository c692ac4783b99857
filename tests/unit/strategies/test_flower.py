"""What a client may send: anything but the expected form is refused before it is decoded."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from core.wire import Record, RecordSpec, Setting
from engine.flwr_seam import run_identity
from strategies.flower import from_flower, serialised_bytes, to_flower

SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
DTYPES = st.sampled_from(["float32", "float16", "float64", "uint8", "int64", "bool"])

RECORD = Record(
    {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(7)},
    {"loss": 0.5, "num_examples": 4},
    {"round": 3},
)
FORM = RECORD.spec()
TOLD_AT_MOST = 2_000


def npy(shape: object, descr: str = "<f4", fortran_order: bool = False, payload: int = 24) -> bytes:
    """A file whose header claims what is given, over `payload` zero bytes."""
    buffer = io.BytesIO()
    header = {"descr": descr, "fortran_order": fortran_order, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + bytes(payload)


def with_data(data: bytes) -> RecordDict:
    """An honest reply but for the bytes of array ``w``."""
    content = to_flower(RECORD)
    content.array_records["arrays"]["w"].data = data
    return content


def refusal(content: RecordDict, form: RecordSpec = FORM) -> str:
    with pytest.raises(ValueError) as caught:
        from_flower(content, form)
    return str(caught.value)


@given(st.dictionaries(st.text(max_size=9), st.tuples(SHAPES, DTYPES), max_size=4))
def test_what_fits_the_form_comes_back_bit_for_bit(
    forms: dict[str, tuple[tuple[int, ...], str]],
) -> None:
    generator = np.random.default_rng(len(forms))
    arrays = {
        name: generator.integers(0, 2, shape).astype(dtype)
        for name, (shape, dtype) in forms.items()
    }
    record = Record(arrays, {"loss": 0.25, "count": -(2**63)}, {"round": 2**63 - 1, "on": True})
    returned = from_flower(to_flower(record), record.spec())
    assert (returned.metrics, returned.settings) == (record.metrics, record.settings)
    assert returned.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        found = returned.arrays[name]
        assert (found.shape, found.dtype) == (array.shape, array.dtype)
        assert found.tobytes() == array.tobytes()


def put_part(content: RecordDict) -> None:
    content["more"] = ArrayRecord({"x": Array(np.zeros(3))})


def put_array(content: RecordDict) -> None:
    content.array_records["arrays"]["x"] = Array(np.zeros(3))


def drop_array(content: RecordDict) -> None:
    del content.array_records["arrays"]["w"]


def put_weights(array: npt.NDArray[Any]) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content.array_records["arrays"]["w"] = Array(array)

    return change


def declare(**fields: object) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        for name, value in fields.items():
            setattr(content.array_records["arrays"]["w"], name, value)

    return change


def put_metric(name: str, value: object) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content["metrics"] = MetricRecord({**content.metric_records["metrics"], name: value})  # type: ignore[dict-item]

    return change


def put_settings(**values: object) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content["settings"] = ConfigRecord(values)  # type: ignore[arg-type]

    return change


HONEST = npy((2, 3))
NO_FILE = "array 'w' has another .npy header than float32 of shape (2, 3) in C order"

DEPARTURES: dict[str, tuple[Callable[[RecordDict], None], str]] = {
    "part": (put_part, "part 'more' was not asked for"),
    "array": (put_array, "array 'x' was not asked for"),
    "no array": (drop_array, "array 'w' is missing"),
    "shape": (
        put_weights(np.zeros((3, 2), "f4")),
        "array 'w' has shape (3, 2), expected (2, 3)",
    ),
    "dtype": (put_weights(np.zeros((2, 3))), "array 'w' is float64, expected float32"),
    "endian": (put_weights(np.zeros((2, 3), ">f4")), "array 'w' is >f4, expected float32"),
    "order": (put_weights(np.zeros((3, 2), "f4").T), NO_FILE),
    "declared shape": (declare(shape=(10**12,)), "has shape (1000000000000,), expected (2, 3)"),
    "declared negative": (declare(shape=(-2, 3)), "has shape (-2, 3), expected (2, 3)"),
    "declared dtype": (declare(dtype="object"), "array 'w' is object, expected float32"),
    "stype": (declare(stype="pickle"), "is serialised as 'pickle', expected 'numpy.ndarray'"),
    "no bytes": (declare(data=b""), "array 'w' is 0 B, expected 152 B"),
    "short": (declare(data=HONEST[:-1]), "array 'w' is 151 B, expected 152 B"),
    "long": (declare(data=HONEST + b"0"), "array 'w' is 153 B, expected 152 B"),
    "magic": (declare(data=b"PK" + HONEST[2:]), NO_FILE),
    "version": (declare(data=HONEST[:6] + b"\x02" + HONEST[7:]), NO_FILE),
    "header shape": (declare(data=npy((3, 2))), NO_FILE),
    "header huge": (declare(data=npy((10**12,))), NO_FILE),
    "header negative": (declare(data=npy((-2, -3))), NO_FILE),
    "header Fortran": (declare(data=npy((2, 3), fortran_order=True)), NO_FILE),
    "header object": (declare(data=npy((2, 3), descr="|O")), NO_FILE),
    "header text": (declare(data=npy((2, 3), descr="<U1")), NO_FILE),
    "metric list": (put_metric("loss", [0.5, 0.25]), "metric 'loss' is a list"),
    "metric empty list": (put_metric("loss", []), "metric 'loss' is a list"),
    "metric beyond 64 bits": (put_metric("loss", 2**63), "metric 'loss' does not fit 64 bits"),
    "no setting": (put_settings(), "setting 'round' is missing"),
    "setting": (put_settings(round=3, x=1), "setting 'x' was not asked for"),
    "setting type": (put_settings(round="3"), "setting 'round' is of type str, expected int"),
    "setting bool": (put_settings(round=True), "setting 'round' is of type bool, expected int"),
    "setting bytes": (put_settings(round=b""), "setting 'round' is no scalar"),
    "setting list": (put_settings(round=[]), "setting 'round' is no scalar"),
    "setting beyond 64 bits": (
        put_settings(round=-(10**9999)),
        "setting 'round' does not fit 64 bits",
    ),
}


@pytest.mark.parametrize("departure", DEPARTURES)
def test_each_departure_is_named_and_nothing_is_decoded(
    departure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, reason = DEPARTURES[departure]
    content = to_flower(RECORD)
    change(content)
    decoded: list[Array] = []
    monkeypatch.setattr("strategies.flower._decoded", lambda array: decoded.append(array))
    assert reason in refusal(content)
    assert decoded == []


def test_a_bool_that_got_into_the_metrics_is_refused() -> None:
    content = to_flower(RECORD)
    # Flower refuses it where it is put in; what comes from elsewhere need not pass there.
    content.metric_records["metrics"].__dict__["_data"]["loss"] = True
    assert refusal(content) == "metric 'loss' is a bool"


def test_more_bytes_than_expected_are_told_first() -> None:
    content = to_flower(RECORD)
    content.array_records["arrays"]["w"] = Array(np.zeros(1_000, np.float32))
    # 4,000 B of payload instead of 24; the header keeps its 128 B.
    most = FORM.num_bytes()
    assert refusal(content) == (
        f"is {most + 3_976:,} B, at most {most:,} B are expected; "
        "array 'w' has shape (1000,), expected (2, 3)"
    )


def test_a_name_in_place_of_weights_is_too_many_bytes() -> None:
    content = to_flower(RECORD)
    put_metric("m" * 1_000, 1)(content)
    assert refusal(content).startswith(f"is {FORM.num_bytes() + 1_008:,} B, at most ")


def test_missing_metrics_are_left_to_the_check_of_values() -> None:
    content = to_flower(Record(RECORD.arrays, {"loss": 0.5}, RECORD.settings))
    assert FORM.violations(from_flower(content, FORM)) == ["metric 'num_examples' is missing"]


def test_a_round_is_not_judged_here() -> None:
    content = to_flower(Record(RECORD.arrays, RECORD.metrics, {"round": 99}))
    assert from_flower(content, FORM).settings == {"round": 99}


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    trace = tmp_path / "trace"

    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (trace,))

    buffer = io.BytesIO()
    np.save(buffer, np.array([Payload()], dtype=object), allow_pickle=True)
    buffer.seek(0)
    np.load(buffer, allow_pickle=True)
    assert trace.exists(), "the payload works where it is let"
    trace.unlink()
    for form in (FORM, None):
        with pytest.raises(ValueError):
            from_flower(with_data(buffer.getvalue()), form)
    assert not trace.exists()


@given(st.one_of(st.binary(max_size=300), st.binary(min_size=152, max_size=152)))
def test_random_bytes_are_refused(data: bytes) -> None:
    assert "array 'w'" in refusal(with_data(data))


@given(st.integers(0, 151), st.integers(1, 255))
def test_a_changed_byte_is_refused_in_the_header_and_harmless_in_the_data(at: int, by: int) -> None:
    data = bytearray(HONEST)
    data[at] ^= by
    content = with_data(bytes(data))
    if at < 128:
        assert refusal(content) == NO_FILE
    else:
        assert from_flower(content, FORM).arrays["w"].tobytes() == bytes(data[128:])


@given(st.integers(0, 151))
def test_truncated_bytes_are_refused(length: int) -> None:
    assert f"array 'w' is {length} B" in refusal(with_data(HONEST[:length]))


@given(
    st.lists(st.integers(-(10**20), 10**20), max_size=5).map(tuple),
    st.sampled_from(["<f4", ">f4", "<f8", "|O", "<U9", "|V0", "<M8[s]"]),
    st.booleans(),
)
def test_a_lying_header_is_refused(shape: tuple[int, ...], descr: str, fortran: bool) -> None:
    header = npy(shape, descr, fortran, payload=0)
    content = with_data(header.ljust(152, b"\0"))
    if (shape, descr, fortran) == ((2, 3), "<f4", False):
        from_flower(content, FORM)
    else:
        assert "array 'w'" in refusal(content)


def peak_bytes(action: Callable[[], object]) -> int:
    action()  # what is allocated once and kept is not of interest
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def declared(**fields: object) -> RecordDict:
    content = to_flower(RECORD)
    declare(**fields)(content)
    return content


BOMBS: dict[str, Callable[[], RecordDict]] = {
    "claimed terabyte": lambda: with_data(npy((10**12,))),
    "claimed 200 MB": lambda: with_data(npy((50_000_000,))),
    "real 20 MB": lambda: with_data(npy((5_000_000,), payload=20_000_000)),
    "name of 20 MB": lambda: to_flower(Record({"n" * 20_000_000: np.zeros(1)})),
    "metric of 20 MB": lambda: to_flower(Record({}, {"m" * 20_000_000: 1})),
    "setting of 20 MB": lambda: to_flower(Record({}, {}, {"round": "s" * 20_000_000})),
    "dtype of 20 MB": lambda: declared(dtype="f" * 20_000_000),
    "shape of a million": lambda: declared(shape=(1,) * 1_000_000),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_refusing_allocates_little_and_says_little(bomb: str) -> None:
    content = BOMBS[bomb]()
    said = ""

    def refuse() -> None:
        nonlocal said
        said = refusal(content)

    assert peak_bytes(refuse) < 100_000
    assert 0 < len(said) < TOLD_AT_MOST


def test_of_many_departures_the_first_are_told() -> None:
    content = to_flower(RECORD)
    content["arrays"] = ArrayRecord(
        {f"x{number}": Array("float32", (), "numpy.ndarray", b"") for number in range(20_000)}
    )
    said = refusal(content)
    assert said.startswith("is ")
    assert said.endswith("; and more")
    assert "array 'w' is missing; array 'n' is missing; array 'x0' was not asked for;" in said
    assert len(said) < TOLD_AT_MOST


def test_decoding_allocates_no_more_than_the_form_has() -> None:
    record = Record({"w": np.zeros(1_000_000, np.float32)})
    content, form = to_flower(record), record.spec()
    # NumPy reads in pieces of 256 KiB, and holds two.
    assert peak_bytes(lambda: from_flower(content, form)) < form.num_bytes() + 3 * 2**18


def test_a_lying_header_without_a_form_is_why_there_is_one() -> None:
    """The tests above can fail: a decoder that trusts this header asks for its 200 MB."""
    content = with_data(npy((50_000_000,)))

    def decode() -> None:
        with pytest.raises(ValueError):
            from_flower(content)

    assert peak_bytes(decode) > 100_000_000


@pytest.mark.parametrize(
    ("value", "num_bytes"),
    [("", 0), (b"", 0), ([], 0), ([""], 0), ("text", 4), ([1, 2], 16), (1.5, 8), (False, 1)],
)
def test_size_is_flowers_own_count_even_where_flower_has_none(
    value: object, num_bytes: int
) -> None:
    content = to_flower(RECORD)
    honest = sum(part.count_bytes() for part in content.values())
    put_settings(round=3, key=value)(content)
    with run_identity(1):
        message = Message(content, dst_node_id=5, message_type="train")
    assert serialised_bytes(message) == honest + len("key") + num_bytes


def test_settings_of_every_type_pass_where_they_are_expected() -> None:
    settings: dict[str, Setting] = {"flag": True, "count": 1, "share": 0.5, "text": "a"}
    record = Record({}, {}, settings)
    assert from_flower(to_flower(record), record.spec()).settings == settings
