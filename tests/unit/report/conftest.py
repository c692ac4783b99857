"""Run folders made up through `core.records`, so that reports can be tested without training."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file
from sklearn.datasets import load_digits

from core.records import (
    SCHEMA_VERSION,
    ClientRecord,
    EvaluationRecord,
    ReplyOutcome,
    RoundRecord,
    RunFolder,
)
from core.scores import Score, Scores
from data.partition import FailedAttempt, Partition
from report.loading import LoadedRun, load_run

NUM_CLASSES = 10

# Per strategy: final accuracy, rounds to get there, bytes a client sends a round, images it sends.
KINDS: Mapping[str, tuple[float, float, int, str]] = {
    "feddm": (0.93, 2.0, 2_900, "synthetic"),
    "fedavg": (0.71, 7.0, 612_000, "none"),
    "fedprox": (0.74, 7.0, 612_000, "none"),
    "real-images": (0.88, 2.5, 2_900, "raw"),
    "local": (0.31, 1.5, 40, "none"),
    "centralized": (0.965, 1.5, 0, "none"),
}


def _evaluation(
    accuracy: float, rng: np.random.Generator, per_class: int, num_classes: int
) -> EvaluationRecord:
    confusion = np.zeros((num_classes, num_classes), dtype=int)
    for label in range(num_classes):
        rate = float(np.clip(accuracy + rng.normal(0, 0.06), 0.02, 0.995))
        hits = round(rate * per_class)
        others = np.delete(np.arange(num_classes), label)
        for wrong in rng.choice(others, per_class - hits):
            confusion[label, wrong] += 1
        confusion[label, label] = hits
    recall = confusion.diagonal() / confusion.sum(axis=1)
    predicted = np.maximum(confusion.sum(axis=0), 1)
    precision = confusion.diagonal() / predicted
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return EvaluationRecord(
        num_examples=int(confusion.sum()),
        loss=float(-np.log(accuracy)),
        scores={
            "accuracy": float(confusion.trace() / confusion.sum()),
            "macro_f1": float(f1.mean()),
        },
        per_class_accuracy=recall.tolist(),
        confusion=confusion.tolist(),
    )


def _partition(
    clients: int, num_classes: int, seed: int, labels: npt.NDArray[np.int64]
) -> Partition:
    rng = np.random.default_rng(seed)
    owner = np.empty(len(labels), dtype=np.int64)
    for label in range(num_classes):
        members = np.flatnonzero(labels == label)
        shares = rng.dirichlet(np.full(clients, 0.3))
        owner[members] = rng.choice(clients, len(members), p=shares)
    held = [np.flatnonzero(owner == client) for client in range(clients)]
    counts = np.stack([np.bincount(labels[own], minlength=num_classes) for own in held])
    attempts = tuple(
        FailedAttempt(attempt, 1000 + attempt, "client 4 would hold 3 images, fewer than 10")
        for attempt in range(seed % 3)
    )
    return Partition(
        scheme={"scheme": "dirichlet", "alpha": 0.01},
        source="digits",
        num_examples=len(labels),
        seed=seed,
        failed_attempts=attempts,
        clients=tuple(held),
        class_counts=counts.astype(np.int64),
    )


def _pool(side: int, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Stand-ins for training images: digits at 8 x 8, coloured blobs at any other size."""
    if side == 8:
        pixels = load_digits().images[: len(labels)]
        return np.asarray(pixels[:, None] * 255 / 16).round().astype(np.uint8)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:side, 0:side] / side
    images = np.empty((len(labels), 3, side, side))
    for image, label in zip(images, labels, strict=True):
        cx, cy, width = rng.uniform(0.3, 0.7, 3)
        blob = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (0.15 * width))
        hue = 0.5 + 0.5 * np.cos(2 * np.pi * (label / NUM_CLASSES + np.arange(3) / 3))
        image[:] = 60 + 180 * hue[:, None, None] * blob + rng.normal(0, 6, image.shape)
    return images.clip(0, 255).astype(np.uint8)


def _write_tesserae(
    folder: RunFolder,
    round: int,
    partition: Partition,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    images_per_class: int,
    raw: bool,
) -> None:
    rng = np.random.default_rng([partition.seed, round])
    picked, owners = [], []
    for client, own in enumerate(partition.clients):
        for label in range(partition.class_counts.shape[1]):
            some = own[labels[own] == label][:images_per_class]
            picked += some.tolist()
            owners += [client] * len(some)
    nearest = images[picked]
    noise = 0 if raw else 90 / (1 + round)
    sent = np.clip(nearest + rng.normal(0, 1, nearest.shape) * (noise + 12 * (not raw)), 0, 255)
    sent = sent.round().astype(np.uint8)
    squares = (sent.astype(float) - nearest.astype(float)) ** 2
    path = folder.tesserae(round)
    path.parent.mkdir(exist_ok=True)
    tensors = {
        "images": sent,
        "nearest_images": nearest,
        "labels": labels[picked],
        "partition_ids": np.array(owners, dtype=np.int64),
        "nearest_indices": np.array(picked, dtype=np.int64),
        "nearest_distances": np.sqrt(squares.mean(axis=(1, 2, 3))).astype(np.float32),
    }
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path)


def write_run(
    root: Path,
    strategy: str = "feddm",
    seed: int = 0,
    *,
    name: str = "",
    rounds: int = 10,
    done: int | None = None,
    status: str = "complete",
    failure: str | None = None,
    clients: int = 10,
    side: int = 8,
    images_per_class: int = 2,
    class_names: list[str] | None = None,
    client_failures: Mapping[tuple[int, int], tuple[ReplyOutcome, str]] | None = None,
    evaluate_every: int = 1,
    started: str = "2026-03-01T09:00:00+00:00",
    resumed: list[Mapping[str, Any]] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Write a run folder with plausible figures.

    Args:
        root: Folder to make it in.
        strategy: One of `KINDS`, or a user's own.
        seed: The run's seed, from which the figures are drawn.
        name: Name of the folder and run.
        rounds: Rounds planned.
        done: Last round on record; all by default.
        status: As in run.json.
        failure: As in run.json.
        clients: Number of clients.
        side: Pixels of an image's side; 8 is one channel, others are three.
        images_per_class: Images sent of each class a client holds.
        class_names: As in run.json; left out if None.
        client_failures: Outcome and reason by (round, client).
        evaluate_every: Rounds between evaluations; the last planned is always evaluated.
        started: As in run.json.
        resumed: As in run.json; left out if None.
        settings: Configuration keys on top of the defaults.
    """
    accuracy, pace, client_bytes, sent = KINDS.get(strategy, (0.6, 4.0, 5_000, "none"))
    num_classes = len(class_names) if class_names else NUM_CLASSES
    rng = np.random.default_rng([seed, len(strategy), ord(strategy[-1])])
    if num_classes == NUM_CLASSES:
        labels = load_digits().target[:1200].astype(np.int64)
    else:
        labels = np.arange(1200) % num_classes
    images = _pool(side, labels)
    partition = _partition(clients, num_classes, seed, labels)
    name = name or f"{strategy.rpartition(':')[2]}-digits-s{seed}-{rounds}"
    folder = RunFolder.create(root, name, {})
    config = {
        "strategy": strategy, "rounds": rounds, "seed": seed, "name": "", "runs": ".runs",
        "data.source": "digits" if side == 8 else "cifar10",
        "partition.scheme": "dirichlet", "partition.clients": clients, "partition.alpha": 0.01,
        "partition.file": "", "model.name": "convnet", "model.width": 128,
        "train.learning-rate": 0.05, "train.local-epochs": 1, "engine.kind": "in-process",
        **(settings or {}),
    }  # fmt: skip
    if sent in ("synthetic", "raw"):
        config = {"mosaic.images-per-class": images_per_class, "mosaic.rho": 5.0, **config}
    folder.write_json("config", config)
    folder.write_json(
        "environment",
        {
            "python": "3.11.9", "torch": "2.15.0", "flwr": "1.41.0", "platform": "Linux x86_64",
            "cpu": {"model": "AMD EPYC 7B13", "cores": 2}, "gpus": [],
            "git_commit": "1f02fa7c0ffee0000000000000000000000000",
        },
    )  # fmt: skip
    partition.write(folder.partition)
    privacy = {
        "synthetic": "none: the images are not private",
        "raw": "none: clients send their images as they are",
        "none": "none: clients send weights without noise",
    }
    folder.write_json("privacy", {"guarantee": "none", "images_sent": sent, "text": privacy[sent]})
    run = {
        "schema": SCHEMA_VERSION, "name": name, "status": status, "failure": failure,
        "command": f"tessera run strategy={strategy} rounds={rounds} seed={seed} "
        "partition.scheme=dirichlet partition.alpha=0.01 partition.clients=10",
        "started": started, "ended": None if status == "running" else started,
        "rounds_done": rounds if done is None else done,
    }  # fmt: skip
    if class_names:
        run["class_names"] = class_names
    if resumed is not None:
        run["resumed"] = resumed
    folder.write_json("run", run)
    elapsed = 0.0
    shift = rng.normal(0, 0.012)
    shares = partition.class_counts / np.maximum(partition.class_counts.sum(1, keepdims=True), 1)
    for number in range((rounds if done is None else done) + 1):
        level = 0.1 + (accuracy + shift - 0.1) * (1 - np.exp(-number / pace))
        level = float(np.clip(level + rng.normal(0, 0.008), 0.05, 0.99))
        test = _evaluation(level, rng, 36, num_classes)
        parts = ("client_sum", "client_max", "server", "evaluation", "wall")
        spent = rng.uniform(0.8, 1.2, 5) * [9, 1.4, 0.8, 0.1, 5.5]
        seconds = dict(zip(parts, spent.tolist(), strict=True))
        elapsed += seconds["wall"] if number else 0.2
        records = []
        for client in range(clients if number and strategy != "centralized" else 0):
            failed = (client_failures or {}).get((number, client))
            outcome: ReplyOutcome = failed[0] if failed else "counted"
            records.append(
                ClientRecord(
                    partition_id=client,
                    bytes_down=1_280_000 if sent != "raw" else 40,
                    bytes_up=client_bytes if outcome == "counted" else 0,
                    outcome=outcome,
                    failure=failed[1] if failed else None,
                    metrics={"num_examples": float(len(partition.clients[client]))},
                )
            )
        judged = number % evaluate_every == 0 or number == rounds
        expected = shares @ np.array(test.per_class_accuracy, dtype=float)
        folder.append_round(
            RoundRecord(
                round=number,
                validation=_evaluation(level, rng, 12, num_classes) if judged else None,
                test=test if judged else None,
                client_scores=expected.tolist() if judged else None,
                worst_client_score=float(expected.min()) if judged else None,
                bytes_down=sum(record.bytes_down for record in records),
                bytes_up=sum(record.bytes_up for record in records),
                clients=records,
                server={"displacement": 1.0},
                seconds={**seconds, "elapsed": elapsed},
            )
        )
        if number and sent != "none":
            _write_tesserae(
                folder, number, partition, images, labels, images_per_class, sent == "raw"
            )
    return folder.path


def judged_as(
    path: Path,
    *,
    test: Sequence[float | None],
    validation: Sequence[float | None] | None = None,
    bytes_up: int = 10,
    client_s: float = 2.0,
) -> LoadedRun:
    """Load a run after writing accuracies and costs of our own into its records.

    Args:
        path: The run folder, changed in place.
        test: Test accuracy of each round; None where a round is not evaluated.
        validation: Likewise on validation; as on test by default.
        bytes_up: Bytes that all clients send in each round but the first.
        client_s: Client seconds of each round but the first.
    """
    lines = [json.loads(line) for line in (path / "rounds.jsonl").read_text().splitlines()]
    for record, tested, validated in zip(lines, test, validation or test, strict=True):
        started = record["round"] > 0
        for split, accuracy in (("test", tested), ("validation", validated)):
            if accuracy is None:
                record[split] = None
            else:
                record[split]["scores"]["accuracy"] = accuracy
        record["bytes_up"] = bytes_up * started
        record["bytes_down"] = 3 * bytes_up * started
        record["seconds"] |= {"client_sum": client_s * started, "server": 0.5 * started}
    (path / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return load_run(path)


RETRIEVAL = Scores(
    [
        Score("recall_at_1", "R@1", is_percent=True),
        Score("recall_at_5", "R@5", is_percent=True),
        Score("median_rank", "median rank", is_percent=False, higher_is_better=False),
    ]
)


def make_retrieval(
    path: Path, recalls: Sequence[float], measured: Mapping[str, Sequence[float]] | None = None
) -> Path:
    """Make a run of a workload that has no classes of one that has.

    Args:
        path: The run folder, changed in place.
        recalls: R@1 of each round on both splits; R@5 is twice that, the median rank 1 by it.
        measured: What the server has on record of each round, by name.
    """
    run = json.loads((path / "run.json").read_text())
    run |= {"scores": RETRIEVAL.to_json(), "class_names": []}
    (path / "run.json").write_text(json.dumps(run))
    lines = [json.loads(line) for line in (path / "rounds.jsonl").read_text().splitlines()]
    for number, (record, recall) in enumerate(zip(lines, recalls, strict=True)):
        scores = dict(zip(RETRIEVAL.names, (recall, 2 * recall, 1 / recall), strict=True))
        for split in ("validation", "test"):
            record[split] |= {"scores": scores, "per_class_accuracy": None, "confusion": None}
        record |= {"client_scores": None, "worst_client_score": None}
        record["server"] = {name: values[number] for name, values in (measured or {}).items()}
    (path / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    partition = json.loads((path / "partition.json").read_text())
    partition |= {"class_counts": [[len(held)] for held in partition["clients"]]}
    (path / "partition.json").write_text(json.dumps(partition))
    return path


def make_private(
    path: Path,
    epsilons: Sequence[float | None],
    *,
    unit: str = "example",
    mechanism: str = "dp-sgd",
    delta: float = 1e-5,
    budget: float | None = 4.0,
    laggard: int | None = None,
    note: str = "",
    all_runs: float | None = None,
    snr: float | None = 0.5,
) -> Path:
    """Make a private run of one that is not.

    Args:
        path: The run folder, changed in place.
        epsilons: Of the whole run so far, after each round from 0; None where it is refused.
        unit: What is protected.
        mechanism: As in ``privacy.mechanism``.
        delta: Of every epsilon.
        budget: The most that may be spent.
        laggard: A client that is never asked.
        note: Why epsilon is refused.
        all_runs: Over all runs; as this run's by default.
        snr: Signal-to-noise ratio of every round.
    """
    lines = [json.loads(line) for line in (path / "rounds.jsonl").read_text().splitlines()]
    for record, epsilon in zip(lines, epsilons, strict=True):
        record["clients"] = [c for c in record["clients"] if c["partition_id"] != laggard]
        if epsilon is not None:
            record["server"]["epsilon"] = epsilon
            for client in record["clients"]:
                client["metrics"]["epsilon"] = epsilon
        if snr is not None and record["round"]:
            record["server"]["snr"] = snr
    (path / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = json.loads((path / "config.json").read_text())
    own = {"privacy.mechanism": mechanism, "privacy.epsilon": budget or 0.0}
    (path / "config.json").write_text(json.dumps({**config, **own, "privacy.delta": delta}))
    statement = json.loads((path / "privacy.json").read_text())
    spent = {
        "epsilon": epsilons[-1],
        "accountant": "prv",
        "note": note,
        "clients": {"0": epsilons[-1]},
        "all_runs": epsilons[-1] if all_runs is None else all_runs,
    }
    statement |= {
        "guarantee": "in words", "text": f"protects one {unit}", "unit": unit,
        "mechanism": mechanism, "delta": delta, "noise_multiplier": 1.25, "clip": 0.75,
        "sampling_rate": 0.0625, "steps_per_round": 17, "rounds": len(lines) - 1,
        "accountant": "prv", "budget": budget, "epsilon_per_round": 0.625,
        "epsilon_whole_run": 3.875, "rdp_epsilon_per_round": 0.875,
        "rdp_epsilon_whole_run": 4.625, "spent": spent,
    }  # fmt: skip
    (path / "privacy.json").write_text(json.dumps(statement))
    return path


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`write_run` into the test's own folder."""

    def make(*arguments: Any, **options: Any) -> Path:
        return write_run(tmp_path / "runs", *arguments, **options)

    return make


@pytest.fixture(scope="session")
def five_methods(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Complete runs of five methods with three seeds each; not to be changed."""
    root = tmp_path_factory.mktemp("runs")
    names = ("feddm", "fedavg", "real-images", "local", "centralized")
    return [write_run(root, name, seed, rounds=4) for name in names for seed in range(3)]


@pytest.fixture(scope="session")
def three_methods(five_methods: list[Path]) -> list[Path]:
    """Those of them that are no reference lines."""
    return five_methods[:9]
