"""What clients tell of their own models, where the model that counts is with them.

That is so for a method without a global model, and where a part of the model that an evaluation
depends on is personal. Each client judges the model it has just trained, in evaluated rounds.

A workload that classifies has its confusion matrices sent, ``validation_confusion`` and
``test_confusion``, (C, C) int64, and where it is judged by accuracy first each client's
``own_score``, its expected accuracy on its own mix of classes. Scores that no confusion matrix
tells are sent as metrics, such as ``test_recall_at_1``, and so are the losses, ``validation_loss``
and ``test_loss``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from core.metrics import evaluation_of, expected_accuracy
from core.records import EvaluationRecord
from core.scores import ACCURACY, CLASSIFICATION, Scores
from core.wire import Array, ArraySpec, Metric, RecordSpec
from strategies.base import FederatedEvaluation, Reply

_SPLITS = ("validation", "test")
_OWN = "own_score"


def is_told_apart(names: Sequence[str]) -> bool:
    """Whether recalls of classes tell what a client may expect of the first of these scores."""
    return names[0] == ACCURACY.name


def told_spec(scores: Scores, num_classes: int) -> RecordSpec:
    """What a client adds to its reply; `num_classes` is 0 for a workload that does not classify."""
    matrix = ArraySpec((num_classes,) * 2, "int64")
    arrays = {f"{split}_confusion": matrix for split in _SPLITS} if num_classes else {}
    apart = _sent_apart(scores.names, bool(num_classes))
    named = tuple(f"{split}_{name}" for split in _SPLITS for name in (*apart, "loss"))
    own = (_OWN,) if num_classes and is_told_apart(scores.names) else ()
    return RecordSpec(arrays, (*own, *named))


def _sent_apart(names: Iterable[str], classifies: bool) -> list[str]:
    """Those of the scores that the server does not read off a confusion matrix."""
    return [name for name in names if not classifies or name not in CLASSIFICATION.names]


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
        apart = _sent_apart(found.scores, found.confusion is not None)
        metrics |= {f"{split}_{name}": found.scores[name] for name in apart}
        if found.confusion is not None:
            arrays[f"{split}_confusion"] = np.array(found.confusion, dtype=np.int64)
    if test.per_class_accuracy is not None and is_told_apart(list(test.scores)):
        metrics[_OWN] = expected_accuracy(test.per_class_accuracy, class_counts)
    return arrays, metrics


def told_faults(reply: Reply, scores: Scores) -> list[str]:
    """Why what a client tells is refused: counts must be counts, shares must be shares."""
    shares = [f"{split}_{s.name}" for split in _SPLITS for s in scores if s.is_percent]
    reasons = [
        f"{name} is {value:g}, expected 0 to 1"
        for name in (_OWN, *shares)
        if not 0 <= (value := reply.record.metrics.get(name, 0.0)) <= 1
    ]
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
    primary = scores.primary.name
    own = {
        k: float(told_own)
        if (told_own := reply.record.metrics.get(_OWN)) is not None
        else _scores_of(reply, "test", scores)[primary]
        for k, reply in told.items()
    }
    validation, test = (_mean(replies, split, scores, num_examples[split]) for split in _SPLITS)
    return FederatedEvaluation(validation, test, [own.get(k) for k in range(clients)])


def _mean(
    replies: Sequence[Reply], split: str, scores: Scores, num_examples: int
) -> EvaluationRecord:
    """The mean over clients' models; every client judged the same examples."""
    loss = _average(reply.record.metrics[f"{split}_loss"] for reply in replies)
    each = [_scores_of(reply, split, scores) for reply in replies]
    means = {name: _average(one[name] for one in each) for name in scores.names}
    if f"{split}_confusion" not in replies[0].record.arrays:
        return EvaluationRecord(num_examples=num_examples, loss=loss, scores=means)
    matrices = [reply.record.arrays[f"{split}_confusion"].astype(np.int64) for reply in replies]
    found = evaluation_of(sum(matrices, np.zeros_like(matrices[0])), loss)
    return dataclasses.replace(found, scores=means)


def _scores_of(reply: Reply, split: str, scores: Scores) -> dict[str, float]:
    """The scores of one client's model, as told or as its confusion matrix has them."""
    metrics, matrix = reply.record.metrics, reply.record.arrays.get(f"{split}_confusion")
    found = {} if matrix is None else evaluation_of(matrix.astype(np.int64), 0.0).scores
    return {
        name: found[name] if name in found else float(metrics[f"{split}_{name}"])
        for name in scores.names
    }


def _average(values: Iterable[float]) -> float:
    found = [float(value) for value in values]
    return sum(found) / len(found)
