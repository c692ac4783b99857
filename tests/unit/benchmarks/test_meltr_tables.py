from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.meltr_cost import Contender, table
from benchmarks.meltr_sensitivity import HARMFUL, PRIMARY, draw
from benchmarks.meltr_sensitivity import table as sensitivity_table
from core.config import TrainConfig
from workloads.meta.hypergradients import Passes


def contender(optimizer: str, turns_s: list[float], passes: Passes) -> Contender:
    return Contender(optimizer, TrainConfig(), None, None, turns_s, passes)  # type: ignore[arg-type]


def test_costs_are_told_against_the_steps_alone() -> None:
    """Three steps are nine forward passes; ratios are taken turn by turn."""
    told = table(
        [
            contender("multi-task", [1.0, 2.0, 4.0], Passes()),
            contender("aid-fp-lite", [3.0, 3.0, 8.0], Passes(2, 1, 1, 1)),
        ]
    )
    plain, lite = told.splitlines()[2:]
    assert "| 2000.0 | - |" in plain
    assert "| 2, 1, 1, 1 | 10 | +111% | 3000.0 | +100% (+50% to +200%) | 574 (+4.9%) |" in lite


def test_sensitivities_are_compared_over_the_last_quarter_by_seed() -> None:
    primary = np.array([[9.0, 9, 9, 9, 9, 9, 2, 4], [9, 9, 9, 9, 9, 9, 1, 1]])
    harmful = np.array([[0.0, 0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0, -1, 0]])
    series = {PRIMARY: primary, HARMFUL: harmful}
    (row,) = sensitivity_table({("suite", "central", "itd"): series}).splitlines()[2:]
    # Seed by seed 1 - 3 and -0.5 - 1; of two values t(0.975, 1) is 12.71.
    half = 12.7062 * np.std([-2.0, -1.5], ddof=1) / np.sqrt(2)
    assert f"| 2.00 | 0.25 | -1.75 | {-1.75 - half:+.2f} to {-1.75 + half:+.2f} |" in row
    assert f"| {(-2 / 4 - 1.5 / 1.5) / 2:+.2f} |" in row


def test_a_panel_for_each_setting_is_drawn(tmp_path: Path) -> None:
    series = {PRIMARY: torch.ones(2, 4).numpy(), HARMFUL: torch.zeros(2, 4).numpy()}
    draw(
        {("meltr-a", "central"): series, ("meltr-a", "federated"): series}, tmp_path / "x" / "a.svg"
    )
    text = (tmp_path / "x" / "a.svg").read_text()
    assert text.startswith("<?xml") and "</svg>" in text
