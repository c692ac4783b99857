"""Clients that fail: refused with the reason on record, while the others count."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from core.errors import RunError
from core.records import RunFolder
from tests.conftest import TINY, Federate

FAULTY = '''
"""FedAvg in which some clients misbehave."""
import dataclasses
import numpy as np
from core.config import text
from strategies.base import ClientUpdate
from strategies.fedavg import FedAvg

@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    fault: str = text("none", "what goes wrong")
    clients: str = text("1", "which clients misbehave")

class Faulty(FedAvg):
    name = "faulty"
    sections = {"faulty": Options}

    def client_update(self, task):
        update = super().client_update(task)
        options = self.config.section(Options)
        if str(task.partition_id) not in options.clients:
            return update
        arrays, metrics = dict(update.arrays), dict(update.metrics)
        first = next(iter(arrays))
        if options.fault == "raise":
            raise ArithmeticError(f"client {task.partition_id} gave up")
        if options.fault == "nan":
            arrays[first] = np.full_like(arrays[first], np.nan)
        if options.fault == "shape":
            arrays[first] = arrays[first][:1]
        if options.fault == "dtype":
            arrays[first] = arrays[first].astype(np.float64)
        if options.fault == "key":
            arrays["extra"] = np.zeros(1)
        if options.fault == "count":
            metrics["num_examples"] = -5
        if options.fault == "metric":
            del metrics["train_loss"]
        return ClientUpdate(arrays, metrics)
'''

FAULTS = [
    ("raise", "ArithmeticError: client 1 gave up"),
    ("nan", "holds NaN or infinity"),
    ("shape", "has shape"),
    ("dtype", "is float64, expected float32"),
    ("key", "'extra' was not asked for"),
    ("count", "num_examples is -5, expected at least 1"),
    ("metric", "'train_loss' is missing"),
]


@pytest.fixture
def faulty(tmp_path: Path) -> str:
    (tmp_path / "faulty.py").write_text(FAULTY)
    return f"{tmp_path / 'faulty.py'}:Faulty"


@pytest.mark.parametrize(("fault", "reason"), FAULTS)
def test_one_client_fails_and_the_others_count(
    fault: str, reason: str, faulty: str, federate: Federate
) -> None:
    folder = RunFolder.open(federate({**TINY, "strategy": faulty, "faulty.fault": fault}))
    for record in folder.read_rounds()[1:]:
        failures = {client.partition_id: client.failure for client in record.clients}
        assert reason in (failures.pop(1) or "")
        assert failures == {0: None, 2: None}
    honest = RunFolder.open(federate({**TINY, "strategy": faulty}))
    ours, theirs = load_file(folder.checkpoint(2)), load_file(honest.checkpoint(2))
    assert all(torch.isfinite(value).all() for value in ours.values())
    assert any(not torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_first_round_without_any_reply_ends_the_run(
    faulty: str, federate: Federate, tmp_path: Path
) -> None:
    keys = {**TINY, "strategy": faulty, "faulty.fault": "raise", "faulty.clients": "012"}
    with pytest.raises(RunError, match="all 3 clients failed in the first round") as caught:
        federate(keys)
    assert "ArithmeticError: client" in str(caught.value)
    (path,) = (tmp_path / "runs").iterdir()
    folder = RunFolder.open(path)
    status = folder.read_json("run")
    assert status["status"] == "failed"
    assert "ArithmeticError" in status["failure"]
    assert [record.round for record in folder.read_rounds()] == [0]
    assert not folder.progress.exists()
