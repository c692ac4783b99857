"""Federated averaging of evenly dealt data must end where central training ends."""

from __future__ import annotations

from core.records import RunFolder
from tests.conftest import Federate

IID = {
    "partition.scheme": "iid",
    "partition.clients": 5,
    "rounds": 25,
    "evaluate-every": 25,
    "model.width": 32,
    "train.learning-rate": 0.02,
    "train.momentum": 0.9,
    "train.local-epochs": 2,
    "engine.kind": "in-process",
}


def final_test_accuracy(federate: Federate, strategy: str) -> float:
    judged = RunFolder.open(federate({**IID, "strategy": strategy})).read_rounds()[-1].test
    assert judged is not None
    return judged.primary


def test_fedavg_on_an_iid_split_ends_within_two_points_of_centralized(federate: Federate) -> None:
    central = final_test_accuracy(federate, "centralized")
    assert central > 0.95
    assert abs(final_test_accuracy(federate, "fedavg") - central) <= 0.02
