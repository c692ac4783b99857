"""The run folder: what a run leaves behind, and all that a report reads.

Layout, all paths relative to the run folder::

    run.json               status, failure, command, identity, data, class names, scores, times,
                           schema
    config.json            the resolved configuration, flat keys
    nodes.json             on a network: which node, key and images each client had
    network.json           on a network: what it counted, bytes and seconds
    environment.json       versions, hardware, git commit
    partition.json         which training image went to which client, with failed attempts
    privacy.json           the privacy statement
    rounds.jsonl           one RoundRecord a line, appended, round 0 is the initial model
    events/                TensorBoard events
    sinks.json, wandb/     by which ids other sinks know the run; Weights & Biases' local files
    checkpoints/           round-0005.safetensors: weights and server state
    exhibits.json          what the final model made of a few examples, for people to look at
    tesserae/              round-0005.safetensors: images that clients sent, nearest real images
    clients/               a folder for each client's state between rounds, and for the replies of a
                           private one; on a network on the client's machine, with what it joined
    ledgers/               what each client has spent of its privacy, unless privacy.ledger is given
    transcript/            all that the server sent and received, in a run with canaries
    audit/, audit.json     runs with canaries, and what they show of this one
    .lock                  held by the process that writes to the folder

Every file but ``rounds.jsonl`` is written whole and renamed into place.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from core.errors import RecordError
from core.exhibits import Exhibit
from core.scores import ACCURACY, CLASSIFICATION, MACRO_F1, Scores

SCHEMA_VERSION = 3
READABLE_SCHEMAS = (1, 2, 3)
"""Schemas of run folders that this version reads: 1 did not tell apart how a client failed, and 1
and 2 knew the scores of classification alone."""

ReplyOutcome = Literal["counted", "refused", "failed", "dropped", "late", "surplus"]
"""What came of a client's request.

``counted``: its reply was folded in. ``refused``: a reply came and was not valid. ``failed``: the
client raised, or its node is gone. ``dropped``: a simulated dropout. ``late``: no reply before the
deadline. ``surplus``: the round had closed with all the replies it takes.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationRecord:
    """How well a model did on one split.

    Attributes:
        num_examples: Examples judged.
        loss: Mean of the workload's primary loss, such as cross-entropy in nats.
        scores: By name, in the order of the workload's `core.scores.Scores`: the first is the
            primary one.
        per_class_accuracy: Recall of each class, itself None where the split has no example of it;
            None where the workload has no classes.
        confusion: Counts, row = true class, column = predicted class; likewise.
    """

    num_examples: int
    loss: float
    scores: Mapping[str, float]
    per_class_accuracy: list[float | None] | None = None
    confusion: list[list[int]] | None = None

    @property
    def primary(self) -> float:
        """The primary score: what choices are made on."""
        return next(iter(self.scores.values()))


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientRecord:
    """One client's part in one round.

    Attributes:
        partition_id: Which share of the data the client holds.
        bytes_down: Serialised bytes sent to it.
        bytes_up: Serialised bytes of its reply; 0 where none came.
        outcome: What came of it.
        failure: Why its reply was not counted; None if it was.
        metrics: What the client reported, such as ``num_examples`` or ``train_loss``.
    """

    partition_id: int
    bytes_down: int
    bytes_up: int
    outcome: ReplyOutcome = "counted"
    failure: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundRecord:
    """One round. Everything under `seconds`, and nothing else, differs between equal runs.

    Attributes:
        round: 0 is the initial model, before any training.
        validation: What choices are made on; None in a round without evaluation.
        test: What is reported; None in a round without evaluation.
        client_scores: For each partition, the primary score that its client may expect on its own
            data: with classes, per-class test accuracy weighted by the client's class shares; None
            for a client that failed where only it could tell. None where clients are not told
            apart, and in a round without evaluation.
        worst_client_score: The least of them.
        bytes_down: Sum over clients, this round.
        bytes_up: Sum over clients, this round.
        clients: One entry per client asked, by partition id.
        server: What the server measured, such as ``displacement``.
        seconds: ``client_sum``, ``client_max`` (training, as clients measured it), ``server``
            (aggregation and server training), ``evaluation``, ``wall`` (the whole round),
            ``elapsed`` (since the start of the run).
        schema: Version of this layout.
    """

    round: int
    validation: EvaluationRecord | None
    test: EvaluationRecord | None
    client_scores: list[float | None] | None
    worst_client_score: float | None
    bytes_down: int
    bytes_up: int
    clients: Sequence[ClientRecord]
    server: Mapping[str, float]
    seconds: Mapping[str, float]
    schema: int = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        # `asdict` copies number by number, which takes thousands of clients longer than to write.
        values = dataclasses.asdict(dataclasses.replace(self, client_scores=None))
        return values | {"client_scores": self.client_scores}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RoundRecord:
        """Read back `to_json`; a record of an older schema is brought up to this one.

        Raises:
            RecordError: A schema that this version does not read, or fields that do not fit.
        """
        refuse_unknown_schema("round record", values.get("schema"))
        try:
            fields = _as_schema_3(values)
            for split in ("validation", "test"):
                if fields[split] is not None:
                    fields[split] = _evaluation(fields[split])
            fields["clients"] = [ClientRecord(**client) for client in fields["clients"]]
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise RecordError(
                f"round record does not fit schema {SCHEMA_VERSION}: {error}"
            ) from error


_RENAMED_IN_SCHEMA_3 = (
    ("client_accuracy", "client_scores"),
    ("worst_client_accuracy", "worst_client_score"),
)


def _as_schema_3(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a record of any schema under the names of this one."""
    fields = dict(values) | {"schema": SCHEMA_VERSION}
    if values["schema"] == 1:
        fields["clients"] = [
            {**c, "outcome": "counted" if c["failure"] is None else "failed"}
            for c in values["clients"]
        ]
    if values["schema"] < 3:
        for before, now in _RENAMED_IN_SCHEMA_3:
            fields[now] = fields.pop(before)
        for split in ("validation", "test"):
            if fields[split] is not None:
                evaluation = {**fields[split]}
                names = (ACCURACY.name, MACRO_F1.name)
                evaluation["scores"] = {name: evaluation.pop(name) for name in names}
                fields[split] = evaluation
    return fields


def _evaluation(values: Mapping[str, Any]) -> EvaluationRecord:
    record = EvaluationRecord(**values)
    if not isinstance(record.scores, dict) or not record.scores:
        raise TypeError(f"scores={record.scores!r} must be an object of at least one score")
    return record


def scores_of(run: Mapping[str, Any], path: Path) -> Scores:
    """What a run is judged by; before runs said so, all were of classification.

    Args:
        run: Content of its ``run.json``.
        path: Of that file, for the error.

    Raises:
        RecordError: It tells what cannot be scores.
    """
    if (told := run.get("scores")) is None:
        return CLASSIFICATION
    try:
        return Scores.from_json(told)
    except ValueError as error:
        raise RecordError(f"{path} has scores that cannot be read: {error}") from error


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths and files of one run."""

    path: Path

    @classmethod
    def create(cls, runs: str | Path, name: str, config: Mapping[str, Any]) -> RunFolder:
        """Make a new run folder that holds its configuration, and `runs` where it is missing.

        The folder appears with its configuration at once, so that whatever ends the process, there
        is a run to go on with or no folder.

        Args:
            runs: Folder of run folders.
            name: Name of the new one.
            config: The resolved configuration, flat keys.

        Raises:
            RecordError: The folder is there already, or cannot be made.
        """
        path = Path(runs).expanduser().resolve() / name
        cls.check_free(runs, name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            made = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{name[:100]}."))
            made.chmod(0o755)
            cls(made).write_json("config", config)
            made.rename(path)
        except OSError as error:
            raise RecordError(
                f"run folder {path} cannot be made: {error.strerror}; give another runs=DIR"
            ) from error
        return cls(path)

    @staticmethod
    def check_free(runs: str | Path, name: str) -> None:
        """Refuse the name of a folder that is there.

        Raises:
            RecordError: With the way out.
        """
        path = Path(runs).expanduser().resolve() / name
        if path.exists():
            raise RecordError(f"run folder {path} exists; give another name=... or remove it")

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open an existing run folder.

        Raises:
            RecordError: There is no folder, or it is not a run's.
        """
        resolved = Path(path).expanduser().resolve()
        if not resolved.exists():
            raise RecordError(f"there is no folder {resolved}")
        if not (resolved / "config.json").is_file():
            raise RecordError(f"{resolved} is not a run folder: it has no config.json")
        return cls(resolved)

    @property
    def partition(self) -> Path:
        """The partition file."""
        return self.path / "partition.json"

    @property
    def rounds(self) -> Path:
        """The round records, JSON lines."""
        return self.path / "rounds.jsonl"

    @property
    def events(self) -> Path:
        """Folder of TensorBoard events."""
        return self.path / "events"

    @property
    def clients(self) -> Path:
        """Folder of state that simulated clients keep."""
        return self.path / "clients"

    @property
    def ledgers(self) -> Path:
        """Folder of clients' privacy ledgers, unless the configuration names another."""
        return self.path / "ledgers"

    @property
    def transcript(self) -> Path:
        """Folder of what the server saw, in a run with canaries."""
        return self.path / "transcript"

    @property
    def audit(self) -> Path:
        """Folder of the runs that audit this one."""
        return self.path / "audit"

    @property
    def progress(self) -> Path:
        """Folder of step counts while the run goes on."""
        return self.path / "progress"

    @property
    def lock(self) -> Path:
        """Held by the process that writes to the folder."""
        return self.path / ".lock"

    def checkpoint(self, round: int) -> Path:
        """The checkpoint after `round`."""
        return self.path / "checkpoints" / f"round-{round:04d}.safetensors"

    def checkpoints(self) -> list[tuple[int, Path]]:
        """Checkpoints that there are, with their rounds, ascending."""
        found = (self.path / "checkpoints").glob("round-*.safetensors")
        numbers = ((path.stem.partition("-")[2], path) for path in found)
        return sorted((int(number), path) for number, path in numbers if number.isdecimal())

    def tesserae(self, round: int) -> Path:
        """The images that clients sent in `round`.

        Tensors ``images`` and ``nearest_images`` (uint8, N x C x H x W), ``labels``,
        ``partition_ids`` and ``nearest_indices`` (int64, N; index into the training split), and
        ``nearest_distances`` (float32, N; root mean square pixel difference, 0-255).
        """
        return self.path / "tesserae" / f"round-{round:04d}.safetensors"

    def tesserae_rounds(self) -> list[int]:
        """Rounds whose images were kept, ascending."""
        found = (self.path / "tesserae").glob("round-*.safetensors")
        numbers = (path.stem.partition("-")[2] for path in found)
        return sorted(int(number) for number in numbers if number.isdecimal())

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write ``name.json``, whole."""
        text = json.dumps(value, indent=2, allow_nan=False) + "\n"
        write_whole(self.path / f"{name}.json", text.encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """Read ``name.json``.

        Raises:
            RecordError: It is missing or is no JSON object.
        """
        path = self.path / f"{name}.json"
        try:
            value = json.loads(path.read_text())
        except FileNotFoundError as error:
            raise RecordError(f"{path} is missing; the run did not get that far") from error
        except (OSError, ValueError) as error:
            raise RecordError(f"{path} cannot be read: {error}") from error
        if not isinstance(value, dict):
            raise RecordError(f"{path} holds no JSON object")
        return value

    def write_exhibits(self, exhibits: Sequence[Exhibit]) -> None:
        """Write what people look at, whole; nothing where there is nothing."""
        if exhibits:
            self.write_json("exhibits", {"exhibits": [one.to_json() for one in exhibits]})

    def read_exhibits(self) -> tuple[Exhibit, ...]:
        """Read back `write_exhibits`.

        Raises:
            RecordError: They are damaged.
        """
        path = self.path / "exhibits.json"
        if not path.is_file():
            return ()
        try:
            return tuple(Exhibit.from_json(one) for one in self.read_json("exhibits")["exhibits"])
        except (KeyError, TypeError, ValueError) as error:
            raise RecordError(f"{path} cannot be read: {error}") from error

    def append_round(self, record: RoundRecord) -> None:
        """Append one record and flush it to the disk."""
        line = json.dumps(record.to_json(), allow_nan=False, separators=(",", ":")) + "\n"
        with self.rounds.open("a") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def keep_rounds(self, last: int) -> None:
        """Cut the records off after round `last`, and a torn line in any case; -1 keeps none."""
        if self.rounds.is_file():
            records = self.read_rounds()
            lines = self.rounds.read_bytes().split(b"\n")[: len(records)]
            kept = [line for line, r in zip(lines, records, strict=True) if r.round <= last]
            write_whole(self.rounds, b"".join(line + b"\n" for line in kept))

    def remove_unfinished(self) -> None:
        """Remove what a killed process left of files that it had not yet renamed into place."""
        for pattern in (".*.*", "*/.*.*", "clients/*/.*.*"):
            for path in self.path.glob(pattern):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path != self.lock:
                    path.unlink()

    def read_rounds(self) -> list[RoundRecord]:
        """All complete records. A last line cut off by a crash is left out.

        Raises:
            RecordError: A line other than a torn last one cannot be read.
        """
        return list(self._read_rounds())

    def _read_rounds(self) -> Iterator[RoundRecord]:
        if not self.rounds.is_file():
            return
        lines = self.rounds.read_bytes().split(b"\n")
        for number, line in enumerate(lines[:-1], start=1):
            try:
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise RecordError("not a JSON object")
                record = RoundRecord.from_json(value)
                if record.round != number - 1:
                    raise RecordError(f"holds round {record.round}, expected {number - 1}")
                yield record
            except ValueError as error:
                raise RecordError(f"{self.rounds} line {number}: {error}") from error


def refuse_unknown_schema(what: str, schema: object) -> None:
    """Refuse what another version of Tessera wrote in a form that this one does not read.

    Raises:
        RecordError: `schema` is not one of `READABLE_SCHEMAS`.
    """
    if schema not in READABLE_SCHEMAS:
        readable = " and ".join(map(str, READABLE_SCHEMAS))
        raise RecordError(
            f"{what} has schema {schema!r}; this version of Tessera reads schemas {readable}"
        )


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to be written, forced to disk and renamed to `path` at the end.

    It lies in a hidden folder of its own beside `path`, where whoever writes it may have files of
    his own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        temporary = Path(folder) / path.name
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to a file beside `path` and rename it into place."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content)
