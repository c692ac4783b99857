"""What a client keeps between rounds, committed only by the server's acknowledgement.

Each update writes a file named after its round. The server names the last round whose reply it
counted; the client reads that file and no other, so a reply that was lost or refused leaves the
client where the server believes it to be.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from core.errors import RunError
from core.parameters import NamedTensors
from core.records import write_whole


@dataclass(frozen=True, slots=True)
class ClientStore:
    """The files of one client.

    Attributes:
        folder: Folder of one run's client states.
        partition_id: Whose files these are.
    """

    folder: Path
    partition_id: int

    def read(self, acknowledged_round: int) -> dict[str, torch.Tensor] | None:
        """State after `acknowledged_round`; None if that is 0 or no state was kept then.

        Files of other rounds are removed: they were never acknowledged, or are superseded.

        Raises:
            RunError: The file is damaged.
        """
        kept = self._path(acknowledged_round)
        for path in self.folder.glob(f"partition-{self.partition_id:05d}.*"):
            if path != kept:
                path.unlink(missing_ok=True)
        if not kept.is_file():
            return None
        try:
            return load(kept.read_bytes())
        except (OSError, SafetensorError) as error:
            raise RunError(f"client state {kept} cannot be read: {error}") from error

    def write(self, round: int, state: NamedTensors) -> None:
        """Keep `state` for the case that the reply of `round` is acknowledged."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        write_whole(self._path(round), save(tensors))

    def _path(self, round: int) -> Path:
        return self.folder / f"partition-{self.partition_id:05d}.round-{round:05d}.safetensors"
