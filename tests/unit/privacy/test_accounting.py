"""Epsilon against published figures, closed forms and other people's accountants."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from core.errors import ConfigError
from privacy.accounting import (
    CALIBRATION_WIDTH,
    PRV_ERROR,
    PRV_TIME_LIMIT_S,
    RDP_ORDERS,
    Epsilon,
    Segment,
    accountant_name,
    calibrate,
    choose_accountant,
    epsilon,
    epsilons,
    pld_epsilon,
    prv_time_s,
    spend,
)

ROOT = Path(__file__).resolve().parents[3]
DELTA = 1e-5
GRID = [
    [Segment(sigma, q, steps)]
    for sigma in (0.8, 2.0, 5.0)
    for q, steps in ((0.005, 1), (0.005, 1000), (0.05, 30), (0.05, 1000), (0.4, 10), (1.0, 30))
]
MIXED = [Segment(3.0, 0.1, 200), Segment(1.5, 0.02, 500), Segment(2.0, 1.0, 2)]


@pytest.mark.parametrize(
    ("sigma", "rdp", "prv", "whole_run_rdp", "whole_run_prv"),
    [
        (1.0, 12.259, 11.157, 83.63, None),
        (3.0, 2.460, 2.264, 13.88, 12.94),
        (5.0, 1.358, 1.253, 7.29, 6.77),
    ],
)
def test_the_papers_epsilons_are_those_of_one_round_of_one_client(
    sigma: float, rdp: float, prv: float, whole_run_rdp: float, whole_run_prv: float | None
) -> None:
    by_rdp = spend(sigma, 256 / 5000, 977, 20, DELTA, "rdp")
    assert by_rdp.per_round.value == pytest.approx(rdp, abs=6e-4)
    assert by_rdp.whole_run.value == pytest.approx(whole_run_rdp, abs=6e-3)
    # PRV needs six seconds for 20 rounds at sigma 1, which is left out.
    by_prv = spend(sigma, 256 / 5000, 977, 1 if whole_run_prv is None else 20, DELTA)
    assert by_prv.per_round.value == pytest.approx(prv, abs=6e-4)
    if whole_run_prv is not None:
        assert by_prv.whole_run.value == pytest.approx(whole_run_prv, abs=6e-3)
    assert {by_prv.per_round.accountant, by_prv.whole_run.accountant} == {"prv"}


def test_the_orders_are_the_papers() -> None:
    assert tuple(sorted({*RDP_ORDERS})) == RDP_ORDERS
    assert RDP_ORDERS[:10] == (1.25, 1.5, 1.75, 2, 2.25, 2.5, 3, 3.5, 4, 4.5)
    assert RDP_ORDERS[10:] == (*range(5, 64), 128, 256, 512)


def test_rdp_agrees_with_dp_accounting() -> None:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    compared = 0
    for history in [*GRID, MIXED]:
        oracle = RdpAccountant(orders=RDP_ORDERS)
        for one in history:
            event = PoissonSampledDpEvent(one.sampling_rate, GaussianDpEvent(one.noise_multiplier))
            oracle.compose(event, one.steps)
        expected = oracle.get_epsilon(DELTA)
        if expected < 15:
            assert epsilon(history, DELTA, "rdp").value == pytest.approx(expected, rel=0.005)
            compared += 1
    assert compared >= 15


def test_prv_agrees_with_pld() -> None:
    compared = 0
    for history in [*GRID, MIXED]:
        if epsilon(history, DELTA, "rdp").value < 60:
            bound = pld_epsilon(history, DELTA)
            found = epsilon(history, DELTA)
            assert found.accountant == "prv"
            assert found.value == pytest.approx(bound, abs=0.02)
            assert found.value > bound - 1e-3
            compared += 1
    assert compared >= 15


@pytest.mark.parametrize("delta", [0.3, 1e-2, 1e-7, 1e-9])
def test_prv_agrees_with_pld_at_other_deltas(delta: float) -> None:
    assert epsilon(MIXED, delta).accountant == "prv"
    assert epsilon(MIXED, delta).value == pytest.approx(pld_epsilon(MIXED, delta), abs=0.02)


def test_a_delta_that_rounding_errors_drown_is_left_to_rdp() -> None:
    history = [Segment(3.0, 0.0512, 977)]
    found = epsilon(history, 1e-13)
    assert found.accountant == "rdp"
    assert "rounding" in found.reason
    assert found.value >= pld_epsilon(history, 1e-13)


def exact_gaussian(sigma: float, delta: float) -> float:
    """Epsilon of N(0, sigma^2) on sensitivity 1: Balle and Wang 2018, Theorem 8."""

    def least_delta(eps: float) -> float:
        above, below = (
            0.5 * math.erfc((eps * sigma + half) / math.sqrt(2))
            for half in (-0.5 / sigma, 0.5 / sigma)
        )
        return above - math.exp(eps) * below

    low, high = 0.0, 300.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if least_delta(middle) > delta else (low, middle)
    return high


@pytest.mark.parametrize(
    ("sigma", "steps"), [(0.8, 1), (1.0, 1), (4.0, 1), (10.0, 7), (20.0, 1000), (2.0, 40)]
)
def test_without_sampling_it_is_the_gaussian_mechanism(sigma: float, steps: int) -> None:
    exact = exact_gaussian(sigma / math.sqrt(steps), DELTA)
    by_prv = epsilon([Segment(sigma, 1.0, steps)], DELTA).value
    assert exact < by_prv < exact + 2 * PRV_ERROR
    by_rdp = epsilon([Segment(sigma, 1.0, steps)], DELTA, "rdp").value
    assert exact < by_rdp < 1.2 * exact


SIGMAS = st.floats(0.3, 30.0)
RATES = st.floats(1e-4, 1.0)
STEPS = st.integers(1, 20_000)


def rdp_of(sigma: float, q: float, steps: int) -> float:
    return epsilon([Segment(sigma, q, steps)], DELTA, "rdp").value


@settings(max_examples=20)
@given(SIGMAS, RATES, STEPS, st.floats(1.05, 3.0))
def test_rdp_grows_with_rounds_and_rate_and_falls_with_noise(
    sigma: float, q: float, steps: int, factor: float
) -> None:
    assume(q * factor <= 1)
    here = rdp_of(sigma, q, steps)
    slack = 1e-9 * (1 + here)
    assert rdp_of(sigma, q, math.ceil(steps * factor)) >= here - slack
    assert rdp_of(sigma, q * factor, steps) >= here - slack
    assert rdp_of(sigma * factor, q, steps) <= here + slack


def test_epsilon_moves_strictly_where_there_is_something_to_lose() -> None:
    for name in ("prv", "rdp"):
        for rising in (
            [Segment(2.0, 0.05, 20 * rounds) for rounds in (1, 2, 20, 100)],
            [Segment(2.0, q, 100) for q in (0.01, 0.05, 0.2, 1.0)],
            [Segment(sigma, 0.05, 100) for sigma in (8.0, 4.0, 2.0, 1.0)],
        ):
            found = [epsilon([one], DELTA, name).value for one in rising]
            assert all(b > a for a, b in pairwise(found))


def test_more_delta_costs_less_epsilon() -> None:
    for name in ("prv", "rdp"):
        found = [epsilon(MIXED, delta, name).value for delta in (1e-7, 1e-6, 1e-5, 1e-3)]
        assert found == sorted(found, reverse=True)
        assert len({*found}) == 4


def test_composition_is_that_of_all_steps_in_whatever_pieces_and_order() -> None:
    whole = [Segment(1.3, 0.05, 100), Segment(2.0, 0.05, 40)]
    pieces = [Segment(2.0, 0.05, 1), *[Segment(1.3, 0.05, 10)] * 10, Segment(2.0, 0.05, 39)]
    for name in ("prv", "rdp"):
        assert epsilon(pieces, DELTA, name) == epsilon(whole, DELTA, name)
        assert epsilon(whole, DELTA, name).value > epsilon(whole[:1], DELTA, name).value
    assert prv_time_s(pieces, DELTA) == prv_time_s(whole, DELTA)


def test_no_noise_costs_everything_and_no_step_nothing() -> None:
    for name in ("prv", "rdp"):
        assert epsilon([], DELTA, name) == Epsilon(0.0, accountant_name(name))
        assert epsilon([Segment(0.0, 0.1, 0)], DELTA, name).value == 0.0
        for sigma in (0.0, -1.0):
            mixed = [Segment(1.0, 0.1, 5), Segment(sigma, 0.1, 1)]
            assert math.isinf(epsilon(mixed, DELTA, name).value)
    assert pld_epsilon([], DELTA) == 0.0
    assert math.isinf(pld_epsilon([Segment(0.0, 0.1, 1)], DELTA))


def test_epsilon_is_never_below_zero() -> None:
    assert epsilon([Segment(5.0, 0.01, 1)], 0.9).value == 0.0
    assert epsilon([Segment(5.0, 0.01, 1)], 0.9, "rdp").value == 0.0


def test_next_to_no_noise_is_told_and_not_an_error() -> None:
    for sigma in (1e-200, 1e-3, 0.01, 0.05):
        found = epsilon([Segment(sigma, 0.5, 4)], DELTA)
        assert found.value > 900
        assert (found.accountant, bool(found.reason)) == ("rdp", True)


def test_orders_at_which_opacus_fails_are_left_out() -> None:
    """Its alternating sums come out negative at some fractional orders."""
    from opacus.accountants import RDPAccountant

    broken = Segment(109295540.0, 0.01, 1000)
    accountant = RDPAccountant()
    accountant.history = [(broken.noise_multiplier, broken.sampling_rate, broken.steps)]
    with pytest.raises(ValueError, match="non-negative"):
        accountant.get_epsilon(DELTA, alphas=list(RDP_ORDERS))
    assert 0 <= epsilon([broken], DELTA, "rdp").value < 0.01


def test_nothing_is_printed_to_standard_error_by_what_computes() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("prv", "rdp"):
            for segment in (Segment(40.0, 0.01, 3), Segment(0.05, 1.0, 2), Segment(1.0, 1.0, 11)):
                epsilon([segment], DELTA, name)
        pld_epsilon([Segment(1.0, 1.0, 11)], DELTA)


@pytest.mark.parametrize(
    ("refused", "echo"),
    [
        (lambda: Segment(1.0, 0.0, 1), "sampling-rate=0:"),
        (lambda: Segment(1.0, 1.01, 1), "sampling-rate=1.01:"),
        (lambda: Segment(1.0, math.nan, 1), "sampling-rate=nan:"),
        (lambda: Segment(math.nan, 0.1, 1), "noise-multiplier=nan:"),
        (lambda: Segment(math.inf, 0.1, 1), "noise-multiplier=inf:"),
        (lambda: Segment(1.0, 0.1, -1), "steps=-1:"),
        (lambda: epsilon(MIXED, 0.0), "delta=0:"),
        (lambda: epsilon(MIXED, 1.0), "delta=1:"),
        (lambda: pld_epsilon(MIXED, -1.0), "delta=-1:"),
        (lambda: epsilon(MIXED, DELTA, "moments"), "accountant=moments: must be one of prv, rdp"),
        (lambda: spend(1.0, 0.1, 5, -1, DELTA), "rounds=-1:"),
        (lambda: to_reach(0.01), "epsilon=0.01: must be above 0.01"),
        (lambda: to_reach(-3.0), "epsilon=-3:"),
        (lambda: to_reach(math.nan), "epsilon=nan:"),
        (lambda: to_reach(2000.0), "at most 1000"),
        (lambda: calibrate(1.0, delta=DELTA, sampling_rate=0.1, steps=0), "steps=0:"),
        # RDP's conversion adds ln(1/delta)/511 at its largest order.
        (lambda: to_reach(0.02, "rdp", delta=1e-12), "epsilon=0.02: is reached by no noise by RDP"),
    ],
)
def test_what_is_refused(refused: Callable[[], object], echo: str) -> None:
    with pytest.raises(ConfigError) as caught:
        refused()
    assert echo in str(caught.value)


def to_reach(target: float, accountant: str = "prv", delta: float = DELTA) -> object:
    return calibrate(target, delta=delta, sampling_rate=0.05, steps=100, accountant=accountant)


def test_gdp_is_refused_by_name_and_rightly_so() -> None:
    from opacus.accountants import GaussianAccountant

    for taking in (
        accountant_name,
        lambda name: epsilon(MIXED, DELTA, name),
        lambda name: epsilons([MIXED], DELTA, name),
        lambda name: choose_accountant(MIXED, DELTA, name),
        lambda name: spend(1.0, 0.1, 1, 1, DELTA, name),
        lambda name: to_reach(1.0, name),
    ):
        for name in ("gdp", "GDP"):
            with pytest.raises(ConfigError, match="understates epsilon"):
                taking(name)
    with pytest.warns(UserWarning, match="underestimate"):
        gdp = GaussianAccountant()
    gdp.history = [(0.5, 0.01, 1000)]
    # An exact lower bound on what this costs: PRV's estimate is good to PRV_ERROR.
    least = epsilon([Segment(0.5, 0.01, 1000)], DELTA).value - 2 * PRV_ERROR
    assert gdp.get_epsilon(DELTA) < least - 1


@pytest.mark.parametrize(
    ("target", "q", "steps"),
    [
        (1.0, 0.05, 400),
        (4.0, 0.05, 400),
        (2.0, 0.0512, 19_540),
        (8.0, 1.0, 20),
        (0.1, 1.0, 20),
        (1.0, 0.001, 10),
        (0.02, 0.01, 100),
    ],
)
def test_a_calibrated_noise_costs_what_it_was_made_for(
    target: float, q: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import privacy.accounting

    evaluated: list[object] = []
    prv = privacy.accounting._prv

    def counted(*args: object) -> tuple[float, str]:
        evaluated.append(args)
        return prv(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(privacy.accounting, "_prv", counted)
    found = calibrate(target, delta=DELTA, sampling_rate=q, steps=steps)
    again = epsilon([Segment(found.noise_multiplier, q, steps)], DELTA)
    assert again == found.epsilon
    assert again.accountant == "prv"
    assert target - CALIBRATION_WIDTH < again.value <= target
    assert pld_epsilon([Segment(found.noise_multiplier, q, steps)], DELTA) <= target
    assert len(evaluated) <= 8


@settings(max_examples=8)
@given(st.floats(0.05, 500.0), RATES, STEPS)
def test_so_does_one_calibrated_by_rdp(target: float, q: float, steps: int) -> None:
    found = calibrate(target, delta=DELTA, sampling_rate=q, steps=steps, accountant="rdp")
    again = rdp_of(found.noise_multiplier, q, steps)
    assert found.epsilon == Epsilon(again, "rdp")
    assert target - CALIBRATION_WIDTH < again <= target


def test_calibrated_noise_falls_with_the_budget() -> None:
    found = [
        calibrate(target, delta=DELTA, sampling_rate=0.05, steps=100).noise_multiplier
        for target in (0.5, 1.0, 2.0)
    ]
    assert found == sorted(found, reverse=True)
    assert len({*found}) == 3


def test_beyond_its_time_limit_prv_leaves_everything_to_rdp() -> None:
    long, short = [Segment(1.0, 0.05, 400)], [Segment(1.0, 0.05, 20)]
    assert prv_time_s(short, DELTA) < prv_time_s(long, DELTA) < PRV_TIME_LIMIT_S
    limit = (prv_time_s(short, DELTA) + prv_time_s(long, DELTA)) / 2
    by_rdp = epsilon(long, DELTA, "rdp")
    found = epsilon(long, DELTA, prv_time_limit_s=limit)
    assert (found.accountant, found.value) == ("rdp", by_rdp.value)
    assert f"its limit is {limit:g} s" in found.reason
    assert by_rdp.reason == ""
    assert choose_accountant(long, DELTA, prv_time_limit_s=limit) == "rdp"
    assert choose_accountant(short, DELTA, prv_time_limit_s=limit) == "prv"
    assert choose_accountant(long, DELTA) == "prv"
    assert choose_accountant(long, DELTA, "rdp") == "rdp"

    cost = spend(1.0, 0.05, 20, 20, DELTA, prv_time_limit_s=limit)
    assert cost.per_round == Epsilon(epsilon(short, DELTA, "rdp").value, "rdp", found.reason)
    assert cost.whole_run == found
    both = epsilons([short, long], DELTA, prv_time_limit_s=limit)
    assert both == [cost.per_round, cost.whole_run]


def test_a_calibration_beyond_the_time_limit_is_rdps() -> None:
    calibrated = partial(calibrate, 2.0, delta=DELTA, sampling_rate=0.05, steps=400)
    by_prv, by_rdp = calibrated(), calibrated(accountant="rdp")
    # Enough for the noise that RDP finds, at which PRV is tried first, and not for the answer.
    at = [prv_time_s([Segment(one.noise_multiplier, 0.05, 400)], DELTA) for one in (by_rdp, by_prv)]
    assert at[0] < at[1]
    for limit in (0.0, sum(at) / 2):
        found = calibrated(prv_time_limit_s=limit)
        assert found.noise_multiplier == by_rdp.noise_multiplier > by_prv.noise_multiplier
        assert (found.epsilon.accountant, found.epsilon.value) == ("rdp", by_rdp.epsilon.value)
        assert "PRV would take" in found.epsilon.reason
    assert by_prv.epsilon.accountant == "prv"
    assert by_rdp.epsilon.reason == ""


def test_the_predicted_work_is_that_of_opacus_grid() -> None:
    from opacus.accountants import PRVAccountant
    from opacus.accountants.analysis.prv import PoissonSubsampledGaussianPRV

    from privacy.accounting import PRV_POINTS_PER_S

    for history in (MIXED, [Segment(1.0, 0.05, 400)]):
        domain = PRVAccountant()._get_domain(
            prvs=[
                PoissonSubsampledGaussianPRV(s.sampling_rate, s.noise_multiplier) for s in history
            ],
            num_self_compositions=[s.steps for s in history],
            eps_error=PRV_ERROR,
            delta_error=DELTA / 1000,
        )
        predicted = prv_time_s(history, DELTA) * PRV_POINTS_PER_S / len(history)
        assert domain.size == pytest.approx(predicted, abs=4)


def test_importing_it_does_not_wait_for_opacus() -> None:
    script = (
        "import sys, privacy.accounting\n"
        "print(sorted({'torch', 'opacus', 'dp_accounting', 'scipy'} & sys.modules.keys()))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "[]\n"
