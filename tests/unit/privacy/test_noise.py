from __future__ import annotations

import os

import pytest
import torch
from scipy import stats

from privacy import noise
from privacy.noise import NoiseSource, SeededNoise, SystemNoise, injected_noise, noise_source


@pytest.mark.parametrize("source", [SystemNoise(), SeededNoise(0)])
def test_noise_is_gaussian_of_the_stated_deviation_on_every_coordinate(source: NoiseSource) -> None:
    """Chi-square per coordinate, Bonferroni over them, and Kolmogorov-Smirnov over all."""
    repetitions, coordinates, std = 2000, 12, 2.5
    reference = torch.zeros(3, 4)
    drawn = torch.stack([source.normal(reference, std).flatten() for _ in range(repetitions)])
    assert drawn.shape == (repetitions, coordinates)
    squares = drawn.double().square().sum(dim=0) / std**2
    level = 1e-5 / coordinates
    low, high = stats.chi2.ppf([level, 1 - level], repetitions)
    assert ((squares > low) & (squares < high)).all()
    assert stats.kstest(drawn.flatten().numpy() / std, "norm").pvalue > 1e-5
    correlation = torch.corrcoef(drawn.T) - torch.eye(coordinates)
    assert correlation.abs().max() < 6 / repetitions**0.5


def test_system_noise_is_made_of_what_the_operating_system_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reference = torch.zeros(1000)
    assert not torch.equal(
        SystemNoise().normal(reference, 1.0), SystemNoise().normal(reference, 1.0)
    )
    torch.manual_seed(0)
    first = SystemNoise().normal(reference, 1.0)
    torch.manual_seed(0)
    assert not torch.equal(first, SystemNoise().normal(reference, 1.0))
    monkeypatch.setattr(os, "urandom", lambda count: bytes(count))
    assert torch.equal(SystemNoise().normal(reference, 1.0), SystemNoise().normal(reference, 1.0))


def test_extreme_bytes_give_finite_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    for byte in (0, 255):
        monkeypatch.setattr(os, "urandom", lambda count, b=byte: bytes([b]) * count)
        assert torch.isfinite(SystemNoise().normal(torch.zeros(8), 1.0)).all()


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_any_number_of_values(count: int) -> None:
    assert SystemNoise().normal(torch.zeros(count), 1.0).shape == (count,)
    assert SystemNoise().normal(torch.zeros(count).double(), 1.0).dtype == torch.float64


@pytest.mark.parametrize("source", [SystemNoise(), SeededNoise(0)])
def test_uniform_numbers_are_uniform(source: NoiseSource) -> None:
    drawn = source.uniform(20_000)
    assert drawn.dtype == torch.float64 and ((drawn > 0) & (drawn < 1)).all()
    assert stats.kstest(drawn.numpy(), "uniform").pvalue > 1e-5
    assert not torch.equal(drawn, source.uniform(20_000))
    assert len(drawn.unique()) == 20_000, "53 bits do not collide, 24 would"


def test_injection_ends_with_its_block() -> None:
    assert isinstance(noise_source(), SystemNoise) and noise_source().is_system
    with injected_noise(SeededNoise(1)):
        assert not noise.noise_source().is_system
    assert noise_source().is_system
