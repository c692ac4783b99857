"""The contract that every workload fulfils: what is trained, and how it is judged.

A workload brings data, a model, what a client minimises and an evaluation. It knows no strategy and
no transport; strategies, server, client, records and report know none by its name. What few
strategies need beyond an objective is an `Offer`: a workload says which it lacks and why, and
`pairing.fit` refuses a pair that does not fit.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from core.config import RunConfig
from core.errors import Problem
from core.examples import ExampleSet
from core.exhibits import Exhibit
from core.groups import EntryWeights, ParameterGroups
from core.records import EvaluationRecord
from core.scores import Scores
from core.seeds import seeded_globals

Split = Literal["validation", "test"]

Offer = Literal[
    "labelled-images",
    "image-loss",
    "own-data",
    "per-example-gradients",
    "gradient-steps",
    "equal-forms",
]
"""What a strategy or a feature may need of a workload beyond an objective.

``labelled-images``: its data are a `data.dataset.ImageDataset`. ``image-loss``: labelled images
alone have a loss, wherever they come from (`ImageWorkload`). ``own-data``: clients can bring their
own (`OwnData`), which `pairing.fit` sees for itself. ``per-example-gradients``: the loss of
a batch is the mean of losses that depend on one example each, and nothing else is made of the
client's data. ``gradient-steps``: all that local steps move, they move by plain steps along the
gradient. ``equal-forms``: every client trains, and sends, the same entries.
"""


class Dataset(Protocol):
    """What the platform must know of a workload's data."""

    @property
    def name(self) -> str:
        """The source as configured."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of what partitioners deal by: classes, or topics."""

    @property
    def num_examples(self) -> Mapping[str, int]:
        """Examples in ``train``, ``validation`` and ``test``."""

    @property
    def train_labels(self) -> torch.Tensor:
        """Class of every training example, int64, shape (N,)."""

    def sha256(self) -> str:
        """A digest of all splits."""

    def content(self, indices: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Training examples at `indices` (int64, shape (n,)) as stored: to know their owner by."""


@runtime_checkable
class DealtInUnits(Protocol):
    """A data set of which some examples belong together, such as the clips of one video."""

    @property
    def train_units(self) -> torch.Tensor:
        """Unit of every training example, int64, shape (N,): no two clients share one."""


class Objective(ABC):
    """What one model is trained by for one round: on a client's examples, or on all there are.

    It is made for the round and forgotten after it. Beside the gradient of `losses`, which the loop
    in `strategies.local_sgd` follows, it may move entries of its own between steps.
    """

    @property
    @abstractmethod
    def num_examples(self) -> int:
        """Examples that an epoch visits; batches are indices into them."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where batches of indices are to be."""

    @abstractmethod
    def losses(self, batch: torch.Tensor) -> torch.Tensor:
        """What to minimise on a batch: each example's loss, or the loss of the batch as a whole.

        Args:
            batch: int64, shape (B,).

        Returns:
            Shape (B,), of which the mean is minimised, or shape ().
        """

    def before_step(self, batch: torch.Tensor) -> None:
        """Called before the step on `batch`."""
        return

    def after_step(self, batch: torch.Tensor) -> None:
        """Called after the step on `batch`."""
        return

    def metrics(self) -> Mapping[str, float]:
        """What it measured, by the names of `Workload.measures`; finite.

        What there was nothing to measure of is left out.
        """
        return {}


@dataclass(frozen=True)
class Workload(ABC):
    """A workload on one device.

    Attributes:
        config: The run.
        dataset: What `load` gave, or what a client brought.
        device: Where models and examples live.
        name: As the configuration names it.
        noun: What examples are called before users, in the plural.
        reads: Which of the sections ``data`` and ``model`` it reads.
        sections: Frozen dataclasses of the configuration sections that it reads, by their titles.
        classifies: Whether its evaluations hold a confusion matrix over the classes of its data.
    """

    config: RunConfig
    dataset: Dataset
    device: torch.device

    name: ClassVar[str]
    noun: ClassVar[str] = "examples"
    reads: ClassVar[tuple[str, ...]] = ()
    sections: ClassVar[Mapping[str, type]] = {}
    classifies: ClassVar[bool] = False

    @classmethod
    def problems(cls, config: RunConfig) -> Iterable[Problem]:
        """What keeps this workload from running under `config`: keys that do not go together."""
        return ()

    @classmethod
    def lacks(cls, config: RunConfig) -> Mapping[Offer, str]:
        """What it does not offer, each with the reason as a clause that follows its name."""
        return {}

    @classmethod
    @abstractmethod
    def load(cls, config: RunConfig) -> Dataset:
        """Read the data.

        Raises:
            DataError: It is missing or unfit.
        """

    @classmethod
    def most_examples(cls, config: RunConfig) -> int | None:
        """How many training examples `load` can give at most, where it is told at little cost.

        What needs more is refused before data are loaded. None where only loading them tells.

        Raises:
            DataError: As `load`.
        """
        return None

    @classmethod
    def data_key(cls, config: RunConfig) -> Hashable:
        """All that `load` depends on: data are loaded once for runs of the same key."""
        own = (options for title, options in config.options.items() if title in cls.sections)
        return (config.workload, config.data, config.seed, *own)

    @property
    @abstractmethod
    def scores(self) -> Scores:
        """What it is judged by; choices are made on the first."""

    @abstractmethod
    def make_model(self) -> nn.Module:
        """The model on the CPU, initialised from torch's global generators."""

    @abstractmethod
    def examples(self, indices: torch.Tensor) -> ExampleSet:
        """Training examples at `indices` (int64, shape (N,)), on the device."""

    @abstractmethod
    def objective(
        self, model: nn.Module, examples: ExampleSet, *, seed: int, partition_id: int | None
    ) -> Objective:
        """What a client minimises in one round.

        Args:
            model: In which it trains; its entries are loaded before the objective is called.
            examples: The client's own, or all.
            seed: Of this client and round.
            partition_id: Whose they are; None for a model trained on all examples in one place.
        """

    @abstractmethod
    def evaluate(self, model: nn.Module, split: Split) -> EvaluationRecord:
        """Judge a model on a whole split; it is left in the mode it was in."""

    def exhibits(self, model: nn.Module, split: Split) -> tuple[Exhibit, ...]:
        """A few examples of what a model makes of a split, for people to look at."""
        return ()

    def build_model(self, seed: int) -> nn.Module:
        """A freshly initialised model; the same seed gives the same bits on any device.

        Raises:
            ConfigError: The model does not fit the data, or a configured group is not in it.
        """
        with seeded_globals(seed):
            model = self.make_model()
        self.groups(model).freeze(model)
        return model.to(self.device)

    def groups(self, model: nn.Module) -> ParameterGroups:
        """What of the model is shared, personal and frozen.

        Raises:
            ConfigError: A configured group is not in it, or holds a part of a tied parameter.
        """
        groups = ParameterGroups.of(self.config.groups, model.state_dict())
        groups.refuse_split(model)
        return groups

    def training_examples(self) -> ExampleSet:
        """The whole training split."""
        return self.examples(torch.arange(self.dataset.num_examples["train"]))

    def num_training_examples(self, num_examples: int) -> int:
        """`Objective.num_examples` of a client that holds `num_examples`."""
        return num_examples

    def weights(self, num_examples: int) -> EntryWeights:
        """What the entries of a client that holds `num_examples` weigh in an average."""
        return EntryWeights(num_examples)

    def is_trained(self, entry: str, partition_id: int) -> bool:
        """Whether this client trains the entry, where it is not frozen; others do not send it."""
        return True

    def is_moved(self, entry: str) -> bool:
        """Whether objectives move the entry themselves, though no gradient step does."""
        return False

    def is_judged(self, entry: str) -> bool:
        """Whether an evaluation depends on the entry."""
        return True

    def numbering(self) -> Mapping[str, str]:
        """What the rows of entries stand for, by group of entries: of words, labels, places.

        Weights that another run ended with are only taken where theirs stand for the same: two
        vocabularies of one size have the same shapes and different words.
        """
        return {}

    def measures(self, partition_id: int) -> tuple[str, ...]:
        """Names of what a client's objective measures, each ``family/member`` or one word."""
        return ()

    def with_dataset(self, dataset: Dataset) -> Self:
        """The same workload on other data of its form."""
        return dataclasses.replace(self, dataset=dataset)


class OwnData(ABC):
    """What a workload has besides, whose clients can bring their own data to a network.

    The server makes a form of its own data, from which a client reads its data as all others do:
    the same classes under the same numbers, the same words, the same sizes.
    """

    @abstractmethod
    def form(self) -> str:
        """All that a client must know of the federation to read its own data, as JSON."""

    @classmethod
    @abstractmethod
    def check_own(cls, config: RunConfig, source: str) -> None:
        """Refuse what `load_own` would refuse whatever the form, and at little cost.

        Args:
            config: The run, without the server's files.
            source: Where the client's data lie, in the words of its operator.

        Raises:
            DataError: There is nothing, or what is there is not laid out as it must be.
        """

    @classmethod
    @abstractmethod
    def load_own(cls, config: RunConfig, source: str, form: str) -> Dataset:
        """Read a client's own data as the training split of a data set; there are no others.

        Args:
            config: The run, without the server's files.
            source: Where the client's data lie, in the words of its operator.
            form: What the server's `form` gave.

        Raises:
            DataError: The data are missing or unfit, do not fit the form, or it makes no sense.
        """

    @abstractmethod
    def write_shares(
        self, clients: Sequence[npt.NDArray[np.int64]], folder: Path
    ) -> Sequence[Path]:
        """Deal training examples into files, as clients bring them.

        Args:
            clients: By partition id, indices of training examples, ascending.
            folder: Made where it is missing; each client gets ``client-K`` in it.

        Returns:
            By partition id, what `load_own` takes.

        Raises:
            DataError: An example cannot be written.
        """


class ImageWorkload(Protocol):
    """A workload that offers ``image-loss``, as methods see it that send images."""

    @property
    def num_classes(self) -> int:
        """Number of classes (C)."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""

    def build_model(self, seed: int) -> nn.Module:
        """As `Workload.build_model`."""

    def loss(self, model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Loss of each image, shape (B,)."""

    def to_pixels(self, inputs: torch.Tensor) -> torch.Tensor:
        """Network input to uint8 pixels."""

    def from_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 pixels to network input."""
