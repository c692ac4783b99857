import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from core.config import EngineConfig, Scalar
from core.errors import RunError
from engine.flwr_seam import SUPERLINK_NODE_ID
from engine.simulation import simulate

CLIENT = "tests.unit.engine.counting_client:app"
IN_PROCESS = EngineConfig(kind="in-process")


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
