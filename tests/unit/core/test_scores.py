"""What may be the scores of a workload."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest

from core.scores import ACCURACY, CLASSIFICATION, MACRO_F1, Score, Scores

RECALL = Score("recall_at_1", "R@1", is_percent=True)
RANK = Score("median_rank", "median rank", is_percent=False, higher_is_better=False)


def test_the_first_score_is_the_primary_one() -> None:
    scores = Scores([RECALL, RANK])
    assert scores.primary is RECALL
    assert scores.names == ("recall_at_1", "median_rank")
    assert scores == (RECALL, RANK)


def test_choices_cannot_be_made_on_a_score_of_which_less_is_better() -> None:
    with pytest.raises(
        ValueError, match="median_rank: the first score must be one of which higher"
    ):
        Scores([RANK, RECALL])


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ([], "at least one score"),
        ([RECALL, RECALL], "'recall_at_1' is given twice"),
        ([replace(RECALL, name="R@1")], "'R@1': a name must be a lower-case letter"),
        ([replace(RECALL, name="a/b")], "'a/b': a name must be"),
        ([replace(RECALL, name="loss")], "'loss': .* a place of their own"),
        ([RECALL, replace(RANK, name="worst_client_recall_at_1")], "a place of their own"),
        ([replace(RECALL, label=" ")], "'recall_at_1' has no label"),
    ],
)
def test_scores_that_cannot_stand_in_records_are_refused(scores: list[Score], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Scores(scores)


def test_scores_are_read_back_as_they_were() -> None:
    scores = Scores([RECALL, RANK])
    assert Scores.from_json(scores.to_json()) == scores
    assert isinstance(pickle.loads(pickle.dumps(scores)), Scores)
    assert CLASSIFICATION.to_json() == [
        {"name": "accuracy", "label": "accuracy", "is_percent": True, "higher_is_better": True},
        {"name": "macro_f1", "label": "macro-F1", "is_percent": True, "higher_is_better": True},
    ]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("accuracy", "is no list of scores"),
        (["accuracy"], "'accuracy' is no score, which has name, label"),
        ([{"name": "a", "label": "a"}], "is no score"),
        ([{**RECALL.to_json(), "is_percent": 1}], "is_percent=1 of a score must be a bool"),
        ([RANK.to_json()], "higher is better"),
    ],
)
def test_what_is_no_list_of_scores_is_refused(value: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Scores.from_json(value)


def test_a_share_is_shown_as_percent_and_a_number_as_it_is() -> None:
    assert (ACCURACY.text(0.5), RANK.text(0.5)) == ("50.00%", "0.5")
    assert (MACRO_F1.heading("Test"), RANK.heading("Test")) == ("Test, %", "Test")
    assert (ACCURACY.factor * 0.5, RANK.factor * 0.5) == (50, 0.5)
