"""The demo's promise, on its own suite file."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import tessera

ROOT = Path(__file__).resolve().parents[2]


def test_the_demo_compares_what_it_says() -> None:
    suite = tomllib.loads((ROOT / "examples" / "demo.toml").read_text())
    methods = {method["strategy"]: method for method in suite["methods"]}
    assert methods.keys() >= {"feddm", "fedavg", "real-images", "centralized"}
    assert methods["feddm"]["mosaic.images-per-class"] == 2
    assert suite["base"]["data.source"] == "digits"
    assert suite["base"]["partition.clients"] == 10
    assert suite["base"]["partition.alpha"] == 0.01
    assert len(suite["seeds"]) == 1


def test_feddm_of_the_demo_ends_above_85_percent_of_centralized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    suite = tomllib.loads((ROOT / "examples" / "demo.toml").read_text())
    accuracies = {}
    for method in suite["methods"]:
        if method["strategy"] in {"feddm", "centralized"}:
            keys = {k: v for k, v in method.items() if k != "label"}
            run = tessera.run({**suite["base"], **keys})
            assert run.final is not None
            assert run.final.test is not None
            accuracies[method["strategy"]] = run.final.test.primary
    assert accuracies["centralized"] > 0.9
    assert accuracies["feddm"] > 0.85 * accuracies["centralized"]
