"""What the dry run of a suite says of privacy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cli.suite_text import ForeseenSuite, dry_json, dry_text, foresee
from experiments.suite import parse_suite


@pytest.fixture(scope="module")
def foreseen(tmp_path_factory: pytest.TempPathFactory) -> ForeseenSuite:
    suite: dict[str, Any] = {
        "name": "s",
        "base": {
            "runs": str(tmp_path_factory.mktemp("runs")), "rounds": 2, "model.width": 4,
            "partition.clients": 3, "privacy.delta": 1e-4, "privacy.steps": 3,
        },
        "settings": [
            {"label": "e1", "privacy.epsilon": 1.0}, {"label": "e8", "privacy.epsilon": 8.0},
        ],
        "methods": [
            {"label": "dp", "strategy": "fedavg", "privacy.mechanism": "dp-sgd"},
            {"label": "plain", "strategy": "fedavg"},
        ],
    }  # fmt: skip
    return foresee(parse_suite(suite))


def test_sigma_and_epsilon_stand_beside_every_run(foreseen: ForeseenSuite) -> None:
    head, *lines = dry_text(foreseen).splitlines()
    assert head.endswith("sigma  epsilon of a round  of the run")
    by_name = {line.split()[2] if line.startswith("to do") else line.split()[1]: line.split()
               for line in lines[:4]}  # fmt: skip
    for one in foreseen.runs:
        assert one.plan is not None
        noise = one.plan.noise
        if noise is not None:
            assert by_name[one.run.name][-3:] == [
                f"{noise.noise_multiplier:.4g}", f"{noise.per_round.value:.4g}",
                f"{noise.whole_run.value:.4g}",
            ]  # fmt: skip
            assert noise.whole_run.value <= one.run.config.privacy.epsilon
    assert by_name["plain-e1-seed0"][-4:] == ["no", "noise", "—", "—"]


def test_programs_read_the_same(foreseen: ForeseenSuite) -> None:
    runs = {run["name"]: run for run in dry_json(foreseen)["runs"]}
    assert 0.99 < runs["dp-e1-seed0"]["epsilon"] <= 1.0
    assert runs["dp-e1-seed0"]["epsilon_per_round"] < runs["dp-e1-seed0"]["epsilon"]
    assert runs["dp-e1-seed0"]["noise_multiplier"] > runs["dp-e8-seed0"]["noise_multiplier"]
    assert runs["plain-e1-seed0"]["epsilon"] is runs["plain-e1-seed0"]["noise_multiplier"] is None


def test_a_reference_runs_once_for_all_budgets(foreseen: ForeseenSuite) -> None:
    states = {one.run.name: one.foreseen for one in foreseen.runs}
    assert states == {
        "dp-e1-seed0": "todo", "plain-e1-seed0": "todo", "dp-e8-seed0": "todo",
        "plain-e8-seed0": "same",
    }  # fmt: skip
    assert foreseen.num_to_do == 3


def test_a_suite_without_private_runs_has_no_such_columns(tmp_path: Path) -> None:
    suite = parse_suite(
        {"name": "s", "base": {"runs": str(tmp_path), "rounds": 1, "partition.clients": 3},
         "methods": [{"label": "plain", "strategy": "fedavg"}]}
    )  # fmt: skip
    assert "sigma" not in dry_text(foresee(suite))
