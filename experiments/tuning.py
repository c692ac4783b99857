"""Which candidate of a grid a method takes: the one of highest mean primary score on validation.

That is the mean over the tuning's seeds, in the last evaluated round; of equals the first in the
grid. A candidate with a run that diverged loses. One with a run that failed otherwise is neither in
nor out, and the choice waits. Test figures are not read: the test set has no part in the choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from core.scores import ACCURACY, Score
from experiments.suite import Candidate, Suite, SuiteRun, Tuning, last_validation
from report.tables import NONE, Statistic, score_text, seeds_text


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of one run of a candidate, as far as it is known.

    Attributes:
        validation: Primary score on validation in the last evaluated round; None before the run is
            complete.
        failure: Why it never will be: how it diverged; None unless so.
        mishap: What it stopped at otherwise, which need not come again; None unless so.
    """

    validation: float | None = None
    failure: str | None = None
    mishap: str | None = None


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of one candidate.

    Attributes:
        candidate: Which.
        trials: One for each seed of the tuning.
    """

    candidate: Candidate
    trials: tuple[Trial, ...]

    @property
    def failure(self) -> str | None:
        """Why it loses; None unless one of its runs diverged."""
        return next((trial.failure for trial in self.trials if trial.failure is not None), None)

    @property
    def mishap(self) -> str | None:
        """What keeps it from being settled; None where nothing does, or nothing is known."""
        found = (trial.mishap for trial in self.trials if trial.mishap is not None)
        return None if self.settled else next(found, None)

    @property
    def validation(self) -> Statistic | None:
        """Over the seeds; None where one of them is missing."""
        scores = [trial.validation for trial in self.trials]
        return None if None in scores else Statistic.of(scores)

    @property
    def settled(self) -> bool:
        """Whether nothing of it is left to run."""
        return self.failure is not None or self.validation is not None


@dataclass(frozen=True, slots=True)
class Tuned:
    """What came of one tuning.

    Attributes:
        tuning: Which.
        tried: Every candidate, in the order of the grid.
    """

    tuning: Tuning
    tried: tuple[Tried, ...]

    @property
    def settled(self) -> bool:
        """Whether nothing of it is left to run."""
        return all(tried.settled for tried in self.tried)

    @property
    def failed(self) -> bool:
        """Whether every candidate diverged."""
        return all(tried.failure is not None for tried in self.tried)

    @property
    def winner(self) -> Tried | None:
        """The candidate taken; None where all diverged, and before all are settled."""
        standing = [t for t in self.tried if t.failure is None] if self.settled else []
        return max(standing, key=_mean, default=None)  # of equals the first

    @property
    def where(self) -> str:
        """Setting and seeds, to follow "tuned"."""
        setting, seeds = self.tuning.setting, self.tuning.seeds
        under = f"under {setting} " if setting else ""
        return f"{under}on {'seed' if len(seeds) == 1 else 'seeds'} {seeds_text(sorted(seeds))}"


def _mean(tried: Tried) -> float:
    assert tried.validation is not None, "a candidate that stands has all its seeds"
    return tried.validation.mean


def read_trial(run: SuiteRun) -> Trial:
    """What is on record of a candidate's run.

    A run that diverged would end so again, and is settled. One that was cut off, failed for another
    reason or cannot be read is not.
    """
    found = run.look()
    if found.state == "failed":
        return Trial(failure=found.reason)
    if found.state == "incomplete" and found.reason:
        return Trial(mishap=found.reason)
    return Trial(last_validation(found.run) if found.run else None)


def read_tuned(tuning: Tuning) -> Tuned:
    """What is on record of all candidates."""
    return Tuned(
        tuning, tuple(Tried(c, tuple(map(read_trial, c.trials))) for c in tuning.candidates)
    )


def to_json(tuned: Sequence[Tuned], score: Score) -> list[dict[str, Any]]:
    """For programs: the content of ``tuning.json``. Shares are in [0, 1]."""
    key = f"validation_{score.name}"
    by_seed = "validation_accuracies" if score == ACCURACY else f"{key}_by_seed"
    return [
        {
            "method": one.tuning.method,
            "setting": one.tuning.setting or None,
            "seeds": list(one.tuning.seeds),
            "settled": one.settled,
            "winner": one.winner.candidate.label if one.winner else None,
            "keys": dict(one.winner.candidate.keys) if one.winner else None,
            "candidates": [
                {
                    "label": tried.candidate.label,
                    "keys": dict(tried.candidate.keys),
                    "runs": [run.name for run in tried.candidate.trials],
                    by_seed: [trial.validation for trial in tried.trials],
                    key: asdict(v) if (v := tried.validation) else None,
                    "failure": tried.failure,
                    "mishap": tried.mishap,
                }
                for tried in one.tried
            ],
        }
        for one in tuned
    ]


def to_text(tuned: Sequence[Tuned], score: Score) -> str:
    """For a terminal: every candidate's score on validation and what was taken."""
    return "\n".join(_block(one, score) for one in tuned)


def _block(one: Tuned, score: Score) -> str:
    heading = score.heading(f"validation {score.label} after the last round")
    lines = [f"{one.tuning.method}, tuned {one.where}: {heading}"]
    width = max(len(tried.candidate.text) for tried in one.tried)
    for tried in one.tried:
        if tried.failure is not None:
            told = f"failed: {first_line(tried.failure)}"
        elif tried.mishap is not None:
            told = f"{NONE}  to be tried again: {first_line(tried.mishap)}"
        else:
            told = score_text(tried.validation, score) + ("  taken" if tried is one.winner else "")
        lines.append(f"  {tried.candidate.text:{width}}  {told}")
    if one.failed:
        lines.append(f"  {one.tuning.method} has no candidate left and is not run")
    elif not one.settled:
        lines.append("  none is taken yet: not all have been tried")
    return "".join(f"{line}\n" for line in lines)


def sentences(suite: Suite, tuned: Sequence[Tuned], score: Score) -> list[str]:
    """How each method was tuned, for readers of its figures; empty where none has a grid."""
    plain = [label for label in suite.methods if label in {run.method for run in suite.runs}]
    verb = "was" if len(plain) == 1 else "were"
    untuned = [f"{', '.join(plain)} {verb} not tuned."] if tuned and plain else []
    return [_sentence(one, score) for one in tuned] + untuned


def _sentence(one: Tuned, score: Score) -> str:
    method, count = one.tuning.method, len(one.tried)
    failed = sum(tried.failure is not None for tried in one.tried)
    losses = f" {failed} of them failed." if failed else ""
    if one.failed:
        reason = first_line(one.tried[0].failure or "")
        return f"{method} was tuned {one.where}: all {count} candidates failed ({reason})."
    if one.winner is None:
        stopped = [f"{t.candidate.text}: {first_line(t.mishap)}" for t in one.tried if t.mishap]
        why = f" ({'; '.join(stopped)})" if stopped else ""
        return (
            f"{method} is being tuned {one.where}: its {count} candidates have not all been "
            f"tried{why}."
        )
    tried = "; ".join(f"{key} {values}" for key, values in _values(one.tuning).items())
    return (
        f"{method} was tuned {one.where} over {count} candidates ({tried}): "
        f"{one.winner.candidate.text} has the highest validation {score.label} after the last "
        f"round, {score_text(one.winner.validation, score)}{' %' * score.is_percent}.{losses}"
    )


def _values(tuning: Tuning) -> dict[str, str]:
    """The values tried, by key."""
    every = [candidate.values for candidate in tuning.candidates]
    return {key: ", ".join(dict.fromkeys(values[key] for values in every)) for key in every[0]}


def first_line(text: str) -> str:
    """Enough of a failure for a table; a trace may follow."""
    return (text.splitlines() or [""])[0]
