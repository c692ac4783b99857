"""The work that all contenders do: data, clients, initial weights, cohorts and order of batches.

It is written to a folder once and read by everybody, so that peers train the clients that
Tessera's seed draws, from its initial weights, on its batches in their order. What a folder holds::

    data.npz        images uint8 (N, 3, S, S), labels int64 (N,), clients int64 (K, n): indices of
                    each client's images, cohorts int64 (R, m): clients of rounds 1 to R, orders
                    int64 (R, m, n): in which order such a client visits its images
    weights.npz     initial weights, by their names in the state dict
    partition.json  ``clients`` as a partition file of Tessera
    work.json       `WorkSize`, learning rate, mean and standard deviation of the pixels
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.work_source import MEAN, NUM_CLASSES, STD
from core.config import RunConfig
from core.parameters import NamedTensors
from core.seeds import derive_seed, torch_generator
from data.partition import Partition
from pairing.configuration import parse_config
from server.cohort import draw_cohort
from server.preparation import forget_preparation, prepare

SEED = 0
LEARNING_RATE = 0.05
BATCH_SIZE = 32
SOURCE = f"{Path(__file__).with_name('work_source.py')}:load"

Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkSize:
    """How much there is to do; the defaults are those of the published comparison.

    Attributes:
        rounds: R.
        num_clients: K.
        examples_per_client: n.
        cohort_size: m, clients of a round.
        side: Pixels of an image's side (S).
    """

    rounds: int
    num_clients: int = 100
    examples_per_client: int = 100
    cohort_size: int = 10
    side: int = 32


@dataclass(frozen=True)
class Work:
    """A folder of work that is complete."""

    folder: Path
    size: WorkSize

    @cached_property
    def arrays(self) -> Mapping[str, npt.NDArray[Any]]:
        """Content of ``data.npz``."""
        with np.load(self.folder / "data.npz") as held:
            return {name: held[name] for name in held.files}

    @cached_property
    def sha256(self) -> str:
        """Digest of all that contenders read."""
        digest = hashlib.sha256()
        for name in ("work.json", "partition.json"):
            digest.update((self.folder / name).read_bytes())
        arrays: dict[str, npt.NDArray[Any]] = {**self.arrays, **self._initial_arrays}
        for name, array in sorted(arrays.items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
        return digest.hexdigest()

    @property
    def initial_weights(self) -> dict[str, torch.Tensor]:
        """w_0."""
        return {name: torch.from_numpy(array) for name, array in self._initial_arrays.items()}

    def settings(self) -> dict[str, object]:
        """Tessera's keys for this work."""
        return _settings(self.folder, self.size)

    @cached_property
    def _initial_arrays(self) -> Mapping[str, npt.NDArray[np.float32]]:
        with np.load(self.folder / "weights.npz") as held:
            return {name: held[name] for name in held.files}

    @torch.no_grad()
    def training_loss(self, weights: NamedTensors) -> float:
        """Mean cross-entropy, nats, of these weights on the training images of all clients."""
        preparation = prepare(_config(self.folder, self.size))
        model, workload = preparation.model, preparation.workload
        model.load_state_dict(dict(weights), strict=True)
        examples = workload.training_examples()
        objective = workload.objective(model.eval(), examples, seed=0, partition_id=None)
        total = torch.zeros((), dtype=torch.float64)
        for batch in torch.arange(objective.num_examples).split(500):
            total += objective.losses(batch).sum(dtype=torch.float64)
        forget_preparation()
        return float(total) / len(examples)


def make_work(folder: Path, size: WorkSize) -> Work:
    """Write the work into `folder`; the same size gives the same bytes."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(SEED)
    num_examples = size.num_clients * size.examples_per_client
    labels = generator.permutation(np.arange(num_examples, dtype=np.int64) % NUM_CLASSES)
    images = _images(generator, labels, size.side)
    order = generator.permutation(num_examples).reshape(size.num_clients, -1)
    clients = np.sort(order, axis=1)
    about = {
        **dataclasses.asdict(size),
        "learning_rate": LEARNING_RATE,
        "batch_size": BATCH_SIZE,
        "mean": MEAN,
        "std": STD,
    }
    (folder / "work.json").write_text(json.dumps(about, indent=2) + "\n")
    np.savez(folder / "data.npz", images=images, labels=labels)
    counts = np.stack([np.bincount(labels[own], minlength=NUM_CLASSES) for own in clients])
    Partition(
        scheme={"scheme": "iid", "clients": size.num_clients},
        source=SOURCE,
        num_examples=num_examples,
        seed=SEED,
        failed_attempts=(),
        clients=tuple(clients),
        class_counts=counts,
    ).write(folder / "partition.json")
    config = _config(folder, size)
    preparation = prepare(config)
    asked_in_order = preparation.hand_out_order()
    cohorts = [
        draw_cohort(config, asked_in_order, number).asked for number in range(1, size.rounds + 1)
    ]
    orders = [
        [batch_order(config.seed, number, k, size.examples_per_client) for k in cohort]
        for number, cohort in enumerate(cohorts, start=1)
    ]
    np.savez(
        folder / "data.npz",
        images=images,
        labels=labels,
        clients=clients,
        cohorts=np.array(cohorts, np.int64),
        orders=np.array(orders, np.int64),
    )
    weights: dict[str, Any] = {k: v.numpy() for k, v in preparation.initial_weights.items()}
    np.savez(folder / "weights.npz", **weights)
    forget_preparation()
    return Work(folder, size)


def batch_order(seed: int, round: int, partition_id: int, num_examples: int) -> Array:
    """In which order Tessera's clients visit their images in the one local epoch of a round."""
    shuffler = torch_generator(derive_seed(seed, "client", round, partition_id))
    return torch.randperm(num_examples, generator=shuffler).numpy()


def _images(generator: np.random.Generator, labels: Array, side: int) -> npt.NDArray[np.uint8]:
    """A coarse pattern for each class under noise: random, and yet there is something to learn."""
    coarse = generator.normal(0, 25, (NUM_CLASSES, 3, side // 4, side // 4)).astype(np.float32)
    patterns = coarse.repeat(4, axis=2).repeat(4, axis=3)
    noise = generator.normal(128, 40, (len(labels), 3, side, side)).astype(np.float32)
    pixels: npt.NDArray[np.uint8] = np.clip(noise + patterns[labels], 0, 255).astype(np.uint8)
    return pixels


def _config(folder: Path, size: WorkSize) -> RunConfig:
    return parse_config(_settings(folder, size))


def _settings(folder: Path, size: WorkSize) -> dict[str, object]:
    """Round 0 and the last round are always evaluated, on `work_source.NUM_HELD_OUT` images."""
    return {
        "strategy": "fedavg",
        "rounds": size.rounds,
        "seed": SEED,
        "evaluate-every": size.rounds,
        "checkpoint-every": size.rounds,
        "data.source": SOURCE,
        "data.root": str(folder),
        "partition.file": str(folder / "partition.json"),
        "partition.clients": size.num_clients,
        "partition.min-examples": 1,
        "model.name": "cnn",
        "cohort.size": size.cohort_size,
        "train.learning-rate": LEARNING_RATE,
        "train.batch-size": BATCH_SIZE,
        "train.local-epochs": 1,
        "engine.device": "cpu",
    }
