"""Writes the run folder, round by round."""

from __future__ import annotations

import dataclasses
import secrets
import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors.torch import save

from core.client_state import ClientStore
from core.config import RunConfig
from core.errors import BusyError, RecordError, TesseraError
from core.records import (
    SCHEMA_VERSION,
    RoundRecord,
    RunFolder,
    refuse_unknown_schema,
    write_whole,
)
from data.dataset import ImageDataset, image_dataset
from data.partition import Partition
from pairing.configuration import config_keys
from privacy.ledger import SEEDED, bind_ledgers, ledger_folder, ledger_run
from privacy.noise import noise_source
from privacy.statement import statement_of
from server.checkpoint import Checkpoint
from server.environment import describe_environment
from server.nodes import Member, members_from_json, members_to_json
from server.preparation import Preparation
from server.sinks import Sink, open_sinks
from server.spending import NO_LEDGER, Spending, read_spending
from server.transcript import Transcript
from strategies.base import Mosaic
from workloads.table import workload_class

CHECKPOINTS_KEPT = 2
_ALWAYS_TOLD = {"strategy", "seed", "engine.client-threads", "engine.server-threads"}


@dataclasses.dataclass(frozen=True, slots=True)
class End:
    """How a run ended.

    Attributes:
        status: complete, failed or interrupted.
        failure: Why, if it failed.
        exit_code: What a command that waits for it ends with.
    """

    status: str
    failure: str | None
    exit_code: int


class Recorder:
    """The writer of one run folder, and the only one: it holds the folder's lock.

    Attributes:
        folder: What is written to.
        resumed_from: Where a run goes on that was cut off; None for one that starts.
        elapsed_s: Seconds that the run took before it was cut off.
        transcript: Where to keep what the server sees; None in a run without canaries.
    """

    def __init__(self, folder: RunFolder, preparation: Preparation) -> None:
        """Begin the record of a run, in a folder that holds nothing yet.

        Raises:
            BusyError: Another process writes to the folder.
        """
        self._open(folder, preparation)
        self._describe()
        self._begin(None, 0.0)

    @classmethod
    def resume(cls, folder: RunFolder, preparation: Preparation) -> Recorder:
        """Go on with a record from its last checkpoint; rounds after it are cut off.

        A folder that is refused is left as it was.

        Raises:
            BusyError: Another process writes to the folder.
            RecordError: The folder is of a run of another configuration, partition or data, or its
                records, its last checkpoint or a client's state cannot be gone on from.
        """
        self = cls.__new__(cls)
        self._open(folder, preparation)
        try:
            self._refuse_foreign()
            records = folder.read_rounds()
            checkpoint = self._last_checkpoint(len(records) - 1)
            if checkpoint is not None:
                self._refuse_lost_state(checkpoint)
                self._refuse_lost_ledgers(records[: checkpoint.round + 1])
        except BaseException:
            self._lock.release()
            raise
        reached = checkpoint.round if checkpoint else -1
        folder.remove_unfinished()
        shutil.rmtree(folder.progress, ignore_errors=True)
        for number, path in self.folder.checkpoints():
            if number > len(records) - 1:
                path.unlink()
        folder.keep_rounds(reached)
        self._describe()
        elapsed_s = records[reached].seconds["elapsed"] if checkpoint else 0.0
        self._begin(checkpoint, elapsed_s)
        return self

    def _open(self, folder: RunFolder, preparation: Preparation) -> None:
        self.folder = folder
        self._preparation = preparation
        self.transcript = _transcript(folder, preparation)
        self._data_sha256 = preparation.workload.dataset.sha256()
        self._identity = preparation.config.identity()
        self._command = reproducing_command(preparation.config)
        self._started, self._resumptions = _now(), list[dict[str, Any]]()
        self._retained: list[Mapping[int, int]] = []
        self._counted: set[tuple[int, int]] = set()
        self._lock = FileLock(folder.lock)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise BusyError(
                f"run folder {folder.path} is being written to by another process; wait for it, "
                "or end it first"
            ) from error

    def _describe(self) -> None:
        """Write what is known before the first round, but for what is there already."""
        folder, preparation = self.folder, self._preparation
        for name, value in (
            ("config", preparation.config.flat()),
            ("environment", describe_environment()),
            ("privacy", self._statement()),
        ):
            if not (folder.path / f"{name}.json").exists():
                folder.write_json(name, value)
        if not folder.partition.exists() and not preparation.has_own_data:
            preparation.partition_without.write(folder.partition)

    def members(self) -> dict[int, Member]:
        """Clients of a network, as they were when a run was cut off that goes on; else none."""
        if not (self.folder.path / "nodes.json").exists():
            return {}
        return members_from_json(self.folder.read_json("nodes"))

    def settle(self, preparation: Preparation, members: Mapping[int, Member]) -> None:
        """Put on record what is known once clients have joined.

        Raises:
            RecordError: A run that goes on has other clients than it had.
        """
        self._preparation = preparation
        if preparation.has_own_data:
            self._refuse_other_partition()
            if not self.folder.partition.exists():
                preparation.partition_without.write(self.folder.partition)
        if members:
            self.folder.write_json("nodes", members_to_json(members))

    def _statement(self, spending: Spending | None = None) -> dict[str, Any]:
        """What the run says about privacy: what it will cost, and more where it has."""
        preparation, total = self._preparation, spending.total if spending else None
        refused = "" if noise_source().is_system else SEEDED
        if total is not None and total.epsilon is None:
            refused = total.note
        statement = statement_of(
            preparation.config,
            preparation.privacy,
            preparation.strategy.images_sent,
            refused=refused,
            spent=(total.epsilon or 0.0) if total else 0.0,
        )
        return dataclasses.asdict(statement)

    def spending(self, round: int, counted: Iterable[int] = ()) -> Spending | None:
        """What the run has cost its clients; None for one that is not private.

        Args:
            round: The last round.
            counted: Clients whose replies counted in it.

        Raises:
            RecordError: A ledger is damaged.
        """
        plan, config = self._preparation.privacy, self._preparation.config
        if plan is None:
            return None
        self._counted |= {(k, round) for k in counted}
        return read_spending(
            ledger_folder(config, self.folder),
            ledger_run(config, self.folder),
            delta=plan.delta,
            accountant=plan.accountant,
            round=round,
            counted=self._counted,
        )

    def _write_privacy(self, spending: Spending) -> None:
        statement = self._statement(spending)
        self.folder.write_json("privacy", {**statement, "spent": spending.to_json()})

    def _begin(self, checkpoint: Checkpoint | None, elapsed_s: float) -> None:
        self.resumed_from, self.elapsed_s = checkpoint, elapsed_s
        self._rounds_done = checkpoint.round if checkpoint else 0
        self._sinks: list[Sink] = []
        if self._preparation.shared_ledgers is not None:
            bind_ledgers(self._preparation.shared_ledgers, self._preparation.deal)
        try:
            self._sinks = open_sinks(
                self._preparation.config, self.folder, checkpoint.round if checkpoint else None
            )
        except Exception as error:
            self.close(End("failed", str(error), TesseraError.exit_code))
            raise
        self._write_status(None)

    def _refuse_foreign(self) -> None:
        """Refuse a folder whose run is not the one that was prepared."""
        folder, preparation = self.folder, self._preparation
        if (folder.path / "run.json").exists():
            run = folder.read_json("run")
            refuse_unknown_schema(str(folder.path / "run.json"), run.get("schema"))
            if run["schema"] == 1:
                raise RecordError(
                    f"{folder.path / 'run.json'} has schema {run['schema']}, of an earlier version "
                    "of Tessera, which did not keep which replies were counted; its run can be "
                    "reported and not gone on with"
                )
            for what, key, here in (
                ("configuration, or a file that it names,", "identity", self._identity),
                ("data", "data_sha256", self._data_sha256),
            ):
                if run.get(key) != here:
                    raise RecordError(
                        f"{folder.path / 'run.json'}: the run's {what} is not what it was "
                        f"({key} {run.get(key)}, now {here}); only an unchanged run can go on"
                    )
            self._started = str(run.get("started", self._started))
            self._resumptions = list(run.get("resumed", []))
        if not preparation.has_own_data:
            self._refuse_other_partition()

    def _refuse_other_partition(self) -> None:
        path = self.folder.partition
        if not path.exists():
            return
        before = Partition.read(path)
        now = self._preparation.partition_without
        same = len(before.clients) == len(now.clients) and all(
            map(np.array_equal, before.clients, now.clients)
        )
        if not same or not np.array_equal(before.class_counts, now.class_counts):
            raise RecordError(
                f"{path} deals other examples than clients have now; a library that deals them, or "
                "what clients bring, may have changed; only an unchanged run can go on"
            )

    def _last_checkpoint(self, last_round: int) -> Checkpoint | None:
        """The newest checkpoint of a round on record; None where no round is on record."""
        kept = {number: path for number, path in self.folder.checkpoints() if number <= last_round}
        newest_round = max((number for number, _ in self.folder.checkpoints()), default=-1)
        if newest_round > last_round + 1:
            raise RecordError(
                f"{self.folder.rounds} ends at round {last_round} and there is a checkpoint of "
                f"round {newest_round}: records are missing; restore the file, or start the run "
                "anew under another name"
            )
        if last_round < 0:
            return None
        if not kept:
            raise RecordError(
                f"{self.folder.path} has records up to round {last_round} and no checkpoint to go "
                "on from; start the run anew under another name"
            )
        newest = Checkpoint.read(kept[max(kept)], self._identity)
        self._resumptions.append(
            {"after_round": newest.round, "at": _now(), "changed": self._changed_environment()}
        )
        for number in sorted(kept):
            with suppress(RecordError):  # only the newest is needed; another may be damaged
                self._retained.append(Checkpoint.read(kept[number], self._identity).acknowledged)
        return newest

    def _refuse_lost_state(self, checkpoint: Checkpoint) -> None:
        """Refuse to go on without what simulated clients kept; real ones keep it themselves."""
        if self._preparation.strategy.keeps_client_state() and self.folder.clients.is_dir():
            for partition_id, number in sorted(checkpoint.acknowledged.items()):
                ClientStore(self.folder.clients, partition_id, self._identity).read(number)

    def _refuse_lost_ledgers(self, records: Sequence[RoundRecord]) -> None:
        """Refuse to go on where it is not known what clients have spent."""
        self._counted = {
            (client.partition_id, record.round)
            for record in records
            for client in record.clients
            if client.outcome == "counted"
        }
        spending = self.spending(records[-1].round)
        if spending is not None and spending.total.note.startswith(NO_LEDGER):
            folder = ledger_folder(self._preparation.config, self.folder)
            raise RecordError(
                f"{folder}: {spending.total.note}, whose reply was counted: the ledger is lost or "
                "older than the run; restore it, or start the run anew"
            )

    def _changed_environment(self) -> dict[str, str]:
        """What is not as it was when the run began; results may differ in their last bits."""
        if not (self.folder.path / "environment.json").exists():
            return {}
        before = self.folder.read_json("environment")
        now = describe_environment()
        return {
            key: f"{before.get(key)} -> {now.get(key)}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        }

    def oldest_acknowledged(self, partition_id: int) -> int:
        """The last round of this client that counted, as the oldest checkpoint has it."""
        return self._retained[0].get(partition_id, 0) if self._retained else 0

    def round(
        self,
        record: RoundRecord,
        mosaic: Mosaic | None,
        now: Checkpoint,
        spending: Spending | None = None,
        *,
        keep: bool = True,
    ) -> None:
        """Put one round on record: images, checkpoint, figures, and last the line that counts.

        Args:
            record: What happened.
            mosaic: Images that clients sent, if any.
            now: Where the run stands.
            spending: What a private run has cost up to here.
            keep: Whether a run that is cut off may go on from here.
        """
        config = self._preparation.config
        if mosaic is not None:
            preparation = self._preparation
            tensors = (
                images_alone(mosaic)
                if preparation.has_own_data
                else with_nearest_images(
                    mosaic, image_dataset(preparation.workload.dataset), preparation.partition
                )
            )
            write_whole(self.folder.tesserae(record.round), save(tensors))
        due = record.round % config.checkpoint_every == 0 or record.round == config.rounds
        if keep and due:
            now.write(
                self.folder.checkpoint(record.round),
                self._identity,
                self._preparation.workload.numbering(),
            )
            self._retained = [*self._retained, now.acknowledged][-CHECKPOINTS_KEPT:]
            for _, path in self.folder.checkpoints()[:-CHECKPOINTS_KEPT]:
                path.unlink()
        if spending is not None:
            self._write_privacy(spending)
        for sink in self._sinks:
            sink.round(record)
        self.folder.append_round(record)
        self._rounds_done = record.round
        self._write_status(None)

    def close(self, end: End) -> None:
        """End the record."""
        with suppress(RecordError):  # a damaged ledger is told where the run stumbles over it
            # Clients may have been charged since the last record.
            if (spending := self.spending(self._rounds_done + 1)) is not None:
                self._write_privacy(spending)
        for sink in self._sinks:
            sink.close(end.status)
        shutil.rmtree(self.folder.progress, ignore_errors=True)
        self._write_status(end)
        self._lock.release()

    def _write_status(self, end: End | None) -> None:
        value: Mapping[str, Any] = {
            "schema": SCHEMA_VERSION,
            "name": self.folder.path.name,
            "status": end.status if end else "running",
            "failure": end.failure if end else None,
            "exit_code": end.exit_code if end else None,
            "command": self._command,
            "identity": self._identity,
            "data_sha256": self._data_sha256,
            "class_names": list(self._preparation.workload.dataset.class_names),
            "scores": self._preparation.workload.scores.to_json(),
            "started": self._started,
            "ended": _now() if end else None,
            "rounds_done": self._rounds_done,
            "resumed": self._resumptions,
        }
        self.folder.write_json("run", value)


def reproducing_command(config: RunConfig) -> str:
    """The command line that makes the same run again: every key that is not at its default.

    Strategy, seed and thread counts are told in any case: defaults of later versions may differ.
    """
    defaults = {key.name: key.default for key in config_keys()}
    words = [
        shlex.quote(f"{name}={str(value).lower() if isinstance(value, bool) else value}")
        for name, value in config.flat().items()
        if name in _ALWAYS_TOLD
        or (name not in {"name", "runs", "resume"} and value != defaults.get(name))
    ]
    # Clients bring their own images to a network alone.
    verb = ["deploy", "run"] if config.partition.scheme == "own" else ["run"]
    return " ".join(["tessera", *verb, *words])


def with_nearest_images(
    mosaic: Mosaic, dataset: ImageDataset, partition: Partition
) -> dict[str, torch.Tensor]:
    """Each image beside the nearest training image of the client that sent it.

    Nearest by root mean square pixel difference. A distance near 0 is a training image sent as it
    is.

    Returns:
        The tensors of `RunFolder.tesserae`.
    """
    indices = torch.zeros(len(mosaic.labels), dtype=torch.int64)
    distances = torch.zeros(len(mosaic.labels), dtype=torch.float32)
    for partition_id in mosaic.partition_ids.unique().tolist():
        sent = torch.nonzero(mosaic.partition_ids == partition_id).flatten()
        own = torch.from_numpy(np.asarray(partition.clients[partition_id]))
        real = dataset.train.images[own].flatten(1).to(torch.float32)
        images = mosaic.pixels[sent].cpu().flatten(1).to(torch.float32)
        found = torch.cdist(images, real, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
        indices[sent] = own[found.indices]
        distances[sent] = found.values / images.shape[1] ** 0.5
    return {
        "images": mosaic.pixels.cpu().contiguous(),
        "labels": mosaic.labels.cpu(),
        "partition_ids": mosaic.partition_ids.cpu(),
        "nearest_images": dataset.train.images[indices].contiguous(),
        "nearest_indices": indices,
        "nearest_distances": distances,
    }


def images_alone(mosaic: Mosaic) -> dict[str, torch.Tensor]:
    """Images of clients whose own images are not here to be compared with.

    Returns:
        The tensors of `RunFolder.tesserae`, without those of the nearest images.
    """
    return {
        "images": mosaic.pixels.cpu().contiguous(),
        "labels": mosaic.labels.cpu(),
        "partition_ids": mosaic.partition_ids.cpu(),
    }


def default_run_name(config: RunConfig) -> str:
    """A name for a run folder, with six random hex digits."""
    method = Path(config.strategy.partition(":")[0]).stem
    parts = [] if config.workload == "classification" else [config.workload]
    if "data" in workload_class(config.workload).reads:
        parts.append(config.data.source)
    trained = "-".join(Path(part.partition(":")[0]).stem for part in parts)
    unique = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    return f"{method}-{trained}-seed{config.seed}-{unique}"


def _transcript(folder: RunFolder, preparation: Preparation) -> Transcript | None:
    return None if preparation.canaries is None else Transcript(folder.transcript)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
