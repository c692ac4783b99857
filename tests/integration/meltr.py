"""MELTR small enough to run many times."""

from __future__ import annotations

from collections.abc import Mapping

MELTR: Mapping[str, object] = {
    "workload": "meltr",
    "meltr.width": 16,
    "meltr.scale-width": 8,
    "meltr.feedforward": 16,
    "meltr.fit-steps": 5,
    "meltr.update-every": 1,
    "meltr.learning-rate": 0.01,
}
