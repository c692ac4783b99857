"""What ``--dry-run`` says of a private run."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cli.dry_run import to_json, to_text
from experiments.plan import Plan, plan
from pairing.configuration import parse_config
from privacy.accounting import Segment, epsilon

KEYS: dict[str, Any] = {
    "strategy": "fedavg",
    "rounds": 4,
    "partition.clients": 3,
    "model.width": 4,
    "engine.kind": "in-process",
    "privacy.mechanism": "dp-sgd",
    "privacy.epsilon": 3.0,
    "privacy.delta": 1e-4,
    "privacy.sampling-rate": 0.1,
    "privacy.steps": 5,
    "train.batch-size": 40,
}


def words(planned: Plan) -> str:
    return " ".join(to_text(planned).split())


@pytest.fixture(scope="module")
def planned() -> Plan:
    return plan(parse_config(KEYS))


def test_the_cost_is_told_before_anything_is_trained(planned: Plan) -> None:
    assert planned.noise is not None
    sigma = planned.noise.noise_multiplier
    one, whole = (epsilon([Segment(sigma, 0.1, 5 * n)], 1e-4).value for n in (1, 4))
    rdp_one, rdp_whole = (epsilon([Segment(sigma, 0.1, 5 * n)], 1e-4, "rdp").value for n in (1, 4))
    text = words(planned)
    assert f"dp-sgd, protects one example: sigma {sigma:.4g} (calibrated) times clip 1" in text
    assert (
        f"{one:.4g} a round (5 noised steps), {whole:.4g} for the run (4 rounds) of a budget of 3, "
        f"at delta 0.0001 by PRV; by RDP {rdp_one:.4g} a round and {rdp_whole:.4g} for the run"
    ) in text
    sizes = planned.class_counts.sum(axis=1) / 10
    assert f"{sizes.min():.4g}-{sizes.max():.4g} expected at a client" in text
    assert "sums divided by the constant train.batch-size=40" in text
    assert max(map(len, to_text(planned).splitlines())) <= 80


def test_programs_read_the_same(planned: Plan) -> None:
    value = json.loads(json.dumps(to_json(planned), allow_nan=False))["privacy"]
    assert planned.noise is not None
    assert value["noise_multiplier"] == planned.noise.noise_multiplier
    assert value["epsilon_per_round"] == planned.noise.per_round.value
    assert value["epsilon_whole_run"] == planned.noise.whole_run.value
    assert value["rdp_epsilon_whole_run"] == planned.noise.rdp_whole_run
    assert (value["steps_per_round"], value["rounds"], value["budget"]) == (5, 4, 3.0)
    assert (value["unit"], value["accountant"], value["delta"]) == ("example", "prv", 1e-4)
    assert value["expected_batch_sizes"] == pytest.approx(
        (planned.class_counts.sum(axis=1) / 10).tolist()
    )


def test_noise_that_is_given_and_client_level_are_told_as_such() -> None:
    keys = {
        k: v
        for k, v in KEYS.items()
        if k not in ("privacy.epsilon", "privacy.sampling-rate", "privacy.steps")
    }
    given = plan(
        parse_config(
            keys
            | {
                "privacy.mechanism": "client",
                "privacy.noise-multiplier": 2.0,
                "privacy.delta": 0.01,
                "privacy.accountant": "rdp",
            }
        )
    )
    text = words(given)
    assert "client, protects one client: sigma 2 (as given) times clip 1" in text
    assert "(1 noised step)" in text and "without a budget" in text and "by RDP" in text
    assert "expected at a client" not in text
    assert to_json(given)["privacy"]["expected_batch_sizes"] == []


def test_a_run_without_noise_has_none_of_it() -> None:
    text = words(plan(parse_config({"strategy": "fedavg", "partition.clients": 3})))
    assert "sigma" not in text and "No epsilon can be stated" in text
