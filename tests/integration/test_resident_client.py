"""What a process keeps of a run: made once, however many simulated clients it works for."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from client.place import Place
from core.records import RunFolder
from tests.conftest import Federate, tiny_keys

NETWORK = """
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
"""

COUNTED = f"""{NETWORK}

def build(shape, num_classes):
    with Path(__file__).with_name("built.txt").open("a") as built:
        built.write(str(os.getpid()) + "\\n")
    return Network(shape, num_classes)
"""


@pytest.mark.parametrize("kind", ["in-process", "processes"])
def test_a_process_builds_the_network_once_for_all_clients(
    tmp_path: Path, federate: Federate, kind: str
) -> None:
    file = tmp_path / "model.py"
    file.write_text(COUNTED)
    workers = {"engine__workers": 2} if kind == "processes" else {}
    keys = tiny_keys("fedavg", rounds=3, partition__clients=4, engine__kind=kind, **workers)
    del keys["model.width"]
    federate({**keys, "model.name": f"{file}:build"})
    built = Counter((tmp_path / "built.txt").read_text().split())
    # Twelve updates; the server has a network too.
    assert sorted(built.values()) == ([2] if kind == "in-process" else [1, 1, 1])


REMEMBERING = """
import torch
from torch import nn


class Network(nn.Module):
    def __init__(self, shape, num_classes):
        super().__init__()
        inputs = shape[0] * shape[1] * shape[2]
        self.classifier = nn.Linear(inputs, num_classes)
        self.centre = nn.Module()
        self.centre.register_buffer("mean", torch.zeros(inputs), persistent=False)
        self.register_buffer("scale", None, persistent=False)

    def embed(self, x):
        x = x.flatten(1)
        if self.training:
            self.centre.mean = 0.9 * self.centre.mean + 0.1 * x.detach().mean(0)
            if self.scale is None:
                self.scale = 1 + x.detach().std()
        x = x - self.centre.mean
        return x if self.scale is None else x / self.scale

    def forward(self, x):
        return self.classifier(self.embed(x))


def build(shape, num_classes):
    return Network(shape, num_classes)
"""


def test_what_a_network_remembers_outside_its_state_dict_ends_with_its_client(
    tmp_path: Path, federate: Federate
) -> None:
    file = tmp_path / "model.py"
    file.write_text(REMEMBERING)
    weights = []
    for name, engine in (
        ("one", {"engine__kind": "in-process"}),
        ("two", {"engine__kind": "processes", "engine__workers": 2}),
    ):
        keys = tiny_keys("fedavg", rounds=2, partition__clients=4, name=name, **engine)
        del keys["model.width"]
        folder = federate({**keys, "model.name": f"{file}:build"})
        weights.append(load_file(RunFolder(folder).checkpoint(2)))
    assert all(torch.equal(weights[0][entry], weights[1][entry]) for entry in weights[0])


FAILING = f"""{NETWORK}

FAILED = Path(__file__).with_name("failed.txt")


class Failing(Network):
    def forward(self, x):
        if self.training and not FAILED.exists():
            FAILED.touch()
            self.spoilt = True
            raise MemoryError("once")
        assert not hasattr(self, "spoilt"), "the network of the client that failed"
        return super().forward(x)


build = Failing
"""


def test_a_client_that_fails_leaves_nothing_to_those_after_it(
    tmp_path: Path, federate: Federate
) -> None:
    file = tmp_path / "model.py"
    file.write_text(FAILING)
    keys = tiny_keys("fedavg", rounds=2, partition__clients=4, engine__kind="in-process")
    del keys["model.width"]
    folder = federate({**keys, "model.name": f"{file}:build"})
    told = [[c.failure for c in record.clients] for record in RunFolder(folder).read_rounds()]
    assert [sum(why is not None for why in round_told) for round_told in told] == [0, 1, 0]


def test_a_place_of_its_own_is_shared_with_nobody() -> None:
    simulated = [Place.of({"partition-id": k, "num-partitions": 3}) for k in range(3)]
    assert len({place.in_common() for place in simulated}) == 1
    for own in ({"state": "/s"}, {"data": "/d"}):
        places = [Place.of({"partition-id": k, **own}) for k in range(3)]
        assert [place.in_common() for place in places] == places
