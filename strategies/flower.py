"""The one adapter between our wire records and Flower's."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.constant import SType

from core import wire
from core.wire import ArraySpec, Metric, Record, RecordSpec, Setting

ARRAYS, METRICS, SETTINGS = "arrays", "metrics", "settings"

_KINDS = {ARRAYS: ArrayRecord, METRICS: MetricRecord, SETTINGS: ConfigRecord}
_NUMBERS = frozenset(np.dtype(code).name for code in np.typecodes["AllFloat"] + "?bhilqBHILQ")
_REASONS_TOLD = 8

# What a client names is told in part: a reason goes on record, and a name may be a megabyte.
_brief = reprlib.Repr()
_brief.maxstring = 80


def to_flower(record: Record, arrays: ArrayRecord | None = None) -> RecordDict:
    """Serialise a record.

    Args:
        record: What to send.
        arrays: The record's arrays, serialised before; the same object may go into the messages
            of many clients, which an engine can then store once.
    """
    return RecordDict(
        {
            ARRAYS: serialise(record) if arrays is None else arrays,
            METRICS: MetricRecord(dict(record.metrics)),
            SETTINGS: ConfigRecord(dict(record.settings)),
        }
    )


def serialise(record: Record) -> ArrayRecord:
    """The record's arrays as Flower sends them: ``.npy`` bytes, C order."""
    return ArrayRecord({name: _encoded(array) for name, array in record.arrays.items()})


def _encoded(array: wire.Array) -> Array:
    """What ``Array(array)`` makes, with a single copy of the values instead of three."""
    assert str(array.dtype) == array.dtype.name, "numbers in this machine's byte order"
    values = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    data = b"".join((ArraySpec(array.shape, array.dtype.name).npy_header(), values.data))
    return Array(array.dtype.name, array.shape, SType.NUMPY, data)


def _decoded(array: Array) -> wire.Array:
    """What ``array.numpy()`` makes; read-only, over the array's own bytes."""
    if array.stype == SType.NUMPY:
        spec = ArraySpec(tuple(array.shape), array.dtype)
        # NumPy writes one header for one form. Any other file is NumPy's to read.
        if array.dtype in _NUMBERS and array.data.startswith(header := spec.npy_header()):
            count = math.prod(spec.shape)
            values = np.frombuffer(array.data, array.dtype, count, len(header))
            return values.reshape(spec.shape)
    return array.numpy()


def from_flower(content: RecordDict, form: RecordSpec | None = None) -> Record:
    """Read a record back. Nothing is unpickled.

    Args:
        content: What came; the arrays returned are read-only views of its bytes.
        form: What a sender that is not trusted may send. Nothing is decoded before its size,
            names, shapes, dtypes and ``.npy`` headers are found to be those of the form, so that
            decoding allocates no more than ``form.num_bytes()``. Values, and whether every metric
            is there, are for `RecordSpec.violations` and the receiver to judge.

    Raises:
        ValueError: A part is missing, a metric or setting is no number or scalar of 64 bits, bytes
            are no array, or the content departs from `form`; the first departures are told.
    """
    for name, kind in _KINDS.items():
        if not isinstance(content.get(name), kind):
            raise ValueError(f"the message has no {kind.__name__} {name!r}")
    reasons = _departures(content, form)
    if told := list(islice(reasons, _REASONS_TOLD)):
        raise ValueError("; ".join([*told, "and more"] if next(reasons, None) else told))
    return Record(
        {name: _decoded(array) for name, array in content.array_records[ARRAYS].items()},
        cast(dict[str, Metric], dict(content.metric_records[METRICS])),
        cast(dict[str, Setting], dict(content.config_records[SETTINGS])),
    )


def serialised_bytes(message: Message) -> int:
    """Size of a message's records as Flower counts them."""
    return _num_bytes(message.content)


def _num_bytes(content: RecordDict) -> int:
    total = 0
    for part in content.values():
        counted = part
        if isinstance(part, ConfigRecord):
            # Flower's count raises at a text or list without length; such a one has its key's size.
            kept = {name: value for name, value in part.items() if _has_length(value)}
            total += sum(len(name) for name in part if name not in kept)
            counted = ConfigRecord(kept)
        total += counted.count_bytes()
    return total


def _departures(content: RecordDict, form: RecordSpec | None) -> Iterator[str]:
    """Reasons not to decode `content`, as sentences."""
    if form is not None:
        yield from _departures_of_size(content, form)
        yield from _departures_of_arrays(content.array_records[ARRAYS], form.arrays)
        yield from _departures_of_settings(content.config_records[SETTINGS], form.settings)
    for name, metric in content.metric_records[METRICS].items():
        # A bool is an int to Python and one byte less to Flower.
        if isinstance(metric, list | bool):
            yield f"metric {_brief.repr(name)} is a {type(metric).__name__}"
        elif not _fits_64_bits(metric):
            yield f"metric {_brief.repr(name)} does not fit 64 bits"
    for name, setting in content.config_records[SETTINGS].items():
        if isinstance(setting, list | bytes):
            yield f"setting {_brief.repr(name)} is no scalar"
        elif not _fits_64_bits(setting):
            yield f"setting {_brief.repr(name)} does not fit 64 bits"


def _departures_of_size(content: RecordDict, form: RecordSpec) -> Iterator[str]:
    num_bytes, most = _num_bytes(content), form.num_bytes()
    if num_bytes > most:
        yield f"is {num_bytes:,} B, at most {most:,} B are expected"
    yield from _departures_of_names("part", content, _KINDS)


def _departures_of_names(
    kind: str, found: Mapping[str, object], expected: Mapping[str, object]
) -> Iterator[str]:
    yield from (f"{kind} {name!r} is missing" for name in expected if name not in found)
    for name in found:
        if name not in expected:
            yield f"{kind} {_brief.repr(name)} was not asked for"


def _departures_of_settings(
    found: Mapping[str, object], expected: Mapping[str, Setting]
) -> Iterator[str]:
    yield from _departures_of_names("setting", found, expected)
    for name, value in expected.items():
        if name in found and type(found[name]) is not type(value):
            kind = type(found[name]).__name__
            yield f"setting {name!r} is of type {kind}, expected {type(value).__name__}"


def _departures_of_arrays(
    found: Mapping[str, Array], expected: Mapping[str, ArraySpec]
) -> Iterator[str]:
    yield from _departures_of_names("array", found, expected)
    for name, spec in expected.items():
        if name in found:
            yield from (
                f"array {name!r} {rest}" for rest in _departures_of_array(found[name], spec)
            )


def _departures_of_array(array: Array, spec: ArraySpec) -> list[str]:
    """Of Flower's own fields; where they fit, of the size; where that fits, of the header."""
    declared = []
    if array.stype != SType.NUMPY:
        declared.append(f"is serialised as {_brief.repr(array.stype)}, expected {SType.NUMPY!r}")
    if array.shape != spec.shape:
        declared.append(f"has shape {_brief.repr(array.shape)}, expected {spec.shape}")
    if array.dtype != spec.dtype:
        declared.append(f"is {_brief.repr(array.dtype)[1:-1]}, expected {spec.dtype}")
    if declared:
        return declared
    if len(array.data) != spec.num_bytes():
        return [f"is {len(array.data):,} B, expected {spec.num_bytes():,} B"]
    # NumPy writes one header for one form. Comparing bytes parses nothing that came from outside.
    if not array.data.startswith(spec.npy_header()):
        return [f"has another .npy header than {spec.dtype} of shape {spec.shape} in C order"]
    return []


def _has_length(value: object) -> bool:
    return not isinstance(value, str | bytes | list) or len(value) > 0


def _fits_64_bits(value: object) -> bool:
    """A longer integer can come only from this process; NumPy and ``str`` choke on it."""
    return not isinstance(value, int) or -(2**63) <= value < 2**63
