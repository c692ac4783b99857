"""Methods of a suite against one of them, seed by seed.

Reads the runs of a suite that ``tessera compare`` has run to its end, and prints for each setting
and method a score on test after the last round, the primary one if no other is named: mean and
standard deviation over seeds; how far it lies from the reference's, paired by seed, with the 95%
interval of Student's t; and seconds of client work in a round, of all clients together, the least
of all rounds and seeds: in others the machine may have done something else.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from scipy.stats import t as student

from core.errors import ConfigError, RunError, TesseraError
from core.scores import Score
from experiments.suite import read_suite
from report.loading import LoadedRun
from report.methods import judged_by

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is compared of one run.

    Attributes:
        value: Of the score on test data after the last round; a share is in [0, 1].
        client_s: Seconds of client work in the round that took least.
    """

    value: float
    client_s: float

    @classmethod
    def of(cls, run: LoadedRun, score: Score) -> Outcome:
        """Of a complete run that is judged by `score`."""
        final = run.final
        assert final is not None and final.test is not None, "a complete run was judged"
        spent = [record.seconds["client_sum"] for record in run.rounds if record.round > 0]
        return cls(final.test.scores[score.name], min(spent))


Runs = dict[tuple[str, str], dict[int, LoadedRun]]
Outcomes = dict[tuple[str, str], dict[int, Outcome]]
"""By setting and method, by seed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("suite", type=Path, metavar="SUITE.toml", help="a suite that has run")
    parser.add_argument(
        "--reference", required=True, metavar="METHOD", help="label of the method to compare with"
    )
    parser.add_argument(
        "--score",
        action="append",
        metavar="NAME",
        help="such as median_rank; may be given again, for a table each; default: the primary one",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the table; returns the exit code."""
    try:
        runs = complete_runs(arguments.suite)
        if arguments.reference not in (labels := {method for _, method in runs}):
            told = ", ".join(sorted(labels))
            raise RunError(f"--reference={arguments.reference}: must be one of {told}")
        tables = [
            table(outcomes(runs, score), arguments.reference, score)
            for score in _scores(arguments.score, arguments.reference, runs)
        ]
        print("\n\n".join(tables))
    except TesseraError as error:
        print(f"python -m benchmarks paired: {error}", file=sys.stderr)
        return ConfigError.exit_code if isinstance(error, ConfigError) else error.exit_code
    return 0


def complete_runs(path: Path) -> Runs:
    """The runs of the suite at `path`, which tunes nothing.

    Raises:
        TesseraError: The suite cannot be read.
        RunError: A run is not complete.
    """
    found: Runs = {}
    for one in read_suite(path).runs:
        looked = one.look()
        if looked.run is None:
            raise RunError(f"{one.name} is {looked.state}; run tessera compare {path} to its end")
        found.setdefault((one.setting, one.method), {})[one.config.seed] = looked.run
    return found


def outcomes(runs: Runs, score: Score) -> Outcomes:
    """What came of every run that is judged by `score`."""
    judged = {
        key: {
            seed: Outcome.of(run, score)
            for seed, run in by_seed.items()
            if score.name in run.scores.names
        }
        for key, by_seed in runs.items()
    }
    return {key: by_seed for key, by_seed in judged.items() if by_seed}


def _scores(names: Sequence[str] | None, reference: str, runs: Runs) -> list[Score]:
    """Those of these names, or the primary one, of what the reference is judged by."""
    every = [run for by_seed in runs.values() for run in by_seed.values()]
    primary = judged_by(every).primary
    own = [
        run
        for (_, method), by_seed in runs.items()
        if method == reference
        for run in by_seed.values()
    ]
    by_name = {score.name: score for score in judged_by(own)}
    for name in names or ():
        if name not in by_name:
            raise RunError(
                f"--score={name}: {reference} is judged by {', '.join(by_name)}; name one of them"
            )
    return [by_name[name] for name in names] if names else [primary]


def table(found: Outcomes, reference: str, score: Score) -> str:
    """The comparison as Markdown; shares in percent, their differences in points."""
    points = ", points" if score.is_percent else ""
    lines = [
        f"| setting | method | {score.heading(f'test {score.label}')} | by seed "
        f"| minus {reference}{points} | 95% interval | client s a round, least |",
        "|---|---|---:|---|---:|---:|---:|",
    ]
    for (setting, method), by_seed in found.items():
        base = found[setting, reference]
        seeds = sorted(by_seed)
        values = [score.factor * by_seed[seed].value for seed in seeds]
        differences = [score.factor * (by_seed[s].value - base[s].value) for s in seeds]
        apart = ("-", "-") if method == reference else difference_text(differences)
        cells = [
            setting,
            method,
            f"{fmean(values):.2f} ± {_deviation(values):.2f}",
            ", ".join(f"{value:.2f}" for value in values),
            *apart,
            f"{min(by_seed[seed].client_s for seed in seeds):.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def difference_text(differences: Sequence[float]) -> tuple[str, str]:
    """Mean of paired differences and its interval."""
    mean, half = fmean(differences), half_interval(differences)
    return f"{mean:+.2f}", f"{mean - half:+.2f} to {mean + half:+.2f}"


def half_interval(values: Sequence[float]) -> float:
    """Half of the interval around the mean of independent normal values; infinite for one."""
    count = len(values)
    if count < 2:
        return math.inf
    quantile = float(student.ppf((1 + CONFIDENCE) / 2, count - 1))
    return quantile * stdev(values) / math.sqrt(count)


def _deviation(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else math.nan
