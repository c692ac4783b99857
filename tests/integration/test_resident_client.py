"""What a process keeps of a run: made once, however many simulated clients it works for."""

from collections import Counter
from pathlib import Path

import pytest

from client.place import Place
from tests.conftest import Federate, tiny_keys

MODEL = """
import os
from pathlib import Path

from torch import nn


class Network(nn.Module):
    def __init__(self, shape, num_classes):
        super().__init__()
        self.classifier = nn.Linear(shape[0] * shape[1] * shape[2], num_classes)

    def embed(self, x):
        return x.flatten(1)

    def forward(self, x):
        return self.classifier(self.embed(x))


def build(shape, num_classes):
    with Path(__file__).with_name("built.txt").open("a") as built:
        built.write(f"{os.getpid()}\\n")
    return Network(shape, num_classes)
"""


@pytest.mark.parametrize("kind", ["in-process", "processes"])
def test_a_process_builds_the_network_once_for_all_clients(
    tmp_path: Path, federate: Federate, kind: str
) -> None:
    file = tmp_path / "model.py"
    file.write_text(MODEL)
    workers = {"engine__workers": 2} if kind == "processes" else {}
    keys = tiny_keys("fedavg", rounds=3, partition__clients=4, engine__kind=kind, **workers)
    del keys["model.width"]
    federate({**keys, "model.name": f"{file}:build"})
    built = Counter((tmp_path / "built.txt").read_text().split())
    # Twelve updates; the server has a network too.
    assert sorted(built.values()) == ([2] if kind == "in-process" else [1, 1, 1])


def test_a_place_of_its_own_is_shared_with_nobody() -> None:
    simulated = [Place.of({"partition-id": k, "num-partitions": 3}) for k in range(3)]
    assert len({place.in_common() for place in simulated}) == 1
    for own in ({"state": "/s"}, {"data": "/d"}):
        places = [Place.of({"partition-id": k, **own}) for k in range(3)]
        assert [place.in_common() for place in places] == places
