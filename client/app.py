"""The ClientApp that every engine runs: one message in, one reply out."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.attacks import malicious_clients, poison, tamper
from client.loaded_examples import LoadedExamples
from client.private_update import PrivateUpdate, quiet_failures
from core.client_state import ClientStore
from core.config import RunConfig, Scalar
from core.device import numerics, resolve_device
from core.errors import DataError
from core.examples import Examples
from core.memory import FreedMemory, keep_freed_memory
from core.parameters import ParameterVector
from core.progress import StepCounter
from core.records import RunFolder
from core.seeds import derive_seed, seeded_globals
from core.wire import Record
from data.canaries import deal_canaries
from data.partition import Partition
from data.partitioners import load_or_make_partition
from privacy.ledger import owner_of
from strategies.base import ClientTask, Strategy, model_seed
from strategies.flower import from_flower, to_flower
from strategies.table import build_strategy, parse_config
from workloads.vision import ImageClassification, open_workload

app = ClientApp()

LOADED_BYTES = 256 * 2**20
"""Examples of clients that a process keeps as tensors: all of most federations, a part of thousands
of clients. What is not kept is made again from its pixels."""


@dataclass(frozen=True, slots=True)
class Resident:
    """What a process keeps from client to client of one run: nothing that a client may change.

    `partition_without` is the partition without canaries, `partition` is what clients hold.
    `parameters` is a place to work in; every update loads its own weights first.
    """

    config: RunConfig
    strategy: Strategy
    workload: ImageClassification
    partition: Partition
    partition_without: Partition
    parameters: ParameterVector
    count_step: StepCounter
    folder: RunFolder
    loaded: LoadedExamples
    owners: dict[int, str]
    memory: FreedMemory
    malicious: frozenset[int]

    def examples(self, partition_id: int) -> Examples:
        """The client's own images."""
        if partition_id >= len(self.partition.clients):
            raise DataError(
                f"partition-id={partition_id} has no data: the partition deals to "
                f"{len(self.partition.clients)} clients; set partition.clients to the number of "
                "nodes"
            )
        indices = torch.from_numpy(self.partition.clients[partition_id])
        return self.loaded.get(partition_id, lambda: self.workload.examples(indices))

    def owner(self, partition_id: int) -> str:
        """Digest of the client's own images, by which its ledger is known; no canary is."""
        if partition_id not in self.owners:
            indices = torch.from_numpy(self.partition_without.clients[partition_id])
            own = self.workload.dataset.train.take(indices)
            self.owners[partition_id] = owner_of(own.images, own.labels)
        return self.owners[partition_id]


@app.train()
def train(message: Message, context: Context) -> Message:
    """One client's update."""
    resident = _resident(tuple(sorted(context.run_config.items())), context.run_id)
    partition_id = int(context.node_config["partition-id"])
    if not resident.config.privacy.is_example_level:
        return _update(message, resident, partition_id)
    with quiet_failures(resident.folder, partition_id):
        return _update(message, resident, partition_id)


def _update(message: Message, resident: Resident, partition_id: int) -> Message:
    started = time.perf_counter()
    received = from_flower(message.content)
    round_number = int(received.settings["round"])
    resident.memory.release_if_grown()
    config, strategy = resident.config, resident.strategy
    store = ClientStore(resident.folder.clients, partition_id, config.identity())
    malicious, attack = partition_id in resident.malicious, resident.config.attack
    examples = resident.examples(partition_id)
    if malicious:
        examples = poison(examples, resident.workload.num_classes, attack)
    private = None
    if config.privacy.is_example_level:
        private = PrivateUpdate.of(config, resident.folder, partition_id, received)
        if (again := private.sent_before()) is not None:
            return Message(to_flower(again), reply_to=message)
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
        mechanism=private.charge(resident.owner(partition_id)) if private else None,
    )
    precision = numerics(config.engine.precision, task.device)
    with seeded_globals(derive_seed(task.seed, "layers")), precision:
        update = resident.strategy.client_update(task)
    if malicious:
        update = tamper(update, received.arrays, attack)
    if update.state is not None:
        store.write(round_number, update.state)
    metrics = {**update.metrics, "train_s": time.perf_counter() - started}
    if task.mechanism is not None:
        metrics["snr"] = task.mechanism.signal_to_noise
    sent = {name: metrics[name] for name in strategy.sent_metrics(metrics)}
    reply = Record(update.arrays, sent, {"round": round_number})
    if private is not None:
        private.keep(reply, task.mechanism)
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
    keep_freed_memory()
    config = parse_config(dict(run_config))
    torch.set_num_threads(config.engine.client_threads)
    folder = RunFolder(Path(config.runs).expanduser().resolve() / config.folder_name(run_id))
    workload = open_workload(config, resolve_device(config.engine.device))
    if folder.partition.is_file():
        partition = Partition.read(folder.partition)
    else:
        partition = load_or_make_partition(workload.dataset, config.partition, config.seed)
    dealt = deal_canaries(config.canaries, workload.dataset, partition)
    return Resident(
        config=config,
        strategy=build_strategy(config),
        workload=dataclasses.replace(workload, dataset=dealt.dataset),
        partition=dealt.partition,
        partition_without=partition,
        parameters=ParameterVector(workload.build_model(model_seed(config))),
        count_step=StepCounter(folder.progress),
        folder=folder,
        loaded=LoadedExamples(LOADED_BYTES),
        owners={},
        memory=FreedMemory(),
        malicious=malicious_clients(config),
    )


def forget_run() -> None:
    """Drop what the process keeps of the last run."""
    _resident.cache_clear()
