"""One federation on one machine: chooses the workers, runs the apps, clears up."""

from __future__ import annotations

import importlib.util
import math
import os
import secrets
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, cast

import torch
from flwr.app import Context, RecordDict
from flwr.serverapp import ServerApp

from core.config import EngineConfig, Scalar
from core.errors import ConfigError, Problem, RunError
from engine.client_call import load_client_app
from engine.flwr_seam import SUPERLINK_NODE_ID, run_identity
from engine.grid import ResidentGrid, Workers
from engine.serial_workers import SerialWorkers

Kind = Literal["in-process", "ray"]

RAY_FROM_CPUS = 4
"""Fewer cores than this are not worth Ray's start of some five seconds, unless there is a GPU."""

_GPU_UNITS = 10_000
"""Ray counts a GPU in ten-thousandths, and rounds."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What the choice of workers depends on.

    Attributes:
        num_cpus: Cores that this process may use.
        num_gpus: CUDA devices that this process sees.
        has_ray: Whether Ray is installed.
    """

    num_cpus: int
    num_gpus: int
    has_ray: bool

    @classmethod
    def here(cls) -> Machine:
        """This machine, as this process sees it."""
        affinity = getattr(os, "sched_getaffinity", None)
        num_cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
        has_ray = importlib.util.find_spec("ray") is not None
        return cls(num_cpus, torch.cuda.device_count(), has_ray)


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """How many Ray actors, and what they share.

    Attributes:
        num_workers: Actors.
        num_gpus: GPUs that Ray may use.
        gpus_per_worker: Share of a GPU per actor; 0 where no GPU is used.
    """

    num_workers: int
    num_gpus: int
    gpus_per_worker: float


def resolve_kind(config: EngineConfig, machine: Machine | None = None) -> Kind:
    """Where clients run: as configured, or for ``auto`` by what `machine` (default: this) has."""
    if config.kind != "auto":
        return cast(Kind, config.kind)
    machine = machine or Machine.here()
    worthwhile = _num_gpus(config, machine) > 0 or machine.num_cpus >= RAY_FROM_CPUS
    return "ray" if machine.has_ray and worthwhile else "in-process"


def resolve_workers(
    config: EngineConfig, num_partitions: int, machine: Machine | None = None
) -> WorkerPlan:
    """How many actors to start, and each one's share of the GPUs.

    Raises:
        ConfigError: The GPUs of `machine` (default: this) cannot be shared as configured; Ray
            would wait for them without end.
    """
    machine = machine or Machine.here()
    gpus, share = _num_gpus(config, machine), config.gpus_per_worker
    num_workers = min(
        config.workers or max(1, machine.num_cpus // config.client_threads), num_partitions
    )
    if share > 0:
        room = _room(share, gpus)
        if room == 0 or (share > 1 and share != int(share)):
            rule = (
                f"must be at most 1 or a whole number, and at most the {gpus} GPUs that "
                f"engine.device={config.device} finds here; 0 divides them among the actors"
            )
            raise ConfigError([Problem("engine.gpus-per-worker", f"{share:g}", rule)])
        if config.workers and room < num_workers:
            rule = (
                f"must be at most {room}: no more shares of engine.gpus-per-worker={share:g} "
                f"fit on the {gpus} GPUs here; 0 takes as many as fit"
            )
            raise ConfigError([Problem("engine.workers", str(config.workers), rule)])
        num_workers = min(num_workers, room)
    elif gpus:
        workers_per_gpu = math.ceil(num_workers / gpus)
        share = _GPU_UNITS // workers_per_gpu / _GPU_UNITS
    return WorkerPlan(num_workers, gpus, share)


def simulate(
    server_app: ServerApp,
    client_app: str,
    *,
    run_config: Mapping[str, Scalar],
    num_partitions: int,
    config: EngineConfig,
) -> None:
    """Run a federation to its end. Where nobody else handles SIGTERM, it ends the run tidily.

    Args:
        server_app: The ServerApp; an exception that it raises is raised here unchanged.
        client_app: ``module:attribute`` of the ClientApp.
        run_config: Flat configuration; becomes ``context.run_config`` of server and clients.
        num_partitions: Number of clients, 0 for a server that asks none. Client p finds
            ``{"partition-id": p, "num-partitions": num_partitions}`` in ``context.node_config``.
        config: Which workers.

    Raises:
        ConfigError: The GPUs cannot be shared as configured.
        RunError: Ray is asked for and cannot be used, `client_app` names no ClientApp, or another
            simulation runs in this process.
    """
    with run_identity(secrets.randbits(63)) as run, _termination_raises():
        workers = _start_workers(client_app, num_partitions, config)
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


def _start_workers(client_app: str, num_partitions: int, config: EngineConfig) -> Workers:
    if num_partitions == 0 or resolve_kind(config) == "in-process":
        return SerialWorkers(load_client_app(client_app), client_threads=config.client_threads)
    plan = resolve_workers(config, num_partitions)
    try:
        from engine.ray_workers import RayWorkers
    except ImportError as error:
        raise RunError(
            f"engine.kind=ray: Ray cannot be imported ({error}); "
            "install it, or set engine.kind=in-process"
        ) from error
    return RayWorkers(
        client_app,
        num_workers=plan.num_workers,
        num_gpus=plan.num_gpus,
        gpus_per_worker=plan.gpus_per_worker,
        client_threads=config.client_threads,
    )


def _num_gpus(config: EngineConfig, machine: Machine) -> int:
    return 0 if config.device == "cpu" else machine.num_gpus


def _room(share: float, num_gpus: int) -> int:
    """How many actors of this share Ray places: a share up to 1 lies on a single GPU."""
    if share > 1:
        return int(num_gpus // share)
    return num_gpus * (_GPU_UNITS // max(1, round(share * _GPU_UNITS)))
