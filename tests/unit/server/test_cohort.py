"""Who is asked, and what is drawn to happen: against binomial bounds and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config import RunConfig
from core.errors import ConfigError
from pairing.configuration import parse_config
from server.cohort import Cohort, draw_cohort

ORDER = [4, 1, 7, 0, 2, 9, 3, 8, 6, 5]


def config_of(**keys: object) -> RunConfig:
    return parse_config({k.replace("__", ".").replace("_", "-"): v for k, v in keys.items()})


def draws(config: RunConfig, rounds: int) -> list[Cohort]:
    return [draw_cohort(config, ORDER, number) for number in range(1, rounds + 1)]


def test_by_default_all_are_asked_and_nothing_happens() -> None:
    cohort = draw_cohort(config_of(), ORDER, 3)
    assert cohort.asked == tuple(ORDER)
    assert sorted(cohort.arrivals) == sorted(ORDER)
    assert cohort.lost == {}
    assert cohort.num_wanted == 10


def test_without_clients_nobody_is_asked() -> None:
    assert draw_cohort(config_of(strategy="centralized"), [], 1) == Cohort((), (), {}, 0)


@settings(max_examples=60)
@given(
    size=st.integers(1, 10),
    over=st.floats(0, 3),
    dropout=st.floats(0, 1),
    stragglers=st.floats(0, 1),
    deadline=st.floats(0.1, 30),
    round=st.integers(1, 1000),
)
def test_every_client_asked_has_one_fate(
    size: int, over: float, dropout: float, stragglers: float, deadline: float, round: int
) -> None:
    keys: dict[str, object] = {"cohort.size": size, "faults.dropout-rate": dropout}
    if over and size < 10:
        keys["cohort.over-sampling"] = over
    if stragglers:
        keys |= {"faults.straggler-rate": stragglers, "faults.deadline-s": deadline}
    config = parse_config(keys)
    cohort = draw_cohort(config, ORDER, round)
    expected = min(10, math.ceil(size * (1 + config.cohort.over_sampling)))
    assert len(cohort.asked) == expected
    assert list(cohort.asked) == [k for k in ORDER if k in cohort.asked]
    assert sorted([*cohort.arrivals, *cohort.lost]) == sorted(cohort.asked)
    assert cohort.num_wanted == size
    assert cohort == draw_cohort(config, ORDER, round)


def test_cohorts_are_uniform_and_differ_from_round_to_round() -> None:
    cohorts = draws(config_of(cohort__size=3), 2000)
    counts = np.bincount([k for cohort in cohorts for k in cohort.asked], minlength=10)
    spread = 4 * math.sqrt(2000 * 0.3 * 0.7)
    assert np.all(np.abs(counts - 600) < spread), counts
    assert len({cohort.asked for cohort in cohorts}) == math.comb(10, 3)


def test_rates_are_those_of_the_configuration() -> None:
    """Of delays with mean 10 s, a share exp(-deadline / 10) is longer than the deadline."""
    config = config_of(faults__dropout_rate=0.2, faults__straggler_rate=0.5, faults__deadline_s=5.0)
    fates = [outcome for c in draws(config, 1000) for outcome, _ in c.lost.values()]
    for outcome, rate in (("dropped", 0.2), ("late", 0.8 * 0.5 * math.exp(-0.5))):
        count = fates.count(outcome)  # type: ignore[arg-type]
        assert abs(count - 10_000 * rate) < 4 * math.sqrt(10_000 * rate * (1 - rate)), outcome


def test_a_clients_fate_does_not_depend_on_who_else_is_asked() -> None:
    keys: dict[str, object] = {"faults__dropout_rate": 0.5}
    everybody = draw_cohort(config_of(**keys), ORDER, 1)
    some = draw_cohort(config_of(cohort__size=5, **keys), ORDER, 1)
    assert some.lost.keys() == everybody.lost.keys() & set(some.asked)


def test_stragglers_arrive_last() -> None:
    """Without a deadline nobody is late; over-sampling then takes those who do not straggle."""
    config = config_of(
        cohort__size=4, cohort__over_sampling=1.0, faults__straggler_rate=0.5, seed=3
    )
    cohort = draw_cohort(config, ORDER, 1)
    prompt = draw_cohort(
        config_of(
            cohort__size=4,
            cohort__over_sampling=1.0,
            faults__straggler_rate=0.5,
            faults__deadline_s=1e-9,
            seed=3,
        ),
        ORDER,
        1,
    )
    assert cohort.lost == {}
    assert 0 < len(prompt.arrivals) < len(cohort.arrivals)
    assert cohort.arrivals[: len(prompt.arrivals)] == prompt.arrivals


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"cohort.size": 11}, r"cohort.size=11: must be at most partition.clients=10"),
        ({"cohort.over-sampling": 0.5}, r"adds to cohort.size=0"),
        ({"cohort.over-sampling": 0.5, "cohort.size": 10}, r"adds to cohort.size=10"),
        ({"faults.straggler-rate": 0.5}, r"changes nothing without faults.deadline-s"),
        ({"faults.deadline-s": 3.0}, r"read only with faults.straggler-rate"),
        ({"faults.straggler-delay-s": 3.0}, r"read only with faults.straggler-rate"),
        ({"faults.dropout-rate": 1.5}, r"at most 1"),
        ({"attack.kind": "scale", "attack.fraction": 0.04}, r"rounds to no malicious client"),
        ({"attack.kind": "scale", "strategy": "centralized"}, r"asks no clients; leave it out"),
        ({"attack.kind": "label-flip", "strategy": "local"}, r"has no global model to attack"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(keys)
