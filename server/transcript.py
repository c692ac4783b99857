"""What the server saw: what it sent in each round, and every reply that counted. For audits only.

Layout within the run folder::

    transcript/round-0001/sent.safetensors             arrays that every client received
    transcript/round-0001/partition-00003.safetensors  arrays of the client's reply

A round that is done again, in a run that goes on, takes the place of the one before.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from core.errors import RecordError
from core.parameters import NamedTensors
from core.tensor_file import read_tensors, write_tensors
from core.wire import Array
from strategies.base import Reply, tensors_of


@dataclass(frozen=True, slots=True)
class Exchange:
    """One round as the server saw it.

    Attributes:
        round: From 1.
        sent: Arrays by name, the same for all clients.
        replies: Arrays of each reply that counted, by partition id.
    """

    round: int
    sent: NamedTensors
    replies: Mapping[int, NamedTensors]


@dataclass(frozen=True, slots=True)
class Transcript:
    """The transcript of one run.

    Attributes:
        folder: Where its files lie.
    """

    folder: Path

    def begin(self, round: int, sent: Mapping[str, Array]) -> None:
        """Keep what is sent in `round`, and nothing that was kept of it before."""
        folder = self._folder_of(round)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_tensors(folder / "sent.safetensors", tensors_of(sent), {"round": str(round)})

    def add(self, round: int, reply: Reply) -> None:
        """Keep one reply."""
        path = self._folder_of(round) / f"partition-{reply.partition_id:05d}.safetensors"
        write_tensors(path, tensors_of(reply.record.arrays), {"round": str(round)})

    def read(self, round: int) -> Exchange:
        """Read one round back.

        Raises:
            RecordError: A file is missing or damaged.
        """
        replies: dict[int, dict[str, torch.Tensor]] = {}
        folder = self._folder_of(round)
        if not folder.is_dir():
            raise RecordError(f"{folder} is missing; the run kept no transcript of the round")
        sent, _ = read_tensors(folder / "sent.safetensors")
        for path in sorted(folder.glob("partition-*.safetensors")):
            replies[int(path.stem.partition("-")[2])], _ = read_tensors(path)
        return Exchange(round, sent, replies)

    def _folder_of(self, round: int) -> Path:
        return self.folder / f"round-{round:04d}"
