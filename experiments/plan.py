"""What a run would do, told without starting or writing anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.config import RunConfig
from core.scores import Scores
from data.partition import FailedAttempt
from engine.placement import resolve_kind, resolve_workers
from experiments.run import refuse_network_keys
from privacy.plan import PrivacyPlan
from privacy.statement import Statement, statement_of
from server.prediction import PredictedBytes, predict_bytes
from server.preparation import Preparation, prepare


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A run that would start.

    Attributes:
        config: As parsed.
        source: Name of the data.
        num_examples: Examples in ``train``, ``validation`` and ``test``.
        scores: What it would be judged by.
        class_names: In label order.
        class_counts: Shape (clients, classes): training images of each class that each holds.
        failed_attempts: Partitions that were tried and refused before this one.
        num_parameters: Trainable parameters of the model.
        predicted: Bytes of every message.
        privacy: What the run would guarantee.
        noise: What a private run would cost; None for one that is not private.
        engine: Where its clients would run, in words.
        device: Where they would compute.
    """

    config: RunConfig
    source: str
    num_examples: Mapping[str, int]
    scores: Scores
    class_names: tuple[str, ...]
    class_counts: npt.NDArray[np.int64]
    failed_attempts: tuple[FailedAttempt, ...]
    num_parameters: int
    predicted: PredictedBytes
    privacy: Statement
    noise: PrivacyPlan | None
    engine: str
    device: str


def plan(config: RunConfig) -> Plan:
    """Prepare a run as far as it goes without starting it.

    Data that ``data.download`` asks for is fetched; nothing else is written.

    Raises:
        ConfigError: Model, data, method and machine do not fit.
        DataError: Data is missing or unfit, or no partition meets the configuration.
        RunError: The device is not there.
    """
    refuse_network_keys(config)
    preparation = prepare(config)
    dataset = preparation.workload.dataset
    return Plan(
        config=config,
        source=dataset.name,
        num_examples=dataset.num_examples,
        scores=preparation.workload.scores,
        class_names=dataset.class_names,
        class_counts=preparation.partition.class_counts,
        failed_attempts=preparation.partition.failed_attempts,
        num_parameters=sum(p.numel() for p in preparation.model.parameters() if p.requires_grad),
        predicted=predict_bytes(preparation),
        privacy=statement_of(config, preparation.privacy, preparation.strategy.images_sent),
        noise=preparation.privacy,
        engine=_engine(preparation),
        device=str(preparation.workload.device),
    )


def _engine(preparation: Preparation) -> str:
    config, num_clients = preparation.config.engine, len(preparation.hand_out_order())
    if num_clients == 0:
        return "in-process, no clients"
    kind = resolve_kind(config)
    if kind == "in-process":
        return kind
    if config.ray_address:
        return f"ray, the cluster at {config.ray_address}"
    workers = resolve_workers(config, num_clients)
    if kind == "processes":
        return f"{workers.num_workers} processes"
    share = f", {workers.gpus_per_worker:g} GPU each" if workers.gpus_per_worker else ""
    return f"ray, {workers.num_workers} actors{share}"
