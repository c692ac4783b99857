"""The contract that every strategy fulfils, client half and server half.

A strategy is built once per process from the configuration and holds nothing else: what changes
from round to round is passed in and handed back (`ServerState`, `ClientUpdate.state`). It receives
its workload as an objective, and knows neither Flower nor where it runs.

The smallest one there is counts examples. It trains nothing, yet fills every part:

>>> class CountExamples(Strategy):
...     name = "count-examples"
...     images_sent = "none"
...
...     def reply_spec(self, client, round):
...         return RecordSpec(metrics=("num_examples", "train_s"))
...
...     def client_update(self, task):
...         return ClientUpdate({}, {"num_examples": len(task.examples)})
...
...     def begin(self, state):
...         return 0
...
...     def add(self, total, reply):
...         return total + reply.record.metrics["num_examples"]
...
...     def finish(self, state, total, task):
...         return RoundOutcome(state, {"num_examples": total})
>>> counter = CountExamples(RunConfig())
>>> replies = [Reply(k, Record(metrics={"num_examples": n})) for k, n in enumerate([3, 4, 5])]
>>> total = counter.begin(None)
>>> for reply in replies:
...     total = counter.add(total, reply)
>>> counter.finish(None, total, None).metrics
{'num_examples': 12}
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import nn

from core.config import RunConfig
from core.errors import Problem
from core.examples import Examples
from core.parameters import NamedTensors, ParameterVector, trainable_names
from core.records import EvaluationRecord
from core.seeds import derive_seed
from core.wire import Array, ArraySpec, Metric, Record, RecordSpec
from privacy.mechanism import GaussianSums
from privacy.statement import ImagesSent

Split = Literal["validation", "test"]
ClientHalf = Literal["gradient-steps", "matching", "own"]
ServerHalf = Literal["sum", "own"]


class Workload(Protocol):
    """What a strategy needs of the workload; `workloads.vision` is one."""

    @property
    def num_classes(self) -> int:
        """Number of classes (C)."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""

    def build_model(self, seed: int) -> nn.Module:
        """A freshly initialised model on the workload's device."""

    def loss(self, model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Loss of each example, shape (B,)."""

    def evaluate(self, model: nn.Module, split: Split) -> EvaluationRecord:
        """How well the model does on a split."""

    def training_examples(self) -> Examples:
        """The whole training split; only what is central by nature may ask for it."""

    def to_pixels(self, inputs: torch.Tensor) -> torch.Tensor:
        """Network input to uint8 pixels."""

    def from_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 pixels to network input."""


@dataclass(frozen=True, slots=True)
class ModelForm:
    """The form of the model that is trained.

    Attributes:
        weights: Of every entry of the state dict, in its order.
        trainable: Names of the entries that gradients reach; the others are buffers, such as
            BatchNorm's statistics, or parameters that are held fixed.
    """

    weights: Mapping[str, ArraySpec] = field(default_factory=dict)
    trainable: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: nn.Module) -> ModelForm:
        """The form of `model`."""
        return cls(spec_of(model.state_dict()), trainable_names(model))


@dataclass(frozen=True, slots=True)
class ClientShape:
    """What the size of a client's reply may depend on.

    Attributes:
        partition_id: Which share of the data it holds.
        class_counts: Images of each class, shape (C,).
        model: Form of the model.
        input_shape: Channels, height, width.
    """

    partition_id: int
    class_counts: tuple[int, ...]
    model: ModelForm
    input_shape: tuple[int, int, int]

    @property
    def num_examples(self) -> int:
        """Images the client holds (n_k)."""
        return sum(self.class_counts)


@dataclass(frozen=True, slots=True)
class ClientTask:
    """One client's work in one round.

    Attributes:
        round: From 1.
        partition_id: Which share of the data it is.
        seed: Derived from the run's seed, the round and the partition; the source of all
            randomness here.
        received: What the server sent.
        examples: The client's own data.
        state: What this client's last acknowledged update kept; None at first.
        parameters: A model of the right form to work in; its weights are left over from other
            work, load some before use.
        workload: The objective.
        device: Where to compute.
        count_step: Called once per inner step, for progress.
        mechanism: What samples and noises in this update; None where nothing does. Passed on to the
            loop that it concerns.
    """

    round: int
    partition_id: int
    seed: int
    received: Record
    examples: Examples
    state: NamedTensors | None
    parameters: ParameterVector
    workload: Workload
    device: torch.device
    count_step: Callable[[], None]
    mechanism: GaussianSums | None = None


@dataclass(frozen=True, slots=True)
class ClientUpdate:
    """What a client sends, and what it keeps once the server has acknowledged the reply.

    The client app adds ``train_s``, the seconds the update took, to the metrics. Where the run
    hides counts, it takes away all that are not among `Strategy.public_metrics`.
    """

    arrays: Mapping[str, Array]
    metrics: Mapping[str, Metric]
    state: NamedTensors | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A validated reply, as the server half sees it."""

    partition_id: int
    record: Record


@dataclass(frozen=True, slots=True)
class ServerState:
    """What the server carries from round to round; a checkpoint holds exactly this.

    Attributes:
        weights: The global model's state dict, on the CPU.
        slots: The strategy's own tensors, such as a server momentum.
    """

    weights: NamedTensors
    slots: NamedTensors = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServerTask:
    """The server's work in one round; fields as in `ClientTask`."""

    round: int
    seed: int
    parameters: ParameterVector
    workload: Workload
    device: torch.device
    count_step: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Mosaic:
    """The images that clients sent in a round, for the record.

    Attributes:
        pixels: uint8, shape (N, C, H, W).
        labels: int64, shape (N,).
        partition_ids: int64, shape (N,): who sent each.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    partition_ids: torch.Tensor


@dataclass(frozen=True, slots=True)
class FederatedEvaluation:
    """An evaluation that clients made, where there is no global model to evaluate.

    Attributes:
        validation: Over all clients' models.
        test: Over all clients' models.
        client_scores: By partition id, the primary score that each client may expect on its own
            data, such as the test accuracy on its own label distribution; None for one that did
            not tell. None where clients are not told apart.
    """

    validation: EvaluationRecord
    test: EvaluationRecord
    client_scores: list[float | None] | None


@dataclass(frozen=True, slots=True)
class RoundOutcome:
    """The next state, what the server measured, and what is worth keeping.

    Attributes:
        state: After the round.
        metrics: By name.
        mosaic: Images that clients sent, if they did.
        evaluation: Where clients made it.
        discarded: Why nothing was made of the replies, such as that they were too few; None if
            something was. The round then counts as one without replies.
    """

    state: ServerState
    metrics: Mapping[str, float]
    mosaic: Mosaic | None = None
    evaluation: FederatedEvaluation | None = None
    discarded: str | None = None


class Strategy(ABC):
    """A federated method.

    Attributes:
        name: As the configuration names it; prefix of its own section of keys.
        sections: Frozen dataclasses of the configuration sections that it reads.
        images_sent: Whether images leave clients, for the privacy statement and the report.
        step_name: What an inner step of a client is, for progress.
        asks_clients: False for a method that has no clients.
        has_global_model: False for a method whose server holds no trained model; its `finish` gives
            the evaluation.
        sends_weights: Whether clients receive the global model each round.
        client_half: What a client's reply is made by: ``gradient-steps``, nothing but steps of
            `strategies.local_sgd` from what it received; ``matching``, nothing but
            `distill.matching`; or ``own``.
        server_half: ``sum`` where the next state depends on replies through their sum alone.
        public_metrics: Metrics of a reply that tell nothing of the client's images.
    """

    name: ClassVar[str]
    sections: ClassVar[Mapping[str, type]] = {}
    images_sent: ClassVar[ImagesSent]
    step_name: ClassVar[str] = "training"
    asks_clients: ClassVar[bool] = True
    has_global_model: ClassVar[bool] = True
    sends_weights: ClassVar[bool] = True
    client_half: ClassVar[ClientHalf] = "own"
    server_half: ClassVar[ServerHalf] = "own"
    public_metrics: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    @classmethod
    def problems(cls, config: RunConfig) -> Iterable[Problem]:
        """What keeps this method from running under `config`: keys that do not go together."""
        return ()

    def keeps_client_state(self) -> bool:
        """Whether every `client_update` returns a state to be passed to the client's next one."""
        return False

    def initial_slots(self, weights: NamedTensors, trainable: Collection[str]) -> NamedTensors:
        """`ServerState.slots` before the first round.

        Args:
            weights: w_0.
            trainable: As in `ModelForm`.
        """
        return {}

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model this method cannot train; by default any will do.

        Raises:
            ConfigError: With the way out.
        """
        return

    def broadcast(self, state: ServerState) -> dict[str, Array]:
        """Arrays that every client receives: the global weights, unless a method says otherwise."""
        return arrays_of(state.weights) if self.sends_weights else {}

    def broadcast_spec(self, model: ModelForm) -> Mapping[str, ArraySpec]:
        """Form of `broadcast` for a model of this form."""
        return model.weights if self.sends_weights else {}

    @abstractmethod
    def reply_spec(self, client: ClientShape, round: int) -> RecordSpec:
        """Form of this client's reply in `round`, ``train_s`` and all other metrics included.

        Which of the metrics are sent is for `sent_metrics` to say.
        Its size is predicted from it, and a reply that departs from it is refused. `round` may
        matter only by whether ``config.evaluates(round)``.
        """

    def client_steps(self, client: ClientShape) -> int:
        """How often `client_update` will call `count_step`, for progress; 0 if it never does."""
        return 0

    @abstractmethod
    def client_update(self, task: ClientTask) -> ClientUpdate:
        """The client half."""

    def check_reply(self, reply: Reply, client: ClientShape) -> list[str]:
        """Further reasons to refuse a reply that fits `client`'s form, as sentences."""
        return []

    def sent_metrics(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of a reply's metrics that are sent.

        All of them, unless counts are hidden: then none that tells of the client's images, the
        seconds it took included. Where the client noises, it tells its signal-to-noise ratio.
        """
        if not self.config.hides_counts:
            return tuple(names)
        public = tuple(name for name in names if name in self.public_metrics)
        return (*public, "snr") if self.config.privacy.is_example_level else public

    def weight_of(self, reply: Reply) -> int:
        """What a reply weighs in an average: the client's examples (n_k), or 1."""
        return 1 if self.config.weighs_equally else int(reply.record.metrics["num_examples"])

    @abstractmethod
    def begin(self, state: ServerState) -> Any:
        """An empty accumulator of replies."""

    @abstractmethod
    def add(self, accumulator: Any, reply: Reply) -> Any:
        """Fold one reply in. Replies come in an order fixed by the seed and the data."""

    @abstractmethod
    def finish(self, state: ServerState, accumulator: Any, task: ServerTask) -> RoundOutcome:
        """The server half, once every reply has been added."""


class CollectingStrategy(Strategy):
    """A method whose server needs all replies at once instead of a running sum."""

    def begin(self, state: ServerState) -> list[Reply]:
        """No replies yet."""
        return []

    def add(self, accumulator: list[Reply], reply: Reply) -> list[Reply]:
        """Keep the reply."""
        return [*accumulator, reply]


def wrong_count(reply: Reply, client: ClientShape) -> list[str]:
    """Why the reply's ``num_examples`` is refused, if it tells other than the client holds."""
    count = reply.record.metrics.get("num_examples")
    if count is None or count == client.num_examples:
        return []
    return [f"num_examples is {count}, but the client holds {client.num_examples}"]


def model_seed(config: RunConfig) -> int:
    """Seed of the initial model, the same wherever it is built."""
    return derive_seed(config.seed, "model")


def arrays_of(tensors: NamedTensors) -> dict[str, Array]:
    """Tensors as NumPy arrays of the same bits; the CPU's memory is shared."""
    return {name: value.detach().cpu().numpy() for name, value in tensors.items()}


def tensors_of(arrays: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    """NumPy arrays as tensors of their own memory."""
    return {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}


def spec_of(tensors: NamedTensors) -> dict[str, ArraySpec]:
    """The form that `tensors` have on the wire."""
    return {
        name: ArraySpec(tuple(value.shape), str(value.dtype).removeprefix("torch."))
        for name, value in tensors.items()
    }
