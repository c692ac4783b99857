"""What travels between server and client: named arrays, metrics and settings, and their size.

The size is Flower's own measure (``count_bytes`` of its three records): each array as the ``.npy``
bytes it is sent as, header included, each metric as 8 bytes, each setting by its type, and every
key by its length. It depends on keys, shapes and dtypes alone, so it can be told before a run and
is the same in every engine.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

MAGNITUDE_LIMIT = 1e9
"""No number that a client measures or sends is larger; one that is would only overflow sums."""

Metric = int | float
Setting = bool | int | float | str
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Record:
    """One message's content.

    Attributes:
        arrays: Named arrays.
        metrics: Named numbers, 8 bytes each.
        settings: Named scalars that steer the receiver; never an empty string.
    """

    arrays: Mapping[str, Array] = field(default_factory=dict)
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    settings: Mapping[str, Setting] = field(default_factory=dict)

    def num_bytes(self) -> int:
        """Serialised size in bytes."""
        return self.spec().num_bytes()

    def spec(self) -> RecordSpec:
        """The record's form without its content."""
        arrays = {
            name: ArraySpec(array.shape, array.dtype.name) for name, array in self.arrays.items()
        }
        return RecordSpec(arrays, tuple(self.metrics), self.settings)


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """Shape and dtype name of one array."""

    shape: tuple[int, ...]
    dtype: str

    def num_bytes(self) -> int:
        """Size of the array as ``.npy``."""
        payload = math.prod(self.shape) * np.dtype(self.dtype).itemsize
        return len(self.npy_header()) + payload

    def npy_header(self) -> bytes:
        """The one ``.npy`` header that NumPy writes for an array of this form in C order."""
        return _npy_header(self.shape, self.dtype)


@dataclass(frozen=True, slots=True)
class RecordSpec:
    """The form of a record: all that its size depends on, and what a receiver may expect.

    Attributes:
        arrays: Form of each array.
        metrics: Names of all metrics.
        settings: Values as long as those that come.
        optional: Those of the metrics that may be NaN, where there was nothing to measure: left
            out, they would change the record's size.
    """

    arrays: Mapping[str, ArraySpec] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    settings: Mapping[str, Setting] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()

    def num_bytes(self) -> int:
        """Serialised size in bytes of any record of this form."""
        total = sum(len(name) + spec.num_bytes() for name, spec in self.arrays.items())
        total += sum(len(name) + 8 for name in self.metrics)
        return total + sum(
            len(name) + _setting_bytes(value) for name, value in self.settings.items()
        )

    def violations(self, record: Record) -> list[str]:
        """Ways in which `record` departs from this form, as sentences; empty if it fits."""
        found: list[str] = []
        not_finite: list[str] = []
        absurd: list[str] = []
        for name in self.arrays.keys() - record.arrays.keys():
            found.append(f"array {name!r} is missing")
        for name in record.arrays.keys() - self.arrays.keys():
            found.append(f"array {name!r} was not asked for")
        for name in self.arrays.keys() & record.arrays.keys():
            spec, array = self.arrays[name], record.arrays[name]
            if array.shape != spec.shape:
                found.append(f"array {name!r} has shape {array.shape}, expected {spec.shape}")
            if array.dtype.name != spec.dtype:
                found.append(f"array {name!r} is {array.dtype.name}, expected {spec.dtype}")
            if array.dtype.kind == "f" and not _within_limit(array):
                (absurd if np.isfinite(array).all() else not_finite).append(name)
        for name in set(self.metrics) ^ set(record.metrics):
            kind = "is missing" if name in self.metrics else "was not asked for"
            found.append(f"metric {name!r} {kind}")
        for name, value in record.metrics.items():
            if not np.isfinite(value):
                if not (name in self.optional and np.isnan(value)):
                    found.append(f"metric {name!r} is {value}")
            elif abs(value) > MAGNITUDE_LIMIT or (name.endswith("loss") and value < 0):
                least = 0 if name.endswith("loss") else -MAGNITUDE_LIMIT
                found.append(
                    f"metric {name!r} is {value:g}, expected {least:g} to {MAGNITUDE_LIMIT:g}"
                )
        for names, what in (
            (not_finite, "NaN or infinity"),
            (absurd, f"a magnitude above {MAGNITUDE_LIMIT:g}"),
        ):
            if names:
                others = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
                found.append(f"array {min(names)!r}{others} holds {what}")
        return sorted(found)


def _within_limit(array: Array) -> bool:
    """Whether every number is finite and of a magnitude that is allowed, without a copy."""
    least, most = array.min(initial=0), array.max(initial=0)  # NaN where any number is
    return bool(float(least) >= -MAGNITUDE_LIMIT and float(most) <= MAGNITUDE_LIMIT)


def _setting_bytes(value: Setting) -> int:
    if isinstance(value, bool):
        return 1
    if isinstance(value, str):
        assert value, "an empty setting has no size on Flower's wire"
        return len(value)
    return 8


@lru_cache(maxsize=4096)
def _npy_header(shape: tuple[int, ...], dtype: str) -> bytes:
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": shape,
    }
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()
