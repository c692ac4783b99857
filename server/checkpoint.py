"""Where a run stands after a round, and the file that holds it.

A run is a pure function of its configuration and draws every seed from names, so that there is no
generator whose state had to be kept: weights, the strategy's slots, and which replies were counted
are all that a later round depends on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch

from core.errors import RecordError
from core.parameters import NamedTensors
from core.tensor_file import read_about, read_tensors, write_tensors
from strategies.base import ServerState

SCHEMA_VERSION = 2
NUMBERING = "numbering"
"""Of what a file is about: what the rows of its weights stand for, as JSON."""

_WAY_OUT = "; remove it to go on from the one before it, if there is one"
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

    def write(
        self, path: Path, identity: str, numbering: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Write it whole, under the run's identity, with a digest of all it holds.

        Args:
            path: Where to.
            identity: Of the run.
            numbering: `Workload.numbering`, for runs that start from it.
        """
        tensors = {f"weights/{name}": value for name, value in self.state.weights.items()}
        tensors |= {f"slots/{name}": value for name, value in self.state.slots.items()}
        pairs = sorted(self.acknowledged.items())
        tensors["acknowledged"] = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
        about = {
            "schema": str(SCHEMA_VERSION),
            "round": str(self.round),
            "identity": identity,
            "empty_rounds": str(self.empty_rounds),
            NUMBERING: json.dumps(dict(numbering), sort_keys=True),
        }
        write_tensors(path, tensors, about)

    @classmethod
    def read(cls, path: Path, identity: str) -> Checkpoint:
        """Read a checkpoint of the run of this identity.

        Raises:
            RecordError: It is missing, damaged, of another run or of another schema; names the
                file, the reason and the way out.
        """
        try:
            about = read_about(path)
            cls._refuse_foreign(path, about, identity)
            tensors, about = read_tensors(path)
        except RecordError as error:
            raise RecordError(f"checkpoint {error}{_WAY_OUT}") from error
        return cls(
            round=int(about["round"]),
            state=ServerState(_within("weights/", tensors), _within("slots/", tensors)),
            acknowledged=dict(tensors["acknowledged"].tolist()),
            empty_rounds=int(about["empty_rounds"]),
        )

    @staticmethod
    def _refuse_foreign(path: Path, about: Mapping[str, str], identity: str) -> None:
        schema = about.get("schema", "none")
        if schema != str(SCHEMA_VERSION):
            origin = _OLDER.get(schema, "another version of Tessera")
            raise RecordError(f"{path} has schema {schema}, of {origin}; {SCHEMA_VERSION} is read")
        if about.get("identity") != identity:
            raise RecordError(
                f"{path} is of another run: its identity is {about.get('identity')}, this run's is "
                f"{identity}"
            )


def _within(prefix: str, tensors: NamedTensors) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
