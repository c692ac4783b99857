import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from hypothesis import given
from hypothesis import strategies as st

from core.config import EngineConfig, Scalar
from core.errors import ConfigError, RunError
from engine.flwr_seam import SUPERLINK_NODE_ID
from engine.simulation import Machine, resolve_kind, resolve_workers, simulate

CLIENT = "tests.unit.engine.counting_client:app"
IN_PROCESS = EngineConfig(kind="in-process")
SMALL = Machine(num_cpus=2, num_gpus=0, has_ray=True)


@pytest.mark.parametrize(
    ("kind", "device", "machine", "expected"),
    [
        ("auto", "auto", Machine(2, 0, True), "in-process"),
        ("auto", "auto", Machine(3, 0, True), "in-process"),
        ("auto", "auto", Machine(4, 0, True), "ray"),
        ("auto", "auto", Machine(4, 0, False), "in-process"),
        ("auto", "auto", Machine(1, 1, True), "ray"),
        ("auto", "cuda", Machine(1, 1, True), "ray"),
        ("auto", "cpu", Machine(1, 1, True), "in-process"),
        ("ray", "auto", Machine(1, 0, False), "ray"),
        ("in-process", "cuda", Machine(64, 8, True), "in-process"),
    ],
)
def test_resolve_kind(kind: str, device: str, machine: Machine, expected: str) -> None:
    assert resolve_kind(EngineConfig(kind=kind, device=device), machine) == expected


@pytest.mark.parametrize(
    ("config", "machine", "num_partitions", "expected"),
    [
        # (workers, GPUs, share)
        (EngineConfig(), Machine(8, 0, True), 100, (8, 0, 0)),
        (EngineConfig(), Machine(8, 0, True), 3, (3, 0, 0)),
        (EngineConfig(client_threads=3), Machine(8, 0, True), 100, (2, 0, 0)),
        (EngineConfig(client_threads=9), Machine(8, 0, True), 100, (1, 0, 0)),
        (EngineConfig(workers=12), Machine(8, 0, True), 100, (12, 0, 0)),
        (EngineConfig(workers=12), Machine(8, 0, True), 10, (10, 0, 0)),
        (EngineConfig(), Machine(16, 1, True), 100, (16, 1, 0.0625)),
        (EngineConfig(workers=6), Machine(16, 1, True), 100, (6, 1, 0.1666)),
        (EngineConfig(workers=3), Machine(16, 2, True), 100, (3, 2, 0.5)),
        (EngineConfig(workers=2), Machine(16, 8, True), 100, (2, 8, 1)),
        (EngineConfig(device="cpu"), Machine(16, 8, True), 100, (16, 0, 0)),
        (EngineConfig(gpus_per_worker=0.2), Machine(16, 2, True), 100, (10, 2, 0.2)),
        (EngineConfig(gpus_per_worker=0.4), Machine(16, 2, True), 100, (4, 2, 0.4)),
        (EngineConfig(gpus_per_worker=0.4), Machine(3, 2, True), 100, (3, 2, 0.4)),
        (EngineConfig(gpus_per_worker=2), Machine(16, 8, True), 100, (4, 8, 2)),
        (EngineConfig(gpus_per_worker=0.5, workers=2), Machine(1, 1, True), 9, (2, 1, 0.5)),
        (EngineConfig(gpus_per_worker=0.5, workers=9), Machine(1, 1, True), 2, (2, 1, 0.5)),
    ],
)
def test_resolve_workers(
    config: EngineConfig, machine: Machine, num_partitions: int, expected: tuple[int, int, float]
) -> None:
    plan = resolve_workers(config, num_partitions, machine)
    assert (plan.num_workers, plan.num_gpus, plan.gpus_per_worker) == expected


@given(
    workers=st.integers(0, 200),
    cpus=st.integers(1, 256),
    gpus=st.integers(0, 8),
    partitions=st.integers(1, 300),
)
def test_divided_gpus_hold_all_workers(workers: int, cpus: int, gpus: int, partitions: int) -> None:
    machine = Machine(cpus, gpus, True)
    plan = resolve_workers(EngineConfig(workers=workers), partitions, machine)
    assert plan.num_workers == min(workers or cpus, partitions)
    # Ray rounds shares to ten-thousandths and never splits one over two GPUs.
    per_gpu = 10_000 // round(plan.gpus_per_worker * 10_000) if gpus else math.inf
    assert per_gpu * max(gpus, 1) >= plan.num_workers


@pytest.mark.parametrize(
    ("config", "machine", "key", "says"),
    [
        (EngineConfig(gpus_per_worker=0.5), SMALL, "engine.gpus-per-worker", "the 0 GPUs"),
        (EngineConfig(gpus_per_worker=2), Machine(4, 1, True), "engine.gpus-per-worker", "1 GPUs"),
        (EngineConfig(gpus_per_worker=1.5), Machine(4, 4, True), "engine.gpus-per-worker", "whole"),
        (
            EngineConfig(gpus_per_worker=0.5, device="cpu"),
            Machine(4, 1, True),
            "engine.gpus-per-worker",
            "engine.device=cpu",
        ),
        (
            EngineConfig(gpus_per_worker=0.4, workers=3),
            Machine(4, 1, True),
            "engine.workers",
            "at most 2",
        ),
    ],
)
def test_shares_that_ray_could_never_place_are_refused(
    config: EngineConfig, machine: Machine, key: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        resolve_workers(config, 100, machine)
    assert [problem.key for problem in error.value.problems] == [key]


def test_this_machine() -> None:
    machine = Machine.here()
    assert machine.num_cpus >= 1 and machine.num_gpus >= 0


def run_in_process(server_app: ServerApp, run_config: dict[str, Scalar]) -> None:
    simulate(server_app, CLIENT, run_config=run_config, num_partitions=3, config=IN_PROCESS)


def test_flowers_own_fedavg_runs() -> None:
    """Two rounds by hand: client p returns 2w + p with weight 1 + p, so w <- 2w + 8/6."""
    found: list[list[float]] = []
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=3, min_available_nodes=3)
        result = strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord({"w": Array(np.array([0.0, 3.0]))}),
            num_rounds=2,
        )
        found.append(result.arrays["w"].numpy().tolist())
        assert result.train_metrics_clientapp[2]["calls"] == pytest.approx(2)

    run_in_process(server_app, {"factor": 2.0})
    assert found == [pytest.approx([4.0, 16.0])]


def test_the_servers_context() -> None:
    seen: list[Context] = []
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        seen.append(context)
        context.run_config["factor"] = 5.0
        message = Message(
            RecordDict({"arrays": ArrayRecord({"w": Array(np.ones(1))})}),
            next(iter(grid.get_node_ids())),
            "train",
        )
        (reply,) = grid.send_and_receive([message])
        arrays = reply.content["arrays"]
        assert isinstance(arrays, ArrayRecord)
        assert arrays["w"].numpy().tolist() == [2.0], "what the server changed is its own"

    run_config: dict[str, Scalar] = {"factor": 2.0}
    run_in_process(server_app, run_config)
    (context,) = seen
    assert context.node_id == SUPERLINK_NODE_ID and context.node_config == {}
    assert run_config == {"factor": 2.0}


@pytest.mark.parametrize("error", [KeyError("x"), KeyboardInterrupt(), RunError("no replies")])
def test_the_servers_exception_comes_out_unchanged_and_a_run_can_follow(
    error: BaseException,
) -> None:
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        raise error

    for _ in range(2):
        with pytest.raises(type(error)) as raised:
            run_in_process(server_app, {})
        assert raised.value is error


def test_sigterm_ends_a_run_like_an_exception() -> None:
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_in_process(server_app, {})
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_handler_of_sigterm_that_is_there_stays() -> None:
    server_app, seen = ServerApp(), []

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        run_in_process(server_app, {})
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]


def test_a_simulation_within_a_simulation_is_refused() -> None:
    outer, inner = ServerApp(), ServerApp()

    @outer.main()
    def main(grid: Grid, context: Context) -> None:
        run_in_process(inner, {})

    with pytest.raises(RunError, match="already running"):
        run_in_process(outer, {})


def test_a_server_that_asks_no_client_starts_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    nodes: list[int] = []
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        nodes.append(len(list(grid.get_node_ids())))

    config = EngineConfig(kind="ray")
    simulate(server_app, CLIENT, run_config={}, num_partitions=0, config=config)
    assert nodes == [0]


def test_ray_asked_for_and_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "engine.ray_workers", raising=False)
    with pytest.raises(RunError, match=r"engine\.kind=in-process"):
        simulate(
            ServerApp(),
            CLIENT,
            run_config={},
            num_partitions=3,
            config=EngineConfig(kind="ray"),
        )


def test_in_process_clients_need_no_ray(pytestconfig: pytest.Config) -> None:
    """Run in a fresh interpreter, in which Ray cannot be imported."""
    script = f"""
import sys
sys.modules["ray"] = None
from flwr.serverapp import ServerApp
from core.config import EngineConfig
from engine.simulation import simulate
app = ServerApp()
app.main()(lambda grid, context: print(len(grid.get_node_ids())))
simulate(app, {CLIENT!r}, run_config={{}}, num_partitions=3,
         config=EngineConfig(kind="in-process"))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=pytestconfig.rootpath,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "3\n", done.stderr
