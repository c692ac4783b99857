"""VLM small enough to run many times."""

from __future__ import annotations

from collections.abc import Mapping

from tests.conftest import tiny_keys

VLM: Mapping[str, object] = {
    "workload": "vlm",
    "vlm.width": 16,
    "vlm.layers": 1,
    "vlm.heads": 2,
    "vlm.feedforward": 16,
    "partition.min-examples": 2,
    "train.batch-size": 4,
    "train.learning-rate": 0.05,
}
MIXED = "retrieval;segmentation;captioning"
SHORT: Mapping[str, object] = {"vlm.beams": 1, "vlm.max-caption": 6}


def vlm_keys(
    corpus: Mapping[str, object],
    strategy: str = "fedavg",
    tasks: str = "pretraining",
    **more: object,
) -> dict[str, object]:
    flat = {k: v for k, v in tiny_keys(strategy).items() if k != "model.width"}
    searched = SHORT if "captioning" in tasks else {}
    own = {k.replace("__", ".").replace("_", "-"): v for k, v in more.items()}
    return {**flat, **VLM, **searched, **corpus, "vlm.tasks": tasks, **own}
