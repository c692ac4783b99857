"""``tessera privacy``: what noise costs, what noise a budget needs, and what a run gives away."""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer
from typer.core import TyperCommand

from cli.outcome import EPILOG, Json, Outcome
from core.errors import ConfigError, Problem

if TYPE_CHECKING:
    from privacy.accounting import Cost


class PlainHelp(TyperCommand):
    """A command without the escapes that typer writes for rich, which does not print this help."""

    def get_help(self, ctx: click.Context) -> str:
        """The text of ``--help``."""
        return super().get_help(ctx).replace("\\[", "[")


app = typer.Typer(
    help="Compute what noise costs and what a budget needs; audit what a run claims.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
)

_WIDTH = 80

_MEANING = (
    "It holds for one example of a client: by whether that example is among the client's data or "
    "not (adding or removing one), the odds of anything the client sends change by a factor of at "
    "most e to the epsilon, up to delta. Each step must take each example with probability q, on "
    "its own (Poisson sampling); for shuffled batches, or batches of one size, these figures do "
    "not hold. Rounds use the same data, so that what they cost adds up: the figure of one round "
    "is not that of a run. A run's epsilon is the largest of its clients'."
)

_NO_PRIVACY = "Nothing is private: there is no noise, or next to none, that hides an example."

_ROLES = {True: "the figure of record", False: "for information"}

SamplingRate = Annotated[
    float | None,
    typer.Option(
        metavar="Q",
        help="Probability with which each example takes part in a step; or give --batch-size.",
        show_default=False,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        metavar="B",
        min=1,
        help="Mean size of a Poisson batch; with --examples N, the rate is B/N.",
        show_default=False,
    ),
]
Examples = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Examples of the client, which delta is held against too.",
        show_default=False,
    ),
]
Steps = Annotated[
    int, typer.Option(metavar="T", min=1, help="Noised steps per round.", show_default=False)
]
Rounds = Annotated[
    int, typer.Option(metavar="R", min=1, help="Rounds that the client takes part in.")
]
Delta = Annotated[float, typer.Option(metavar="D", help="Probability with which epsilon may fail.")]
Accountant = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="What the figure of record is computed by: prv, or rdp, which is looser. "
        "gdp is refused, for it understates epsilon.",
    ),
]


@app.command(cls=PlainHelp, epilog=EPILOG)
def epsilon(
    noise_multiplier: Annotated[
        float,
        typer.Option(
            metavar="SIGMA",
            help="Standard deviation of the noise, in units of the clip.",
            show_default=False,
        ),
    ],
    steps: Steps,
    sampling_rate: SamplingRate = None,
    batch_size: BatchSize = None,
    examples: Examples = None,
    rounds: Rounds = 1,
    delta: Delta = 1e-5,
    accountant: Accountant = "prv",
    as_json: Json = False,
) -> Outcome:
    """Tell what noise costs: epsilon of a round and of the whole run.

    The figure of record is PRV's, an upper bound. RDP's is for information, and PLD's, which is
    computed by dp-accounting and not by Opacus, is a check. All are of Gaussian noise on clipped
    sums over Poisson samples, for one example added or removed.

    Such as: tessera privacy epsilon --noise-multiplier 1 --batch-size 256 --examples 5000
    --steps 977 --rounds 20
    """
    from privacy.accounting import accountant_name, spend

    name = accountant_name(accountant)
    rate = _sampling_rate(sampling_rate, batch_size, examples)
    setting = _Setting(noise_multiplier, rate, steps, rounds, delta, examples)
    cost = spend(noise_multiplier, rate, steps, rounds, delta, name)
    return _outcome(setting, cost, cost.whole_run.reason, "", {})


@app.command(cls=PlainHelp, epilog=EPILOG)
def noise(
    epsilon: Annotated[
        float,
        typer.Option(metavar="E", help="Budget of the whole run.", show_default=False),
    ],
    steps: Steps,
    sampling_rate: SamplingRate = None,
    batch_size: BatchSize = None,
    examples: Examples = None,
    rounds: Rounds = 1,
    delta: Delta = 1e-5,
    accountant: Accountant = "prv",
    as_json: Json = False,
) -> Outcome:
    """Tell what noise a budget needs: sigma, and what that costs.

    The budget is for all rounds together, and the noise costs at most it, and at most 0.01 less.
    Noise is Gaussian, on clipped sums over Poisson samples, for one example added or removed.

    Such as: tessera privacy noise --epsilon 4 --sampling-rate 0.05 --steps 20 --rounds 20
    """
    from privacy.accounting import accountant_name, calibrate, spend

    name = accountant_name(accountant)
    rate = _sampling_rate(sampling_rate, batch_size, examples)
    found = calibrate(
        epsilon, delta=delta, sampling_rate=rate, steps=steps * rounds, accountant=name
    )
    sigma = found.noise_multiplier
    cost = spend(sigma, rate, steps, rounds, delta, found.epsilon.accountant)
    reason = found.epsilon.reason or cost.whole_run.reason
    setting = _Setting(sigma, rate, steps, rounds, delta, examples)
    head = f"noise multiplier {sigma} keeps epsilon {epsilon:g} over {_rounds(rounds)}\n\n"
    return _outcome(setting, cost, reason, head, {"target_epsilon": epsilon})


@app.command(cls=PlainHelp, epilog=EPILOG)
def audit(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")],
    canaries: Annotated[
        int,
        typer.Option(
            metavar="M",
            help="Canaries of all clients together, which limit what can be shown: at 99% "
            "confidence, by one score and at delta 1e-5, 256 show an epsilon of at most 3.5, and "
            "1000 one of at most 4.7.",
        ),
    ] = 256,
    confidence: Annotated[
        float, typer.Option(metavar="P", help="Of the verdict and of intervals.")
    ] = 0.99,
    shadow_runs: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Runs for LiRA, membership inference with shadow models; 0 leaves it out, 16 to "
            "64 are sensible.",
        ),
    ] = 0,
    as_json: Json = False,
) -> Outcome:
    """Try to refute what a run claims, by the same run with canaries.

    The run is made again with M canaries, random images of which a coin decides whether a client
    holds them, and the coins are guessed from all that the server saw. Too many right guesses
    refute the claim (Steinke, Nasr, Jagielski 2023); too few prove nothing. A run without noise
    claims nothing, and is told what it gives away at the least.

    Audit runs lie in RUN/audit and go on where they stopped; the result is RUN/audit.json. Both are
    made of un-noised looks at the clients' data: they are outside the guarantee, and no ledger of
    the run's is charged for them.
    """
    from cli.progress import shown_progress
    from experiments.audit import audit as audit_run

    with shown_progress(sys.stdout) as progress:
        found = audit_run(
            run,
            progress,
            canaries=canaries,
            confidence=confidence,
            shadow_runs=shadow_runs,
            warn=lambda text: typer.echo(f"warning: {text}", err=True),
        )
    lines = textwrap.wrap(found.verdict.text, _WIDTH, break_on_hyphens=False)
    if found.membership is not None:
        lines += ["", *textwrap.wrap(found.membership.text, _WIDTH, break_on_hyphens=False)]
    text = "\n".join(["", *lines, "", f"audit {found.folder / 'audit.json'}"]) + "\n"
    return Outcome(text, found.to_json())


@dataclass(frozen=True, slots=True)
class _Setting:
    """What a cost is of."""

    noise_multiplier: float
    sampling_rate: float
    steps: int
    rounds: int
    delta: float
    examples: int | None


def _sampling_rate(rate: float | None, batch_size: int | None, examples: int | None) -> float:
    """The rate that one of two ways of giving it comes to."""
    if rate is not None and batch_size is not None:
        raise click.UsageError("--sampling-rate and --batch-size do not go together")
    if rate is not None:
        return rate
    if batch_size is None or examples is None:
        raise click.UsageError("give --sampling-rate Q, or --batch-size B and --examples N")
    if batch_size > examples:
        rule = f"must be at most the {examples:,} examples that batches are drawn from"
        raise ConfigError([Problem("batch-size", f"{batch_size}", rule)])
    return batch_size / examples


def _outcome(
    setting: _Setting, cost: Cost, reason: str, head: str, extra: dict[str, Any]
) -> Outcome:
    """The figures of a setting, with what they mean, and why RDP's are of record where so."""
    from privacy.accounting import LARGEST_TARGET, Segment, pld_epsilon, spend

    s, record = setting, cost.whole_run
    rdp = spend(s.noise_multiplier, s.sampling_rate, s.steps, s.rounds, s.delta, "rdp")
    pld: tuple[float, float] | None = None
    # Beyond, PLD takes minutes.
    if rdp.whole_run.value <= LARGEST_TARGET or s.noise_multiplier <= 0:
        one, whole = (
            pld_epsilon([Segment(s.noise_multiplier, s.sampling_rate, s.steps * count)], s.delta)
            for count in (1, s.rounds)
        )
        pld = one, whole
    figures = {"prv": cost, "rdp": rdp} if record.accountant == "prv" else {"rdp": rdp}
    warnings = _warnings(setting)

    rows: list[tuple[str, tuple[float, float] | None]] = [
        (
            f"{name.upper()}, {_ROLES[name == record.accountant]}",
            (found.per_round.value, found.whole_run.value),
        )
        for name, found in figures.items()
    ]
    lines = [
        f"sigma {s.noise_multiplier:.10g}, sampling rate {s.sampling_rate:.6g}, "
        f"{s.steps:,} steps a round, delta {s.delta:g}",
        "",
        *_table([*rows, ("PLD of dp-accounting, a check", pld)], s.rounds, s.steps),
        "",
    ]
    paragraphs = [*(f"warning: {one}" for one in warnings)]
    if reason:
        paragraphs.append(f"RDP is the figure of record: {reason}.")
    paragraphs.append(_MEANING if math.isfinite(record.value) else _NO_PRIVACY)
    lines += [textwrap.fill(text, _WIDTH) for text in paragraphs]
    return Outcome(
        head + "\n".join(lines) + "\n",
        {
            **extra,
            "noise_multiplier": s.noise_multiplier,
            "sampling_rate": s.sampling_rate,
            "steps": s.steps,
            "rounds": s.rounds,
            "delta": s.delta,
            "unit": "example",
            "adjacency": "add or remove one",
            "sampling": "poisson",
            "accountant": record.accountant,
            "reason": reason,
            "epsilon": _pair(cost.per_round.value, record.value),
            "rdp": _pair(rdp.per_round.value, rdp.whole_run.value),
            "pld": _pair(*pld) if pld else None,
            "warnings": warnings,
        },
    )


def _warnings(setting: _Setting) -> list[str]:
    n, delta = setting.examples, setting.delta
    if n is None or delta < 1 / n:
        return []
    return [
        f"delta {delta:g} is not below 1 over the {n:,} examples: to send one of them as it is, "
        f"picked at random, would pass for private; take less, such as {0.1 / n:.1g}"
    ]


def _table(
    rows: list[tuple[str, tuple[float, float] | None]], rounds: int, steps: int
) -> list[str]:
    heads = [("one round", f"{steps:,} steps"), (_rounds(rounds), f"{steps * rounds:,} steps")]
    columns = range(1 if rounds == 1 else 2)
    first = max(len(label) for label, _ in rows)

    def line(label: str, cells: Sequence[str]) -> str:
        return (label.ljust(first) + "".join(f"{cells[c]:>16}" for c in columns)).rstrip()

    lines = [line("epsilon", [head for head, _ in heads]), line("", [below for _, below in heads])]
    for label, values in rows:
        cells = ["not computed"] * 2 if values is None else [_figure(value) for value in values]
        lines.append(line(label, cells))
    return lines


def _figure(value: float) -> str:
    return "infinite" if math.isinf(value) else f"{value:,.3f}"


def _rounds(rounds: int) -> str:
    return f"{rounds:,} round" + "s" * (rounds != 1)


def _pair(per_round: float, whole_run: float) -> dict[str, float | None]:
    """For JSON, which has no infinity."""
    values = {"per_round": per_round, "whole_run": whole_run}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
