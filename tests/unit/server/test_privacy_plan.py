from __future__ import annotations

import pytest

from core.errors import ConfigError
from pairing.configuration import parse_config
from privacy.accounting import Segment, epsilon
from server.privacy_plan import most_rounds, plan_privacy

KEYS = {
    "strategy": "fedavg",
    "rounds": 5,
    "privacy.mechanism": "dp-sgd",
    "privacy.sampling-rate": 0.1,
    "privacy.steps": 10,
    "privacy.accountant": "rdp",
}


def test_a_run_that_is_not_private_costs_nothing_that_could_be_told() -> None:
    assert plan_privacy(parse_config({"strategy": "fedavg"}), range(10)) is None


def test_noise_is_calibrated_to_the_whole_run() -> None:
    plan = plan_privacy(parse_config({**KEYS, "privacy.epsilon": 2.0}), range(10))
    assert plan is not None and plan.calibrated
    assert plan.unit == "example" and plan.rounds == 5 and plan.steps == 10
    whole = epsilon([Segment(plan.noise_multiplier, 0.1, 50)], 1e-5, "rdp").value
    assert 1.99 < whole <= 2.0
    assert plan.whole_run.value == whole == plan.rdp_whole_run
    single = epsilon([Segment(plan.noise_multiplier, 0.1, 10)], 1e-5, "rdp").value
    assert plan.per_round.value == single < whole


def test_noise_that_is_given_is_kept_and_told() -> None:
    plan = plan_privacy(parse_config({**KEYS, "privacy.noise-multiplier": 3.0}), range(10))
    assert plan is not None and not plan.calibrated and plan.noise_multiplier == 3.0
    assert plan.whole_run.value == epsilon([Segment(3.0, 0.1, 50)], 1e-5, "rdp").value


def test_noise_that_exceeds_the_budget_is_refused() -> None:
    config = parse_config({**KEYS, "privacy.noise-multiplier": 0.5, "privacy.epsilon": 1.0})
    with pytest.raises(ConfigError, match=r"noise-multiplier=0\.5: 5 rounds of 10 steps"):
        plan_privacy(config, range(10))


def test_client_level_takes_no_amplification() -> None:
    keys = {
        "strategy": "fedavg",
        "rounds": 6,
        "cohort.size": 2,
        "privacy.mechanism": "client",
        "privacy.noise-multiplier": 4.0,
        "privacy.accountant": "rdp",
    }
    config = parse_config(keys)
    plan = plan_privacy(config, range(10))
    assert plan is not None and plan.unit == "client"
    assert plan.sampling_rate == 1.0 and plan.steps == 1
    assert 2 <= plan.rounds < 6, "twelve places for ten clients"
    assert plan.whole_run.value == epsilon([Segment(4.0, 1.0, plan.rounds)], 1e-5, "rdp").value


def test_the_client_asked_most_often_counts() -> None:
    assert most_rounds(parse_config({**KEYS, "privacy.epsilon": 1.0}), range(10)) == 5
    keys = {**KEYS, "privacy.noise-multiplier": 1.0}
    drawn = parse_config({**keys, "rounds": 40, "cohort.size": 5})
    assert 20 <= most_rounds(drawn, range(10)) < 40
    everyone = parse_config({**keys, "cohort.size": 10})
    assert most_rounds(everyone, range(10)) == 5


@pytest.mark.parametrize("key", ["rounds", "privacy.steps", "privacy.sampling-rate"])
def test_more_of_anything_costs_more(key: str) -> None:
    keys = {**KEYS, "privacy.noise-multiplier": 2.0}
    more = {**keys, key: float(str(keys[key])) * 2 if "rate" in key else int(str(keys[key])) * 2}
    first, second = (plan_privacy(parse_config(k), range(10)) for k in (keys, more))
    assert first is not None and second is not None
    assert second.whole_run.value > first.whole_run.value
