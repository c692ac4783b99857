"""Federations small enough to compute another way: 2x2 images, four layers, three clients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import nn
from torch.nn import functional

from core.config import RunConfig
from core.examples import Examples, ExampleSet, labelled
from core.parameters import NamedTensors, ParameterVector, trainable_names, weights_of
from core.records import EvaluationRecord
from core.scores import CLASSIFICATION, Scores
from core.seeds import torch_generator
from core.wire import Record
from core.workload import Dataset, Objective, Split, Workload
from pairing.configuration import parse_config
from strategies.base import (
    ClientTask,
    ClientUpdate,
    Reply,
    RoundOutcome,
    ServerState,
    ServerTask,
    Strategy,
)
from strategies.table import build_strategy

SIZES = (5, 12, 3)


def build_linear(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def toy_data(partition_id: int, size: int) -> Examples:
    generator = torch_generator(100 + partition_id)
    inputs = torch.randn(size, 1, 2, 2, generator=generator)
    return Examples(inputs, (inputs.sum((1, 2, 3)) > 0).long())


def client_data(partition_id: int) -> Examples:
    return toy_data(partition_id, SIZES[partition_id])


class _Toys:
    name = "toys"
    class_names = ("0", "1")
    num_examples: ClassVar = {"train": sum(SIZES), "validation": 0, "test": 0}

    @property
    def train_labels(self) -> torch.Tensor:
        return torch.cat([client_data(k).labels for k in range(len(SIZES))])

    def sha256(self) -> str:
        raise AssertionError("nobody asks here")

    def content(self, indices: torch.Tensor) -> tuple[torch.Tensor, ...]:
        raise AssertionError("nobody asks here")


@dataclass(frozen=True)
class ToyWorkload(Workload):
    """Two classes of 2x2 images for a four-layer network, unless a test builds another."""

    name = "toy"

    config: RunConfig = field(default_factory=RunConfig)
    dataset: Dataset = field(default_factory=_Toys)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    build: Callable[[int], nn.Module] = build_linear
    num_classes: int = 2
    input_shape: tuple[int, int, int] = (1, 2, 2)

    @classmethod
    def load(cls, config: RunConfig) -> Dataset:
        return _Toys()

    @property
    def scores(self) -> Scores:
        return CLASSIFICATION

    def make_model(self) -> nn.Module:
        raise AssertionError("build_model is another here")

    def build_model(self, seed: int) -> nn.Module:
        return self.build(seed)

    def examples(self, indices: torch.Tensor) -> Examples:
        everything = self.training_examples()
        return Examples(everything.inputs[indices], everything.labels[indices])

    def objective(
        self, model: nn.Module, examples: ExampleSet, *, seed: int, partition_id: int | None
    ) -> Objective:
        return ToyObjective(self, model, labelled(examples))

    def loss(self, model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(model(inputs), labels, reduction="none")

    def evaluate(self, model: nn.Module, split: Split) -> EvaluationRecord:
        raise AssertionError("not judged here")

    def training_examples(self) -> Examples:
        parts = [client_data(k) for k in range(len(SIZES))]
        return Examples(torch.cat([p.inputs for p in parts]), torch.cat([p.labels for p in parts]))

    def to_pixels(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.to(torch.uint8)

    def from_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.to(torch.float32)


class Losses(Protocol):
    def loss(self, model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Of each example."""


@dataclass(frozen=True)
class ToyObjective(Objective):
    """The loss of labelled examples under any workload that has one."""

    workload: Losses
    model: nn.Module
    examples: Examples

    @property
    def num_examples(self) -> int:
        return len(self.examples)

    @property
    def device(self) -> torch.device:
        return self.examples.labels.device

    def losses(self, batch: torch.Tensor) -> torch.Tensor:
        own = self.examples
        return self.workload.loss(self.model, own.inputs[batch], own.labels[batch])


def config_of(strategy: str, **keys: object) -> RunConfig:
    """A configuration; keys are spelled with ``__`` for a dot and ``_`` for a dash."""
    flat = {k.replace("__", ".").replace("_", "-"): v for k, v in keys.items()}
    return parse_config({"strategy": strategy, **flat})


def initial_state(strategy: Strategy, model: nn.Module) -> ServerState:
    """What a server holds before the first round on `model`."""
    weights = weights_of(model)
    return ServerState(weights, dict(strategy.initial_slots(weights, trainable_names(model))))


def client_task(
    strategy: Strategy,
    state: ServerState,
    examples: Examples,
    *,
    workload: ToyWorkload | None = None,
    partition_id: int = 0,
    kept: NamedTensors | None = None,
    count_step: Callable[[], None] = lambda: None,
) -> ClientTask:
    """A client's task; its seed is its partition id, its model holds other weights."""
    workload = workload or ToyWorkload()
    parameters = ParameterVector(workload.build_model(77))
    return ClientTask(
        round=1,
        partition_id=partition_id,
        seed=partition_id,
        received=Record(strategy.broadcast(state)),
        examples=examples,
        state=kept,
        parameters=parameters,
        workload=workload,
        objective=ToyObjective(workload, parameters.model, examples),
        device=torch.device("cpu"),
        count_step=count_step,
    )


def server_task(workload: ToyWorkload | None = None) -> ServerTask:
    workload = workload or ToyWorkload()
    return ServerTask(
        round=1,
        seed=3,
        parameters=ParameterVector(workload.build_model(78)),
        workload=workload,
        device=torch.device("cpu"),
        count_step=lambda: None,
    )


def fold(
    strategy: Strategy, state: ServerState, records: Iterable[Record | ClientUpdate]
) -> RoundOutcome:
    """The server half on these replies."""
    accumulator = strategy.begin(state)
    for k, record in enumerate(records):
        reply = Reply(k, Record(dict(record.arrays), dict(record.metrics)))
        accumulator = strategy.add(accumulator, reply)
    return strategy.finish(state, accumulator, server_task())


@dataclass
class ToyFederation:
    """Rounds of a strategy without any transport.

    Attributes:
        config: Names the strategy.
        clients: Their examples.
        workload: The objective; the initial model is that of seed 0.
        kept: What each client keeps.
        outcome: Of the last round.
    """

    config: RunConfig
    clients: Sequence[Examples] = field(
        default_factory=lambda: [client_data(k) for k in range(len(SIZES))]
    )
    workload: ToyWorkload = field(default_factory=ToyWorkload)
    kept: dict[int, NamedTensors | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.strategy = build_strategy(self.config)
        state = initial_state(self.strategy, self.workload.build_model(0))
        self.outcome = RoundOutcome(state, {})

    @property
    def state(self) -> ServerState:
        return self.outcome.state

    def round(self, cohort: Sequence[int] | None = None) -> list[ClientUpdate]:
        """One round of the clients `cohort`, or of all; what they sent."""
        updates = []
        for k in range(len(self.clients)) if cohort is None else cohort:
            task = client_task(
                self.strategy,
                self.state,
                self.clients[k],
                workload=self.workload,
                partition_id=k,
                kept=self.kept.get(k),
            )
            updates.append(self.strategy.client_update(task))
            self.kept[k] = updates[-1].state
        self.outcome = fold(self.strategy, self.state, updates)
        return updates
