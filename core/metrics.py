"""Metrics of classification, all from one confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from core.records import EvaluationRecord
from core.scores import ACCURACY, MACRO_F1


def evaluation_of(confusion: npt.NDArray[np.int64], mean_loss: float) -> EvaluationRecord:
    """Accuracy, macro-F1 and per-class accuracy.

    Macro-F1 is the mean of the classes' F1; a class never seen nor predicted counts 0.

    Args:
        confusion: Counts, shape (C, C), row = true class, column = predicted class; not all zero.
        mean_loss: Mean cross-entropy, nats.

    >>> record = evaluation_of(np.array([[2, 0, 0], [1, 1, 0], [0, 0, 0]]), 0.5)
    >>> record.primary, record.per_class_accuracy
    (0.75, [1.0, 0.5, None])
    """
    correct = np.diag(confusion).astype(np.float64)
    true, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    support = np.maximum(true + predicted, 1)
    return EvaluationRecord(
        num_examples=int(true.sum()),
        loss=mean_loss,
        scores={
            ACCURACY.name: float(correct.sum() / true.sum()),
            MACRO_F1.name: float((2 * correct / support).mean()),
        },
        per_class_accuracy=[
            float(hits / count) if count else None
            for hits, count in zip(correct, true, strict=True)
        ],
        confusion=confusion.tolist(),
    )


def expected_accuracy(
    per_class_accuracy: Sequence[float | None], class_counts: Sequence[int]
) -> float:
    """Accuracy to be expected under another mix of the same classes.

    Args:
        per_class_accuracy: As in `expected_accuracies`.
        class_counts: The mix, shape (C,).

    >>> expected_accuracy([1.0, 0.5, None], [30, 10, 7])
    0.875
    """
    return float(expected_accuracies(per_class_accuracy, np.array([class_counts], np.int64))[0])


def expected_accuracies(
    per_class_accuracy: Sequence[float | None], class_counts: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """`expected_accuracy` of many clients.

    Under label skew, where clients differ in nothing but their class shares, this is a client's
    accuracy on its own distribution, measured on all test images instead of its few.

    Args:
        per_class_accuracy: Recall of each class, shape (C,); None where it is not known.
        class_counts: Each client's mix, shape (K, C); classes of unknown recall are left out of it.

    Returns:
        float64, shape (K,); 0 for a client that holds no class of known recall.
    """
    hits = np.zeros(len(class_counts))
    totals = np.zeros(len(class_counts), np.int64)
    # Class by class in this order, since a library's matrix product sums in an order of its own.
    for recall, counts in zip(per_class_accuracy, class_counts.T, strict=True):
        if recall is not None:
            hits += recall * counts
            totals += counts
    return hits / np.maximum(totals, 1)
