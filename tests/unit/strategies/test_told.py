from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from core.metrics import evaluation_of
from core.records import EvaluationRecord
from core.scores import ACCURACY, CLASSIFICATION, MACRO_F1, Score, Scores
from core.wire import Record
from strategies.base import Reply
from strategies.told import pooled, tell, told_faults, told_spec

RANKS = Scores(
    [
        Score("recall", "recall", is_percent=True),
        Score("rank", "rank", is_percent=False, higher_is_better=False),
    ]
)
TOP_5 = Score("top_5", "top-5 accuracy", is_percent=True)
FIRST, SECOND = np.array([[3, 1], [0, 4]]), np.array([[2, 2], [4, 0]])


def reply(k: int, confusion: np.ndarray, loss: float, counts: list[int]) -> Reply:
    judged = evaluation_of(confusion, loss)
    arrays, metrics = tell(judged, judged, counts)
    return Reply(k, Record(arrays, metrics))


def test_with_classes_matrices_are_added_and_scores_averaged() -> None:
    told = {4: reply(4, SECOND, 3.0, [1, 3]), 1: reply(1, FIRST, 1.0, [1, 1])}
    found = pooled(told, CLASSIFICATION, {"validation": 8, "test": 8}, 5)
    assert found is not None
    assert found.test.confusion == [[5, 3], [4, 4]] and found.test.loss == 2.0
    # Recalls are 3/4 and 1, and 1/2 and 0; accuracies 7/8 and 2/8.
    assert found.test.primary == pytest.approx((7 / 8 + 2 / 8) / 2)
    assert found.client_scores == [None, pytest.approx(0.875), None, None, pytest.approx(0.125)]
    f1 = [evaluation_of(matrix, 0.0).scores["macro_f1"] for matrix in (FIRST, SECOND)]
    assert found.validation.scores["macro_f1"] == pytest.approx(sum(f1) / 2)


def test_without_classes_scores_are_averaged() -> None:
    def of(recall: float, rank: float, loss: float) -> EvaluationRecord:
        return EvaluationRecord(num_examples=6, loss=loss, scores={"recall": recall, "rank": rank})

    told = {
        k: Reply(k, Record(*tell(of(recall, 9.0, 0.5), of(recall, rank, 1.5), [])))
        for k, recall, rank in ((0, 0.25, 3.0), (1, 0.75, 1.0))
    }
    found = pooled(told, RANKS, {"validation": 6, "test": 5}, 2)
    assert found is not None
    assert found.test == EvaluationRecord(
        num_examples=5, loss=1.5, scores={"recall": 0.5, "rank": 2.0}
    )
    assert found.validation.scores == {"recall": 0.5, "rank": 9.0}
    assert found.client_scores == [0.25, 0.75]
    assert pooled({}, RANKS, {"validation": 6, "test": 5}, 2) is None


@pytest.mark.parametrize(("scores", "num_classes"), [(CLASSIFICATION, 2), (RANKS, 0)])
def test_what_is_told_fits_its_form(scores: Scores, num_classes: int) -> None:
    judged = (
        evaluation_of(FIRST, 0.5)
        if num_classes
        else EvaluationRecord(num_examples=3, loss=0.5, scores={"recall": 1.0, "rank": 1.0})
    )
    arrays, metrics = tell(judged, judged, [1, 1])
    assert told_spec(scores, num_classes).violations(Record(arrays, metrics)) == []


def test_what_cannot_be_is_refused() -> None:
    honest = reply(0, FIRST, 1.0, [1, 1])
    assert told_faults(honest, CLASSIFICATION) == []
    arrays = {**honest.record.arrays, "test_confusion": FIRST - 2}
    metrics = {**honest.record.metrics, "own_score": 1.5}
    assert told_faults(Reply(0, Record(arrays, metrics)), CLASSIFICATION) == [
        "own_score is 1.5, expected 0 to 1",
        "test_confusion holds -2, expected counts of at least one image",
    ]
    unequal = {"test_recall": 50.0, "test_rank": 50.0}
    assert told_faults(Reply(0, Record(metrics=unequal)), RANKS) == [
        "test_recall is 50, expected 0 to 1"
    ]


@pytest.mark.parametrize(
    "scores",
    [
        Scores([ACCURACY, MACRO_F1, TOP_5]),
        Scores([TOP_5, ACCURACY]),
        Scores([MACRO_F1]),
        Scores([ACCURACY]),
    ],
    ids=lambda scores: "+".join(scores.names),
)
def test_scores_beside_those_of_a_matrix_are_told_too(scores: Scores) -> None:
    """Whatever a workload with classes is judged by, all of it arrives, in its order."""
    told, own = {}, []
    for k, (confusion, top) in enumerate([(FIRST, 0.9), (SECOND, 0.7)]):
        found = evaluation_of(confusion, 1.0)
        values = {**found.scores, "top_5": top}
        judged = dataclasses.replace(found, scores={name: values[name] for name in scores.names})
        arrays, metrics = tell(judged, judged, [1, 3])
        assert told_spec(scores, 2).violations(Record(arrays, metrics)) == []
        told[k] = Reply(k, Record(arrays, metrics))
        recalls = np.diag(confusion) / confusion.sum(axis=1)
        by_accuracy = (recalls[0] + 3 * recalls[1]) / 4
        own.append(by_accuracy if scores.primary == ACCURACY else judged.primary)
    pool = pooled(told, scores, {"validation": 8, "test": 8}, 2)
    assert pool is not None and pool.test.confusion == (FIRST + SECOND).tolist()
    each = [{**evaluation_of(m, 1.0).scores, "top_5": t} for m, t in ((FIRST, 0.9), (SECOND, 0.7))]
    means = {name: (each[0][name] + each[1][name]) / 2 for name in scores.names}
    assert list(pool.test.scores) == list(means)
    assert pool.test.scores == pytest.approx(means)
    assert pool.client_scores == pytest.approx(own)
