"""The ClientApp that every engine runs: one message in, one reply out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.attacks import malicious_clients, poison, tamper
from core.client_state import ClientStore
from core.config import RunConfig, Scalar
from core.device import resolve_device
from core.errors import DataError
from core.examples import Examples
from core.parameters import ParameterVector
from core.progress import StepCounter
from core.records import RunFolder
from core.seeds import derive_seed, seeded_globals
from core.wire import Record
from data.partition import Partition
from data.partitioners import load_or_make_partition
from strategies.base import ClientTask, Strategy, model_seed
from strategies.flower import from_flower, to_flower
from strategies.table import build_strategy, parse_config
from workloads.vision import ImageClassification, open_workload

app = ClientApp()


@dataclass(frozen=True, slots=True)
class Resident:
    """What a process keeps from client to client of one run: nothing that a client may change.

    `parameters` is a place to work in; every update loads its own weights first.
    """

    config: RunConfig
    strategy: Strategy
    workload: ImageClassification
    partition: Partition
    parameters: ParameterVector
    count_step: StepCounter
    folder: RunFolder
    loaded: dict[int, Examples]
    malicious: frozenset[int]

    def examples(self, partition_id: int) -> Examples:
        """The client's own images."""
        if partition_id >= len(self.partition.clients):
            raise DataError(
                f"partition-id={partition_id} has no data: the partition deals to "
                f"{len(self.partition.clients)} clients; set partition.clients to the number of "
                "nodes"
            )
        if partition_id not in self.loaded:
            indices = torch.from_numpy(self.partition.clients[partition_id])
            self.loaded[partition_id] = self.workload.examples(indices)
        return self.loaded[partition_id]


@app.train()
def train(message: Message, context: Context) -> Message:
    """One client's update."""
    started = time.perf_counter()
    received = from_flower(message.content)
    round_number = int(received.settings["round"])
    resident = _resident(tuple(sorted(context.run_config.items())), context.run_id)
    partition_id = int(context.node_config["partition-id"])
    store = ClientStore(resident.folder.clients, partition_id, resident.config.identity())
    malicious, attack = partition_id in resident.malicious, resident.config.attack
    examples = resident.examples(partition_id)
    if malicious:
        examples = poison(examples, resident.workload.num_classes, attack)
    task = ClientTask(
        round=round_number,
        partition_id=partition_id,
        seed=derive_seed(resident.config.seed, "client", round_number, partition_id),
        received=received,
        examples=examples,
        state=_state(resident.strategy, store, received),
        parameters=resident.parameters,
        workload=resident.workload,
        device=resident.workload.device,
        count_step=resident.count_step,
    )
    with seeded_globals(derive_seed(task.seed, "layers")):
        update = resident.strategy.client_update(task)
    if malicious:
        update = tamper(update, received.arrays, attack)
    if update.state is not None:
        store.write(round_number, update.state)
    metrics = {**update.metrics, "train_s": time.perf_counter() - started}
    reply = Record(update.arrays, metrics, {"round": round_number})
    return Message(to_flower(reply), reply_to=message)


def _state(
    strategy: Strategy, store: ClientStore, received: Record
) -> dict[str, torch.Tensor] | None:
    if not strategy.keeps_client_state():
        return None
    acknowledged = int(received.settings["acknowledged-round"])
    store.forget(int(received.settings["retained-round"]), acknowledged)
    return store.read(acknowledged)


@app.query()
def identify(message: Message, context: Context) -> Message:
    """Tell which partition this node holds."""
    metrics = {"partition_id": int(context.node_config["partition-id"])}
    return Message(to_flower(Record(metrics=metrics)), reply_to=message)


@lru_cache(maxsize=1)
def _resident(run_config: tuple[tuple[str, Scalar], ...], run_id: int) -> Resident:
    config = parse_config(dict(run_config))
    torch.set_num_threads(config.engine.client_threads)
    folder = RunFolder(Path(config.runs).expanduser().resolve() / config.folder_name(run_id))
    workload = open_workload(config, resolve_device(config.engine.device))
    if folder.partition.is_file():
        partition = Partition.read(folder.partition)
    else:
        partition = load_or_make_partition(workload.dataset, config.partition, config.seed)
    return Resident(
        config=config,
        strategy=build_strategy(config),
        workload=workload,
        partition=partition,
        parameters=ParameterVector(workload.build_model(model_seed(config))),
        count_step=StepCounter(folder.progress),
        folder=folder,
        loaded={},
        malicious=malicious_clients(config),
    )


def forget_run() -> None:
    """Drop what the process keeps of the last run."""
    _resident.cache_clear()
