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

    def read(
        self, acknowledged_round: int, retained_round: int = 0
    ) -> dict[str, torch.Tensor] | None:
        """State after `acknowledged_round`; None if that is 0.

        Files of rounds before `retained_round` are removed, for no checkpoint leads back to them,
        and so are those after `acknowledged_round`, which were never acknowledged.

        Raises:
            RunError: The file is missing or damaged.
        """
        for path, number in self._kept():
            if not retained_round <= number <= acknowledged_round:
                path.unlink(missing_ok=True)
        if acknowledged_round == 0:
            return None
        path = self._path(acknowledged_round)
        try:
            return load(path.read_bytes())
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"client state {path} cannot be read: {error}; the run cannot go on without it"
            ) from error

    def write(self, round: int, state: NamedTensors) -> None:
        """Keep `state` for the case that the reply of `round` is acknowledged."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        write_whole(self._path(round), save(tensors))

    def _kept(self) -> list[tuple[Path, int]]:
        found = self.folder.glob(f"partition-{self.partition_id:05d}.round-*.safetensors")
        return [(path, int(path.name.split("-")[2].partition(".")[0])) for path in found]

    def _path(self, round: int) -> Path:
        return self.folder / f"partition-{self.partition_id:05d}.round-{round:05d}.safetensors"
