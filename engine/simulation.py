"""One federation on one machine: chooses the workers, runs the apps, clears up."""

from __future__ import annotations

import secrets
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Context, RecordDict
from flwr.serverapp import ServerApp

from core.config import EngineConfig, Scalar
from core.errors import RunError
from engine.client_call import load_client_app
from engine.flwr_seam import SUPERLINK_NODE_ID, run_identity
from engine.grid import ResidentGrid, Workers
from engine.placement import resolve_kind, resolve_workers
from engine.serial_workers import SerialWorkers


def simulate(
    server_app: ServerApp,
    client_app: str,
    *,
    run_config: Mapping[str, Scalar],
    num_partitions: int,
    config: EngineConfig,
    shared_folder: Path | None = None,
) -> None:
    """Run a federation to its end. Where nobody else handles SIGTERM, it ends the run tidily.

    Args:
        server_app: The ServerApp; an exception that it raises is raised here unchanged.
        client_app: ``module:attribute`` of the ClientApp.
        run_config: Flat configuration; becomes ``context.run_config`` of server and clients.
        num_partitions: Number of clients, 0 for a server that asks none. Client p finds
            ``{"partition-id": p, "num-partitions": num_partitions}`` in ``context.node_config``.
        config: Which workers.
        shared_folder: Folder in which server and clients meet files of each other's; on a cluster
            every node must see it.

    Raises:
        ConfigError: The GPUs, or a cluster's nodes, cannot be shared as configured.
        RunError: Ray is asked for and cannot be used or joined, a node of the cluster is unfit,
            `client_app` names no ClientApp, or another simulation runs in this process.
    """
    with run_identity(secrets.randbits(63)) as run, _termination_raises():
        workers = _start_workers(client_app, num_partitions, config, shared_folder)
        try:
            grid = ResidentGrid(
                workers, num_partitions=num_partitions, run_config=run_config, run=run
            )
            server_app(
                grid,
                Context(
                    run_id=run.run_id,
                    node_id=SUPERLINK_NODE_ID,
                    node_config={},
                    state=RecordDict(),
                    run_config=dict(run_config),
                ),
            )
        finally:
            workers.close()


@contextmanager
def _termination_raises() -> Iterator[None]:
    """Let SIGTERM, which would skip all clearing up, interrupt for the length of a run as ^C does.

    SystemExit would not do: raised within a client's call it would count as that client's failure.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _start_workers(
    client_app: str, num_partitions: int, config: EngineConfig, shared_folder: Path | None
) -> Workers:
    if num_partitions == 0 or resolve_kind(config) == "in-process":
        return SerialWorkers(load_client_app(client_app), client_threads=config.client_threads)
    # What cannot be shared on this machine is refused before anything starts.
    plan = None if config.ray_address else resolve_workers(config, num_partitions)
    if plan is not None and resolve_kind(config) == "processes":
        from engine.process_workers import ProcessWorkers  # only where processes can fork

        return ProcessWorkers(
            client_app, num_workers=plan.num_workers, client_threads=config.client_threads
        )
    try:
        from engine.ray_instance import JoinedRay, OwnRay
        from engine.ray_workers import RayWorkers
    except ImportError as error:
        raise RunError(
            f"engine.kind=ray: Ray cannot be imported ({error}); "
            "install it, or set engine.kind=in-process"
        ) from error
    instance = OwnRay(plan) if plan else JoinedRay(config, num_partitions, shared_folder)
    return RayWorkers(client_app, instance, client_threads=config.client_threads)
