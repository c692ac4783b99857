"""What ``--dry-run`` tells of one run."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterable
from typing import Any

from core.config import Scalar
from experiments.plan import Plan
from pairing.configuration import config_keys
from privacy.plan import PrivacyPlan
from privacy.statement import PrivateStatement, figure
from report.tables import plain_bytes

WIDTH = 80


def to_json(plan: Plan) -> dict[str, Any]:
    """For programs; bytes are exact."""
    return {
        "dry_run": True,
        "config": plan.config.flat(),
        "num_examples": dict(plan.num_examples),
        "class_names": list(plan.class_names),
        "class_counts": plan.class_counts.tolist(),
        "failed_attempts": [
            {"attempt": a.attempt, "seed": a.seed, "reason": a.reason} for a in plan.failed_attempts
        ],
        "num_parameters": plan.num_parameters,
        "bytes_down": plan.predicted.down,
        "bytes_up": plan.predicted.up,
        "total_bytes_down": plan.predicted.total_down,
        "total_bytes_up": plan.predicted.total_up,
        "privacy": {
            **dataclasses.asdict(plan.privacy),
            "expected_batch_sizes": _expected_batches(plan),
        },
        "engine": plan.engine,
        "device": plan.device,
        "identity": plan.config.identity(),
    }


def to_text(plan: Plan) -> str:
    """For readers."""
    config, counts = plan.config, plan.class_counts
    set_keys = ", ".join(f"{k}={_text(v)}" for k, v in changed_keys(plan).items())
    sizes = counts.sum(axis=1)
    held = (counts > 0).sum(axis=1)
    splits = ", ".join(f"{count:,} {name}" for name, count in plan.num_examples.items())
    failed = len(plan.failed_attempts)
    lines = [
        ("strategy", config.strategy),
        ("workload", config.workload),
        ("keys set", set_keys or "none, all defaults"),
        ("data", f"{plan.source}: {splits} examples of {len(plan.class_names)} classes"),
        (
            "clients",
            f"{len(sizes)} with {_range(sizes.tolist())} examples of {_range(held.tolist())} "
            f"classes each; {failed} failed partition {'attempt' if failed == 1 else 'attempts'}",
        ),
        ("model", f"{config.model.name}, {plan.num_parameters:,} parameters"),
        ("up", _traffic(plan.predicted.up)),
        ("down", _traffic(plan.predicted.down)),
        ("engine", f"{plan.engine}, {plan.device}"),
        *_noise(plan),
        ("privacy", plan.privacy.text),
        ("runs in", config.runs),
    ]
    width = max(len(title) for title, _ in lines)
    text = "".join(
        textwrap.fill(
            value,
            WIDTH,
            initial_indent=f"{title.ljust(width)}  ",
            subsequent_indent=" " * (width + 2),
            break_on_hyphens=False,
        )
        + "\n"
        for title, value in lines
    )
    return f"{text}\n{_client_table(plan)}\nnothing was started or written\n"


def _noise(plan: Plan) -> Iterable[tuple[str, str]]:
    """What is noised and what it costs, line by line; nothing of a run without noise."""
    noise, statement = plan.noise, plan.privacy
    if noise is None:
        return
    assert isinstance(statement, PrivateStatement)
    how = "calibrated" if noise.calibrated else "as given"
    yield (
        "noise",
        f"{noise.mechanism}, protects one {noise.unit}: sigma {figure(noise.noise_multiplier)} "
        f"({how}) times clip {noise.clip:g}",
    )
    if batches := _expected_batches(plan):
        sizes = "-".join(dict.fromkeys(f"{size:.4g}" for size in (min(batches), max(batches))))
        yield (
            "samples",
            f"every example with probability {noise.sampling_rate:g} in each step: {sizes} "
            f"expected at a client; sums divided by {statement.denominator}",
        )
    steps = "1 noised step" if noise.steps == 1 else f"{noise.steps:,} noised steps"
    rounds = "1 round" if noise.rounds == 1 else f"{noise.rounds:,} rounds"
    yield (
        "epsilon",
        f"{figure(noise.per_round.value)} a round ({steps}), {figure(noise.whole_run.value)} for "
        f"the run ({rounds}){_of_budget(plan)}, at delta {noise.delta:g} by {_accountant(noise)}",
    )


def _of_budget(plan: Plan) -> str:
    budget = plan.config.privacy.epsilon
    return f" of a budget of {budget:g}" if budget else ", without a budget"


def _accountant(noise: PrivacyPlan) -> str:
    if noise.accountant == "rdp":
        return f"RDP ({noise.whole_run.reason})" if noise.whole_run.reason else "RDP"
    return (
        f"PRV; by RDP {figure(noise.rdp_per_round)} a round and {figure(noise.rdp_whole_run)} for "
        "the run"
    )


def _expected_batches(plan: Plan) -> list[float]:
    """Expected size of a Poisson sample at each client; empty where examples are not sampled."""
    if plan.noise is None or plan.noise.unit != "example":
        return []
    sizes: list[int] = plan.class_counts.sum(axis=1).tolist()
    return [plan.noise.sampling_rate * size for size in sizes]


def changed_keys(plan: Plan) -> dict[str, Scalar]:
    """The keys that are not at their default."""
    defaults = {key.name: key.default for key in config_keys()}
    return {k: v for k, v in plan.config.flat().items() if v != defaults.get(k)}


def _text(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _range(values: list[int]) -> str:
    least, most = min(values), max(values)
    return f"{least:,}" if least == most else f"{least:,}-{most:,}"


def _traffic(rounds: list[list[int]]) -> str:
    if not rounds or not rounds[0]:
        return "nothing"
    sums = [sum(clients) for clients in rounds]
    each = [count for clients in rounds for count in clients]
    return (
        f"{_range(sums)} B a round ({_range(each)} B a client), {sum(sums):,} B in "
        f"{len(rounds)} {'round' if len(rounds) == 1 else 'rounds'} ({plain_bytes(sum(sums))})"
    )


_MOST_CLIENTS, _MOST_CLASSES = 20, 10


def _client_table(plan: Plan) -> str:
    """Images of each class that each client holds, as far as a screen goes."""
    counts = plan.class_counts[:_MOST_CLIENTS, :_MOST_CLASSES]
    names = plan.class_names[:_MOST_CLASSES]
    cells = [["client", *(name[:6] for name in names)]]
    cells += [[str(k), *map(str, row)] for k, row in enumerate(counts.tolist())]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells
    ]
    clients, classes = plan.class_counts.shape
    left_out = [
        f"{n} more {what}"
        for n, what in ((clients - len(counts), "clients"), (classes - len(names), "classes"))
        if n > 0
    ]
    if left_out:
        lines.append(f"and {' and '.join(left_out)}; --json has all")
    return "examples by class\n" + "\n".join(lines) + "\n"
