"""What MELTR's learned loss makes of each task over training: d MELTR / d l_t, its Figures 3 and 4.

Reads the runs of suites that ``tessera compare`` has run to their end, draws for each setting the
sensitivity to every task over rounds (mean over seeds, band from least to most), and prints for
each method, over the last quarter of the rounds, how far the harmful task's lies below the primary
one's: the mean of their difference over seeds, with the 95% interval of Student's t. As
sensitivities have no scale, their shares are compared too: each divided by the sum of all in
absolute value.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.paired import difference_text
from core.errors import RunError, TesseraError
from experiments.suite import read_suite
from report.loading import LoadedRun

FAMILY = "sensitivity/"
PRIMARY, HARMFUL = "classification", "random-labels"

_TICKS = (-2, -1, -0.5, 0, 0.5, 1, 2, 5, 10, 20, 50)

Series = Mapping[str, npt.NDArray[np.float64]]
"""By task, shape (seeds, rounds)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument(
        "suites", type=Path, nargs="+", metavar="SUITE.toml", help="suites that ran"
    )
    parser.add_argument("--method", default="aid-fp-lite", help="whose curves are drawn")
    parser.add_argument("--out", type=Path, required=True, help="the SVG file to write")


def run(arguments: argparse.Namespace) -> int:
    """Print the table and write the plot; returns the exit code."""
    try:
        found = {
            (path.stem, setting, method): series
            for path in arguments.suites
            for (setting, method), series in sensitivities(path).items()
        }
    except TesseraError as error:
        print(f"python -m benchmarks meltr_sensitivity: {error}", file=sys.stderr)
        return error.exit_code
    print(table(found))
    drawn = {k[:2]: series for k, series in found.items() if k[2] == arguments.method}
    draw(drawn, arguments.out)
    return 0


def sensitivities(path: Path) -> dict[tuple[str, str], Series]:
    """Every complete method that learns a loss, by setting and label.

    Raises:
        TesseraError: The suite cannot be read.
        RunError: A run is not complete.
    """
    runs: dict[tuple[str, str], dict[int, LoadedRun]] = {}
    for one in read_suite(path).runs:
        looked = one.look()
        if looked.run is None:
            raise RunError(f"{one.name} is {looked.state}; run tessera compare {path} to its end")
        runs.setdefault((one.setting, one.method), {})[one.config.seed] = looked.run
    found: dict[tuple[str, str], Series] = {}
    for key, by_seed in runs.items():
        ordered = [by_seed[seed] for seed in sorted(by_seed)]
        if all(run.rounds[-1].server.get("meta_updates") for run in ordered):
            tasks = [n for n in ordered[0].rounds[-1].server if n.startswith(FAMILY)]
            found[key] = {
                name.removeprefix(FAMILY): np.array(
                    [[r.server[name] for r in run.rounds if r.round > 0] for run in ordered]
                )
                for name in tasks
            }
    return found


def table(found: Mapping[tuple[str, str, str], Series]) -> str:
    """The harmful task's sensitivity less the primary one's, in the last quarter of the rounds."""
    lines = [
        "| suite | setting | optimizer | primary | harmful | harmful less primary | 95% interval "
        "| as shares | 95% interval |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for (suite, setting, method), series in found.items():
        last = {task: _last_quarter(values) for task, values in series.items()}
        total = np.sum([np.abs(values) for values in last.values()], axis=0)
        cells = [suite, setting, method]
        cells += [f"{last[task].mean():.2f}" for task in (PRIMARY, HARMFUL)]
        for difference in (
            last[HARMFUL] - last[PRIMARY],
            (last[HARMFUL] - last[PRIMARY]) / total,
        ):
            cells += difference_text(difference.tolist())
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _last_quarter(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean over the last quarter of the rounds, shape (seeds,)."""
    count = max(1, values.shape[1] // 4)
    mean: npt.NDArray[np.float64] = values[:, -count:].mean(axis=1)
    return mean


def draw(series: Mapping[tuple[str, str], Series], out: Path) -> None:
    """One panel for each setting, one line for each task."""
    from matplotlib.figure import Figure

    panels = sorted(series)
    figure = Figure(figsize=(3.4 * len(panels), 3.1), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    colours: Sequence[str] = ("#0072B2", "#E69F00", "#009E73", "#D55E00")
    for axis, key in zip(axes, panels, strict=True):
        for colour, (task, values) in zip(colours, sorted(series[key].items()), strict=False):
            rounds = np.arange(1, values.shape[1] + 1)
            style = "--" if task == HARMFUL else "-"
            axis.plot(rounds, values.mean(axis=0), style, color=colour, label=task)
            axis.fill_between(
                rounds, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, lw=0
            )
        suite, setting = key[0].removeprefix("meltr-"), key[1]
        axis.set_title(f"{suite.removesuffix(f'-{setting}')}, {setting}", fontsize=10)
        axis.set_xlabel("round")
        axis.set_yscale("symlog", linthresh=1.0)
        low, high = axis.get_ylim()
        ticks = [tick for tick in _TICKS if low <= tick <= high]
        axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("sensitivity, d MELTR / d loss")
    axes[-1].legend(fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, metadata={"Date": None})
