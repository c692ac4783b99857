"""The same seed gives the same records in every engine, bit for bit."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from core.records import RunFolder
from server.replies import LOT
from tests.conformance.test_strategies import DROPOUT
from tests.conftest import Federate, tiny_keys

ROOT = Path(__file__).resolve().parents[2]
FLWR = Path(sys.executable).with_name("flwr")


def assert_same_run(first: Path, second: Path) -> None:
    """Equal records but for seconds, and equal final weights."""
    folders = [RunFolder.open(path) for path in (first, second)]
    records = []
    for folder in folders:
        rounds = [record.to_json() for record in folder.read_rounds()]
        for record in rounds:
            assert record.pop("seconds")["wall"] > 0
        records.append(rounds)
    assert len(records[0]) == 3
    assert records[0] == records[1]
    weights = [load_file(folder.checkpoint(2)) for folder in folders]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
    assert (first / "partition.json").read_text() == (second / "partition.json").read_text()


MANY: Mapping[str, object] = {
    "partition.clients": LOT + 16,
    "partition.scheme": "iid",
    "cohort.size": LOT + 6,
}
"""More clients in a round than are handed out at once."""


@pytest.mark.parametrize(
    ("strategy", "engines"),
    [
        ("feddm", [("processes", 2), ("ray", 1), ("ray", 2)]),
        ("local", [("processes", 2), ("ray", 2)]),
    ],
)
def test_processes_one_or_two_actors_and_in_process_agree(
    strategy: str, engines: list[tuple[str, int]], federate: Federate
) -> None:
    in_process = federate(tiny_keys(strategy))
    for kind, workers in engines:
        keys = tiny_keys(strategy, engine__kind=kind, engine__workers=workers)
        assert_same_run(in_process, federate(keys))


def test_layers_that_draw_do_not_depend_on_the_actor(federate: Federate, tmp_path: Path) -> None:
    """Nor do sums of floating-point numbers, of more replies than are handed out at once."""
    (tmp_path / "dropping.py").write_text(DROPOUT)
    keys = {k: v for k, v in tiny_keys("fedavg").items() if k != "model.width"}
    keys["model.name"] = f"{tmp_path / 'dropping.py'}:build"
    keys |= MANY
    in_process = federate(keys)
    for kind in ("processes", "ray"):
        assert_same_run(in_process, federate({**keys, "engine.kind": kind, "engine.workers": 3}))


@pytest.fixture
def flower_environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A home and ports of its own for Flower's local SuperLink, which is ended afterwards."""
    home = tmp_path / "flower"
    home.mkdir()
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(str(probe.getsockname()[1]))
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": ports[0],
        "FLWR_LOCAL_CONTROL_API_PORT": ports[1],
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{FLWR.parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    try:
        yield environment
    finally:
        stop_processes_of(f"FLWR_HOME={home}")


def stop_processes_of(variable: str) -> None:
    """End the processes that carry this environment variable: those this test started."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if variable.encode() in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
            except OSError:
                continue
        if not found:
            return
        for pid in found:
            os.kill(pid, signal.SIGTERM if time.monotonic() < deadline - 10 else signal.SIGKILL)
        time.sleep(0.5)


def run_flower(
    keys: Mapping[str, object], environment: Mapping[str, str], cwd: Path, num_supernodes: int
) -> str:
    """``flwr run`` from an empty folder, so that apps come from the bundle, not the work tree."""
    quoted = " ".join(
        f'{key}="{value}"' if isinstance(value, str) else f"{key}={value}".replace("True", "true")
        for key, value in keys.items()
    )
    done = subprocess.run(
        [
            FLWR,
            "run",
            ROOT,
            "--stream",
            "--federation-config",
            f"num-supernodes={num_supernodes} client-resources-num-cpus=1 init-args-num-cpus=2",
            "--run-config",
            quoted,
        ],
        cwd=cwd,
        env=dict(environment),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="ends Flower's processes by way of /proc")
def test_plain_flower_agrees_with_in_process(
    federate: Federate, flower_environment: dict[str, str], tmp_path: Path
) -> None:
    cwd = tmp_path / "empty"
    cwd.mkdir()
    keys = tiny_keys("feddm", name="flower", runs=str(tmp_path / "flower-runs"))
    output = run_flower(keys, flower_environment, cwd, num_supernodes=3)
    assert "run complete" in output, output
    assert_same_run(federate(tiny_keys("feddm")), tmp_path / "flower-runs" / "flower")
