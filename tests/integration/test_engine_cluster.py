"""A run that joins a Ray cluster: two nodes on this machine, started as a user starts them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from core.config import EngineConfig
from core.errors import ConfigError, RunError
from engine.flwr_seam import run_identity
from engine.grid import ResidentGrid
from engine.ray_instance import JoinedRay
from engine.ray_workers import RayWorkers
from tests.conformance.test_strategies import DROPOUT
from tests.conftest import Federate, tiny_keys
from tests.integration.test_engines_agree import assert_same_run

CLIENT = "tests.unit.engine.counting_client:app"
NUM_PARTITIONS = 4
START_S = 90

pytestmark = pytest.mark.skipif(os.name != "posix", reason="ends Ray's processes by their group")


@dataclass(frozen=True)
class TwoNodes:
    """A cluster of two nodes with one CPU each; the second can be lost."""

    address: str
    second: subprocess.Popen[bytes]

    def config(self, workers: int = 0) -> EngineConfig:
        return EngineConfig(kind="ray", ray_address=self.address, device="cpu", workers=workers)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def end(node: subprocess.Popen[bytes], number: int) -> None:
    """Signal a node's processes, all of which are of its group."""
    if node.poll() is None:
        os.killpg(node.pid, number)
    node.wait(30)


@pytest.fixture(scope="module")
def cluster() -> Iterator[TwoNodes]:
    folder, port = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp")), free_port()
    address = f"127.0.0.1:{port}"
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    common = ["--num-cpus=1", "--num-gpus=0", "--node-ip-address=127.0.0.1", "--block"]
    nodes: list[subprocess.Popen[bytes]] = []

    def start(number: int, *options: str) -> Path:
        log = folder / f"{number}.log"
        with log.open("wb") as output:
            nodes.append(
                subprocess.Popen(
                    [Path(sys.executable).with_name("ray"), "start", *options, *common],
                    cwd=folder,
                    env=environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        return log

    def started(log: Path) -> None:
        wait_until(lambda: b"Ray runtime started" in log.read_bytes(), log.read_text)

    try:
        head = ("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}")
        started(start(0, *head))
        started(start(1, f"--address={address}"))
        yield TwoNodes(address, nodes[1])
    finally:
        for node in reversed(nodes):
            end(node, signal.SIGTERM)
        shutil.rmtree(folder, ignore_errors=True)


def wait_until(reached: Callable[[], bool], told: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + START_S
    while not reached():
        assert time.monotonic() < deadline, told()
        time.sleep(0.05)


MARKED = """
import sys
from pathlib import Path

drop = build

def build(image_shape, num_classes):
    ray = sys.modules.get("ray")
    if ray and ray.is_initialized() and (context := ray.get_runtime_context()).get_actor_id():
        (Path(__file__).parent / f"node-{context.get_node_id()}").touch()
    return drop(image_shape, num_classes)
"""


def test_a_run_on_two_nodes_equals_one_in_process(
    cluster: TwoNodes, federate: Federate, tmp_path: Path
) -> None:
    (tmp_path / "telling.py").write_text(DROPOUT + MARKED)
    keys = {k: v for k, v in tiny_keys("fedavg").items() if k != "model.width"}
    keys["model.name"] = f"{tmp_path / 'telling.py'}:build"
    in_process = federate(keys)
    joined = federate({**keys, "engine.kind": "ray", "engine.ray-address": cluster.address})
    assert_same_run(in_process, joined)
    assert len(list(tmp_path.glob("node-*"))) == 2
    assert list((tmp_path / "runs").glob(".tessera-*")) == []


def test_more_actors_than_the_nodes_hold_are_refused(cluster: TwoNodes) -> None:
    workers = RayWorkers(CLIENT, JoinedRay(cluster.config(workers=3), NUM_PARTITIONS))
    try:
        with pytest.raises(ConfigError, match=r"engine\.workers=3: must be at most 2"):
            workers._started.result()
    finally:
        workers.close()


def test_a_node_that_is_unfit_is_told(
    cluster: TwoNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.installation import describe_installation
    from engine.ray_start import SOURCES

    here = {**describe_installation(SOURCES), "torch": "0.1"}
    monkeypatch.setattr("engine.ray_instance.describe_installation", lambda sources: here)
    instance = JoinedRay(cluster.config(), NUM_PARTITIONS, tmp_path)
    monkeypatch.setattr("engine.ray_instance.Path.touch", lambda path: None)
    workers = RayWorkers(CLIENT, instance)
    try:
        with pytest.raises(RunError) as told:
            workers._started.result()
    finally:
        workers.close()
    assert "no client can run on node" in str(told.value)
    assert "and 0.1 here" in str(told.value)
    assert f"{tmp_path} (runs) is not the folder" in str(told.value)
    assert "leave engine.ray-address out" in str(told.value)


def test_a_node_that_is_lost_costs_what_ran_there(cluster: TwoNodes, tmp_path: Path) -> None:
    # Two calls at once need both CPUs: those who were here before have given them back.
    gate = tmp_path / "gate"
    workers = RayWorkers(CLIENT, JoinedRay(cluster.config(), NUM_PARTITIONS))
    try:
        with run_identity(7) as run:
            grid = ResidentGrid(workers, num_partitions=NUM_PARTITIONS, run_config={}, run=run)

            def requests(kind: str) -> list[Message]:
                config = ConfigRecord({"gate": str(gate), "hold": [0, 1]})
                content = RecordDict({"config": config})
                return [Message(content, node_id, kind) for node_id in grid.get_node_ids()]

            def nodes() -> set[object]:
                replies = list(grid.send_and_receive(requests("query.process")))
                assert len(replies) == NUM_PARTITIONS
                told = [reply.content["process"] for reply in replies]
                return {record["node"] for record in told if isinstance(record, ConfigRecord)}

            replies = iter(grid.send_and_receive(requests("query.wait")))
            wait_until(lambda: len(list(tmp_path.glob("gate-*"))) == 2)
            end(cluster.second, signal.SIGKILL)
            lost = next(replies)
            assert lost.has_error()
            gate.touch()
            left = list(replies)
            assert len(left) == NUM_PARTITIONS - 1
            assert not any(reply.has_error() for reply in left)
            assert len(nodes()) == 1
    finally:
        workers.close()


def test_an_address_where_no_ray_is(federate: Federate) -> None:
    address = f"127.0.0.1:{free_port()}"
    keys = tiny_keys("fedavg", engine__kind="ray", engine__ray_address=address)
    with pytest.raises(RunError, match=rf"engine\.ray-address={address}: .*ray start"):
        federate(keys)
