"""The ClientApp that every engine runs: one message in, one reply out."""

from __future__ import annotations

import contextlib
import json
import math
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.attacks import malicious_clients, poison, tamper
from client.loaded_examples import LoadedExamples
from client.place import Place
from client.private_update import PrivateUpdate, quiet_failures
from core.client_state import ClientStore
from core.config import RunConfig, Scalar
from core.device import numerics, resolve_device
from core.errors import DataError, RecordError, TesseraError
from core.examples import ExampleSet
from core.groups import ParameterGroups
from core.installation import describe_installation
from core.memory import keep_freed_memory, process_memory
from core.parameters import (
    NamedTensors,
    ParameterVector,
    UnlistedBuffers,
    trainable_names,
    weights_of,
)
from core.progress import StepCounter
from core.records import RunFolder, write_whole
from core.seeds import derive_seed, seeded_globals
from core.wire import Record
from core.workload import Dataset, OwnData, Workload
from data.canaries import deal_canaries
from data.partition import Partition
from data.partitioners import load_or_make_partition
from pairing.configuration import parse_config
from pairing.exchange import clients_evaluate, received_form, sent_form
from privacy.ledger import owner_of
from strategies.base import ClientTask, ModelForm, Strategy, model_seed
from strategies.flower import from_flower, to_flower
from strategies.private import refuse_large_delta
from strategies.table import build_strategy
from strategies.told import tell
from workloads.table import open_on, open_workload, workload_class

app = ClientApp()

LOADED_BYTES = 256 * 2**20
"""Examples of clients that a process keeps as tensors: all of most federations, a part of thousands
of clients. What is not kept is made again from its pixels."""


@dataclass(frozen=True, slots=True)
class Resident:
    """What a process keeps from client to client of one run: nothing that a client may change.

    `partition_without` is the partition without canaries, `partition` is what clients hold.
    `parameters`, and `personal` if clients keep parts of the model to themselves, are a place to
    work in; every update loads its own weights first, and `unlisted`, which no state dict holds.
    `initial` is what is not shared, before any training; `form` is that of the rest. `evaluates`
    tells whether clients judge their own models.
    """

    config: RunConfig
    strategy: Strategy
    workload: Workload
    partition: Partition
    partition_without: Partition
    groups: ParameterGroups
    form: ModelForm
    evaluates: bool
    parameters: ParameterVector
    personal: ParameterVector | None
    initial: NamedTensors
    unlisted: UnlistedBuffers
    count_step: StepCounter
    folder: RunFolder
    loaded: LoadedExamples
    owners: dict[int, str]
    malicious: frozenset[int]

    def examples(self, partition_id: int) -> ExampleSet:
        """The client's own examples."""
        if partition_id >= len(self.partition.clients):
            raise DataError(
                f"partition-id={partition_id} has no data: the partition deals to "
                f"{len(self.partition.clients)} clients; set partition.clients to the number of "
                "nodes"
            )
        indices = torch.from_numpy(self.partition.clients[partition_id])
        return self.loaded.get(partition_id, lambda: self.workload.examples(indices))

    def owner(self, place: Place) -> str:
        """By what its ledger is known: its key, or in a simulation the digest of its own images.

        No canary is its own. On a machine of its own a client's images may change, and what was
        spent on those that stay would be forgotten.
        """
        partition_id = place.partition_id
        if place.state:
            return place.owner
        if partition_id not in self.owners:
            indices = torch.from_numpy(self.partition_without.clients[partition_id])
            self.owners[partition_id] = owner_of(*self.workload.dataset.content(indices))
        return self.owners[partition_id]

    def keep(self, state: NamedTensors | None) -> NamedTensors | None:
        """What the client keeps after an update: the strategy's state, and what is personal."""
        if not self.groups.personal:
            return state
        weights = weights_of(self.parameters.model)
        personal = {f"{_PERSONAL}{name}": weights[name] for name in sorted(self.groups.personal)}
        return {**(state or {}), **personal}


_PERSONAL = "personal/"
"""Prefix of the entries that are not the strategy's in what a client keeps."""


@app.train()
def train(message: Message, context: Context) -> Message:
    """One client's update."""
    place = Place.of(context.node_config)
    resident = _resident_of(context, place)
    if not resident.config.privacy.is_example_level:
        return _kept_if_sound(message, resident, place)
    with quiet_failures(resident.folder, place.partition_id):
        return _kept_if_sound(message, resident, place)


def _kept_if_sound(message: Message, resident: Resident, place: Place) -> Message:
    """The update; one that fails otherwise than by a refusal leaves nothing to the next client."""
    try:
        return _update(message, resident, place)
    except TesseraError:
        raise
    except BaseException:
        _resident.cache_clear()
        raise


def _update(message: Message, resident: Resident, place: Place) -> Message:
    started = time.perf_counter()
    received = from_flower(message.content)
    round_number = int(received.settings["round"])
    process_memory().release_if_grown()
    config, strategy = resident.config, resident.strategy
    partition_id = place.partition_id
    store = ClientStore(resident.folder.clients, partition_id, config.identity())
    malicious, attack = partition_id in resident.malicious, resident.config.attack
    examples = resident.examples(partition_id)
    if malicious:
        examples = poison(examples, len(resident.workload.dataset.class_names), attack)
    private = None
    if config.privacy.is_example_level:
        private = PrivateUpdate.of(config, resident.folder, place, received)
        if (again := private.sent_before()) is not None:
            return Message(to_flower(again), reply_to=message)
    seed = derive_seed(config.seed, "client", round_number, partition_id)
    model, workload = resident.parameters.model, resident.workload
    state, personal = _state(resident, store, received)
    resident.unlisted.restore()
    if own := {**resident.initial, **personal}:
        resident.parameters.load(own)
    objective = workload.objective(
        model,
        examples,
        seed=derive_seed(seed, "objective"),
        partition_id=partition_id,
    )
    task = ClientTask(
        round=round_number,
        partition_id=partition_id,
        seed=seed,
        received=received,
        examples=examples,
        state=state,
        parameters=resident.parameters,
        workload=workload,
        objective=objective,
        device=workload.device,
        count_step=resident.count_step,
        mechanism=private.charge(resident.owner(place)) if private else None,
        personal=resident.personal,
        sent=sent_form(workload, resident.form, partition_id),
    )
    precision = numerics(config.engine.precision, task.device)
    with seeded_globals(derive_seed(task.seed, "layers")), precision:
        update = strategy.client_update(task)
    kept = resident.keep(update.state)
    if malicious:
        update = tamper(update, received.arrays, attack)
    # A reply of a known size tells every measure, as NaN where there was nothing to measure.
    measured = dict.fromkeys(workload.measures(partition_id), math.nan) | dict(objective.metrics())
    arrays, metrics = dict(update.arrays), {**update.metrics, **measured}
    if resident.evaluates and config.evaluates(round_number):
        validation, test = workload.evaluate(model, "validation"), workload.evaluate(model, "test")
        counts = resident.partition.class_counts[partition_id].tolist()
        told_arrays, told_metrics = tell(validation, test, counts)
        arrays, metrics = {**arrays, **told_arrays}, {**metrics, **told_metrics}
    if kept is not None:
        store.write(round_number, kept)
    metrics["train_s"] = time.perf_counter() - started
    if task.mechanism is not None:
        metrics["snr"] = task.mechanism.signal_to_noise
    sent = {name: metrics[name] for name in strategy.sent_metrics(metrics)}
    reply = Record(arrays, sent, {"round": round_number})
    if private is not None:
        private.keep(reply, task.mechanism)
    return Message(to_flower(reply), reply_to=message)


def _state(
    resident: Resident, store: ClientStore, received: Record
) -> tuple[NamedTensors | None, NamedTensors]:
    """What the client kept: the strategy's state, and the personal entries of the model."""
    if not (resident.strategy.keeps_client_state() or resident.groups.personal):
        return None, {}
    acknowledged = int(received.settings["acknowledged-round"])
    store.forget(int(received.settings["retained-round"]), acknowledged)
    kept = store.read(acknowledged)
    if kept is None:
        return None, {}
    own = {name: value for name, value in kept.items() if not name.startswith(_PERSONAL)}
    personal = {n.removeprefix(_PERSONAL): v for n, v in kept.items() if n.startswith(_PERSONAL)}
    return (own if resident.strategy.keeps_client_state() else None), personal


@app.query()
def join(message: Message, context: Context) -> Message:
    """Tell which partition this node holds, what is installed, and, of its own data, how much.

    A client that cannot take part says why: what is wrong with its data, its folder of state, or
    a run that its operator has not agreed to. In a private run that protects examples, neither
    counts nor a digest are told, and of a failure no more than that there was one.
    """
    place = Place.of(context.node_config)
    place.bind()
    place.refuse_foreign_files(context.run_config)
    config = parse_config(dict(context.run_config))
    place.refuse_too_costly(config)
    counts, digest = {}, "none"
    if config.partition.scheme == "own":
        text = str(from_flower(message.content).settings["federation"])
        folder = place.run_folder(config, context.run_id)
        with _told(config, folder, place):
            kind = _kind_of_own(config)
            kind.check_own(place.settled(config), place.own_data(_noun(config)))
        write_whole(_form_file(folder, place), text.encode())
        own = _resident_of(context, place).workload.dataset
        if not config.hides_counts:
            digest = _digest(own)
            counts["class_counts"] = _class_counts(own)
    told = {"partition_id": place.partition_id, "keeps_state": int(bool(place.state))}
    settings = {
        "installation": json.dumps(describe_installation()),
        "key": place.key or "none",
        "data": digest,
    }
    return Message(to_flower(Record(counts, told, settings)), reply_to=message)


@app.query("alive")
def alive(message: Message, context: Context) -> Message:
    """Give a sign of life, which comes after the reply to whatever was asked before."""
    return Message(to_flower(Record()), reply_to=message)


def _form_file(folder: RunFolder, place: Place) -> Path:
    """Where a client keeps what the federation expects of its data."""
    return folder.clients / f"partition-{place.partition_id:05d}.federation.json"


def _resident_of(context: Context, place: Place) -> Resident:
    run_config = tuple(sorted(context.run_config.items()))
    own_data = context.run_config.get("partition.scheme") == "own"
    return _resident(run_config, context.run_id, place if own_data else place.in_common())


@lru_cache(maxsize=1)
def _resident(run_config: tuple[tuple[str, Scalar], ...], run_id: int, place: Place) -> Resident:
    """What is kept for a run, and for `place` or, if it is in common, for all simulated clients."""
    keep_freed_memory()
    place.bind()
    place.refuse_foreign_files(dict(run_config))
    config = place.settled(parse_config(dict(run_config)))
    place.refuse_too_costly(config)
    torch.set_num_threads(config.engine.client_threads)
    folder = place.run_folder(config, run_id)
    device = resolve_device(config.engine.device)
    if config.partition.scheme == "own":
        with _told(config, folder, place):
            dataset = _own_dataset(config, folder, place)
        workload = open_on(config, dataset, device)
        partition = _held_by(place.partition_id, dataset)
    else:
        workload = open_workload(config, device)
        if not place.state and folder.partition.is_file():
            partition = Partition.read(folder.partition)
        else:
            partition = load_or_make_partition(workload.dataset, config.partition, config.seed)
    dealt = deal_canaries(config.canaries, workload.dataset, partition)
    workload = workload.with_dataset(dealt.dataset)
    model = workload.build_model(model_seed(config))
    groups, strategy = workload.groups(model), build_strategy(config)
    held = {n: v for n, v in weights_of(model).items() if not groups.is_shared(n)}
    trained = set(trainable_names(model))
    return Resident(
        config=config,
        strategy=strategy,
        workload=workload,
        partition=dealt.partition,
        partition_without=partition,
        groups=groups,
        form=received_form(model, groups),
        evaluates=clients_evaluate(strategy, workload, groups),
        parameters=ParameterVector(model, groups.is_shared),
        personal=(
            ParameterVector(model, groups.personal.__contains__)
            if groups.personal & trained
            else None
        ),
        initial=held,
        unlisted=UnlistedBuffers(model),
        count_step=StepCounter(folder.progress),
        folder=folder,
        loaded=LoadedExamples(LOADED_BYTES),
        owners={},
        malicious=malicious_clients(config),
    )


def _told(
    config: RunConfig, folder: RunFolder, place: Place
) -> contextlib.AbstractContextManager[None]:
    """Of a failure inside the block a private client tells the server no more than that it was."""
    private = config.privacy.is_example_level
    return quiet_failures(folder, place.partition_id) if private else contextlib.nullcontext()


def _kind_of_own(config: RunConfig) -> type[OwnData]:
    kind = workload_class(config.workload)
    assert issubclass(kind, OwnData), "only of a workload that offers own data"
    return kind


def _noun(config: RunConfig) -> str:
    return workload_class(config.workload).noun


def _class_counts(dataset: Dataset) -> npt.NDArray[np.int64]:
    """Training examples of each class, int64, shape (C,)."""
    return np.bincount(dataset.train_labels.numpy(), minlength=len(dataset.class_names))


def _digest(dataset: Dataset) -> str:
    """Of all training examples: what its client is known by."""
    return owner_of(*dataset.content(torch.arange(dataset.num_examples["train"])))


def _own_dataset(config: RunConfig, folder: RunFolder, place: Place) -> Dataset:
    """The client's own data, as the federation that it has joined numbers their classes.

    Raises:
        DataError: They are missing or unfit, or too few.
        ConfigError: A private run's delta is too large for as many.
    """
    path = _form_file(folder, place)
    if not path.is_file():
        raise DataError(
            f"client {place.partition_id} is asked for an update and has not joined the run: it "
            f"has no {path.name}; start the run again"
        )
    noun = _noun(config)
    dataset = _kind_of_own(config).load_own(config, place.own_data(noun), path.read_text())
    count = dataset.num_examples["train"]
    if count < config.partition.min_examples:
        raise DataError(
            f"client {place.partition_id} holds {count} {noun}, below "
            f"partition.min-examples={config.partition.min_examples}"
        )
    if config.privacy.is_example_level:
        refuse_large_delta(config.privacy, [count])
    _refuse_other_data(config, folder, place, _digest(dataset))
    return dataset


def _refuse_other_data(config: RunConfig, folder: RunFolder, place: Place, digest: str) -> None:
    """Hold a client to the data with which it joined; a private one's digest is told to nobody.

    The server asks who a node is when it sees it come, and does not see a short absence.
    """
    path = folder.clients / f"partition-{place.partition_id:05d}.own.json"
    mine = {"identity": config.identity(), "sha256": digest}
    try:
        theirs = json.loads(path.read_bytes())
    except FileNotFoundError:
        theirs = {}
    except ValueError as error:
        raise RecordError(f"{path} is damaged: {error}; start the run again") from error
    if theirs.get("identity") == mine["identity"] and theirs != mine:
        raise DataError(
            f"client {place.partition_id}'s {_noun(config)} are not those with which it joined "
            "this run; bring those back, or start the run anew under another name"
        )
    write_whole(path, json.dumps(mine).encode())


def _held_by(partition_id: int, dataset: Dataset) -> Partition:
    """A partition in which one client holds all there is here."""
    others = tuple(np.zeros(0, np.int64) for _ in range(partition_id))
    counts = np.zeros((partition_id + 1, len(dataset.class_names)), np.int64)
    counts[partition_id] = _class_counts(dataset)
    num_examples = dataset.num_examples["train"]
    return Partition(
        scheme={"scheme": "own"},
        source=dataset.name,
        num_examples=num_examples,
        seed=0,
        failed_attempts=(),
        clients=(*others, np.arange(num_examples, dtype=np.int64)),
        class_counts=counts,
    )


def forget_run() -> None:
    """Drop what the process keeps of the last run."""
    _resident.cache_clear()
