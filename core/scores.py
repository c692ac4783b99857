"""What workloads are judged by: named numbers, of which the first is the one that counts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.errors import RecordError


@dataclass(frozen=True, slots=True)
class Score:
    """One number of an evaluation.

    Attributes:
        name: Its key in records, such as ``recall_at_1``.
        label: As it is shown, such as ``recall at 1``.
        is_percent: Whether it is a share, 0 to 1, and shown as percent.
        higher_is_better: Whether more of it is better; so it must be for the first of a workload.
    """

    name: str
    label: str
    is_percent: bool
    higher_is_better: bool = True

    def text(self, value: float) -> str:
        """`value` as it is shown.

        >>> ACCURACY.text(0.93214), Score("rank", "rank", False, False).text(3.0)
        ('93.21%', '3')
        """
        return f"{value:.2%}" if self.is_percent else f"{value:.4g}"


ACCURACY = Score("accuracy", "accuracy", is_percent=True)
MACRO_F1 = Score("macro_f1", "macro-F1", is_percent=True)

CLASSIFICATION = (ACCURACY, MACRO_F1)
"""Scores of every workload that tells classes; of any other its confusion matrix is None."""


def scores_to_json(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """For ``run.json``."""
    assert scores and scores[0].higher_is_better, "choices are made on the most of the first"
    return [dataclasses.asdict(score) for score in scores]


def scores_from_json(value: object) -> tuple[Score, ...]:
    """Read back `scores_to_json`; None, of a run before scores were named, is classification.

    Raises:
        RecordError: It is neither.
    """
    if value is None:
        return CLASSIFICATION
    try:
        if not isinstance(value, list) or not value:
            raise TypeError("no list of scores")
        found = tuple(_score(one) for one in value)
    except TypeError as error:
        raise RecordError(f"scores {value!r} do not fit: {error}") from error
    return found


def _score(value: Mapping[str, Any]) -> Score:
    score = Score(**value)
    if not (isinstance(score.name, str) and isinstance(score.label, str)):
        raise TypeError(f"{value!r} is no score")
    return score
