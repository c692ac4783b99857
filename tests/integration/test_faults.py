"""Simulated dropouts, stragglers and cohorts: drawn from the seed, on record, and told before."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from core.config import RunConfig
from core.errors import RunError
from core.records import RoundRecord, RunFolder
from server.cohort import Cohort, draw_cohort
from server.prediction import predict_bytes
from server.preparation import prepare
from strategies.table import STRATEGIES, parse_config
from tests.conftest import TINY, Federate, tiny_keys

STRAGGLERS = {
    "faults.straggler-rate": 0.5,
    "faults.straggler-delay-s": 10,
    "faults.deadline-s": 10 * math.log(2),
}
"""Half of the clients are delayed, and half of these by more than the deadline, the median."""

EIGHT = {**TINY, "strategy": "fedavg", "partition.clients": 8}


def configured(**keys: object) -> RunConfig:
    return parse_config({k.replace("__", ".").replace("_", "-"): v for k, v in keys.items()})


def within(count: int, trials: int, probability: float) -> bool:
    """Whether a binomial count is within five standard deviations of its mean."""
    deviation = math.sqrt(trials * probability * (1 - probability))
    return abs(count - trials * probability) < 5 * deviation


def fates(cohort: Cohort) -> dict[int, str]:
    lost = {k: outcome for k, (outcome, _) in cohort.lost.items()}
    counted = dict.fromkeys(cohort.arrivals[: cohort.num_wanted], "counted")
    return {**dict.fromkeys(cohort.arrivals, "surplus"), **lost, **counted}


SETTINGS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**31 - 1),
        "faults.dropout-rate": st.sampled_from([0.0, 0.3, 1.0]),
        "cohort.size": st.integers(1, 19),
        "cohort.over-sampling": st.sampled_from([0.0, 0.1, 0.5, 10.0]),
    },
    optional={
        "faults.straggler-rate": st.sampled_from([0.25, 1.0]),
    },
)


@given(SETTINGS, st.integers(1, 9))
def test_a_cohort_is_a_partition_of_those_asked(keys: Mapping[str, object], round: int) -> None:
    deadline = {"faults.deadline-s": 1.0} if "faults.straggler-rate" in keys else {}
    config = parse_config({"partition.clients": 20, **keys, **deadline})
    order = list(range(19, -1, -1))
    cohort = draw_cohort(config, order, round)
    size, share = config.cohort.size, config.cohort.over_sampling
    assert len(cohort.asked) == min(20, math.ceil(size * (1 + share)))
    assert list(cohort.asked) == [k for k in order if k in set(cohort.asked)]
    assert sorted([*cohort.arrivals, *cohort.lost]) == sorted(cohort.asked)
    assert cohort.num_wanted == size
    assert draw_cohort(config, order, round) == cohort


def test_dropouts_and_stragglers_have_their_rates() -> None:
    config = configured(
        partition__clients=500,
        faults__dropout_rate=0.3,
        faults__straggler_rate=0.5,
        faults__straggler_delay_s=10.0,
        faults__deadline_s=10 * math.log(2),
    )
    seen = Counter[str]()
    for number in range(1, 21):
        seen.update(fates(draw_cohort(config, range(500), number)).values())
    assert seen.total() == 10_000
    assert within(seen["dropped"], 10_000, 0.3)
    # Of those who do not drop out half are delayed, and half of these beyond the median.
    assert within(seen["late"], 10_000 - seen["dropped"], 0.25)
    assert seen["surplus"] == 0


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_rates_of_zero_and_one_are_exact(rate: float) -> None:
    config = configured(partition__clients=200, faults__dropout_rate=rate)
    expected = "dropped" if rate else "counted"
    assert set(fates(draw_cohort(config, range(200), 1)).values()) == {expected}


def test_a_clients_fate_is_its_own() -> None:
    """It changes from round to round and seed to seed, and not with who else is asked."""
    faults = {"faults__dropout_rate": 0.5, "partition__clients": 200}
    everybody = configured(**faults)
    some = configured(**faults, cohort__size=50)
    whole = fates(draw_cohort(everybody, range(200), 3))
    part = fates(draw_cohort(some, range(200), 3))
    assert part == {k: whole[k] for k in part}
    assert fates(draw_cohort(everybody, range(200), 4)) != whole
    assert fates(draw_cohort(configured(**faults, seed=1), range(200), 3)) != whole
    dropped = [
        {k for k, f in fates(draw_cohort(everybody, range(200), r)).items() if f == "dropped"}
        for r in (1, 2)
    ]
    # Independent rounds: a client drops out of both with probability one quarter.
    assert within(len(dropped[0] & dropped[1]), 200, 0.25)


def test_sampling_is_uniform_and_new_in_each_round() -> None:
    config = configured(partition__clients=20, cohort__size=5, rounds=2000)
    cohorts = [set(draw_cohort(config, range(20), r).asked) for r in range(1, 2001)]
    assert all(len(cohort) == 5 for cohort in cohorts)
    seen = Counter(k for cohort in cohorts for k in cohort)
    assert all(within(seen[k], 2000, 5 / 20) for k in range(20))
    pairs = Counter((i, j) for cohort in cohorts for i in cohort for j in cohort if i < j)
    pair = 5 / 20 * 4 / 19
    assert all(within(pairs[i, j], 2000, pair) for i in range(20) for j in range(i + 1, 20))
    # Two rounds ask the same five by chance once in C(20, 5) = 15,504 times.
    again = sum(a == b for a, b in pairwise(cohorts))
    assert again < 5


def test_the_cohort_does_not_depend_on_the_order_of_work() -> None:
    config = configured(partition__clients=30, cohort__size=7, faults__dropout_rate=0.5)
    forwards, backwards = (
        draw_cohort(config, order, 2) for order in (range(30), range(29, -1, -1))
    )
    assert set(forwards.asked) == set(backwards.asked)
    assert fates(forwards) == fates(backwards)


def test_who_is_delayed_longer_arrives_later() -> None:
    """With over-sampling the punctual are taken first, so stragglers count more seldom."""
    config = configured(
        partition__clients=400,
        cohort__size=100,
        cohort__over_sampling=1.0,
        faults__straggler_rate=0.25,
    )
    waited = configured(
        partition__clients=400,
        cohort__size=100,
        cohort__over_sampling=1.0,
        faults__straggler_rate=0.25,
        faults__deadline_s=1e-9,
    )
    for number in range(1, 6):
        cohort = draw_cohort(config, range(400), number)
        stragglers = set(draw_cohort(waited, range(400), number).lost)
        assert within(len(stragglers), 200, 0.25)
        delayed = [k in stragglers for k in cohort.arrivals]
        assert delayed == sorted(delayed), "all who are punctual come before the first who is not"


NAMED = {
    "counted": "",
    "dropped": "faults.dropout-rate",
    "late": "faults.deadline-s",
    "surplus": "cohort.size",
}
"""The key that the reason of each outcome names."""


def outcomes(record: RoundRecord) -> dict[int, str]:
    return {client.partition_id: client.outcome for client in record.clients}


def rounds_of(path: Path) -> list[RoundRecord]:
    return RunFolder.open(path).read_rounds()


CASES: dict[str, Mapping[str, object]] = {
    "dropouts": {"faults.dropout-rate": 0.4},
    "stragglers": STRAGGLERS,
    "sampling": {"cohort.size": 3},
    "over-sampling": {"cohort.size": 3, "cohort.over-sampling": 0.5},
    "everything": {
        **STRAGGLERS,
        "faults.dropout-rate": 0.2,
        "cohort.size": 3,
        "cohort.over-sampling": 1.0,
    },
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_drawn_is_on_record_and_its_bytes_are_predicted(
    case: str, federate: Federate
) -> None:
    keys = {**EIGHT, "rounds": 4, "cohort.max-empty-rounds": 9, **CASES[case]}
    config = parse_config(keys)
    preparation = prepare(config)
    predicted = predict_bytes(preparation)
    seen = Counter[str]()
    records = rounds_of(federate(keys))[1:]
    for record, down, up in zip(records, predicted.down, predicted.up, strict=True):
        cohort = draw_cohort(config, preparation.hand_out_order(), record.round)
        assert outcomes(record) == fates(cohort)
        assert [client.bytes_down for client in record.clients] == down
        assert [client.bytes_up for client in record.clients] == up
        assert (record.bytes_down, record.bytes_up) == (sum(down), sum(up))
        for client in record.clients:
            counted = client.outcome == "counted"
            assert (client.bytes_up > 0) == counted == (client.failure is None)
            assert NAMED[client.outcome] in (client.failure or "")
        seen.update(outcomes(record).values())
    expected = {
        "dropouts": {"counted", "dropped"},
        "stragglers": {"counted", "late"},
        "sampling": {"counted"},
        "over-sampling": {"counted", "surplus"},
        "everything": {"counted", "dropped", "late", "surplus"},
    }
    assert set(seen) == expected[case]


@pytest.mark.parametrize("method", [n for n, kind in STRATEGIES.items() if kind.asks_clients])
def test_bytes_are_predicted_for_every_method_in_a_part_of_the_clients(
    method: str, federate: Federate
) -> None:
    keys = tiny_keys(method, partition__clients=5, cohort__size=3, rounds=3) | {
        "faults.dropout-rate": 0.25,
        "evaluate-every": 2,
    }
    predicted = predict_bytes(prepare(parse_config(keys)))
    records = rounds_of(federate(keys))[1:]
    assert [[c.bytes_down for c in r.clients] for r in records] == predicted.down
    assert [[c.bytes_up for c in r.clients] for r in records] == predicted.up


LOST = '''
from server.cohort import draw_cohort
from strategies.{module} import {base}
from strategies.table import parse_config

class Lost({base}):
    """The clients that `lost` names for a round raise in it."""
    name = "lost"
    lost = {lost}

    def client_update(self, task):
        if task.partition_id in self.lost[task.round]:
            raise ArithmeticError("gave up")
        return super().client_update(task)
'''


@pytest.mark.parametrize("base", ["FedAvg", "Scaffold"])
def test_to_drop_out_is_to_fail_but_for_the_record(
    base: str, federate: Federate, tmp_path: Path
) -> None:
    """Simulated dropouts are not run; the bits are those of a run in which they run and fail."""
    keys: dict[str, object] = {**tiny_keys(base.lower()), "partition.clients": 5, "rounds": 4}
    drawn = {**keys, "faults.dropout-rate": 0.4}
    config = parse_config(drawn)
    lost = {r: set(draw_cohort(config, range(5), r).lost) for r in range(1, 5)}
    assert 2 < sum(map(len, lost.values())) < 18
    (tmp_path / "lost.py").write_text(LOST.format(base=base, module=base.lower(), lost=lost))
    simulated = federate(drawn)
    failed = federate({**keys, "strategy": f"{tmp_path / 'lost.py'}:Lost"})
    ours, theirs = (load_file(RunFolder.open(path).checkpoint(4)) for path in (simulated, failed))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    for mine, other in zip(rounds_of(simulated)[1:], rounds_of(failed)[1:], strict=True):
        assert {k for k, outcome in outcomes(mine).items() if outcome == "dropped"} == {
            k for k, outcome in outcomes(other).items() if outcome == "failed"
        }


FRAGILE = '''
from strategies.fedavg import FedAvg

class Fragile(FedAvg):
    """Those who are first in line raise."""
    name = "fragile"
    first = {first}

    def client_update(self, task):
        if task.partition_id in self.first[task.round]:
            raise ArithmeticError("gave up")
        return super().client_update(task)
'''


def test_the_next_in_line_stands_in_for_one_that_fails(federate: Federate, tmp_path: Path) -> None:
    keys = {**EIGHT, "cohort.size": 3, "cohort.over-sampling": 1.0, "rounds": 3}
    preparation = prepare(parse_config(keys))
    lines = {
        r: draw_cohort(preparation.config, preparation.hand_out_order(), r).arrivals
        for r in (1, 2, 3)
    }
    # One fails in round 1, two in round 2, so many in round 3 that two are all that is left.
    first = {r: set(lines[r][: {1: 1, 2: 2, 3: 4}[r]]) for r in lines}
    (tmp_path / "fragile.py").write_text(FRAGILE.format(first=first))
    records = rounds_of(federate({**keys, "strategy": f"{tmp_path / 'fragile.py'}:Fragile"}))[1:]
    for record in records:
        line, failing = lines[record.round], len(first[record.round])
        counted = line[failing : failing + 3]
        expected = dict.fromkeys(line, "surplus")
        expected |= dict.fromkeys(first[record.round], "failed") | dict.fromkeys(counted, "counted")
        assert outcomes(record) == expected
    assert Counter(outcomes(records[2]).values()) == {"failed": 4, "counted": 2}


def but_seconds(records: list[RoundRecord]) -> list[RoundRecord]:
    return [dataclasses.replace(record, seconds={}) for record in records]


def test_the_same_seed_gives_the_same_run_and_another_seed_another(federate: Federate) -> None:
    keys = {**EIGHT, **CASES["everything"], "cohort.max-empty-rounds": 9}
    one, same, other = (federate({**keys, "seed": seed}) for seed in (3, 3, 4))
    assert but_seconds(rounds_of(one)) == but_seconds(rounds_of(same))
    ours, theirs = (load_file(RunFolder.open(path).checkpoint(2)) for path in (one, same))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert [outcomes(r) for r in rounds_of(one)] != [outcomes(r) for r in rounds_of(other)]


def test_a_run_in_which_everybody_drops_out_is_given_up(federate: Federate, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no reply counted in 2 rounds.*dropped out"):
        federate({**EIGHT, "faults.dropout-rate": 1.0, "rounds": 5, "cohort.max-empty-rounds": 2})
    (path,) = (tmp_path / "runs").iterdir()
    assert [record.round for record in rounds_of(path)] == [0, 1, 2]
    for record in rounds_of(path)[1:]:
        assert set(outcomes(record).values()) == {"dropped"}
        assert (record.bytes_down > 0, record.bytes_up) == (True, 0)


def test_a_lost_client_goes_on_from_its_last_counted_round(federate: Federate) -> None:
    """`local` trains from its own weights: who missed rounds is where one with fewer rounds is.

    Client k's share of the confusion matrix is not on record, its own accuracy is: after a run
    with dropouts it is that of a run without, as many rounds in as k's replies that counted, if
    what it trains on does not depend on the round. One full batch per round does not.
    """
    keys = tiny_keys("local", rounds=4, train__batch_size=100_000)
    whole = rounds_of(federate(keys))
    drawn = {**keys, "faults.dropout-rate": 0.4}
    config = parse_config(drawn)
    missed = [set(draw_cohort(config, range(3), r).lost) for r in range(1, 5)]
    assert 1 < sum(map(len, missed)) < 9
    records = rounds_of(federate(drawn))
    for number in range(1, 5):
        found = records[number].client_scores
        for k in range(3):
            if found is None or k in missed[number - 1]:
                assert found is None or found[k] is None
                continue
            trained = sum(k not in lost for lost in missed[:number])
            expected = whole[trained].client_scores
            assert expected is not None
            assert found[k] == pytest.approx(expected[k], abs=0.02)
