"""What a client keeps between rounds, committed only by the server's acknowledgement.

Each update writes a file named after its round, in a folder of the client's own: what a client does
there takes no longer for other clients' files. The server names the last round whose reply it
counted; the client reads that file and no other, so a reply that was lost or refused leaves the
client where the server believes it to be.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from core.errors import RecordError
from core.parameters import NamedTensors
from core.tensor_file import read_tensors, write_tensors


@dataclass(frozen=True, slots=True)
class ClientStore:
    """The files of one client.

    Attributes:
        folder: Folder of one run's client states.
        partition_id: Whose files these are.
        identity: Of the run that they belong to.
    """

    folder: Path
    partition_id: int
    identity: str

    def read(self, round: int) -> dict[str, torch.Tensor] | None:
        """State after `round`; None if that is 0.

        Raises:
            RecordError: The file is missing, damaged, or of another run, client or round.
        """
        if round == 0:
            return None
        path = self._path(round)
        tensors, about = read_tensors(path)
        expected = self._about(round)
        wrong = [f"{k} {about.get(k)}, not {v}" for k, v in expected.items() if about.get(k) != v]
        if wrong:
            raise RecordError(f"{path} is another state than its place tells: {'; '.join(wrong)}")
        return tensors

    def write(self, round: int, state: NamedTensors) -> None:
        """Keep `state` for the case that the reply of `round` is acknowledged."""
        write_tensors(self._path(round), state, self._about(round))

    def forget(self, retained_round: int, acknowledged_round: int) -> None:
        """Remove what no round can ask for any more.

        Files of rounds before `retained_round` go, for no checkpoint leads back to them, and so do
        those after `acknowledged_round`, which were never acknowledged.
        """
        for path in self._path(0).parent.glob("round-*.safetensors"):
            number = int(path.stem.partition("-")[2])
            if not retained_round <= number <= acknowledged_round:
                path.unlink(missing_ok=True)

    def _about(self, round: int) -> dict[str, str]:
        return {
            "identity": self.identity,
            "partition_id": str(self.partition_id),
            "round": str(round),
        }

    def _path(self, round: int) -> Path:
        own = self.folder / f"partition-{self.partition_id:05d}"
        return own / f"round-{round:05d}.safetensors"
