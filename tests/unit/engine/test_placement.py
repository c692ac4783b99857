import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config import EngineConfig
from core.errors import ConfigError
from engine.placement import Machine, resolve_kind, resolve_workers

SMALL = Machine(num_cpus=2, num_gpus=0, has_ray=True)
CLUSTER = "10.0.0.1:6379"


@pytest.mark.parametrize(
    ("kind", "device", "machine", "expected"),
    [
        ("auto", "auto", Machine(2, 0, True), "in-process"),
        ("auto", "auto", Machine(3, 0, True), "in-process"),
        ("auto", "auto", Machine(4, 0, True), "processes"),
        ("auto", "auto", Machine(4, 0, False), "processes"),
        ("auto", "auto", Machine(4, 1, False), "in-process"),
        ("auto", "cpu", Machine(4, 1, True), "processes"),
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
    plan = resolve_workers(config, num_partitions, [machine])
    assert (plan.num_workers, plan.num_gpus, plan.gpus_per_worker) == expected


@given(
    workers=st.integers(0, 200),
    cpus=st.integers(1, 256),
    gpus=st.integers(0, 8),
    partitions=st.integers(1, 300),
)
def test_divided_gpus_hold_all_workers(workers: int, cpus: int, gpus: int, partitions: int) -> None:
    machine = Machine(cpus, gpus, True)
    plan = resolve_workers(EngineConfig(workers=workers), partitions, [machine])
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
        resolve_workers(config, 100, [machine])
    assert [problem.key for problem in error.value.problems] == [key]


def test_this_machine() -> None:
    machine = Machine.here()
    assert machine.num_cpus >= 1 and machine.num_gpus >= 0


def test_auto_takes_ray_where_there_is_a_cluster_to_join() -> None:
    assert resolve_kind(EngineConfig(ray_address=CLUSTER), SMALL) == "ray"


def joined(workers: int = 0, threads: int = 1, **keys: float | str) -> EngineConfig:
    config: dict[str, object] = {"workers": workers, "client_threads": threads, **keys}
    return EngineConfig(ray_address=CLUSTER, **config)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "nodes", "expected"),
    [
        # nodes: (CPUs, GPUs); expected: (workers, share of a GPU, CPUs each)
        (joined(), [(1, 0), (1, 0)], (2, 0, 1)),
        (joined(threads=2), [(5, 0), (3, 0)], (3, 0, 2)),
        (joined(workers=2), [(8, 0), (8, 0)], (2, 0, 1)),
        (joined(), [(8, 0), (8, 1)], (8, 0.125, 1)),
        (joined(device="cpu"), [(8, 0), (8, 1)], (16, 0, 1)),
        # Two GPUs with 2 CPUs, one with 6: four shares a GPU hold 2 + 4, six hold 2 + 6.
        (joined(), [(2, 2), (6, 1)], (8, 0.1666, 1)),
        (joined(workers=6), [(2, 2), (6, 1)], (6, 0.25, 1)),
        (joined(gpus_per_worker=0.5), [(1, 2), (8, 1)], (3, 0.5, 1)),
        (joined(gpus_per_worker=2), [(8, 3), (8, 5), (8, 1)], (3, 2, 1)),
    ],
)
def test_actors_of_a_cluster(
    config: EngineConfig, nodes: list[tuple[int, int]], expected: tuple[int, float, int]
) -> None:
    plan = resolve_workers(config, 100, [Machine(*node, True) for node in nodes])
    assert (plan.num_workers, plan.gpus_per_worker, plan.cpus_per_worker) == expected


@pytest.mark.parametrize(
    ("config", "nodes", "key", "says"),
    [
        (joined(workers=3), [(1, 0), (1, 0)], "engine.workers", "at most 2.*10.0.0.1:6379"),
        (joined(threads=3), [(2, 0), (2, 0)], "engine.client-threads", "fit on the nodes"),
        (joined(gpus_per_worker=2), [(8, 1), (8, 1)], "engine.gpus-per-worker", "the 1 GPUs.*node"),
        (joined(), [], "engine.client-threads", "fit on the nodes"),
    ],
)
def test_what_a_cluster_could_never_place_is_refused(
    config: EngineConfig, nodes: list[tuple[int, int]], key: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        resolve_workers(config, 100, [Machine(*node, True) for node in nodes])
    assert [problem.key for problem in error.value.problems] == [key]


def test_without_fork_several_cores_take_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.placement.CAN_FORK", False)
    assert resolve_kind(EngineConfig(), Machine(4, 0, True)) == "ray"
    assert resolve_kind(EngineConfig(), Machine(4, 0, False)) == "in-process"
    with pytest.raises(
        ConfigError, match=r"engine.kind=processes: is for Linux alone.* set engine.kind=ray"
    ):
        resolve_workers(EngineConfig(kind="processes"), 5)


def test_processes_leave_gpus_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.placement.CAN_FORK", True)
    monkeypatch.setattr(Machine, "here", classmethod(lambda cls: Machine(4, 1, True)))
    with pytest.raises(ConfigError, match=r"finds a GPU here; set engine.device=cpu, or .*ray"):
        resolve_workers(EngineConfig(kind="processes"), 5)
    assert resolve_workers(EngineConfig(kind="processes", device="cpu"), 3).num_workers == 3
