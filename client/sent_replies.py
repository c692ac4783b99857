"""Replies that private clients have sent, kept so that a repeated request gets the same again.

What was noised once may be sent as often as anybody likes; noising it anew would cost again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from core.tensor_file import read_about, read_tensors, write_tensors
from core.wire import Record
from strategies.base import arrays_of, tensors_of


@dataclass(frozen=True, slots=True)
class SentReplies:
    """The files of one client.

    Attributes:
        folder: Folder of one run's client states.
        partition_id: Whose files these are.
        identity: Of the run that they belong to.
    """

    folder: Path
    partition_id: int
    identity: str

    def read(self, round: int, request: str) -> Record | None:
        """The reply to this very request; None where there is none.

        Raises:
            RecordError: The file is damaged.
        """
        path = self._path(round)
        if not path.exists():
            return None
        expected = self._about(round, request)
        about = read_about(path)
        if any(about.get(name) != value for name, value in expected.items()):
            return None
        tensors, about = read_tensors(path)
        metrics = json.loads(about["metrics"])
        return Record(arrays_of(tensors), metrics, {"round": round})

    def write(self, round: int, request: str, reply: Record) -> None:
        """Keep the reply, before it is sent."""
        about = {**self._about(round, request), "metrics": json.dumps(dict(reply.metrics))}
        write_tensors(self._path(round), tensors_of(reply.arrays), about)

    def forget(self, retained_round: int) -> None:
        """Remove replies to rounds that no checkpoint leads back to."""
        for path in self._path(0).parent.glob("reply-*.safetensors"):
            if int(path.stem.partition("-")[2]) <= retained_round:
                path.unlink(missing_ok=True)

    def _about(self, round: int, request: str) -> dict[str, str]:
        return {
            "identity": self.identity,
            "partition_id": str(self.partition_id),
            "round": str(round),
            "request": request,
        }

    def _path(self, round: int) -> Path:
        own = self.folder / f"partition-{self.partition_id:05d}"
        return own / f"reply-{round:05d}.safetensors"


def digest_of(request: Record) -> str:
    """What a reply depends on of its request: arrays, and the round and noise asked for."""
    told = {k: v for k, v in request.settings.items() if not k.endswith("-round")}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name, array in sorted(request.arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
