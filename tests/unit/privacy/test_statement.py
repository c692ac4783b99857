from __future__ import annotations

import dataclasses
import json
from importlib.metadata import version
from typing import Any

import pytest

from pairing.configuration import parse_config
from privacy.ledger import SEEDED
from privacy.statement import (
    ImagesSent,
    PrivacyStatement,
    PrivateStatement,
    figure,
    statement_of,
)
from server.privacy_plan import plan_privacy

DP_SGD: dict[str, Any] = {
    "strategy": "fedavg",
    "rounds": 3,
    "privacy.mechanism": "dp-sgd",
    "privacy.epsilon": 2.0,
    "privacy.sampling-rate": 0.125,
    "privacy.steps": 7,
    "privacy.clip": 0.75,
    "privacy.delta": 1e-6,
    "train.batch-size": 48,
}
FEDDM: dict[str, Any] = {
    "strategy": "feddm",
    "rounds": 3,
    "privacy.noise-multiplier": 4.0,
    "feddm.initialisation": "noise",
}
FEATURE = FEDDM | {"privacy.mechanism": "feature", "privacy.count-floor": 3.0}
GRADIENT = FEDDM | {"privacy.mechanism": "gradient"}
CLIENT = {
    "strategy": "fedavg",
    "rounds": 3,
    "privacy.mechanism": "client",
    "privacy.noise-multiplier": 4.0,
    "cohort.size": 4,
}


def stated(
    keys: dict[str, Any], images: ImagesSent = "none", *, system_noise: bool = True
) -> PrivateStatement:
    config = parse_config(keys)
    plan = plan_privacy(config, range(10))
    statement = statement_of(config, plan, images, refused="" if system_noise else SEEDED)
    assert isinstance(statement, PrivateStatement)
    return statement


def test_canaries_are_told() -> None:
    keys = {
        "strategy": "fedavg",
        "privacy.mechanism": "dp-sgd",
        "privacy.epsilon": 4.0,
        "privacy.accountant": "rdp",
    }
    assert "canaries" not in stated(keys).text
    told = stated(keys | {"canaries.kind": "noise", "canaries.count": 40}).text
    assert "40 canaries of kind noise" in told and "transcript" in told


def test_a_run_without_noise_promises_nothing() -> None:
    statement = statement_of(parse_config({"strategy": "fedavg"}), None, "none")
    assert isinstance(statement, PrivacyStatement)
    assert statement.guarantee == "none"
    assert "No epsilon can be stated" in statement.text


def test_every_number_of_the_promise_is_stated() -> None:
    config = parse_config(DP_SGD)
    plan = plan_privacy(config, range(10))
    assert plan is not None
    found = stated(DP_SGD)
    assert found.noise_multiplier == plan.noise_multiplier
    assert (found.sampling_rate, found.steps_per_round, found.rounds) == (0.125, 7, 3)
    assert (found.clip, found.delta, found.budget, found.calibrated) == (0.75, 1e-6, 2.0, True)
    assert found.epsilon_per_round == plan.per_round.value
    assert found.epsilon_whole_run == plan.whole_run.value
    assert found.rdp_epsilon_whole_run == plan.rdp_whole_run > plan.whole_run.value
    assert found.accountant == "prv"
    assert found.accountant_version == f"opacus {version('opacus')}"
    for told in (
        f"One round costs epsilon {figure(plan.per_round.value)}",
        f"the whole run of 3 rounds epsilon {figure(plan.whole_run.value)}",
        "at delta 1e-06",
        f"PRV accountant of opacus {version('opacus')}",
        f"by RDP: {figure(plan.rdp_per_round)} and {figure(plan.rdp_whole_run)}",
        "The budget is epsilon 2:",
        "to norm 0.75",
        f"sigma {figure(plan.noise_multiplier)} (calibrated to the budget)",
        "7 noised sums a round, divided by the constant train.batch-size=48",
        "every example takes part in every step with probability 0.125",
        "add or remove one",
        "the largest of its clients'",
        "is not counted as amplification",
        "the operating system's generator",
        "every trial is a release of its own",
        "the server's own validation and test examples",
        "rounding: the guarantee is that of real numbers",
    ):
        assert told in found.text, told


@pytest.mark.parametrize("keys", [DP_SGD, FEATURE, GRADIENT, CLIENT])
def test_the_paragraph_names_unit_adversary_and_all_that_is_released(keys: dict[str, Any]) -> None:
    images: ImagesSent = "synthetic" if keys["strategy"] == "feddm" else "none"
    found = stated(keys, images)
    assert f"Protected is one {found.unit}." in found.text
    for part in (
        found.adversary, found.sampling, found.denominator, *found.released, *found.not_released,
        *found.not_paid_for, *found.outside,
    ):  # fmt: skip
        assert part in found.text
    json.dumps(dataclasses.asdict(found), allow_nan=False)


def test_example_and_client_level_have_other_units_and_adversaries() -> None:
    example, client = stated(DP_SGD), stated(CLIENT)
    assert (example.unit, client.unit) == ("example", "client")
    assert example.adversary.startswith("the server and everybody")
    assert client.adversary.startswith("everybody but the server")
    assert "one client more" not in client.adjacency
    assert "with all it holds" in client.adjacency
    assert client.denominator == "the constant size of the cohort, 4"
    assert client.released == (
        "the model after each round, made of the noised sum of clipped updates",
    )


def test_each_mechanism_names_what_it_divides_by_and_what_it_sends() -> None:
    gradient, feature = stated(GRADIENT, "synthetic"), stated(FEATURE, "synthetic")
    real_batch = parse_config(GRADIENT).flat()["feddm.real-batch"]
    assert gradient.denominator == f"the constant feddm.real-batch={real_batch} per class"
    assert feature.denominator == ("the noised count of the class, at least privacy.count-floor=3")
    assert not any("noised counts" in part for part in feature.released)
    counted = stated(FEATURE | {"mosaic.weighting": "counts"}, "synthetic")
    assert "noised counts of the classes" in counted.released
    assert any("every class, whichever the client holds" in part for part in feature.released)
    assert any("weights" in part for part in stated(DP_SGD).released)
    assert "SCAFFOLD's control variates" in " ".join(
        stated(DP_SGD | {"strategy": "scaffold", "scaffold.option": "II"}).released
    )
    assert not any("synthetic" in part for part in stated(DP_SGD).released)


def test_a_sample_of_everything_is_called_no_sample() -> None:
    whole = stated(FEATURE | {"privacy.sampling-rate": 1.0}, "synthetic")
    assert whole.sampling == "none: every example takes part in every step"


def test_seeded_noise_is_stated_no_epsilon() -> None:
    found = stated(DP_SGD, system_noise=False)
    epsilons = {key: value for key, value in dataclasses.asdict(found).items() if "epsilon" in key}
    assert set(epsilons.values()) == {None} and len(epsilons) == 4
    assert found.guarantee == "none, refused: seeded noise"
    assert found.noise == "refused: seeded noise"
    assert "Epsilon is refused: seeded noise." in found.text
    assert "costs epsilon" not in found.text and "operating system" not in found.text


def test_noise_that_is_given_without_a_budget_says_so() -> None:
    found = stated(FEATURE, "synthetic")
    assert found.budget is None and not found.calibrated
    assert "There is no budget." in found.text and "(as configured)" in found.text


def test_a_shared_ledger_says_over_which_runs_it_adds_up() -> None:
    assert "counted by itself" in stated(DP_SGD).ledger
    assert "over all runs" in stated(DP_SGD | {"privacy.ledger": "ledgers"}).ledger
