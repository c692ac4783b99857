"""Where a run stands after a round, and the file that holds it.

A run is a pure function of its configuration and draws every seed from names, so that there is no
generator whose state had to be kept: weights, the strategy's slots, and which replies were counted
are all that a later round depends on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from core.errors import RecordError
from core.parameters import NamedTensors
from core.records import write_whole
from strategies.base import ServerState

SCHEMA_VERSION = 2
_OLDER = {"1": "an earlier version of Tessera, which did not keep which replies were counted"}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A run after a round.

    Attributes:
        round: 0 before the first.
        state: Weights and slots.
        acknowledged: By partition id, the last round in which this client's reply was counted;
            a client that never was is not in it.
        empty_rounds: Rounds in a row, up to this one, in which no reply counted.
    """

    round: int
    state: ServerState
    acknowledged: Mapping[int, int]
    empty_rounds: int

    def write(self, path: Path, identity: str) -> None:
        """Write it whole, under the run's identity, with a digest of all it holds."""
        tensors = {f"weights/{k}": v.contiguous() for k, v in self.state.weights.items()}
        tensors |= {f"slots/{k}": v.contiguous() for k, v in self.state.slots.items()}
        pairs = sorted(self.acknowledged.items())
        tensors["acknowledged"] = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
        metadata = {
            "schema": str(SCHEMA_VERSION),
            "round": str(self.round),
            "identity": identity,
            "empty_rounds": str(self.empty_rounds),
        }
        metadata["sha256"] = _digest(tensors, metadata)
        write_whole(path, save(tensors, metadata))

    @classmethod
    def read(cls, path: Path, identity: str) -> Checkpoint:
        """Read a checkpoint of the run of this identity.

        Raises:
            RecordError: It is missing, damaged, of another run or of another schema; names the
                file, the reason and the way out.
        """
        try:
            with safe_open(path, "pt") as file:
                metadata = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise _refusal(path, f"is damaged: {error}") from error
        schema = metadata.get("schema", "none")
        if schema != str(SCHEMA_VERSION):
            origin = _OLDER.get(schema, "another version of Tessera")
            raise _refusal(path, f"has schema {schema}, of {origin}; {SCHEMA_VERSION} is read")
        if metadata.get("identity") != identity:
            raise _refusal(
                path,
                f"is of another run: its identity is {metadata.get('identity')}, this run's is "
                f"{identity}",
            )
        if metadata.pop("sha256", None) != _digest(tensors, metadata):
            raise _refusal(path, "is damaged: its content does not give its sha256")
        return cls(
            round=int(metadata["round"]),
            state=ServerState(_within("weights/", tensors), _within("slots/", tensors)),
            acknowledged=dict(tensors["acknowledged"].tolist()),
            empty_rounds=int(metadata["empty_rounds"]),
        )


def _within(prefix: str, tensors: NamedTensors) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _refusal(path: Path, reason: str) -> RecordError:
    return RecordError(
        f"checkpoint {path} {reason}; remove it to go on from the one before it, if there is one"
    )


def _digest(tensors: NamedTensors, metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(repr(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).numpy().data)
    return digest.hexdigest()
