"""Writes the run folder, round by round."""

from __future__ import annotations

import dataclasses
import secrets
import shlex
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from core.config import RunConfig
from core.records import SCHEMA_VERSION, EvaluationRecord, RoundRecord, RunFolder, write_whole
from data.dataset import ImageDataset
from data.partition import Partition
from privacy.statement import statement_without_noise
from server.environment import describe_environment
from server.preparation import Preparation
from strategies.base import Mosaic, ServerState
from strategies.table import config_keys

CHECKPOINTS_KEPT = 2
_ALWAYS_TOLD = {"strategy", "seed", "engine.client-threads", "engine.server-threads"}


class Recorder:
    """The writer of one run folder."""

    def __init__(self, folder: RunFolder, preparation: Preparation) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        self.folder = folder
        self._preparation = preparation
        self._events: Any = SummaryWriter(str(folder.events))
        self._rounds_done = 0
        self._started = _now()
        config = preparation.config
        folder.write_json("config", config.flat())
        folder.write_json("environment", describe_environment())
        preparation.partition.write(folder.partition)
        statement = statement_without_noise(preparation.strategy.images_sent)
        folder.write_json("privacy", dataclasses.asdict(statement))
        self._write_status("running", None)

    def round(self, record: RoundRecord, mosaic: Mosaic | None, state: ServerState) -> None:
        """Put one round on record: images, checkpoint, events, and last the line that counts."""
        config = self._preparation.config
        if mosaic is not None:
            tensors = with_nearest_images(
                mosaic, self._preparation.workload.dataset, self._preparation.partition
            )
            write_whole(self.folder.tesserae(record.round), save(tensors))
        if record.round % config.checkpoint_every == 0 or record.round == config.rounds:
            self._checkpoint(record.round, state)
        self._log_events(record)
        self.folder.append_round(record)
        self._rounds_done = record.round
        self._write_status("running", None)

    def close(self, status: str, failure: str | None) -> None:
        """End the record.

        Args:
            status: complete, failed or interrupted.
            failure: Why, if it failed.
        """
        self._events.close()
        shutil.rmtree(self.folder.progress, ignore_errors=True)
        self._write_status(status, failure)

    def _checkpoint(self, round: int, state: ServerState) -> None:
        tensors = {f"weights/{name}": value for name, value in state.weights.items()}
        tensors |= {f"slots/{name}": value for name, value in state.slots.items()}
        metadata = {
            "schema": str(SCHEMA_VERSION),
            "round": str(round),
            "identity": self._preparation.config.identity(),
        }
        contiguous = {name: value.contiguous() for name, value in tensors.items()}
        write_whole(self.folder.checkpoint(round), save(contiguous, metadata))
        kept = sorted(self.folder.checkpoint(round).parent.glob("round-*.safetensors"))
        for path in kept[:-CHECKPOINTS_KEPT]:
            path.unlink()

    def _log_events(self, record: RoundRecord) -> None:
        scalars: dict[str, float] = {
            "bytes/up": record.bytes_up,
            "bytes/down": record.bytes_down,
            **{f"server/{name}": value for name, value in record.server.items()},
            **{f"seconds/{name}": value for name, value in record.seconds.items()},
        }
        for split in ("validation", "test"):
            judged: EvaluationRecord | None = getattr(record, split)
            if judged is not None:
                scalars[f"{split}/accuracy"] = judged.accuracy
                scalars[f"{split}/loss"] = judged.loss
                scalars[f"{split}/macro_f1"] = judged.macro_f1
        if record.worst_client_accuracy is not None:
            scalars["test/worst_client_accuracy"] = record.worst_client_accuracy
        for name, value in scalars.items():
            self._events.add_scalar(name, value, record.round)
        self._events.flush()

    def _write_status(self, status: str, failure: str | None) -> None:
        config = self._preparation.config
        value: Mapping[str, Any] = {
            "schema": SCHEMA_VERSION,
            "name": self.folder.path.name,
            "status": status,
            "failure": failure,
            "command": reproducing_command(config),
            "identity": config.identity(),
            "class_names": list(self._preparation.workload.dataset.class_names),
            "started": self._started,
            "ended": None if status == "running" else _now(),
            "rounds_done": self._rounds_done,
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
        if name in _ALWAYS_TOLD or (name not in {"name", "runs"} and value != defaults.get(name))
    ]
    return " ".join(["tessera", "run", *words])


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


def default_run_name(config: RunConfig) -> str:
    """A name for a run folder, with six random hex digits."""
    method = Path(config.strategy.partition(":")[0]).stem
    source = Path(config.data.source.partition(":")[0]).stem
    unique = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    return f"{method}-{source}-seed{config.seed}-{unique}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
