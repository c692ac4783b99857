"""Epsilon of noised sums over Poisson samples, and the noise that a target epsilon needs.

Opacus computes: PRV is the figure of record, RDP stands in where PRV cannot, and dp-accounting's
PLD checks both. Everything here is a pure function of its arguments. Opacus and dp-accounting are
imported where they are used, for their imports take seconds.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast, get_args

import numpy as np

from core.errors import ConfigError, Problem

AccountantName = Literal["prv", "rdp"]

RDP_ORDERS: tuple[float, ...] = (
    *(1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 3.0, 3.5, 4.0, 4.5),
    *map(float, range(5, 64)),
    *(128.0, 256.0, 512.0),
)
"""Orders of the Renyi divergence, those of TensorFlow Privacy."""

PRV_ERROR = 0.01
"""PRV's estimate is off by at most this, which is added to make it a bound."""

PRV_TIME_LIMIT_S = 20.0
"""PRV is not asked for what it would be longer about than this, on one core."""

PRV_POINTS_PER_S = 1e6
"""Grid points times distinct segments that PRV gets through in a second, on one core.

Measured on an x86 server core with OMP_NUM_THREADS=1: 0.8 to 2.4 million for grids of 0.1 to 23
million points, the low end where the Fourier transform meets a large prime. The limit is on this
prediction and not on a clock, so that every process and every machine takes the same accountant. At
the limit PRV needs 2 to 5 GB of memory.
"""

CALIBRATION_WIDTH = 0.01
"""A calibrated noise costs more than the target less this, and at most the target."""

LARGEST_TARGET = 1000.0
"""A larger epsilon protects nothing, and its noise is not looked for."""

_DELTA_ERROR = 1e-3
"""PRV's error in delta, as a fraction of delta; Opacus's own choice."""

_GDP = (
    "gdp is refused, for its central limit theorem understates epsilon and is no bound; "
    "take prv, or rdp"
)
_LARGEST_SIGMA = 1e9
_SMALLEST_SIGMA = 1e-4
_DIGITS = 8


@dataclass(frozen=True, slots=True)
class Segment:
    """Steps that are alike.

    Attributes:
        noise_multiplier: Standard deviation of the noise in units of the clip (sigma).
        sampling_rate: Probability with which each example takes part in a step (q), each on its
            own.
        steps: Noised sums released (T).
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int

    def __post_init__(self) -> None:
        problems = []
        if not math.isfinite(self.noise_multiplier):
            rule = "must be a finite number; 0 stands for no noise"
            problems.append(Problem("noise-multiplier", f"{self.noise_multiplier:g}", rule))
        if not 0 < self.sampling_rate <= 1:
            rule = "must be above 0 and at most 1; 1 has every example take part in every step"
            problems.append(Problem("sampling-rate", f"{self.sampling_rate:g}", rule))
        if self.steps < 0:
            rule = "must be a whole number at least 0, of noised sums that are released"
            problems.append(Problem("steps", f"{self.steps}", rule))
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True, slots=True)
class Epsilon:
    """A privacy loss at a delta that is known from elsewhere.

    Attributes:
        value: Epsilon, an upper bound; infinite where there is no noise.
        accountant: What computed it.
        reason: Why this is RDP though PRV was asked for; else empty.
    """

    value: float
    accountant: AccountantName
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Calibration:
    """The noise that keeps a budget.

    Attributes:
        noise_multiplier: sigma.
        epsilon: What it costs, which is at most the budget. Whoever enforces or reports the budget
            takes the accountant named here.
    """

    noise_multiplier: float
    epsilon: Epsilon


@dataclass(frozen=True, slots=True)
class Cost:
    """What a client pays, by one accountant.

    Attributes:
        per_round: For one round.
        whole_run: For all rounds.
    """

    per_round: Epsilon
    whole_run: Epsilon


def accountant_name(name: str) -> AccountantName:
    """`name` if it is an accountant's.

    Raises:
        ConfigError: It is not, or it is GDP's.
    """
    for known in get_args(AccountantName):
        if name == known:
            return cast(AccountantName, known)
    rule = _GDP if name.lower() == "gdp" else "must be one of prv, rdp"
    raise ConfigError([Problem("accountant", name, rule)])


def epsilon(
    segments: Sequence[Segment],
    delta: float,
    accountant: str = "prv",
    *,
    prv_time_limit_s: float = PRV_TIME_LIMIT_S,
) -> Epsilon:
    """Epsilon of one client's history, under adding or removing one of its examples.

    RDP is taken where PRV is asked for and would be longer about it than its limit, or fails; the
    result says so. Of the order of the segments nothing depends.

    Args:
        segments: All noised steps, composed one after the other.
        delta: Probability with which epsilon may fail.
        accountant: ``prv`` or ``rdp``.
        prv_time_limit_s: On the predicted time, `PRV_POINTS_PER_S`.

    Raises:
        ConfigError: `delta` or `accountant` is not one.
    """
    name = accountant_name(accountant)
    return _epsilon(_merged(segments), _checked_delta(delta), name, prv_time_limit_s)


def epsilons(
    histories: Iterable[Sequence[Segment]],
    delta: float,
    accountant: str = "prv",
    *,
    prv_time_limit_s: float = PRV_TIME_LIMIT_S,
) -> list[Epsilon]:
    """`epsilon` of each history, all by one accountant: RDP where PRV cannot do any of them."""
    name = accountant_name(accountant)
    _checked_delta(delta)
    wanted = list(histories)
    found = [epsilon(one, delta, name, prv_time_limit_s=prv_time_limit_s) for one in wanted]
    reason = next((one.reason for one in found if one.accountant != name), "")
    if not reason:
        return found
    return [Epsilon(epsilon(one, delta, "rdp").value, "rdp", reason) for one in wanted]


def spend(
    noise_multiplier: float,
    sampling_rate: float,
    steps: int,
    rounds: int,
    delta: float,
    accountant: str = "prv",
    *,
    prv_time_limit_s: float = PRV_TIME_LIMIT_S,
) -> Cost:
    """What one round of `steps` costs, and what `rounds` of them do, by the same accountant."""
    if rounds < 0:
        raise ConfigError([Problem("rounds", f"{rounds}", "must be a whole number at least 0")])
    per_round, whole_run = epsilons(
        [[Segment(noise_multiplier, sampling_rate, steps * count)] for count in (1, rounds)],
        delta,
        accountant,
        prv_time_limit_s=prv_time_limit_s,
    )
    return Cost(per_round, whole_run)


def choose_accountant(
    segments: Sequence[Segment],
    delta: float,
    wanted: str = "prv",
    *,
    prv_time_limit_s: float = PRV_TIME_LIMIT_S,
) -> AccountantName:
    """The accountant that `epsilon` takes for these segments where `wanted` is asked for.

    Takes as long as `epsilon`, which then has the result at hand.
    """
    return epsilon(segments, delta, wanted, prv_time_limit_s=prv_time_limit_s).accountant


def prv_time_s(segments: Sequence[Segment], delta: float) -> float:
    """Seconds on one core that PRV is predicted to take; the same on every machine."""
    return _prv_time_s(_merged(segments), _checked_delta(delta))


def pld_epsilon(segments: Sequence[Segment], delta: float) -> float:
    """Epsilon by dp-accounting's privacy loss distributions: another's code, as a check.

    Takes seconds up to about epsilon 1000, and minutes and gigabytes beyond.
    """
    return _pld(_merged(segments), _checked_delta(delta))


def calibrate(
    target_epsilon: float,
    *,
    delta: float,
    sampling_rate: float,
    steps: int,
    accountant: str = "prv",
    prv_time_limit_s: float = PRV_TIME_LIMIT_S,
) -> Calibration:
    """The noise with which `steps` cost `target_epsilon` or up to `CALIBRATION_WIDTH` less.

    All evaluations are the same accountant's: where PRV cannot do one of them, RDP does all.

    Args:
        target_epsilon: Budget of all steps together.
        delta: Probability with which epsilon may fail.
        sampling_rate: q.
        steps: All noised steps that the budget is for, those of every round.
        accountant: ``prv`` or ``rdp``.
        prv_time_limit_s: As in `epsilon`.

    Raises:
        ConfigError: No noise reaches the target, or an argument is out of bounds.
    """
    name = accountant_name(accountant)
    _checked_delta(delta)
    if not CALIBRATION_WIDTH < target_epsilon <= LARGEST_TARGET:
        rule = (
            f"must be above {CALIBRATION_WIDTH:g}, to within which noise is calibrated, and at "
            f"most {LARGEST_TARGET:g}, beyond which nothing is protected"
        )
        raise ConfigError([Problem("epsilon", f"{target_epsilon:g}", rule)])
    if Segment(1.0, sampling_rate, steps).steps == 0:
        raise ConfigError([Problem("steps", "0", "must be at least 1, for no step needs no noise")])
    return _calibrate(target_epsilon, delta, sampling_rate, steps, name, prv_time_limit_s)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of numbers that overflow on their way to a result that does not."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def _checked_delta(delta: float) -> float:
    if not 0 < delta < 1:
        rule = "must be above 0 and below 1; take less than 1 over the number of examples"
        raise ConfigError([Problem("delta", f"{delta:g}", rule)])
    return delta


def _merged(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Segments with equal noise and rate made one, for PRV's time grows with their number."""
    steps: dict[tuple[float, float], int] = {}
    for one in segments:
        if one.steps:
            key = (one.noise_multiplier, one.sampling_rate)
            steps[key] = steps.get(key, 0) + one.steps
    return tuple(Segment(*key, count) for key, count in sorted(steps.items()))


@lru_cache(maxsize=4096)
def _epsilon(
    merged: tuple[Segment, ...], delta: float, name: AccountantName, limit_s: float
) -> Epsilon:
    if not merged:
        return Epsilon(0.0, name)
    if any(one.noise_multiplier <= 0 for one in merged):
        return Epsilon(math.inf, name)
    if name == "rdp":
        return Epsilon(_rdp(merged, delta), "rdp")
    value, reason = _prv(merged, delta, limit_s)
    return Epsilon(_rdp(merged, delta), "rdp", reason) if reason else Epsilon(value, "prv")


def _history(merged: tuple[Segment, ...]) -> list[tuple[float, float, int]]:
    return [(one.noise_multiplier, one.sampling_rate, one.steps) for one in merged]


@lru_cache(maxsize=4096)
def _rdp(merged: tuple[Segment, ...], delta: float) -> float:
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = _history(merged)
    least = math.inf
    # Each order gives a bound, so that those at which Opacus's sums break down can be left out.
    for order in RDP_ORDERS:
        with _quiet(), suppress(ValueError, ArithmeticError):
            least = min(least, float(accountant.get_epsilon(delta, alphas=[order])))
    return max(0.0, least)


def _prv(merged: tuple[Segment, ...], delta: float, limit_s: float) -> tuple[float, str]:
    """Epsilon by PRV and an empty reason, or the reason why there is none."""
    from opacus.accountants import PRVAccountant

    seconds = _prv_time_s(merged, delta)
    if seconds > limit_s:
        if math.isinf(seconds):
            return math.inf, "PRV finds no bounds for its grid"
        return math.inf, f"PRV would take about {seconds:,.0f} s, and its limit is {limit_s:g} s"
    # Opacus looks whether rounding drowns delta, but by the rounding of longer numbers than it
    # computes with.
    if np.finfo(np.float64).eps * _prv_points(merged, delta) > delta:
        return math.inf, f"PRV's rounding errors drown a delta of {delta:g}"
    accountant = PRVAccountant()
    accountant.history = _history(merged)
    try:
        with _quiet():
            value = float(
                accountant.get_epsilon(delta, eps_error=PRV_ERROR, delta_error=_DELTA_ERROR * delta)
            )
    except (RuntimeError, ValueError, ArithmeticError, IndexError) as error:
        return math.inf, f"PRV fails: {str(error).rstrip('.') or type(error).__name__}"
    if not math.isfinite(value):
        return math.inf, "PRV's numbers overflow"
    return max(0.0, value), ""


@lru_cache(maxsize=256)
def _pld(merged: tuple[Segment, ...], delta: float) -> float:
    if any(one.noise_multiplier <= 0 for one in merged):
        return math.inf
    if not merged:
        return 0.0
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant()
    with _quiet():
        for one in merged:
            event = PoissonSampledDpEvent(one.sampling_rate, GaussianDpEvent(one.noise_multiplier))
            accountant.compose(event, one.steps)
        return float(accountant.get_epsilon(delta))


def _prv_time_s(merged: tuple[Segment, ...], delta: float) -> float:
    return _prv_points(merged, delta) * len(merged) / PRV_POINTS_PER_S if merged else 0.0


@lru_cache(maxsize=4096)
def _prv_points(merged: tuple[Segment, ...], delta: float) -> float:
    """Points of the grid on which Opacus represents a privacy loss: 2 L / mesh."""
    from opacus.accountants.analysis.prv import (
        PoissonSubsampledGaussianPRV,
        compute_safe_domain_size,
    )

    if any(one.noise_multiplier <= 0 for one in merged):
        return 0.0
    delta_error = _DELTA_ERROR * delta
    try:
        with _quiet():
            half_width = compute_safe_domain_size(
                [PoissonSubsampledGaussianPRV(s.sampling_rate, s.noise_multiplier) for s in merged],
                [one.steps for one in merged],
                PRV_ERROR,
                delta_error,
            )
    except (ValueError, ArithmeticError):
        return math.inf
    total = sum(one.steps for one in merged)
    mesh = PRV_ERROR / math.sqrt(total * math.log(12 / delta_error) / 2)
    points = 2 * float(half_width) / mesh
    return math.inf if math.isnan(points) else points


@lru_cache(maxsize=256)
def _calibrate(
    target: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    name: AccountantName,
    limit_s: float,
) -> Calibration:
    def cost(by: AccountantName) -> Callable[[float], Epsilon]:
        return lambda sigma: epsilon(
            [Segment(sigma, sampling_rate, steps)], delta, by, prv_time_limit_s=limit_s
        )

    # The Gaussian mechanism's scale, which subsampling shrinks about in proportion.
    guess = max(0.3, sampling_rate * math.sqrt(2 * steps * math.log(1 / delta)) / target)
    by_rdp = _solve(cost("rdp"), target, guess)
    reason = ""
    if name == "prv":
        # PRV takes seconds and RDP none, and RDP's answer is near.
        found = _solve(cost("prv"), target, by_rdp.noise_multiplier if by_rdp else guess)
        if found is not None and found.epsilon.accountant == "prv":
            return found
        reason = found.epsilon.reason if found else "PRV finds no noise that costs as much"
    if by_rdp is None:
        rule = (
            f"is reached by no noise by {name.upper()} at delta {delta:g}, sampling rate "
            f"{sampling_rate:g} and {steps} steps; raise it, or delta"
        )
        raise ConfigError([Problem("epsilon", f"{target:g}", rule)])
    return Calibration(by_rdp.noise_multiplier, Epsilon(by_rdp.epsilon.value, "rdp", reason))


def _solve(cost: Callable[[float], Epsilon], target: float, start: float) -> Calibration | None:
    """Noise that costs the target or up to `CALIBRATION_WIDTH` less.

    Secants of log epsilon over log sigma, in which it is nearly straight, within a bracket that is
    halved where they would be slow. Ends at once where `cost` gives a reason, with that.

    Returns:
        None where there is no such noise.
    """
    goal = math.log(target - 0.4 * CALIBRATION_WIDTH)
    too_little: tuple[float, float] | None = None  # logarithms of sigma and of epsilon
    too_much: tuple[float, float] | None = None
    slope, sigma = -1.5, start
    for evaluation in range(100):
        sigma = float(f"{sigma:.{_DIGITS}g}")
        found = cost(sigma)
        if found.reason or target - CALIBRATION_WIDTH < found.value <= target:
            return Calibration(sigma, found)
        here = (math.log(sigma), math.log(found.value) if found.value > 0 else -math.inf)
        if found.value > target:
            earlier, too_little = too_little, here
        else:
            earlier, too_much = too_much, here
        if too_little and too_much:
            left, right = too_little[0], too_much[0]
            if right - left < 10**-_DIGITS:
                return None
            rise = too_much[1] - too_little[1]
            share = (goal - too_little[1]) / rise if math.isfinite(rise) and rise else 0.5
            if evaluation % 4 == 3:
                share = 0.5
            log_sigma = left + min(max(share, 0.02), 0.98) * (right - left)
        else:
            if earlier and math.isfinite(earlier[1] - here[1]) and earlier[0] != here[0]:
                slope = min((here[1] - earlier[1]) / (here[0] - earlier[0]), -0.5)
            step = (goal - here[1]) / slope
            log_sigma = here[0] + min(max(step, -2.0), 2.0)
        sigma = math.exp(log_sigma)
        if not _SMALLEST_SIGMA <= sigma <= _LARGEST_SIGMA:
            return None
    return None
