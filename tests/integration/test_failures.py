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
    ("count", "num_examples is -5, but the client holds "),
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


LATER = """
from strategies.{module} import {base}

class Later({base}):
    name = "later"

    def client_update(self, task):
        if task.round == {round} and task.partition_id in {clients}:
            raise ArithmeticError("gave up")
        return super().client_update(task)
"""


def write_later(tmp_path: Path, base: str, round_number: int, clients: str) -> str:
    path = tmp_path / "later.py"
    module = base.lower()
    path.write_text(LATER.format(module=module, base=base, round=round_number, clients=clients))
    return f"{path}:Later"


def test_a_round_without_replies_leaves_the_model_as_it_was(
    federate: Federate, tmp_path: Path
) -> None:
    strategy = write_later(tmp_path, "FedAvg", 2, "{0, 1, 2}")
    records = RunFolder.open(federate({**TINY, "strategy": strategy, "rounds": 3})).read_rounds()
    assert records[2].test == records[1].test != records[3].test
    assert all(client.failure for client in records[2].clients)


def test_a_last_round_without_replies_is_a_failed_run(federate: Federate, tmp_path: Path) -> None:
    strategy = write_later(tmp_path, "FedAvg", 2, "{0, 1, 2}")
    with pytest.raises(RunError, match="failed in the last round"):
        federate({**TINY, "strategy": strategy})
    (path,) = (tmp_path / "runs").iterdir()
    assert RunFolder.open(path).read_json("run")["status"] == "failed"
    assert len(RunFolder.open(path).read_rounds()) == 3


def test_local_never_shows_a_model_that_no_client_has(federate: Federate, tmp_path: Path) -> None:
    strategy = write_later(tmp_path, "Local", 2, "{0, 1, 2}")
    records = RunFolder.open(federate({**TINY, "strategy": strategy, "rounds": 3})).read_rounds()
    assert records[2].test is None
    assert records[2].client_accuracy is None
    assert records[3].test is not None


def test_local_keeps_each_clients_place_when_one_fails(federate: Federate, tmp_path: Path) -> None:
    strategy = write_later(tmp_path, "Local", 2, "{0}")
    records = RunFolder.open(federate({**TINY, "strategy": strategy})).read_rounds()
    whole = RunFolder.open(federate({**TINY, "strategy": "local"})).read_rounds()
    found, expected = records[2].client_accuracy, whole[2].client_accuracy
    assert found is not None
    assert expected is not None
    assert found == [None, *expected[1:]]


@pytest.mark.parametrize(
    "keys",
    [
        {"strategy": "centralized", "train.learning-rate": 1e30},
        {"strategy": "real-images", "mosaic.ball": False, "mosaic.learning-rate": 1e30},
    ],
)
def test_divergence_on_the_server_is_named(keys: dict[str, object], federate: Federate) -> None:
    with pytest.raises(RunError, match=r"diverged in round 1.*lower the learning rate"):
        federate({**TINY, **keys})
