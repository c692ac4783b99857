from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from core.errors import PrivacyError
from privacy.mechanism import GaussianSums
from privacy.noise import SeededNoise, SystemNoise
from tests.unit.privacy.noises import NoNoise


def sums(
    clip: float = 1.0, sigma: float = 1.0, rate: float = 0.3, steps: int = 200
) -> GaussianSums:
    return GaussianSums(
        "dp-sgd",
        clip=clip,
        noise_multiplier=sigma,
        sampling_rate=rate,
        steps=steps,
        source=SystemNoise(),
    )


@given(
    norms=st.lists(st.floats(0, 1e6), min_size=0, max_size=8),
    clip=st.floats(1e-3, 1e3),
)
def test_factors_bring_norms_to_the_clip_and_never_enlarge(norms: list[float], clip: float) -> None:
    given_norms = torch.tensor(norms, dtype=torch.float64)
    factors = sums(clip).clip_factors(given_norms)
    assert ((factors <= 1) & (factors >= 0)).all()
    assert (given_norms * factors <= clip * (1 + 1e-12)).all()
    kept = given_norms <= clip
    assert (factors[kept] == 1).all()


def test_a_part_that_is_not_finite_is_left_out() -> None:
    parts = torch.tensor([[3.0, 4.0], [math.nan, 1.0], [math.inf, 0.0], [1e30, 1e30]])
    kept = sums(1.0).finite_rows(parts)
    assert kept.tolist() == [[3.0, 4.0], [0, 0], [0, 0], [0, 0]]
    assert sums(1.0).clip_factors(torch.tensor([math.nan, math.inf])).tolist() == [0, 0]


def test_an_infinite_clip_changes_nothing() -> None:
    factors = sums(math.inf).clip_factors(torch.tensor([0.0, 1.0, 1e30]))
    assert factors.tolist() == [1.0, 1.0, 1.0]


def test_the_noise_has_the_stated_deviation() -> None:
    mechanism, count = sums(clip=2.0, sigma=1.5), 4000
    total = torch.full((count,), 7.0)
    excess = (mechanism.release(total) - total).double()
    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], count)
    assert low < float(excess.square().sum() / (1.5 * 2.0) ** 2) < high
    assert abs(float(excess.mean())) < 6 * 3.0 / count**0.5


def test_every_release_has_noise_of_its_own() -> None:
    mechanism, total = sums(), torch.zeros(50)
    first, second = mechanism.release(total), mechanism.release(total)
    other_client = sums().release(total)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other_client)


def test_the_mean_goes_over_opacus_optimizer_and_equals_sum_plus_noise_over_the_constant() -> None:
    mechanism = GaussianSums(
        "gradient",
        clip=1.0,
        noise_multiplier=0.5,
        sampling_rate=0.1,
        steps=2,
        source=SeededNoise(3),
    )
    total = torch.arange(6.0).view(2, 3)
    noise = SeededNoise(3).normal(torch.zeros(6), 0.5).view(2, 3)
    assert torch.allclose(mechanism.release_mean(total, 4.0), (total + noise) / 4.0)
    again = mechanism.release_mean(total, 4.0)
    assert not torch.allclose(again, (total + noise) / 4.0), "the second step has its own noise"
    assert torch.equal(total, torch.arange(6.0).view(2, 3))


def test_batches_are_bernoulli_samples() -> None:
    """Each example on its own with probability q, whatever its place; batches may be empty."""
    num_examples, rate, steps = 40, 0.05, 3000
    counts, sizes = torch.zeros(num_examples), []
    for batch in sums(rate=rate, steps=steps).batches(num_examples):
        assert batch.dtype == torch.int64 and len(batch.unique()) == len(batch)
        counts[batch] += 1
        sizes.append(len(batch))
    assert len(sizes) == steps and 0 in sizes
    deviation = (steps * rate * (1 - rate)) ** 0.5
    assert ((counts - steps * rate).abs() < 6 * deviation).all()
    variance = torch.tensor(sizes, dtype=torch.float64).var()
    expected = num_examples * rate * (1 - rate)
    assert variance.item() == pytest.approx(expected, rel=0.2), "a fixed batch size has none"


def test_signal_to_noise_is_estimated_from_what_is_released() -> None:
    mechanism = sums(clip=1.0, sigma=1.0, steps=200)
    total = torch.full((1000,), 0.5)
    for _ in range(200):
        mechanism.release(total)
    assert mechanism.signal_to_noise == pytest.approx(0.5, rel=0.05)


def test_without_signal_or_release_the_ratio_is_nearly_zero() -> None:
    mechanism = sums()
    assert mechanism.signal_to_noise == 0.0
    for _ in range(100):
        mechanism.release(torch.zeros(1000))
    assert mechanism.signal_to_noise < 0.2


def test_no_more_is_released_than_was_charged() -> None:
    mechanism = sums(steps=2)
    for _ in range(2):
        mechanism.release(torch.zeros(3))
    with pytest.raises(PrivacyError, match="2 noised sums were charged and one more"):
        mechanism.release(torch.zeros(3))
    assert mechanism.released == 2


def test_nobody_to_sample_from_gives_empty_batches() -> None:
    assert [len(batch) for batch in sums(steps=3).batches(0)] == [0, 0, 0]


def test_no_noise_is_never_drawn_for_an_infinite_clip() -> None:
    mechanism = GaussianSums(
        "dp-sgd",
        clip=math.inf,
        noise_multiplier=0.0,
        sampling_rate=1.0,
        steps=1,
        source=NoNoise(),
    )
    total = torch.ones(3)
    assert torch.equal(mechanism.release(total), total)
    with pytest.raises(AssertionError, match="finite clip"):
        sums(math.inf).release(total)
