"""What clients tell of their own models, where the model that counts is with them.

That is so for a method without a global model, and where a part of the model that an evaluation
depends on is personal. Each client judges the model it has just trained, in evaluated rounds.

A workload with classes has its confusion matrices sent, ``validation_confusion`` and
``test_confusion``, (C, C) int64, and each client's ``own_score``, its expected accuracy on its own
mix of classes. Any other has its scores sent, as metrics such as ``test_recall_at_1``. The losses,
``validation_loss`` and ``test_loss``, are sent in any case.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from core.metrics import evaluation_of, expected_accuracy
from core.records import EvaluationRecord
from core.scores import Scores
from core.wire import Array, ArraySpec, Metric, RecordSpec
from strategies.base import FederatedEvaluation, Reply

_SPLITS = ("validation", "test")
_OWN = "own_score"


def told_spec(scores: Scores, num_classes: int) -> RecordSpec:
    """What a client adds to its reply; `num_classes` is 0 for a workload without classes."""
    losses = tuple(f"{split}_loss" for split in _SPLITS)
    if num_classes:
        matrix = ArraySpec((num_classes,) * 2, "int64")
        return RecordSpec({f"{split}_confusion": matrix for split in _SPLITS}, (_OWN, *losses))
    named = tuple(f"{split}_{score.name}" for split in _SPLITS for score in scores)
    return RecordSpec(metrics=(*named, *losses))


def tell(
    validation: EvaluationRecord, test: EvaluationRecord, class_counts: Sequence[int]
) -> tuple[dict[str, Array], dict[str, Metric]]:
    """The arrays and metrics of `told_spec`.

    Args:
        validation: Of the client's model.
        test: Likewise.
        class_counts: Examples of each class that the client holds, shape (C,).
    """
    arrays: dict[str, Array] = {}
    metrics: dict[str, Metric] = {"validation_loss": validation.loss, "test_loss": test.loss}
    for split, found in (("validation", validation), ("test", test)):
        if found.confusion is None:
            metrics |= {f"{split}_{name}": value for name, value in found.scores.items()}
        else:
            arrays[f"{split}_confusion"] = np.array(found.confusion, dtype=np.int64)
    if test.per_class_accuracy is not None:
        metrics[_OWN] = expected_accuracy(test.per_class_accuracy, class_counts)
    return arrays, metrics


def told_faults(reply: Reply) -> list[str]:
    """Why what a client tells is refused: counts must be counts, shares must be shares."""
    own = reply.record.metrics.get(_OWN, 0.0)
    reasons = [f"{_OWN} is {own:g}, expected 0 to 1"] if not 0 <= own <= 1 else []
    matrices = {f"{split}_confusion" for split in _SPLITS} & reply.record.arrays.keys()
    return reasons + [
        f"{name} holds {reply.record.arrays[name].min()}, expected counts of at least one image"
        for name in sorted(matrices)
        if reply.record.arrays[name].min() < 0 or reply.record.arrays[name].sum() < 1
    ]


def pooled(
    told: Mapping[int, Reply],
    scores: Scores,
    num_examples: Mapping[str, int],
    clients: int,
) -> FederatedEvaluation | None:
    """What the clients' models are worth: means over them, and the sum of confusion matrices.

    Args:
        told: Replies that hold `told_spec`, by partition id.
        scores: The workload's.
        num_examples: Of each split, which every client has judged whole.
        clients: Number of all clients (K).
    """
    if not told:
        return None
    replies = [told[k] for k in sorted(told)]
    key = _OWN if _OWN in replies[0].record.metrics else f"test_{scores.primary.name}"
    own = {k: float(reply.record.metrics[key]) for k, reply in told.items()}
    validation, test = (_mean(replies, split, scores, num_examples[split]) for split in _SPLITS)
    return FederatedEvaluation(validation, test, [own.get(k) for k in range(clients)])


def _mean(
    replies: Sequence[Reply], split: str, scores: Scores, num_examples: int
) -> EvaluationRecord:
    """The mean over clients' models; every client judged the same examples."""
    loss = _average(reply.record.metrics[f"{split}_loss"] for reply in replies)
    if f"{split}_confusion" not in replies[0].record.arrays:
        means = {
            score.name: _average(r.record.metrics[f"{split}_{score.name}"] for r in replies)
            for score in scores
        }
        return EvaluationRecord(num_examples=num_examples, loss=loss, scores=means)
    matrices = [reply.record.arrays[f"{split}_confusion"].astype(np.int64) for reply in replies]
    each = [evaluation_of(matrix, 0.0).scores for matrix in matrices]
    found = evaluation_of(sum(matrices, np.zeros_like(matrices[0])), loss)
    return dataclasses.replace(
        found, scores={name: _average(one[name] for one in each) for name in found.scores}
    )


def _average(values: Iterable[float]) -> float:
    found = [float(value) for value in values]
    return sum(found) / len(found)
