"""Where clients run, and on how many actors."""

from __future__ import annotations

import importlib.util
import itertools
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch

from core.config import EngineConfig
from core.errors import ConfigError, Problem

Kind = Literal["in-process", "processes", "ray"]

SEVERAL_FROM_CPUS = 4
"""Fewer cores than this are not worth the start of several processes, unless there is a GPU."""

CAN_FORK = sys.platform == "linux"
"""Elsewhere a process cannot, or had better not once torch is imported."""

_GPU_UNITS = 10_000
"""Ray counts a GPU in ten-thousandths, and rounds."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What the choice of workers depends on: this machine, or one node of a Ray cluster.

    Attributes:
        num_cpus: Cores that this process may use, or that the node lends to Ray.
        num_gpus: CUDA devices likewise.
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
        cpus_per_worker: CPUs that Ray books for an actor.
    """

    num_workers: int
    num_gpus: int = 0
    gpus_per_worker: float = 0.0
    cpus_per_worker: int = 1


def resolve_kind(config: EngineConfig, machine: Machine | None = None) -> Kind:
    """Where clients run: as configured, or for ``auto`` by what `machine` (default: this) has."""
    if config.kind != "auto":
        return cast(Kind, config.kind)
    if config.ray_address:
        return "ray"
    machine = machine or Machine.here()
    if config.device != "cpu" and machine.num_gpus > 0:
        return "ray" if machine.has_ray else "in-process"
    if machine.num_cpus < SEVERAL_FROM_CPUS:
        return "in-process"
    if CAN_FORK:
        return "processes"
    return "ray" if machine.has_ray else "in-process"


def resolve_workers(
    config: EngineConfig, num_partitions: int, nodes: Sequence[Machine] | None = None
) -> WorkerPlan:
    """How many actors to start, and each one's share of the GPUs.

    A Ray of the run's own books as many CPUs as there are actors. A cluster's CPUs are shared with
    others: there an actor books as many as it has threads, and where GPUs are used, only nodes
    that have some take part.

    Args:
        config: With ``ray_address``, `nodes` are those of the cluster there.
        num_partitions: Clients; no more actors are started.
        nodes: What there is; this machine by default.

    Raises:
        ConfigError: What is asked for does not fit on the nodes; Ray would wait for it without end.
    """
    if resolve_kind(config) == "processes":
        _check_processes(config, Machine.here())
    lent = [_Room.on(node, config) for node in ([Machine.here()] if nodes is None else nodes)]
    gpus, share = sum(node.gpus for node in lent), config.gpus_per_worker
    if gpus:
        lent = [node for node in lent if node.gpus]
    num_workers = min(config.workers or sum(node.actors for node in lent), num_partitions)
    if share > 0:
        if (share > 1 and share != int(share)) or not any(_shares(share, n.gpus) for n in lent):
            where = f"on a node of {config.ray_address}" if config.ray_address else "here"
            rule = (
                f"must be at most 1 or a whole number, and at most the "
                f"{max((node.gpus for node in lent), default=0)} GPUs that "
                f"engine.device={config.device} finds {where}; 0 divides them among the actors"
            )
            raise ConfigError([Problem("engine.gpus-per-worker", f"{share:g}", rule)])
    elif gpus:
        wanted = min(num_workers, sum(node.actors for node in lent))
        per_gpu = next(
            count
            for count in itertools.count(1)
            if sum(min(node.actors, count * node.gpus) for node in lent) >= wanted
        )
        share = _GPU_UNITS // max(1, per_gpu) / _GPU_UNITS
    room = sum(min(n.actors, _shares(share, n.gpus)) if share else n.actors for n in lent)
    if room == 0 or (config.workers and room < num_workers):
        raise ConfigError([_too_many(config, lent, room)])
    return WorkerPlan(
        num_workers=min(num_workers, room),
        num_gpus=gpus,
        gpus_per_worker=share,
        cpus_per_worker=config.client_threads if config.ray_address else 1,
    )


def _check_processes(config: EngineConfig, machine: Machine) -> None:
    if not CAN_FORK:
        rule = "is for Linux alone, where processes can fork; set engine.kind=ray or in-process"
        raise ConfigError([Problem("engine.kind", "processes", rule)])
    if config.device != "cpu" and machine.num_gpus > 0:
        rule = (
            f"is for processors alone, and engine.device={config.device} finds a GPU here; set "
            "engine.device=cpu, or engine.kind=ray, which shares it"
        )
        raise ConfigError([Problem("engine.kind", "processes", rule)])


@dataclass(frozen=True, slots=True)
class _Room:
    """What one node has for actors: CPUs for so many of them, and GPUs."""

    actors: int
    gpus: int

    @classmethod
    def on(cls, node: Machine, config: EngineConfig) -> _Room:
        gpus = 0 if config.device == "cpu" else node.num_gpus
        if config.ray_address:
            return cls(node.num_cpus // config.client_threads, gpus)
        # A Ray of the run's own is told that it has as many CPUs as actors are asked for.
        return cls(config.workers or max(1, node.num_cpus // config.client_threads), gpus)


def _too_many(config: EngineConfig, lent: Sequence[_Room], room: int) -> Problem:
    share = f"engine.gpus-per-worker={config.gpus_per_worker:g}"
    if not config.ray_address:
        gpus = sum(node.gpus for node in lent)
        what = f"no more shares of {share} fit on the {gpus} GPUs here"
    else:
        also = f" and {share}" if config.gpus_per_worker else ""
        what = (
            f"no more actors of engine.client-threads={config.client_threads} CPUs{also} fit on "
            f"the nodes of {config.ray_address}"
        )
    if room == 0:
        return Problem("engine.client-threads", str(config.client_threads), f"is too many: {what}")
    rule = f"must be at most {room}: {what}; 0 takes as many as fit"
    return Problem("engine.workers", str(config.workers), rule)


def _shares(share: float, num_gpus: int) -> int:
    """How many actors of this share Ray places: a share up to 1 lies on a single GPU."""
    if share > 1:
        return int(num_gpus // share)
    return num_gpus * (_GPU_UNITS // max(1, round(share * _GPU_UNITS)))
