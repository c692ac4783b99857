"""Errors that users meet, each with the exit code the command line ends with.

A message echoes the value, states the rule and names the way out. Broken invariants are
`assert`s, never one of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

INTERRUPTED = 130
"""What a command ends with that the user interrupted, as shells have it."""


class TesseraError(ValueError):
    """Base of every error a user can mend."""

    exit_code: ClassVar[int] = 1


class DataError(TesseraError):
    """Data is missing, unreadable or unfit for the configuration."""

    exit_code = 3


class RunError(TesseraError):
    """A federation started and could not go on."""

    exit_code = 4


class PrivacyError(RunError):
    """What was about to be done would break a promise of privacy; it was not done."""


class QuorumError(RunError):
    """Too few clients joined, or too few replies came, for the federation to go on."""

    exit_code = 6


class DivergedError(RunError):
    """A federation whose numbers were no longer of use; it would end so again."""


class RecordError(TesseraError):
    """A run folder or one of its files is missing, foreign or damaged."""

    exit_code = 5


class BusyError(RecordError):
    """Another process writes to a run folder, which may well be whole."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a configuration.

    Attributes:
        key: The configuration key, as the user writes it.
        value: The value given, as text; empty when the key itself is the problem.
        rule: What is allowed, as a full clause.
    """

    key: str
    value: str
    rule: str

    def __str__(self) -> str:
        given = f"{self.key}={self.value}" if self.value else self.key
        return f"{given}: {self.rule}"


class ConfigError(TesseraError):
    """A configuration is refused; carries every problem found, not only the first."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        assert problems, "a ConfigError needs at least one problem"
        self.problems = tuple(problems)
        noun = "problem" if len(self.problems) == 1 else "problems"
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        super().__init__(f"{len(self.problems)} configuration {noun}:\n{lines}")
