"""Where drawn weights lie."""

from __future__ import annotations

import pytest
import torch

from core.seeds import torch_generator
from distill.weights import WeightSampling, draws_around

CENTRE = torch.linspace(-1, 1, 500)


def draw(
    kind: WeightSampling,
    *,
    radius: float = 5.0,
    sigma: float = 1.0,
    count: int = 40,
    mask: torch.Tensor | None = None,
    centre: torch.Tensor = CENTRE,
) -> torch.Tensor:
    sample = draws_around(
        centre, kind=kind, radius=radius, sigma=sigma, mask=mask, generator=torch_generator(2)
    )
    drawn = []
    for _ in range(count):
        out = torch.empty_like(centre)
        sample(out)
        drawn.append(out)
    return torch.stack(drawn) - centre


@pytest.mark.parametrize("radius", [0.5, 3.0, 5.0])
def test_sphere_draws_lie_on_the_rho_sphere(radius: float) -> None:
    norms = draw("sphere", radius=radius).norm(dim=1)
    assert torch.allclose(norms, torch.tensor(radius), rtol=1e-4)


def test_sphere_draws_point_everywhere() -> None:
    offsets = draw("sphere", count=400)
    assert offsets.mean(dim=0).norm() < 5 * 3 / 400**0.5
    spread = offsets.var(dim=0) * 500 / 25
    assert 0.7 < spread.quantile(0.1) < spread.quantile(0.9) < 1.3


def test_the_papers_gaussian_always_meets_the_clip() -> None:
    assert torch.allclose(draw("gaussian", sigma=1.0).norm(dim=1), torch.tensor(5.0), rtol=1e-4)


def test_a_small_gaussian_is_not_clipped() -> None:
    offsets = draw("gaussian", sigma=0.01, count=200)
    assert offsets.norm(dim=1).max() < 0.3
    assert offsets.std().item() == pytest.approx(0.01, rel=0.02)


def test_ball_radii_follow_the_power_law() -> None:
    """In d dimensions P(|x| <= r) = (r / rho)^d, so (|x| / rho)^d is uniform."""
    offsets = draw("ball", radius=2.0, count=2000, centre=torch.zeros(3))
    uniform = (offsets.norm(dim=1) / 2.0) ** 3
    assert uniform.max() <= 1 + 1e-5
    quantiles = torch.tensor([0.25, 0.5, 0.75])
    assert torch.allclose(uniform.quantile(quantiles), quantiles, atol=0.05)


@pytest.mark.parametrize("kind", ["sphere", "ball", "gaussian"])
def test_masked_parameters_stay_and_the_rest_fill_the_radius(kind: WeightSampling) -> None:
    mask = torch.ones(500)
    mask[:100] = 0
    offsets = draw(kind, mask=mask)
    assert not offsets[:, :100].any()
    assert (offsets[:, 100:].norm(dim=1) > 4.8).all()
