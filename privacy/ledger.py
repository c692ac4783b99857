"""What each client has spent: written before anything noised is made, and never taken back.

One file per client and its data. A charge is on the disk before the first noised step of its round;
whatever happens then, it stays. A round that is done again is charged again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock

from core.config import RunConfig
from core.errors import PrivacyError, RecordError
from core.records import RunFolder, write_whole
from privacy.accounting import AccountantName, Segment, epsilon, epsilons

SCHEMA_VERSION = 1
SEEDED = "refused: seeded noise"
"""In place of an epsilon, where noise came from a generator that repeats."""

Unit = Literal["example", "client"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What one round costs one client.

    Attributes:
        run: Name and identity of the run.
        round: From 1.
        unit: What is protected.
        mechanism: As in ``privacy.mechanism``.
        noise_multiplier: sigma.
        sampling_rate: q.
        steps: Noised sums released (T).
        system_noise: Whether the noise came from the operating system's generator.
        at: When, UTC.
    """

    run: str
    round: int
    unit: Unit
    mechanism: str
    noise_multiplier: float
    sampling_rate: float
    steps: int
    system_noise: bool
    at: str = ""

    @property
    def segment(self) -> Segment:
        """What the accountant composes."""
        return Segment(self.noise_multiplier, self.sampling_rate, self.steps)


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent.

    Attributes:
        epsilon: The most; 0 where nothing is too much.
        delta: At this delta.
        accountant: Computed by it.
        name: What sets it.
    """

    epsilon: float
    delta: float
    accountant: AccountantName
    name: str = "privacy.epsilon"


@dataclass(frozen=True, slots=True)
class Spent:
    """What charges come to.

    Attributes:
        epsilon: None where it is refused.
        accountant: What it was computed by.
        note: Why it is refused, or computed by another accountant than asked for; else empty.
    """

    epsilon: float | None
    accountant: AccountantName
    note: str = ""


def spent_each(
    clients: Sequence[Sequence[Charge]], delta: float, accountant: AccountantName
) -> list[Spent]:
    """Compose the charges of each client, all by one accountant."""
    seeded = [not all(charge.system_noise for charge in charges) for charges in clients]
    found = epsilons([[c.segment for c in charges] for charges in clients], delta, accountant)
    return [
        Spent(None, accountant, SEEDED) if refused else Spent(one.value, one.accountant, one.reason)
        for refused, one in zip(seeded, found, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Ledger:
    """The ledger of one client's data.

    Attributes:
        folder: Folder of ledgers.
        partition_id: Which share of the data it is.
        owner: Digest of the data, `owner_of`.
    """

    folder: Path
    partition_id: int
    owner: str

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / f"partition-{self.partition_id:05d}-{self.owner[:8]}.json"

    def charges(self) -> tuple[Charge, ...]:
        """All there are, in the order in which they were made.

        Raises:
            RecordError: The file is damaged or another's.
        """
        if not self.path.exists():
            return ()
        partition_id, owner, charges = _read(self.path)
        if (partition_id, owner) != (self.partition_id, self.owner):
            raise RecordError(
                f"{self.path} is the ledger of partition {partition_id} and other data; it cannot "
                "be gone on with; give another privacy.ledger"
            )
        return charges

    def charge(self, charge: Charge, *budgets: Budget) -> None:
        """Write a charge down, unless it would exceed one of the budgets.

        Raises:
            PrivacyError: It would, or the ledger holds charges for another unit; nothing was
                written.
            RecordError: As `charges`.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_suffix(".lock")):
            before = self.charges()
            if others := {c.unit for c in before} - {charge.unit}:
                raise PrivacyError(
                    f"client {self.partition_id}'s ledger holds charges for one {others.pop()} and "
                    f"this run protects one {charge.unit}; they do not add up; give another "
                    "privacy.ledger"
                )
            after = (*before, charge)
            for budget in budgets:
                _refuse_excess(self.partition_id, after, charge.round, budget)
            stamped = dataclasses.replace(charge, at=datetime.now(UTC).isoformat())
            self._write((*before, stamped))

    def _write(self, charges: Iterable[Charge]) -> None:
        content = {
            "schema": SCHEMA_VERSION,
            "partition_id": self.partition_id,
            "owner": self.owner,
            "charges": [dataclasses.asdict(charge) for charge in charges],
        }
        content["sha256"] = _digest(content)
        write_whole(self.path, (json.dumps(content, indent=1) + "\n").encode())
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name must outlive a power cut too
        finally:
            os.close(folder)


def _refuse_excess(
    partition_id: int, charges: Sequence[Charge], round: int, budget: Budget
) -> None:
    if not budget.epsilon:
        return
    found = epsilon([c.segment for c in charges], budget.delta, budget.accountant)
    if found.value > budget.epsilon:
        raise PrivacyError(
            f"client {partition_id} has no budget left: round {round} would bring it to epsilon "
            f"{found.value:.4g} of {budget.name}={budget.epsilon:g} (delta {budget.delta:g}, "
            f"{found.accountant.upper()}); it was not started"
        )


def read_ledgers(folder: Path, run: str) -> dict[int, list[tuple[Charge, ...]]]:
    """By partition id, all charges of every ledger that `run` has charged.

    Raises:
        RecordError: A ledger is damaged.
    """
    found: dict[int, list[tuple[Charge, ...]]] = {}
    for path in sorted(folder.glob("partition-*.json")):
        partition_id, _, charges = _read(path)
        if any(charge.run == run for charge in charges):
            found.setdefault(partition_id, []).append(charges)
    return found


def ledger_folder(config: RunConfig, folder: RunFolder) -> Path:
    """Where a run's ledgers lie."""
    if config.privacy.ledger:
        return Path(config.privacy.ledger).expanduser().resolve()
    return folder.ledgers


def ledger_run(config: RunConfig, folder: RunFolder) -> str:
    """What ledgers call a run."""
    return f"{folder.path.name}/{config.identity()}"


def owner_of(*content: torch.Tensor) -> str:
    """Digest of a client's data as they are stored: images as pixels, uint8, and their labels."""
    digest = hashlib.sha256(f"{tuple(content[0].shape)}".encode())
    for tensor in content:
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def bind_ledgers(folder: Path, deal: str) -> None:
    """Bind a folder of ledgers that runs share to one way of dealing one data set to clients.

    Under another, an image may lie with another client, whose ledger does not tell what it has
    cost.

    Args:
        folder: Made where it is missing.
        deal: Digest of data and partition.

    Raises:
        RecordError: It is bound to another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "deal.json"
    with FileLock(folder / "deal.lock"):
        if not path.exists():
            content = json.dumps({"schema": SCHEMA_VERSION, "deal": deal}) + "\n"
            write_whole(path, content.encode())
    refuse_other_deal(folder, deal)


def refuse_other_deal(folder: Path, deal: str) -> None:
    """Refuse a folder that `bind_ledgers` has bound to another deal; writes nothing.

    Raises:
        RecordError: It is, or the file that says so is damaged.
    """
    path = folder / "deal.json"
    if not path.exists():
        return
    try:
        told = json.loads(path.read_bytes())["deal"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path} is damaged: {error}; give another privacy.ledger") from error
    if told != deal:
        raise RecordError(
            f"{folder} holds ledgers of clients to whom other examples were dealt (partition.*, "
            "data.* or seed differ); what has been spent on an example would not add up; give "
            "another privacy.ledger, or the same partition, such as by partition.file"
        )


def _read(path: Path) -> tuple[int, str, tuple[Charge, ...]]:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        told = content.pop("sha256")
        if content["schema"] != SCHEMA_VERSION:
            raise ValueError(f"schema {content['schema']} is not read here")
        if told != _digest(content):
            raise ValueError("its content does not give its sha256")
        charges = tuple(Charge(**charge) for charge in content["charges"])
        return int(content["partition_id"]), str(content["owner"]), charges
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(
            f"ledger {path} is damaged: {error}; what its client has spent is not known, so that "
            "nothing more may be"
        ) from error


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
