"""Metrics against scikit-learn."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, recall_score

from core.metrics import evaluation_of, expected_accuracies, expected_accuracy

LABELS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


@given(LABELS)
def test_metrics_are_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    true, predicted = zip(*pairs, strict=True)
    names = list(range(4))
    record = evaluation_of(confusion_matrix(true, predicted, labels=names).astype(np.int64), 0.1)
    assert record.num_examples == len(pairs)
    assert record.primary == pytest.approx(accuracy_score(true, predicted))
    expected = f1_score(true, predicted, labels=names, average="macro", zero_division=0)
    assert record.scores["macro_f1"] == pytest.approx(expected)
    recalls = recall_score(true, predicted, labels=names, average=None, zero_division=0)
    assert record.per_class_accuracy is not None
    for label, (ours, theirs) in enumerate(zip(record.per_class_accuracy, recalls, strict=True)):
        if label in true:
            assert ours == pytest.approx(theirs)
        else:
            assert ours is None


def test_expected_accuracy_under_the_test_mix_is_the_accuracy() -> None:
    confusion = np.array([[8, 2, 0], [1, 4, 0], [0, 5, 5]])
    record = evaluation_of(confusion, 0.0)
    counts = confusion.sum(axis=1).tolist()
    assert record.per_class_accuracy is not None
    assert expected_accuracy(record.per_class_accuracy, counts) == pytest.approx(record.primary)
    assert expected_accuracy(record.per_class_accuracy, [0, 0, 3]) == 0.5


@given(
    st.lists(st.none() | st.floats(0, 1), min_size=3, max_size=3),
    st.lists(st.lists(st.integers(0, 500), min_size=3, max_size=3), min_size=1, max_size=6),
)
def test_expected_accuracies_are_means_weighted_by_each_clients_counts(
    recalls: list[float | None], counts: list[list[int]]
) -> None:
    found = expected_accuracies(recalls, np.array(counts, np.int64))
    assert found.shape == (len(counts),)
    for ours, own in zip(found.tolist(), counts, strict=True):
        known = [(Fraction(r), n) for r, n in zip(recalls, own, strict=True) if r is not None]
        total = sum(n for _, n in known)
        exact = sum(r * n for r, n in known) / total if total else 0
        assert ours == pytest.approx(float(exact), rel=1e-12)
        assert ours == expected_accuracy(recalls, own)
