"""Averages that withstand malicious clients: exact values, other libraries, breakdown."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from torch import nn

import strategies.robust
from core.config import RunConfig
from core.errors import ConfigError
from core.parameters import weights_of
from core.wire import Record
from pairing.configuration import parse_config
from strategies.base import Reply, RoundOutcome, ServerState, arrays_of
from strategies.fedavg import FedAvgClient
from strategies.multi_krum import krum_scores, squared_distances
from strategies.robust import RobustAverage, trimmed_mean
from strategies.table import build_strategy
from tests.unit.strategies import toy
from tests.unit.strategies.toy import server_task

Floats = npt.NDArray[np.float64]
ROBUST = ("trimmed-mean", "median", "multi-krum")


@cache
def config_of(strategy: str, **keys: object) -> RunConfig:
    """Of a federation that is large enough for any of these."""
    return toy.config_of(strategy, partition__clients=100, **keys)


def replies_of(
    rows: Sequence[Mapping[str, object]], losses: Sequence[float] | None = None
) -> list[Reply]:
    """One reply a row, of equal sizes; plain numbers become float32."""
    told = losses or [0.0] * len(rows)
    return [
        Reply(k, Record(_arrays(row), {"num_examples": 4, "train_loss": loss}))
        for k, (row, loss) in enumerate(zip(rows, told, strict=True))
    ]


def _arrays(row: Mapping[str, object]) -> dict[str, npt.NDArray[np.generic]]:
    return {k: v if isinstance(v, np.ndarray) else np.array(v, np.float32) for k, v in row.items()}


def outcome_of(config: RunConfig, replies: Sequence[Reply]) -> RoundOutcome:
    """The server half on `replies`, from weights of zero."""
    first = replies[0].record.arrays
    state = ServerState({k: torch.from_numpy(np.zeros_like(v)) for k, v in first.items()})
    strategy = build_strategy(config)
    accumulator = strategy.begin(state)
    for reply in replies:
        accumulator = strategy.add(accumulator, reply)
    return strategy.finish(state, accumulator, server_task())


def averaged(config: RunConfig, rows: Sequence[Sequence[float]]) -> list[float]:
    """The new value of one entry ``w``."""
    weights = outcome_of(config, replies_of([{"w": row} for row in rows])).state.weights
    values: list[float] = weights["w"].tolist()
    return values


FIVE = [[1.0, 5.0, -3.0], [2.0, 4.0, -1.0], [4.0, 3.0, 0.0], [6.0, 2.0, 7.0], [100.0, -90.0, 1.0]]
"""Columns sorted: 1 2 4 6 100; -90 2 3 4 5; -3 -1 0 1 7."""


def test_trimmed_mean_of_five() -> None:
    config = config_of("trimmed-mean")
    assert averaged(config, FIVE) == [4.0, 3.0, 0.0]
    most = config_of("trimmed-mean", trimmed_mean__trim_fraction=0.4)
    assert averaged(most, FIVE) == [4.0, 3.0, 0.0]
    wide = [[0.0], [1.0], [2.0], [3.0], [9.0], [500.0]]
    assert averaged(config, wide) == [3.75]
    assert averaged(most, wide) == [2.5]


def test_median_of_five_and_of_four() -> None:
    config = config_of("median")
    assert averaged(config, FIVE) == [4.0, 3.0, 0.0]
    assert averaged(config, FIVE[:4]) == [3.0, 3.5, -0.5]
    assert averaged(config, FIVE[:1]) == FIVE[0]


def test_multi_krum_of_five() -> None:
    """f = 1, so that the two nearest count: 1 + 1, 1 + 4, 1 + 4, 9 + 16, 256 + 361."""
    rows = [[0.0], [1.0], [-1.0], [4.0], [20.0]]
    squares = squared_distances(
        [reply.record.arrays for reply in replies_of([{"w": r} for r in rows])]
    )
    assert krum_scores(squares, 2).tolist() == [2.0, 5.0, 5.0, 25.0, 617.0]
    expected = {1: 0.0, 2: 0.5, 3: 0.0, 4: 1.0, 0: 1.0}  # 1 and -1 tie: the lower id comes first
    for selected, value in expected.items():
        config = config_of("multi-krum", multi_krum__byzantine=1, multi_krum__selected=selected)
        assert averaged(config, rows) == [value], selected


def test_integers_are_rounded_and_count_in_no_distance() -> None:
    rows: list[dict[str, object]] = [
        {"w": [float(k % 2)], "steps": np.array(steps)}
        for k, steps in enumerate([1, 2, 10_000, 4, 6])
    ]
    for name, expected in (("trimmed-mean", 4), ("median", 4), ("multi-krum", 2003)):
        keys: dict[str, object] = {"multi_krum__byzantine": 0} if name == "multi-krum" else {}
        steps = outcome_of(config_of(name, **keys), replies_of(rows)).state.weights["steps"]
        assert (steps.item(), steps.dtype, steps.shape) == (expected, torch.int64, ())
    krum = config_of("multi-krum", multi_krum__byzantine=1, multi_krum__selected=3)
    # 0, 2 and 4 are at distance 0 from each other, whatever their steps
    assert outcome_of(krum, replies_of(rows)).state.weights["steps"].item() == 3336


def test_the_loss_is_that_of_those_averaged() -> None:
    losses = [1.0, 2.0, 4.0, 6.0, 1e308]
    rows = [{"w": row} for row in FIVE]
    told = {
        name: outcome_of(config, replies_of(rows, losses)).metrics
        for name, config in {
            "trimmed": config_of("trimmed-mean"),
            "median": config_of("median"),
            "krum": config_of("multi-krum", multi_krum__byzantine=1),
        }.items()
    }
    assert told["trimmed"] == {"train_loss": 4.0, "num_averaged": 3}
    assert told["median"] == {"train_loss": 4.0, "num_averaged": 1}
    assert told["krum"] == {"train_loss": 3.25, "num_averaged": 4}


def test_clients_count_equally_whatever_they_say_they_hold() -> None:
    replies = [
        Reply(
            k, Record({"w": np.array([k], np.float32)}, {"num_examples": count, "train_loss": 0.0})
        )
        for k, count in enumerate([1, 1, 1000])
    ]
    config = config_of("trimmed-mean", trimmed_mean__trim_fraction=0.0)
    assert outcome_of(config, replies).state.weights["w"].tolist() == [1.0]


values = st.floats(-1e6, 1e6, width=32)
tables = hnp.arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(1, 6)), elements=values)


@given(tables, st.integers(0, 5))
def test_trimmed_mean_agrees_with_scipy(table: npt.NDArray[np.float32], num_trimmed: int) -> None:
    num_trimmed = min(num_trimmed, (len(table) - 1) // 2)
    oracle = stats.trim_mean(table.astype(np.float64), (num_trimmed + 0.5) / len(table), axis=0)
    assert np.allclose(trimmed_mean(list(table), num_trimmed), oracle, rtol=1e-12, atol=1e-9)


@given(tables)
def test_median_agrees_with_numpy(table: npt.NDArray[np.float32]) -> None:
    result = averaged(config_of("median"), table.tolist())
    oracle = np.median(table.astype(np.float64), axis=0).astype(np.float32)
    assert np.array_equal(np.array(result, np.float32), oracle)


@given(tables)
def test_without_trimming_it_is_fedavg_on_clients_of_equal_size(
    table: npt.NDArray[np.float32],
) -> None:
    plain = averaged(config_of("trimmed-mean", trimmed_mean__trim_fraction=0.0), table.tolist())
    assert np.allclose(plain, averaged(config_of("fedavg"), table.tolist()), rtol=1e-6, atol=1e-6)


def test_trimming_counts_the_fraction_as_written() -> None:
    """0.29 * 100 is 28.999999999999996 in binary: 29 are asked for."""
    rows = [[float(k)] for k in range(100)]
    config = config_of("trimmed-mean", trimmed_mean__trim_fraction=0.29)
    outcome = outcome_of(config, replies_of([{"w": row} for row in rows]))
    assert outcome.metrics["num_averaged"] == 42


@pytest.mark.parametrize("at_once", [1, 7, 64])
def test_large_arrays_are_averaged_piece_by_piece(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    rows = [{"w": rng.normal(size=(3, 5, 2)).astype(np.float32)} for _ in range(7)]
    stacked = np.stack([row["w"] for row in rows]).astype(np.float64)
    flat = stacked.reshape(7, -1)
    monkeypatch.setattr(strategies.robust, "_VALUES_AT_ONCE", at_once)
    mean = trimmed_mean([row["w"] for row in rows], 2)
    assert mean.shape == (3, 5, 2)
    assert np.allclose(mean, np.sort(stacked, axis=0)[2:5].mean(axis=0), rtol=1e-12)
    squares = squared_distances(rows)
    assert np.allclose(squares, ((flat[:, None] - flat[None]) ** 2).sum(-1), rtol=1e-12)


def test_distances_of_close_replies_far_from_zero_are_exact() -> None:
    """Where ||a||^2 + ||b||^2 - 2 a.b in float64 would be off by whole units."""
    rows = [{"w": np.array([1e9 + step, -1e9])} for step in (0.0, 1.0, 3.0)]
    assert squared_distances(rows).tolist() == [[0, 1, 9], [1, 0, 4], [9, 4, 0]]


def brute_force_krum(points: Sequence[Sequence[int]], f: int, m: int) -> list[int]:
    """Who is averaged, from the paper's words, in whole numbers and plain loops."""
    n = len(points)
    scores = []
    for i in range(n):
        squares = sorted(
            sum((a - b) ** 2 for a, b in zip(points[i], points[j], strict=True))
            for j in range(n)
            if j != i
        )
        scores.append(sum(squares[: n - f - 2]))
    return sorted(sorted(range(n), key=lambda i: (scores[i], i))[: m or n - f])


@st.composite
def krum_cases(draw: st.DrawFn) -> tuple[list[list[int]], int, int]:
    f = draw(st.integers(0, 3))
    n = draw(st.integers(2 * f + 3, 2 * f + 8))
    m = draw(st.integers(0, n - f))
    point = st.lists(st.integers(-4, 4), min_size=2, max_size=2)
    return draw(st.lists(point, min_size=n, max_size=n)), f, m


@given(krum_cases())
@settings(max_examples=200)
def test_multi_krum_selects_as_brute_force_does(case: tuple[list[list[int]], int, int]) -> None:
    """Small whole numbers, so that many scores tie, in entries whose distances are whole too."""
    points, f, m = case
    rows = [{"x": [x], "y": [y]} for x, y in points]
    chosen = brute_force_krum(points, f, m)
    config = config_of("multi-krum", multi_krum__byzantine=f, multi_krum__selected=m)
    strategy = build_strategy(config)
    assert isinstance(strategy, RobustAverage)
    kept, num_trimmed = strategy.averaged(replies_of(rows))
    assert [reply.partition_id for reply in kept] == chosen
    assert num_trimmed == 0
    weights = outcome_of(config, replies_of(rows)).state.weights
    mean = np.mean([points[k] for k in chosen], axis=0)
    assert np.allclose([weights["x"].item(), weights["y"].item()], mean, atol=1e-6)


@pytest.mark.parametrize("name", ROBUST)
def test_the_order_of_replies_does_not_matter(name: str) -> None:
    rng = np.random.default_rng(1)
    rows: list[dict[str, object]] = [
        {"w": rng.normal(size=50).astype(np.float32) * 10.0 ** (k % 3)} for k in range(7)
    ]
    replies, config = replies_of(rows, [0.1 * k for k in range(7)]), config_of(name)
    reference = outcome_of(config, replies)
    for order in itertools.islice(itertools.permutations(replies), 0, None, 501):
        outcome = outcome_of(config, order)
        assert torch.equal(outcome.state.weights["w"], reference.state.weights["w"])
        assert outcome.metrics == reference.metrics


@pytest.mark.parametrize(("name", "f", "n"), [("trimmed-mean", 2, 10), ("median", 4, 9)])
@given(data=st.data())
def test_arbitrary_replies_leave_every_coordinate_within_the_honest_ones(
    name: str, f: int, n: int, data: st.DataObject
) -> None:
    anything = st.floats(allow_nan=False, allow_infinity=False, width=32)
    row = st.lists(values, min_size=3, max_size=3)
    honest = data.draw(st.lists(row, min_size=n - f, max_size=n - f))
    bad = st.lists(anything, min_size=3, max_size=3)
    rows = [*honest, *data.draw(st.lists(bad, min_size=f, max_size=f))]
    result = np.array(averaged(config_of(name), data.draw(st.permutations(rows))))
    assert (np.min(honest, axis=0) <= result).all()
    assert (result <= np.max(honest, axis=0)).all()


@pytest.mark.parametrize("name", ["fedavg", "trimmed-mean", "median"])
def test_one_more_malicious_reply_than_it_withstands_breaks_it(name: str) -> None:
    """Otherwise the test above would say nothing."""
    num_bad = {"fedavg": 1, "trimmed-mean": 3, "median": 5}[name]
    rows = [[1.0]] * (10 - num_bad) + [[1e9]] * num_bad
    assert averaged(config_of(name), rows)[0] > 1e7


@given(
    st.lists(st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3), min_size=7, max_size=7),
    st.floats(100, 1e30),
    st.booleans(),
)
def test_multi_krum_leaves_out_replies_far_from_the_others_even_if_they_agree(
    honest: list[list[float]], distance: float, agree: bool
) -> None:
    bad = [[distance] * 3, [distance if agree else -distance] * 3]
    result = averaged(config_of("multi-krum"), [bad[0], *honest, bad[1]])
    assert np.allclose(result, np.mean(honest, axis=0), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "keys", "enough"),
    [
        ("multi-krum", {}, 7),
        ("multi-krum", {"multi_krum__byzantine": 0}, 3),
        ("multi-krum", {"multi_krum__byzantine": 1, "multi_krum__selected": 6}, 7),
        ("trimmed-mean", {}, 5),
        ("trimmed-mean", {"trimmed_mean__trim_fraction": 0.34}, 3),
        ("trimmed-mean", {"trimmed_mean__trim_fraction": 0.0}, 1),
        ("median", {}, 1),
    ],
)
def test_too_few_replies_leave_the_model_as_it_was(
    name: str, keys: dict[str, object], enough: int
) -> None:
    config = config_of(name, **keys)
    replies = replies_of([{"w": [1.0 + k]} for k in range(enough)])
    fine = outcome_of(config, replies)
    assert fine.metrics["num_averaged"] >= 1
    assert fine.state.weights["w"].item() >= 1
    if enough > 1:
        refused = outcome_of(config, replies[:-1])
        assert refused.metrics == {"num_averaged": 0}
        assert refused.state.weights["w"].item() == 0


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (
            {"strategy": "multi-krum", "partition.clients": 6},
            "multi-krum.byzantine=2: needs 2 f + 3 = 7 replies in a round, which takes 6; lower it "
            "to 1 or ask more clients",
        ),
        (
            {"strategy": "multi-krum", "cohort.size": 2, "multi-krum.byzantine": 0},
            "multi-krum.byzantine=0: needs 2 f + 3 = 3 replies in a round, which takes 2; ask more "
            "clients",
        ),
        (
            {"strategy": "multi-krum", "multi-krum.selected": 9},
            "multi-krum.selected=9: must be at most 8: the 10 replies of a round less "
            "multi-krum.byzantine=2; 0 takes that many",
        ),
        (
            {"strategy": "trimmed-mean", "cohort.size": 4},
            "trimmed-mean.trim-fraction=0.2: leaves out none of the 4 replies of a round; it needs "
            "5 of them, and 0 is the plain mean",
        ),
    ],
)
def test_a_defence_that_could_never_work_is_refused(keys: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(keys)
    assert [str(problem) for problem in caught.value.problems] == [told]


@pytest.mark.parametrize(
    "keys",
    [
        {"strategy": "multi-krum", "partition.clients": 7},
        {"strategy": "multi-krum", "multi-krum.selected": 8},
        {"strategy": "trimmed-mean", "partition.clients": 5},
        {"strategy": "trimmed-mean", "partition.clients": 1, "trimmed-mean.trim-fraction": 0.0},
        {"strategy": "median", "partition.clients": 1},
    ],
)
def test_a_defence_that_can_just_work_is_allowed(keys: dict[str, object]) -> None:
    assert parse_config(keys).strategy == keys["strategy"]


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("trimmed-mean", {"trimmed_mean__trim_fraction": 0.34}),
        ("median", {}),
        ("multi-krum", {"multi_krum__byzantine": 0}),
    ],
)
def test_batch_norm_buffers_are_averaged_too(name: str, keys: dict[str, object]) -> None:
    """Three replies 1, 2 and 3 above the weights: each method must then make 2."""
    config = config_of(name, **keys)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    state = ServerState(weights_of(model))
    replies = [
        Reply(k, Record(arrays_of(raised), {"num_examples": 1, "train_loss": 0.0}))
        for k in range(3)
        for raised in [{n: w + (k + 1) for n, w in state.weights.items()}]
    ]
    weights = outcome_of(config, replies).state.weights
    assert list(weights) == list(state.weights)
    assert weights["1.num_batches_tracked"].dtype == torch.int64
    for entry, old in state.weights.items():
        assert weights[entry].dtype == old.dtype
        assert weights[entry].shape == old.shape
        assert torch.allclose(weights[entry].double(), old.double() + 2, atol=1e-5), entry


def test_the_client_half_is_fedavgs() -> None:
    for name in ROBUST:
        strategy = build_strategy(config_of(name))
        assert type(strategy).client_update is FedAvgClient.client_update
        assert type(strategy).reply_spec is FedAvgClient.reply_spec
        assert type(strategy).check_reply is FedAvgClient.check_reply
