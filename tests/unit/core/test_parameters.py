"""The parameter vector and the step on it, against torch's own optimizer."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from core.parameters import ParameterVector, project_onto_ball_, sgd_step_, weights_of


def small_model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 3, 3), nn.GroupNorm(3, 3), nn.Flatten(), nn.Linear(12, 2))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 5e-4])
def test_steps_are_torch_optims_bit_for_bit(momentum: float, weight_decay: float) -> None:
    ours, theirs = small_model(), small_model()
    vector = ParameterVector(ours)
    velocity = torch.zeros_like(vector.values)
    optimizer = torch.optim.SGD(
        theirs.parameters(), lr=0.1, momentum=momentum, weight_decay=weight_decay
    )
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        inputs = torch.randn(5, 1, 4, 4, generator=generator)
        vector.zero_gradient()
        ours(inputs).square().sum().backward()
        sgd_step_(
            vector.values,
            vector.gradient,
            velocity,
            learning_rate=0.1,
            momentum=momentum,
            weight_decay=weight_decay,
        )
        optimizer.zero_grad()
        theirs(inputs).square().sum().backward()
        optimizer.step()
    for mine, reference in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, reference)


def test_vector_and_model_share_memory() -> None:
    model = small_model()
    before = weights_of(model)
    vector = ParameterVector(model)
    assert torch.equal(vector.values, torch.cat([p.flatten() for p in model.parameters()]))
    vector.values.zero_()
    assert all(not p.any() for p in model.parameters())
    vector.load(before)
    assert torch.equal(vector.values, torch.cat([v.flatten() for v in before.values()]))


def test_mask_is_zero_at_norm_layers_only() -> None:
    vector = ParameterVector(small_model())
    mask = vector.mask((nn.GroupNorm,))
    sizes = [27, 3, 3, 3, 24, 2]
    expected = [1.0, 1.0, 0.0, 0.0, 1.0, 1.0]
    assert [part.unique().tolist() for part in mask.split(sizes)] == [[e] for e in expected]


@given(
    st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3),
    st.floats(0.125, 20, width=32),
)
def test_projection_is_the_nearest_point_of_the_ball(offsets: list[float], radius: float) -> None:
    centre = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    values = centre + torch.tensor(offsets, dtype=torch.float64)
    start = values.clone()
    distance, outside = project_onto_ball_(values, centre, radius)
    true_distance = torch.linalg.vector_norm(start - centre)
    assert torch.allclose(distance, true_distance)
    if true_distance <= radius:
        assert not outside
        assert torch.equal(values, start)
    else:
        assert outside
        expected = centre + (start - centre) / true_distance * radius
        assert torch.allclose(values, expected, atol=1e-12)
