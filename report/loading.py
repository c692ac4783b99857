"""Run folders as the report reads them: typed, checked, and never changed.

A run that is still going on, or was cut off, is read as far as it got. A file that is there but
damaged, or missing from a run that says it is complete, is refused by name; so is such a run that
lacks rounds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from core.config import RunConfig, Scalar
from core.errors import DataError, RecordError
from core.exhibits import Exhibit
from core.records import (
    EvaluationRecord,
    ReplyOutcome,
    RoundRecord,
    RunFolder,
    refuse_unknown_schema,
    scores_of,
)
from core.scores import Scores
from data.partition import Partition
from server.spending import read_spending

STATUSES = ("running", "complete", "failed", "interrupted")
OUTCOMES: tuple[ReplyOutcome, ...] = get_args(ReplyOutcome)
_SECONDS = ("client_sum", "server", "elapsed")
_LATER_KEYS = ("privacy.", "canaries.", "train.weighting")
_SINCE_SCHEMA_2 = ("cohort", "faults", "attack")

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class SpentPrivacy:
    """What a private run has cost its clients so far, as their ledgers say.

    Attributes:
        epsilon: The largest of its clients'; None where it is refused, or nothing is on record yet.
        accountant: By which it was computed.
        note: Why it is refused, or another accountant was taken; else empty.
        clients: By partition id.
        all_runs: The largest over all runs that the ledgers know; None where it is refused.
    """

    epsilon: float | None
    accountant: str
    note: str
    clients: Mapping[int, float | None]
    all_runs: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisedPrivacy:
    """The numbers that a private run's promise is made of; see `privacy.statement`.

    Attributes:
        unit: ``example`` or ``client``.
        mechanism: As in ``privacy.mechanism``.
        delta: Of every epsilon.
        noise_multiplier: sigma.
        clip: C.
        sampling_rate: q.
        steps_per_round: Noised sums a round (T).
        rounds: Rounds of the client asked most often.
        accountant: As planned.
        budget: The most that may be spent; None where there is none.
        epsilon_per_round: Of one round; None where it is refused.
        epsilon_whole_run: Of all rounds, as planned; likewise.
        rdp_epsilon_per_round: By RDP, for information; likewise.
        rdp_epsilon_whole_run: Likewise.
        spent: What it has cost so far.
    """

    unit: str
    mechanism: str
    delta: float
    noise_multiplier: float
    clip: float
    sampling_rate: float
    steps_per_round: int
    rounds: int
    accountant: str
    budget: float | None
    epsilon_per_round: float | None
    epsilon_whole_run: float | None
    rdp_epsilon_per_round: float | None
    rdp_epsilon_whole_run: float | None
    spent: SpentPrivacy

    @property
    def terms(self) -> tuple[str, float]:
        """Unit and delta: epsilons compare only where both agree."""
        return self.unit, self.delta


@dataclass(frozen=True, slots=True)
class PrivacyStatement:
    """What a run says about privacy.

    Attributes:
        guarantee: ``none``, or the guarantee in words.
        images_sent: ``synthetic``, ``raw`` or ``none``.
        text: The statement for readers.
        noised: What it rests on; None for a run that adds no noise.
    """

    guarantee: str
    images_sent: str
    text: str
    noised: NoisedPrivacy | None = None


@dataclass(frozen=True, slots=True)
class Resumption:
    """One time that a run was taken up again.

    Attributes:
        after_round: The last round that was kept.
        at: When.
        changed: What was not as it had been when the run began, such as ``{"torch": "2.14 ->
            2.15"}``; results may then differ in their last bits.
    """

    after_round: int
    at: datetime
    changed: Mapping[str, str] = field(default_factory=dict)

    @property
    def changed_line(self) -> str:
        """What was not as it had been, in one line; empty where nothing was."""
        return ", ".join(f"{key} {values}" for key, values in self.changed.items())


@dataclass(frozen=True, slots=True)
class NetworkTraffic:
    """What a network counted of a run, with headers and whatever its own protocol adds.

    Attributes:
        bytes_up: Received from clients.
        bytes_down: Sent to clients.
    """

    bytes_up: int
    bytes_down: int


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class LoadedRun:
    """All of one run folder but its images and checkpoints.

    Attributes:
        folder: Where it lies.
        name: Name of the run.
        status: One of `STATUSES`; a run that was killed still says ``running``.
        failure: Why it failed; None unless it did.
        command: The command that reproduces it.
        started: When it began.
        resumed: The times it was taken up again, in order.
        config: Flat configuration.
        environment: Flat versions and hardware; empty where the run did not get that far.
        partition: None where the run did not get that far.
        privacy: None where the run did not get that far.
        rounds: Complete round records, ascending.
        class_names: In label order; the numbers themselves where the run names none. Empty where
            nothing is counted by class.
        scores: What it is judged by.
        network: What the network counted; None for a run on no network.
        exhibits: What the final model made of a few examples.
    """

    folder: RunFolder
    name: str
    status: str
    failure: str | None
    command: str
    started: datetime
    resumed: tuple[Resumption, ...] = ()
    config: Mapping[str, Scalar]
    environment: Mapping[str, str]
    partition: Partition | None
    privacy: PrivacyStatement | None
    rounds: tuple[RoundRecord, ...]
    class_names: tuple[str, ...]
    scores: Scores
    network: NetworkTraffic | None = None
    exhibits: tuple[Exhibit, ...] = ()

    def __repr__(self) -> str:
        """Short: the records themselves would fill pages of a notebook."""
        return (
            f"LoadedRun({self.name!r}, {self.status}, strategy={self.config.get('strategy')}, "
            f"seed={self.config.get('seed')}, rounds={len(self.rounds)}, path={self.folder.path})"
        )

    @property
    def strategy(self) -> str:
        """The strategy as configured."""
        return str(self.config["strategy"])

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.config["seed"])

    @property
    def rounds_planned(self) -> int:
        """Rounds the configuration asks for."""
        return int(self.config["rounds"])

    @property
    def rounds_done(self) -> int:
        """The last round on record; 0 before any."""
        return self.rounds[-1].round if self.rounds else 0

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.status == "complete"

    @property
    def failure_line(self) -> str | None:
        """Why it failed, in one line: a client's trace may follow it in `failure`."""
        return (self.failure or "").strip().partition("\n")[0] or None

    @property
    def lacks_clients(self) -> bool:
        """Whether an evaluation lacks clients, which make it themselves and did not all answer."""
        return any(None in (record.client_scores or ()) for record in self.rounds)

    @property
    def has_classes(self) -> bool:
        """Whether it is judged by class, or may be while no evaluation tells."""
        final = self.final
        return final is None or final.test is None or final.test.confusion is not None

    @property
    def tells_clients_apart(self) -> bool:
        """Whether clients are judged one by one, or may be while no evaluation tells."""
        return self.final is None or self.final.client_scores is not None

    @property
    def sends_raw_images(self) -> bool:
        """Whether clients send real images as they are."""
        raw = self.privacy is not None and self.privacy.images_sent == "raw"
        return raw or self.strategy == "real-images"

    @property
    def sends_images(self) -> bool:
        """Whether clients send images, synthetic or real."""
        return self.privacy is not None and self.privacy.images_sent != "none"

    @property
    def noised(self) -> NoisedPrivacy | None:
        """What its privacy rests on; None for a run that adds no noise, or does not say."""
        return self.privacy.noised if self.privacy is not None else None

    @property
    def epsilon(self) -> float | None:
        """What it has cost the client that it cost most; None where that is not on record."""
        return self.noised.spent.epsilon if self.noised is not None else None

    @property
    def has_canaries(self) -> bool:
        """Whether an audit put canaries among clients' data."""
        return self.config.get("canaries.kind", "none") != "none"

    @property
    def attack(self) -> str | None:
        """What malicious clients do and how many are, in words; None where all are honest."""
        kind = self.config.get("attack.kind", "none")
        if kind == "none":
            return None
        scaled = f" x{float(self.config['attack.factor']):g}" if kind == "scale" else ""
        return f"{kind}{scaled}, {100 * float(self.config['attack.fraction']):.4g}% of clients"

    @property
    def final(self) -> RoundRecord | None:
        """The last evaluated round; None before any."""
        return next((r for r in reversed(self.rounds) if r.test is not None), None)


@dataclass(frozen=True, slots=True)
class Tesserae:
    """The images that clients sent in one round.

    Attributes:
        images: uint8, shape (N, C, H, W).
        nearest_images: uint8, same shape: the real training image closest to each; None where
            clients' images are not at the server.
        labels: int64, shape (N,).
        partition_ids: int64, shape (N,): which client sent it.
        nearest_distances: float32, shape (N,): root mean square pixel difference, 0-255; None
            likewise.
    """

    images: npt.NDArray[np.uint8]
    nearest_images: npt.NDArray[np.uint8] | None
    labels: npt.NDArray[np.int64]
    partition_ids: npt.NDArray[np.int64]
    nearest_distances: npt.NDArray[np.float32] | None


def load_runs(paths: Sequence[Path]) -> list[LoadedRun]:
    """Load run folders in the order given; a folder given twice is read once.

    Raises:
        RecordError: No folder was given, or one is damaged.
    """
    if not paths:
        raise RecordError("no run folder was given; name at least one, such as .runs/NAME")
    resolved = dict.fromkeys(Path(path).expanduser().resolve() for path in paths)
    return [load_run(path) for path in resolved]


def load_run(path: Path) -> LoadedRun:
    """Load one run folder.

    Raises:
        RecordError: It is no run folder, one of its files is damaged, or it is complete and lacks
            rounds; names the file.
    """
    folder = RunFolder.open(path)
    run, run_file = folder.read_json("run"), folder.path / "run.json"
    refuse_unknown_schema(str(run_file), run.get("schema"))
    if run.get("status") not in STATUSES:
        raise RecordError(
            f"{run_file} has status {run.get('status')!r}; it is one of {', '.join(STATUSES)}"
        )
    finished = run["status"] == "complete"
    failure = run.get("failure")
    partition = _unless_too_early(finished, folder.partition, lambda: _read_partition(folder))
    environment = _unless_too_early(
        finished,
        folder.path / "environment.json",
        lambda: dict(_flat(folder.read_json("environment"))),
    )
    config = _read_config(folder, run["schema"])
    scores = scores_of(run, run_file)
    rounds = _read_rounds(folder, scores)
    if finished:
        _refuse_lost_rounds(folder, rounds, run.get("rounds_done"), config["rounds"])
    num_classes = _num_classes(folder, rounds, partition)
    if finished and all(record.test is None for record in rounds):
        raise RecordError(f"{folder.rounds} holds no evaluated round of a run that is complete")
    privacy = _unless_too_early(
        finished, folder.path / "privacy.json", lambda: _read_privacy(folder)
    )
    return LoadedRun(
        folder=folder,
        name=_text(run, "name", run_file),
        status=run["status"],
        failure=None if failure is None else str(failure),
        command=_text(run, "command", run_file),
        started=_time(run, "started", run_file),
        resumed=_resumed(run, run_file),
        config=config,
        environment=environment or {},
        partition=partition,
        privacy=privacy
        if finished or privacy is None
        else _as_ledgers_say(privacy, folder, run, config, rounds),
        rounds=tuple(rounds),
        class_names=_class_names(run, num_classes, run_file),
        scores=scores,
        network=_read_network(folder),
        exhibits=folder.read_exhibits(),
    )


def read_tesserae(run: LoadedRun, round: int) -> Tesserae:
    """Read the images that clients sent in `round`.

    Raises:
        RecordError: The file is damaged or contradicts itself.
    """
    path = run.folder.tesserae(round)
    try:
        tensors = load_file(path)
        images = tensors["images"]
        labels, partition_ids = tensors["labels"], tensors["partition_ids"]
        alone = not any(name.startswith("nearest_") for name in tensors)
        nearest = None if alone else tensors["nearest_images"]
        distances = None if alone else tensors["nearest_distances"]
    except (OSError, SafetensorError, ValueError) as error:
        raise RecordError(f"{path} cannot be read: {error}") from error
    except KeyError as error:
        raise RecordError(f"{path} holds no tensor {error}") from error
    count = len(labels)
    fits = (
        images.dtype == np.uint8
        and images.ndim == 4
        and (nearest is None or (nearest.dtype == np.uint8 and images.shape == nearest.shape))
        and (distances is None or len(distances) == count)
        and len(images) == len(partition_ids) == count
        and bool(np.isin(labels, np.arange(len(run.class_names))).all())
    )
    if not fits:
        raise RecordError(
            f"{path} does not hold uint8 images (N, C, H, W) with their nearest ones, distances, "
            f"clients and labels below {len(run.class_names)}"
        )
    return Tesserae(images, nearest, labels, partition_ids, distances)


def _unless_too_early(finished: bool, path: Path, read: Callable[[], Value]) -> Value | None:
    return read() if finished or path.exists() else None


def _read_config(folder: RunFolder, schema: int) -> dict[str, Scalar]:
    config, path = folder.read_json("config"), folder.path / "config.json"
    if schema == 1:  # written before these keys; it ran as their defaults do
        defaults = RunConfig().flat().items()
        since = {k: v for k, v in defaults if k.partition(".")[0] in _SINCE_SCHEMA_2}
        config = since | config
    defaults = RunConfig().flat().items()  # written before these keys; it ran as their defaults do
    later = {k: v for k, v in defaults if k.startswith(_LATER_KEYS)}
    config = later | config
    for key, value in config.items():
        if not isinstance(value, bool | int | float | str):
            raise RecordError(f"{path} has {key}={value!r}; values are scalars")
    for key in ("seed", "rounds"):
        if not isinstance(config.get(key), int):
            raise RecordError(f"{path} has {key}={config.get(key)!r}; it is a whole number")
    _text(config, "strategy", path)
    if config.get("attack.kind", "none") != "none":
        for key in ("attack.fraction", "attack.factor"):
            if not _is_number(config.get(key)):
                raise RecordError(f"{path} has {key}={config.get(key)!r}; it is a number")
    return config


def _read_partition(folder: RunFolder) -> Partition:
    try:
        return Partition.read(folder.partition)
    except DataError as error:
        raise RecordError(str(error)) from error


def _read_network(folder: RunFolder) -> NetworkTraffic | None:
    path = folder.path / "network.json"
    if not path.exists():
        return None
    told = folder.read_json("network")
    counts = [told.get("bytes_up"), told.get("bytes_down")]
    for count in counts:
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise RecordError(f"{path} has bytes {counts!r}; they are whole numbers from 0")
    return NetworkTraffic(told["bytes_up"], told["bytes_down"])


def _read_privacy(folder: RunFolder) -> PrivacyStatement:
    statement, path = folder.read_json("privacy"), folder.path / "privacy.json"
    return PrivacyStatement(
        guarantee=_text(statement, "guarantee", path),
        images_sent=_text(statement, "images_sent", path),
        text=_text(statement, "text", path),
        noised=_read_noised(statement, path) if "mechanism" in statement else None,
    )


def _as_ledgers_say(
    privacy: PrivacyStatement,
    folder: RunFolder,
    run: Mapping[str, Any],
    config: Mapping[str, Scalar],
    rounds: Sequence[RoundRecord],
) -> PrivacyStatement:
    """The statement of a run that was cut off, with what its clients' ledgers tell now.

    They may have been charged, and have sent, after the last record. Where the ledgers are not at
    hand, as when a folder was renamed, it is what the record tells.
    """
    noised = privacy.noised
    if noised is None:
        return privacy
    shared = str(config.get("privacy.ledger", ""))
    spending = read_spending(
        Path(shared).expanduser().resolve() if shared else folder.ledgers,
        f"{folder.path.name}/{run.get('identity')}",
        delta=noised.delta,
        accountant="rdp" if noised.accountant == "rdp" else "prv",
        round=rounds[-1].round + 1 if rounds else 1,
        counted=[
            (client.partition_id, record.round)
            for record in rounds
            for client in record.clients
            if client.outcome == "counted"
        ],
    )
    if not spending.clients:
        return privacy
    told = SpentPrivacy(
        spending.total.epsilon,
        spending.total.accountant,
        spending.total.note,
        {k: one.epsilon for k, one in spending.clients.items()},
        spending.all_runs,
    )
    return dataclasses.replace(privacy, noised=dataclasses.replace(noised, spent=told))


def _read_noised(statement: Mapping[str, Any], path: Path) -> NoisedPrivacy:
    def number(key: str) -> float:
        if not _is_number(statement.get(key)):
            raise RecordError(f"{path} has {key}={statement.get(key)!r}; it is a number")
        return float(statement[key])

    def number_or_none(key: str) -> float | None:
        return None if statement.get(key) is None else number(key)

    return NoisedPrivacy(
        unit=_text(statement, "unit", path),
        mechanism=_text(statement, "mechanism", path),
        delta=number("delta"),
        noise_multiplier=number("noise_multiplier"),
        clip=number("clip"),
        sampling_rate=number("sampling_rate"),
        steps_per_round=int(number("steps_per_round")),
        rounds=int(number("rounds")),
        accountant=_text(statement, "accountant", path),
        budget=number_or_none("budget"),
        epsilon_per_round=number_or_none("epsilon_per_round"),
        epsilon_whole_run=number_or_none("epsilon_whole_run"),
        rdp_epsilon_per_round=number_or_none("rdp_epsilon_per_round"),
        rdp_epsilon_whole_run=number_or_none("rdp_epsilon_whole_run"),
        spent=_read_spent(statement, path),
    )


def _read_spent(statement: Mapping[str, Any], path: Path) -> SpentPrivacy:
    spent = statement.get("spent")
    if spent is None:  # nothing is charged before the first round
        return SpentPrivacy(None, _text(statement, "accountant", path), "", {}, None)
    try:
        clients = {int(k): value for k, value in spent["clients"].items()}
        told = (spent["epsilon"], spent["all_runs"])
        if not all(value is None or _is_number(value) for value in (*told, *clients.values())):
            raise ValueError("an epsilon is no number")
        return SpentPrivacy(
            told[0],
            _text(spent, "accountant", path),
            _text(spent, "note", path),
            clients,
            told[1],
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, RecordError):
            raise
        raise RecordError(
            f"{path} has spent={spent!r}; it is an object of epsilon, accountant, note, clients "
            "and all_runs"
        ) from error


def _read_rounds(folder: RunFolder, scores: Scores) -> list[RoundRecord]:
    try:
        records = folder.read_rounds()
    except (AttributeError, UnicodeDecodeError) as error:
        raise RecordError(f"{folder.rounds} is not JSON lines of round records: {error}") from error
    for record in records:
        try:
            problem = _problem(record, scores)
        except (AttributeError, TypeError) as error:
            problem = str(error)
        if problem:
            raise RecordError(f"{folder.rounds}, round {record.round}: {problem}")
    return records


def _refuse_lost_rounds(
    folder: RunFolder, rounds: Sequence[RoundRecord], rounds_done: object, planned: Scalar
) -> None:
    """Refuse a complete run that has not all its rounds, or that says so of fewer."""
    last = rounds[-1].round if rounds else None
    if last == rounds_done == planned:
        return
    held = "holds no round" if last is None else f"ends at round {last}"
    raise RecordError(
        f"{folder.rounds} {held}, but {folder.path / 'run.json'} says that the run is complete "
        f"with rounds_done={rounds_done} of rounds={planned}; restore the file, or run it anew "
        "under another name"
    )


def _problem(record: RoundRecord, scores: Scores) -> str | None:
    """Why a record that has all its fields still cannot be shown; None if it can."""
    if not isinstance(record.round, int):
        return "its number is no whole number"
    for client in record.clients:
        if not isinstance(client.partition_id, int) or not isinstance(client.failure, str | None):
            return "a client's number is no whole number, or its failure no text"
        if client.outcome not in OUTCOMES:
            return (
                f"client {client.partition_id} has outcome {client.outcome!r}; "
                f"it is one of {', '.join(OUTCOMES)}"
            )
        if not all(map(_is_number, client.metrics.values())):
            return f"metrics of client {client.partition_id} are not numbers"
        if client.outcome == "counted" and client.failure is not None:
            return f"client {client.partition_id} is counted, and yet failed: {client.failure}"
    missing = [key for key in _SECONDS if not _is_number(record.seconds.get(key))]
    if missing:
        return f"seconds lack {', '.join(missing)}"
    if not all(map(_is_number, record.server.values())):
        return "the server's metrics are not numbers"
    if not (_is_number(record.bytes_up) and _is_number(record.bytes_down)):
        return "bytes are not numbers"
    clients = record.client_scores
    if clients is not None and not all(v is None or _is_number(v) for v in clients):
        return "client scores are not numbers"
    if record.worst_client_score is not None and not _is_number(record.worst_client_score):
        return "the worst client's score is no number"
    for name in ("validation", "test"):
        evaluation: EvaluationRecord | None = getattr(record, name)
        if evaluation is not None and (problem := _problem_of_evaluation(name, evaluation, scores)):
            return problem
    return None


def _problem_of_evaluation(name: str, evaluation: EvaluationRecord, scores: Scores) -> str | None:
    """Why an evaluation of the split `name` cannot be shown; None if it can."""
    if tuple(evaluation.scores) != scores.names:
        told, known = ", ".join(evaluation.scores), ", ".join(scores.names)
        return f"the scores on {name} are {told}; run.json names {known}"
    if not all(map(_is_number, evaluation.scores.values())):
        return f"{' or '.join(score.label for score in scores)} on {name} is no number"
    recalls, confusion = evaluation.per_class_accuracy, evaluation.confusion
    if (recalls is None) != (confusion is None):
        return f"of per-class figures and the confusion matrix on {name} one is missing"
    if recalls is None or confusion is None:
        return None
    size = len(recalls)
    if len(confusion) != size or any(len(row) != size for row in confusion):
        return f"the confusion matrix on {name} is not {size} x {size}"
    cells = [*recalls, *(n for row in confusion for n in row)]
    if not all(cell is None or _is_number(cell) for cell in cells):
        return f"per-class figures on {name} are not numbers"
    return None


def _is_number(value: object) -> bool:
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and math.isfinite(value)  # type: ignore[arg-type]


def _num_classes(
    folder: RunFolder, rounds: Sequence[RoundRecord], partition: Partition | None
) -> int:
    tests = [record.test for record in rounds if record.test is not None]
    sizes = {len(test.confusion) for test in tests if test.confusion is not None}
    if partition is not None:
        sizes.add(int(partition.class_counts.shape[1]))
    if len(sizes) > 1:
        raise RecordError(f"{folder.path} has records of {sorted(sizes)} classes in one run")
    return sizes.pop() if sizes else 0


def _class_names(run: Mapping[str, Any], num_classes: int, path: Path) -> tuple[str, ...]:
    names = run.get("class_names")
    if names is None or names == []:
        return tuple(str(label) for label in range(num_classes))
    if not isinstance(names, list) or (num_classes and len(names) != num_classes):
        raise RecordError(f"{path} has class_names={names!r} for {num_classes} classes")
    return tuple(str(name) for name in names)


def _text(values: Mapping[str, Any], key: str, path: Path) -> str:
    value = values.get(key)
    if not isinstance(value, str):
        raise RecordError(f"{path} has {key}={value!r}; it is a text")
    return value


def _resumed(run: Mapping[str, Any], path: Path) -> tuple[Resumption, ...]:
    entries = run.get("resumed", [])
    if not isinstance(entries, list) or not all(
        isinstance(entry, Mapping)
        and isinstance(entry.get("after_round"), int)
        and isinstance(entry.get("changed", {}), Mapping)
        for entry in entries
    ):
        raise RecordError(
            f"{path} has resumed={entries!r}; it is a list of after_round, at and changed"
        )
    return tuple(
        Resumption(
            entry["after_round"], _time(entry, "at", path), dict(_flat(entry.get("changed", {})))
        )
        for entry in entries
    )


def _time(values: Mapping[str, Any], key: str, path: Path) -> datetime:
    try:
        time = datetime.fromisoformat(_text(values, key, path))
    except ValueError as error:
        raise RecordError(
            f"{path} has {key}={values.get(key)!r}; it is an ISO 8601 time"
        ) from error
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield f"{prefix}{key}", ", ".join(str(item) for item in value) or "none"
        else:
            yield f"{prefix}{key}", "none" if value is None else str(value)
