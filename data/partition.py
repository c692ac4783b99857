"""A partition: which client holds which training image. It is a file; making one is elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.errors import DataError
from core.records import write_whole

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """A seed whose partition was refused, and why."""

    attempt: int
    seed: int
    reason: str


@dataclass(frozen=True, slots=True)
class Partition:
    """Training images dealt to clients.

    Attributes:
        scheme: How it was made, with its parameters, such as ``{"scheme": "iid"}``.
        source: Name of the data source it was made for.
        num_examples: Size of the training split it was made for.
        seed: The seed that made it.
        failed_attempts: Seeds tried before.
        clients: For each client its indices into the training split, ascending, disjoint.
        class_counts: Shape (clients, classes): images of each class that each client holds.
    """

    scheme: Mapping[str, Any]
    source: str
    num_examples: int
    seed: int
    failed_attempts: tuple[FailedAttempt, ...]
    clients: tuple[Indices, ...]
    class_counts: npt.NDArray[np.int64]

    def write(self, path: Path) -> None:
        """Write the partition as JSON, whole."""
        value = {
            "scheme": dict(self.scheme),
            "source": self.source,
            "num_examples": self.num_examples,
            "seed": self.seed,
            "failed_attempts": [
                {"attempt": a.attempt, "seed": a.seed, "reason": a.reason}
                for a in self.failed_attempts
            ],
            "class_counts": self.class_counts.tolist(),
            "clients": [indices.tolist() for indices in self.clients],
        }
        write_whole(path, (json.dumps(value) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> Partition:
        """Read a partition file.

        Raises:
            DataError: The file is missing, is no partition, or contradicts itself (an index out
                of range or dealt twice).
        """
        try:
            value = json.loads(path.read_text())
            clients = tuple(_whole_numbers(c, 1) for c in value["clients"])
            partition = cls(
                scheme=value["scheme"],
                source=str(value["source"]),
                num_examples=int(value["num_examples"]),
                seed=int(value["seed"]),
                failed_attempts=tuple(FailedAttempt(**a) for a in value["failed_attempts"]),
                clients=clients,
                class_counts=_whole_numbers(value["class_counts"], 2),
            )
        except FileNotFoundError as error:
            raise DataError(f"there is no partition file {path}") from error
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise DataError(f"{path} is not a partition file: {error}") from error
        dealt = np.concatenate(clients) if clients else np.zeros(0, dtype=np.int64)
        if len(dealt) and (dealt.min() < 0 or dealt.max() >= partition.num_examples):
            raise DataError(f"{path} deals an index outside 0..{partition.num_examples - 1}")
        if len(np.unique(dealt)) != len(dealt):
            raise DataError(f"{path} deals an image to more than one client")
        if not clients or partition.class_counts.shape[:1] != (len(clients),):
            raise DataError(
                f"{path} has class counts for {len(partition.class_counts)} clients "
                f"and examples for {len(clients)}"
            )
        return partition


def _whole_numbers(values: Any, ndim: int) -> Indices:
    array = np.asarray(values)
    if array.size == 0 and array.ndim == ndim:
        return array.astype(np.int64)
    if array.ndim != ndim or array.dtype.kind != "i":
        raise ValueError(
            f"expected whole numbers in {ndim} dimensions, found {array.dtype} in {array.ndim}"
        )
    return array.astype(np.int64)
