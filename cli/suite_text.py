"""What ``tessera compare --dry-run`` tells of a suite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.plan import Plan
from experiments.suite import Suite
from report.tables import plain_bytes


def dry_json(suite: Suite, plans: Sequence[Plan]) -> dict[str, Any]:
    """For programs."""
    return {
        "dry_run": True,
        "suite": suite.name,
        "folder": str(suite.folder),
        "runs": [
            {
                "name": run.config.name,
                "method": run.method,
                "setting": run.setting,
                "seed": run.config.seed,
                "state": run.state(),
                "identity": run.config.identity(),
                "total_bytes_up": plan.predicted.total_up,
                "total_bytes_down": plan.predicted.total_down,
                "images_sent": plan.privacy.images_sent,
            }
            for run, plan in zip(suite.runs, plans, strict=True)
        ],
    }


def dry_text(suite: Suite, plans: Sequence[Plan]) -> str:
    """For readers: a line per run."""
    lines = [("state", "run", "up", "down")]
    for run, plan in zip(suite.runs, plans, strict=True):
        sent = plan.predicted
        lines.append(
            (run.state(), run.title, plain_bytes(sent.total_up), plain_bytes(sent.total_down))
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = "".join(
        f"{state:{widths[0]}}  {title:{widths[1]}}  {up:>{widths[2]}}  {down:>{widths[3]}}\n"
        for state, title, up, down in lines
    )
    todo = sum(run.state() != "done" for run in suite.runs)
    return (
        f"{text}\n{todo} of {len(suite.runs)} runs to do in {suite.folder}; what is incomplete or "
        "outdated would be moved aside\nnothing was started or written\n"
    )
