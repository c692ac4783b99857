"""What a workload is judged by: its scores, the first of which is its primary one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_TAKEN = re.compile(r"loss|worst_client_.*")


@dataclass(frozen=True, slots=True)
class Score:
    """One number that a model is judged by on a split.

    Attributes:
        name: Its key in records, such as ``recall_at_1``.
        label: What readers know it as, such as ``R@1``, as it stands within a sentence.
        is_percent: Whether it is a share in [0, 1], which is shown as percent.
        higher_is_better: Whether the greater of two values is the better one.
    """

    name: str
    label: str
    is_percent: bool
    higher_is_better: bool = True

    @property
    def factor(self) -> int:
        """What a value is multiplied by where it is shown."""
        return 100 if self.is_percent else 1

    @property
    def unit(self) -> str:
        """What follows a value where it is shown; empty for a plain number."""
        return "%" if self.is_percent else ""

    def heading(self, text: str) -> str:
        """A heading over values of this score, with its unit.

        >>> ACCURACY.heading("Worst client")
        'Worst client, %'
        """
        return f"{text}, %" if self.is_percent else text

    def text(self, value: float) -> str:
        """A value as a line of text tells it.

        >>> ACCURACY.text(0.9321), Score("median_rank", "median rank", False, False).text(12.5)
        ('93.21%', '12.5')
        """
        return f"{value:.2%}" if self.is_percent else f"{value:.5g}"

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Score:
        """Read back `to_json`.

        Raises:
            ValueError: Fields are missing, unknown or of the wrong type.
        """
        kinds = {"name": str, "label": str, "is_percent": bool, "higher_is_better": bool}
        if not isinstance(values, Mapping) or values.keys() != kinds.keys():
            raise ValueError(f"{values!r} is no score, which has {', '.join(kinds)}")
        for key, kind in kinds.items():
            if not isinstance(values[key], kind):
                raise ValueError(f"{key}={values[key]!r} of a score must be a {kind.__name__}")
        return cls(**values)


class Scores(tuple[Score, ...]):
    """The scores of one workload, in the order in which they are shown.

    The first is the primary one: choices are made on it and curves show it.

    >>> Scores([ACCURACY, MACRO_F1]).primary.name
    'accuracy'

    Raises:
        ValueError: There is none, a name is given twice or cannot be a key, a label is empty, or
            less is better of the primary one.
    """

    __slots__ = ()

    def __new__(cls, scores: Iterable[Score]) -> Self:
        """Check that they can stand beside each other."""
        self = super().__new__(cls, scores)
        if not self:
            raise ValueError("a workload needs at least one score")
        if not self.primary.higher_is_better:
            raise ValueError(
                f"primary score {self.primary.name}: the first score must be one of which higher "
                "is better, since choices take the highest; put another one first"
            )
        names = [score.name for score in self]
        for score in self:
            if not _NAME.fullmatch(score.name):
                raise ValueError(
                    f"score {score.name!r}: a name must be a lower-case letter, then lower-case "
                    "letters, digits and _, since it is a key"
                )
            if _TAKEN.fullmatch(score.name):
                raise ValueError(
                    f"score {score.name!r}: loss and worst_client_... have a place of their own "
                    "in records; give it another name"
                )
            if names.count(score.name) > 1:
                raise ValueError(f"score {score.name!r} is given twice; leave one out")
            if not score.label.strip():
                raise ValueError(f"score {score.name!r} has no label; give it one")
        return self

    @property
    def primary(self) -> Score:
        """What choices are made on."""
        return self[0]

    @property
    def names(self) -> tuple[str, ...]:
        """The keys in records."""
        return tuple(score.name for score in self)

    def to_json(self) -> list[dict[str, Any]]:
        """A JSON array."""
        return [score.to_json() for score in self]

    @classmethod
    def from_json(cls, values: Iterable[Mapping[str, Any]]) -> Self:
        """Read back `to_json`.

        Raises:
            ValueError: It is no list of scores, or they cannot be a workload's.
        """
        if not isinstance(values, list):
            raise ValueError(f"{values!r} is no list of scores")
        return cls(Score.from_json(value) for value in values)


def shared_scores(named: Iterable[tuple[str, Scores]]) -> Scores:
    """What runs are judged by together: their one primary score, then every other of any of them.

    Args:
        named: For each run, at least one, its name and its scores.

    Raises:
        ValueError: The primary scores of two runs differ, or they mean different scores by one
            name.
    """
    found: dict[str, tuple[str, Score]] = {}
    primary: tuple[str, Score] | None = None
    for run, scores in named:
        first, score = primary = primary or (run, scores.primary)
        if scores.primary != score:
            raise ValueError(
                f"{first} is judged by {score.label} ({score.name}), and {run} by "
                f"{scores.primary.label} ({scores.primary.name}), which do not compare; put them "
                "apart"
            )
        for one in scores:
            other, known = found.setdefault(one.name, (run, one))
            if known != one:
                raise ValueError(
                    f"{other} and {run} mean different scores by {one.name}: {known} and {one}; "
                    "put them apart"
                )
    return Scores(score for _, score in found.values())


ACCURACY = Score("accuracy", "accuracy", is_percent=True)
MACRO_F1 = Score("macro_f1", "macro-F1", is_percent=True)
CLASSIFICATION = Scores([ACCURACY, MACRO_F1])
"""What image classification is judged by, and every run was before workloads said so."""
