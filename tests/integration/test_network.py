"""Clients on machines of their own, over a network in one process: what they bring, what they keep,
and what becomes of a run when they or their replies are lost."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from safetensors.torch import load_file

from client.app import forget_run
from core.config import RunConfig
from core.records import RoundRecord, RunFolder
from data.export import write_shares
from engine.flwr_seam import run_identity
from experiments.run import run as simulate
from server.app import make_server_app
from server.preparation import prepare
from server.progress import PlainProgress
from strategies.table import parse_config
from tests.conftest import tiny_keys
from tests.integration.network_grid import NetworkGrid, Node

DEALT = ("partition.scheme", "partition.alpha")


@dataclasses.dataclass
class Network:
    """Three clients with images and state of their own, and a server's folder."""

    folder: Path
    keys: dict[str, object]
    nodes: dict[int, Node]

    @property
    def run_config(self) -> Mapping[str, object]:
        return parse_config(
            {**self.keys, "runs": str(self.folder / "server"), "name": "run"}
        ).flat()

    def run(self, **changes: object) -> NetworkGrid:
        """One run from start to end."""
        flat = parse_config({**self.run_config, **changes}).flat()
        with run_identity(77) as identity:
            grid = NetworkGrid(flat, self.nodes)
            grid.set_run(identity)
            return self.go(grid)

    def go(self, grid: NetworkGrid) -> NetworkGrid:
        app = make_server_app(PlainProgress())
        flat = dict(grid.run_config)
        try:
            app(grid, Context(77, SUPERLINK_NODE_ID, {}, RecordDict(), flat))  # type: ignore[arg-type]
        finally:
            forget_run()
        return grid

    @property
    def run_folder(self) -> RunFolder:
        return RunFolder(self.folder / "server" / "run")

    def records(self) -> list[RoundRecord]:
        return self.run_folder.read_rounds()

    def outcomes(self, round: int) -> dict[int, str]:
        return {c.partition_id: c.outcome for c in self.records()[round].clients}

    def weights(self, round: int) -> dict[str, np.ndarray]:
        tensors = load_file(self.run_folder.checkpoint(round))
        return {name: tensor.numpy() for name, tensor in tensors.items()}


def own_keys(keys: Mapping[str, object]) -> dict[str, object]:
    """The same run, of clients that bring the images which `keys` would deal them."""
    return {**{k: v for k, v in keys.items() if k not in DEALT}, "partition.scheme": "own"}


def network(tmp_path: Path, strategy: str = "fedavg", **keys: object) -> Network:
    dealt = tiny_keys(strategy, **keys)
    preparation = prepare(parse_config(dealt))
    shares = write_shares(
        preparation.workload.dataset, preparation.partition_without, tmp_path / "data"
    )
    nodes = {}
    for k, path in enumerate(shares):
        config = {
            "partition-id": k,
            "data": str(path),
            "state": str(tmp_path / f"state-{k}"),
            "key": f"SHA256:key-of-{k}",
        }
        nodes[1000 + 17 * (len(shares) - k)] = Node(config)
    return Network(tmp_path, own_keys(dealt), nodes)


def node_of(network: Network, partition_id: int) -> Node:
    return next(n for n in network.nodes.values() if n.config["partition-id"] == partition_id)


@pytest.mark.parametrize("strategy", ["fedavg", "feddm", "scaffold"])
def test_clients_with_their_own_images_end_with_the_weights_of_a_simulation(
    tmp_path: Path, strategy: str
) -> None:
    config: RunConfig = parse_config(
        {**tiny_keys(strategy), "runs": str(tmp_path / "simulated"), "name": "run"}
    )
    folder = RunFolder(simulate(config, PlainProgress()))
    here = network(tmp_path, strategy)
    here.run()
    expected = load_file(folder.checkpoint(2))
    found = here.weights(2)
    assert {n for n in expected if n.startswith("weights")} != set()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor.numpy(), err_msg=name)
    simulated, real = folder.read_rounds(), here.records()
    for one, other in zip(simulated, real, strict=True):
        assert one.test == other.test and one.client_accuracy == other.client_accuracy
        assert one.bytes_down == other.bytes_down and one.bytes_up == other.bytes_up


def test_a_client_keeps_all_it_keeps_in_its_own_folder(tmp_path: Path) -> None:
    here = network(tmp_path, "scaffold")
    here.run()
    assert not here.run_folder.clients.exists()
    for k in range(3):
        state = tmp_path / f"state-{k}"
        kept = [p.relative_to(state).parts[:3] for p in state.rglob("*") if p.is_file()]
        assert ("runs", "run", "clients") in kept
        identity = json.loads((state / "identity.json").read_text())
        assert identity["partition_id"] == k and identity["key"] == f"SHA256:key-of-{k}"
