"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

# An example that takes long tells of a busy machine, and of no fault.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

TINY: Mapping[str, object] = {
    "rounds": 2,
    "partition.clients": 3,
    "model.width": 8,
    "train.batch-size": 64,
    "engine.kind": "in-process",
}
"""A federation on digits that takes about a second."""

TINY_SECTIONS: Mapping[str, Mapping[str, object]] = {
    "mosaic": {"mosaic.images-per-class": 2, "mosaic.epochs": 3},
    "feddm": {"feddm.iterations": 3, "feddm.real-batch": 16},
    "fedprox": {"fedprox.proximal-weight": 0.1},
    "fednova": {"fednova.proximal-weight": 0.1},
    "fedadam": {"fedadam.server-learning-rate": 0.01},
    "trimmed-mean": {"trimmed-mean.trim-fraction": 0.34},
    "multi-krum": {"multi-krum.byzantine": 0},
}
"""Small settings for each strategy section, by section name."""


def tiny_keys(strategy: str, **keys: object) -> dict[str, object]:
    """Keys of a tiny federation; `keys` are spelled with ``__`` for a dot, ``_`` for a dash."""
    from strategies.table import strategy_class

    flat: dict[str, object] = {**TINY, "strategy": strategy}
    for section in strategy_class(strategy).sections:
        flat |= TINY_SECTIONS.get(section, {})
    return flat | {k.replace("__", ".").replace("_", "-"): v for k, v in keys.items()}


Federate = Callable[[Mapping[str, object]], "Path"]


@pytest.fixture
def federate(tmp_path: Path) -> Federate:
    """Run a federation to its end and return its run folder."""
    from experiments.run import run
    from pairing.configuration import parse_config
    from server.progress import PlainProgress

    def federate(keys: Mapping[str, object]) -> Path:
        return run(parse_config({"runs": str(tmp_path / "runs"), **keys}), PlainProgress())

    return federate
