"""What ``tessera compare --dry-run`` tells of a suite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from core.scores import Scores
from experiments import tuning
from experiments.execution import NOTHING_TO_RUN, Action, Placeless, placeless, runs_to_check
from experiments.plan import Plan
from experiments.suite import Suite, SuiteRun, judged_by, plan_suite
from experiments.tuning import Tuned, read_tuned
from privacy.statement import figure
from report.tables import NO_NOISE, NONE, plain_bytes

Foreseen = Literal[Action, "untold"]
"""``untold``: what is done about the run depends on which candidate wins."""

_WORDS: Mapping[Foreseen, str] = {
    "done": "done",
    "todo": "to do",
    "incomplete": "to go on",
    "outdated": "outdated",
    "damaged": "damaged",
    "failed": "failed",
    "tuned": "tuned",
    "same": "same",
    "untold": "after tuning",
}


@dataclass(frozen=True, slots=True)
class ForeseenRun:
    """One run, and what would be done about it.

    Attributes:
        run: Of a method whose winner is not known, the first candidate's in its place.
        foreseen: What would be done.
        plan: None where the winner is not known.
    """

    run: SuiteRun
    foreseen: Foreseen
    plan: Plan | None


@dataclass(frozen=True, slots=True)
class ForeseenSuite:
    """A suite as it would be run.

    Attributes:
        suite: Which.
        scores: What its runs are judged by.
        tuned: What is on record of its tunings.
        runs: Candidates' first; without those of methods whose candidates all failed.
    """

    suite: Suite
    scores: Scores
    tuned: tuple[Tuned, ...]
    runs: tuple[ForeseenRun, ...]

    @property
    def num_to_do(self) -> int:
        """Runs that would be computed, from their start or further."""
        awaited = sum(
            one.tuning.num_finals - len(one.tuning.seeds) for one in self.tuned if not one.settled
        )
        known = [
            r for r in self.runs if r.foreseen not in (*NOTHING_TO_RUN, "tuned", "same", "untold")
        ]
        return len(known) + awaited


def foresee(suite: Suite) -> ForeseenSuite:
    """Check every run without starting one, and look at what is on record.

    Raises:
        TesseraError: A run is refused; see `experiments.suite.plan_suite` and `judged_by`.
    """
    tuned = tuple(map(read_tuned, suite.tunings))
    winners = [one.winner.candidate for one in tuned if one.winner is not None]
    awaited = [one.tuning.candidates[0] for one in tuned if not one.settled]
    trials = [run for one in suite.tunings for c in one.candidates for run in c.trials]
    known = suite.final_runs(winners)
    checked = list({r.name: r for r in [*runs_to_check(suite), *trials, *known]}.values())
    planned = plan_suite(checked)
    scores = judged_by(suite, checked, planned)
    plans = {run.name: plan for run, plan in zip(checked, planned, strict=True)}
    made = {(run.method, run.config.identity()) for w in winners for run in w.trials}
    untold = {run.name for candidate in awaited for run in candidate.finals}
    runs = [ForeseenRun(run, run.state(), plans[run.name]) for run in trials]
    twins: set[Placeless] = set()
    for run in suite.final_runs([*winners, *awaited]):
        is_twin = placeless(run) in twins
        twins.add(placeless(run))
        if run.name in untold:
            runs.append(ForeseenRun(run, "untold", None))
        else:
            state = run.state()
            tried = (run.method, run.config.identity()) in made
            foreseen: Foreseen = state
            if state not in NOTHING_TO_RUN and (tried or is_twin):
                foreseen = "tuned" if tried else "same"
            runs.append(ForeseenRun(run, foreseen, plans[run.name]))
    return ForeseenSuite(suite, scores, tuned, tuple(runs))


def dry_json(foreseen: ForeseenSuite) -> dict[str, Any]:
    """For programs."""
    suite = foreseen.suite
    return {
        "dry_run": True,
        "suite": suite.name,
        "folder": str(suite.folder),
        "runs_left": foreseen.num_to_do,
        "tuning": tuning.to_json(foreseen.tuned, foreseen.scores.primary),
        "runs": [_run_json(one) for one in foreseen.runs],
    }


def _run_json(one: ForeseenRun) -> dict[str, Any]:
    run, plan = one.run, one.plan
    return {
        "name": run.name,
        "method": run.method,
        "setting": run.setting,
        "seed": run.config.seed,
        "tunes": run.tunes,
        "state": one.foreseen,
        "identity": run.config.identity() if plan else None,
        "total_bytes_up": plan.predicted.total_up if plan else None,
        "total_bytes_down": plan.predicted.total_down if plan else None,
        "images_sent": plan.privacy.images_sent if plan else None,
        "noise_multiplier": plan.noise.noise_multiplier if plan and plan.noise else None,
        "epsilon": plan.noise.whole_run.value if plan and plan.noise else None,
        "epsilon_per_round": plan.noise.per_round.value if plan and plan.noise else None,
        "accountant": plan.noise.accountant if plan and plan.noise else None,
    }


def dry_text(foreseen: ForeseenSuite) -> str:
    """For readers: a line per run."""
    suite = foreseen.suite
    private = any(one.run.config.privacy.is_private for one in foreseen.runs)
    head = ("state", "run", "up", "down", *_NOISE_HEAD * private)
    lines = [head, *((*_line(one), *_noise(one) * private) for one in foreseen.runs)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = "".join(
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + "\n"
        for line in lines
    )
    return (
        f"{text}\n{_tunings(foreseen.tuned)}{foreseen.num_to_do} of {suite.num_runs} runs to do in "
        f"{suite.folder}\nwhat was cut off would go on; what is outdated or damaged would be moved "
        "aside\nnothing was started or written\n"
    )


def _line(one: ForeseenRun) -> tuple[str, str, str, str]:
    sent = [NONE, NONE]
    if one.plan is not None:
        predicted = one.plan.predicted
        sent = [plain_bytes(predicted.total_up), plain_bytes(predicted.total_down)]
    return (_WORDS[one.foreseen], one.run.title, sent[0], sent[1])


_NOISE_HEAD = ("sigma", "epsilon of a round", "of the run")


def _noise(one: ForeseenRun) -> tuple[str, str, str]:
    """Sigma and what it costs."""
    if not one.run.config.privacy.is_private:
        return (NO_NOISE, NONE, NONE)
    noise = one.plan.noise if one.plan is not None else None
    if noise is None:
        return (NONE, NONE, NONE)
    return (
        figure(noise.noise_multiplier),
        figure(noise.per_round.value),
        figure(noise.whole_run.value),
    )


def _tunings(tuned: Sequence[Tuned]) -> str:
    """What is known of the winners."""
    lines = []
    for one in tuned:
        where = f"{one.tuning.method}, tuned {one.where}"
        if one.winner is not None:
            lines.append(f"{where}: takes {one.winner.candidate.text}\n")
        elif one.failed:
            lines.append(f"{where}: all candidates failed; it would not be run\n")
        else:
            lines.append(
                f"{where}: its keys, and so its bytes, are known once candidates have run\n"
            )
    return "".join(lines)
