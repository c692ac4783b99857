"""``tessera``: run, compare, report, doctor, privacy, deploy, data.

A command says what it found as an `Outcome`; how it is printed, and which exit code an error ends
with, is settled here once for all of them. Commands import what they need themselves, so that
``tessera --help`` does not wait for torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import textwrap
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer
from typer.core import TyperGroup

from cli.data import app as data_app
from cli.deploy import app as deploy_app
from cli.keys import KeyCommand, Settings
from cli.outcome import EPILOG, Json, Outcome, WithReport
from cli.privacy import app as privacy_app
from core.errors import (
    INTERRUPTED,
    ConfigError,
    DataError,
    DivergedError,
    Problem,
    RecordError,
    RunError,
    TesseraError,
)

if TYPE_CHECKING:
    from core.config import RunConfig
    from report.loading import LoadedRun

_KINDS: Mapping[type[TesseraError], str] = {
    ConfigError: "config",
    DataError: "data",
    RunError: "run",
    RecordError: "records",
}

SUITE_FORM = """\
seeds = [0, 1, 2]
target-accuracy = 0.9    # what it costs to reach it is told
[base]                   # keys of every run
rounds = 20
[[settings]]             # each method runs under each
label = "skewed"
partition.alpha = 0.1
[tuning]                 # where the candidates of grids are tried;
setting = "skewed"       # "each" tunes under every setting on its own
seeds = [0]
[[methods]]
label = "FedAvg"
strategy = "fedavg"
[methods.grid]           # the best on validation data is taken
train.learning-rate = [0.01, 0.1]
"""
_SUITE_EPILOG = (
    "\b\nSUITE.toml, of which only [[methods]] is needed:\n"
    + textwrap.indent(SUITE_FORM, "  ")
    + f"\n{EPILOG}"
)


class _Commands(TyperGroup):
    """The group of commands, with one place where they print and fail."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run one command line and exit."""
        words = list(sys.argv[1:] if args is None else args)
        sys.exit(_exit_code(self, words))


def _exit_code(group: click.Group, words: list[str]) -> int:
    """Run a command, print its outcome or error, and return the code to exit with."""
    as_json = "--json" in words
    aside = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
    try:
        try:
            with aside, group.make_context("tessera", words) as context:
                outcome: Outcome = group.invoke(context)
            print(json.dumps(outcome.value) if as_json else outcome.text, end="\n" * as_json)
            code = outcome.exit_code
        except click.exceptions.Exit as end:  # --help and --version have printed already
            code = end.exit_code
        except BrokenPipeError:
            raise
        except click.ClickException as error:
            error.show()
            code = _failed(as_json, error.exit_code, "usage", error.format_message())
        except KeyboardInterrupt:
            print("tessera: interrupted", file=sys.stderr)
            code = _failed(as_json, INTERRUPTED, "interrupted", "interrupted")
        except TesseraError as error:
            print(f"tessera: {error}", file=sys.stderr)
            kind = next((k for t, k in _KINDS.items() if isinstance(error, t)), "unexpected")
            problems = error.problems if isinstance(error, ConfigError) else ()
            code = _failed(as_json, error.exit_code, kind, str(error), problems)
        except Exception as error:
            traceback.print_exc()
            text = f"{type(error).__name__}: {error}"
            code = _failed(as_json, TesseraError.exit_code, "unexpected", text)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has gone; without this, Python complains again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return TesseraError.exit_code
    return code


def _failed(
    as_json: bool, code: int, kind: str, message: str, problems: Sequence[Problem] = ()
) -> int:
    if as_json:
        listed = [{"key": p.key, "value": p.value, "rule": p.rule} for p in problems]
        print(json.dumps({"error": {"kind": kind, "message": message, "problems": listed}}))
    return code


app = typer.Typer(
    cls=_Commands,
    help="Federated learning in which clients can send synthetic images instead of weights.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    suggest_commands=False,  # click does
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check and predict everything; start and write nothing.")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        from cli.project import this_project

        print(f"tessera {this_project().version}")
        raise typer.Exit


@app.callback()
def tessera(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Options of no command."""


@app.command(cls=KeyCommand, epilog=EPILOG)
def run(
    settings: Settings = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Go on with the run in this folder from its last checkpoint.",
            show_default=False,
        ),
    ] = None,
    report: WithReport = True,
) -> Outcome:
    """Run one federation on this machine.

    Keys are those listed below, such as: tessera run strategy=fedavg rounds=5

    A run that was cut off goes on with: tessera run --resume .runs/NAME
    """
    if resume is not None:
        return _resume(resume, settings or [], dry_run, report)
    config = parse(settings or [])
    if dry_run:
        from cli import dry_run as dry
        from core.records import RunFolder
        from experiments.plan import plan

        if config.name:
            RunFolder.check_free(config.runs, config.name)
        planned = plan(config)
        return Outcome(dry.to_text(planned), dry.to_json(planned))
    from cli.progress import shown_progress
    from experiments.run import run as run_federation

    with shown_progress(sys.stdout) as progress:
        folder = run_federation(config, progress)
    return ran(folder, report)


def _resume(path: Path, settings: list[str], dry_run: bool, report: bool) -> Outcome:
    """Go on with a run; keys that cannot change its result may be given."""
    if dry_run:
        raise click.UsageError("--dry-run and --resume do not go together")
    from cli.progress import shown_progress
    from core.config import parse_assignments
    from experiments.run import resume

    changes = parse_assignments(settings)
    with shown_progress(sys.stdout) as progress:
        return ran(resume(path, progress, changes), report)


def ran(folder: Path, report: bool) -> Outcome:
    """The outcome of a run that is complete."""
    from report.loading import load_run

    loaded = load_run(folder)
    page = _write_report([folder], folder / "report.html") if report else None
    return Outcome(
        "\n" + _table([loaded]) + _privacy(loaded) + (f"report {page}\n" if page else ""),
        {**_run_json(loaded), "report": str(page) if page else None},
    )


@app.command(epilog=_SUITE_EPILOG)
def compare(
    suite: Annotated[Path, typer.Argument(metavar="SUITE.toml", hidden=True)],
    dry_run: DryRun = False,
    as_json: Json = False,
    max_minutes: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            help="Start no run after N minutes; the same command goes on.",
            show_default=False,
        ),
    ] = None,
) -> Outcome:
    """Run a suite of methods x settings x seeds.

    Candidates of a grid run first. Runs that are complete are not run again, those that were cut
    off go on, and what else lies in their place is moved aside, never deleted. A run that diverged
    is left at that. One report and one comparison cover all of them.
    """
    from cli.api import print_step
    from cli.progress import shown_progress
    from experiments import summary, tuning
    from experiments.execution import run_suite
    from experiments.suite import read_suite

    parsed = read_suite(suite)
    if dry_run:
        from cli.suite_text import dry_json, dry_text, foresee

        foreseen = foresee(parsed)
        return Outcome(dry_text(foreseen), dry_json(foreseen))
    with shown_progress(sys.stdout) as progress:
        result = run_suite(parsed, progress, print_step, max_minutes=max_minutes)
    lines = ["", summary.to_text(result)]
    for failed, error in result.failures:
        lines.append(f"run {failed.title} failed: {type(error).__name__}: {error}")
        if isinstance(error, DivergedError):
            lines.append(f"it is left at that; to run it again, move {failed.folder} away")
        elif not isinstance(error, TesseraError):
            traceback.print_exception(error)
    if result.num_left:
        runs = "1 run is" if result.num_left == 1 else f"{result.num_left} runs are"
        why = "time is up" if result.time_is_up else "tuning waits for candidates that failed"
        lines.append(f"{why}: {runs} left of {parsed.num_runs}; the same command goes on")
    lines += [f"runs in {parsed.folder}"]
    lines += [f"comparison {path}" for path in result.comparison]
    lines += [f"report {result.report}"] if result.report else []
    untuned = any(one.failed for one in result.tuned)
    return Outcome(
        "\n".join(lines) + "\n",
        {
            "suite": parsed.name,
            "folder": str(parsed.folder),
            "tuning": tuning.to_json(result.tuned, result.scores.primary),
            "summary": summary.to_json(result),
            "runs": [_run_json(loaded) for _, loaded in result.runs],
            "unfinished": [_run_json(loaded) for _, loaded in result.unfinished],
            "failures": [
                {"run": failed.name, "error": f"{type(error).__name__}: {error}"}
                for failed, error in result.failures
            ],
            "runs_left": result.num_left,
            "comparison": [str(path) for path in result.comparison],
            "report": str(result.report) if result.report else None,
        },
        RunError.exit_code if result.failures or untuned else 0,
    )


@app.command(epilog=EPILOG)
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", hidden=True)],
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="The HTML file; report.html where left out.", show_default=False
        ),
    ] = Path("report.html"),
    as_json: Json = False,
) -> Outcome:
    """Write the HTML report on runs.

    Each RUN is a run folder or a folder of them. The table of results is printed too.
    """
    from experiments.suite import run_folders
    from report.loading import load_runs

    folders = [folder for path in runs for folder in run_folders(path.expanduser().resolve())]
    loaded = load_runs(folders)
    page = _write_report(folders, out)
    return Outcome(
        f"{_table(loaded)}report {page}\n",
        {"report": str(page), "methods": _methods_json(loaded)},
    )


@app.command(epilog=EPILOG)
def doctor(
    data_root: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="Where data sets are looked for; .data.", show_default=False
        ),
    ] = Path(".data"),
    runs: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="Where run folders would be made; .runs.", show_default=False
        ),
    ] = Path(".runs"),
    ray: Annotated[bool, typer.Option("--ray", help="Also start Ray and run one client.")] = False,
    as_json: Json = False,
) -> Outcome:
    """Tell what this machine lacks.

    Looks at Python, packages, GPU, memory, disk and data, and says what to do. What only some runs
    need is a note; what every run needs and is not there makes the exit code 1.
    """
    import dataclasses

    from cli.doctor import checks, to_text

    found = list(checks(data_root, runs, start_ray=ray))
    failed = any(check.state == "failed" for check in found)
    return Outcome(
        to_text(found),
        {"ok": not failed, "checks": [dataclasses.asdict(check) for check in found]},
        TesseraError.exit_code if failed else 0,
    )


app.add_typer(privacy_app, name="privacy")
app.add_typer(deploy_app, name="deploy")
app.add_typer(data_app, name="data")


def parse(words: list[str]) -> RunConfig:
    """Parse ``key=value`` words; raises every problem of form and of content at once."""
    from core.config import parse_assignments
    from pairing.configuration import parse_config

    problems: list[Problem] = []
    try:
        flat: Mapping[str, str] = parse_assignments(words)
    except ConfigError as error:
        problems += error.problems
        flat = dict(word.split("=", 1) for word in words if "=" in word[1:])
    try:
        config = parse_config(flat)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return config


def _write_report(folders: Sequence[Path], out: Path) -> Path:
    from report.html import write_report

    return write_report(folders, out)


def _table(runs: Sequence[LoadedRun]) -> str:
    from report.methods import compare as group
    from report.tables import result_rows, to_text

    width = shutil.get_terminal_size((80, 24)).columns
    return to_text(result_rows(group(runs).methods), width) + "\n"


def _privacy(run: LoadedRun) -> str:
    if run.noised is None:
        return f"privacy {run.privacy.text}\n" if run.privacy else ""
    from report.tables import epsilon_text

    told, budget = epsilon_text([run]), run.noised.budget
    told += f" of {budget:g}" if budget is not None and run.epsilon is not None else ""
    terms = f"one {run.noised.unit}, delta {run.noised.delta:g}"
    return (
        f"epsilon {told} for the whole run ({terms}, {run.noised.spent.accountant.upper()})\n"
        f"what that means and rests on is in {run.folder.path / 'privacy.json'}\n"
    )


def _run_json(run: LoadedRun) -> dict[str, Any]:
    """The figures of one run."""
    final = run.final
    figures = {
        split: {**e.scores, "loss": e.loss}
        for split in ("validation", "test")
        if final is not None and (e := getattr(final, split)) is not None
    }
    return {
        "folder": str(run.folder.path),
        "name": run.name,
        "status": run.status,
        "failure": run.failure,
        "strategy": run.strategy,
        "seed": run.seed,
        "rounds": run.rounds_done,
        "validation": figures.get("validation"),
        "test": figures.get("test"),
        f"worst_client_{run.scores.primary.name}": final.worst_client_score if final else None,
        "bytes_up": sum(record.bytes_up for record in run.rounds),
        "bytes_down": sum(record.bytes_down for record in run.rounds),
        "client_s": sum(record.seconds["client_sum"] for record in run.rounds),
        "server_s": sum(record.seconds["server"] for record in run.rounds),
        "elapsed_s": run.rounds[-1].seconds["elapsed"] if run.rounds else 0.0,
        "privacy": run.privacy.text if run.privacy else None,
        "epsilon": run.epsilon,
        "epsilon_note": run.noised.spent.note if run.noised else None,
        "epsilon_all_runs": run.noised.spent.all_runs if run.noised else None,
        "privacy_unit": run.noised.unit if run.noised else None,
        "privacy_delta": run.noised.delta if run.noised else None,
    }


def _methods_json(runs: Sequence[LoadedRun]) -> list[dict[str, Any]]:
    """The table's rows; a figure is ``{"mean", "std"}``, or null where there is none."""
    import dataclasses

    from report.methods import compare as group
    from report.tables import measures, result_rows

    rows, comparison = [], group(runs)
    for row in result_rows(comparison.methods):
        figures = {
            key: dataclasses.asdict(value) if value is not None else None
            for key, value in measures(row, comparison.scores).items()
        }
        rows.append(
            {
                "method": row.method.label,
                "seeds": list(row.method.seeds),
                "rounds": list(row.rounds),
                "sends_raw_images": row.method.sends_raw_images,
                **figures,
            }
        )
    return rows


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
