"""The parameter vector and the step on it, against torch's own optimizer."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from core.config import TrainConfig
from core.examples import Examples
from core.parameters import (
    ParameterVector,
    UnlistedBuffers,
    adam_step_,
    project_onto_ball_,
    sgd_step_,
    trainable_names,
    weights_of,
)
from strategies.local_sgd import train_locally
from tests.unit.strategies.toy import ToyObjective


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


class Tied(nn.Module):
    """A weight under two names, a frozen one between, batch norm with its buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2, bias=False)
        self.frozen = nn.Linear(2, 3)
        self.frozen.weight.requires_grad_(False)
        self.norm = nn.BatchNorm1d(2)
        self.last = nn.Linear(2, 2, bias=False)
        self.last.weight = self.first.weight


TIED_NAMES = ("first.weight", "frozen.bias", "norm.weight", "norm.bias", "last.weight")


def test_trainable_names_are_all_that_gradients_reach() -> None:
    model = Tied()
    assert trainable_names(model) == TIED_NAMES
    others = model.state_dict().keys() - set(TIED_NAMES)
    buffers = {f"norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert others == {"frozen.weight", *buffers}


def test_a_vector_is_cut_by_name_and_put_together_again() -> None:
    vector = ParameterVector(Tied())
    assert vector.values.shape == (4 + 3 + 2 + 2,)
    numbers = torch.arange(11.0)
    named = vector.named(numbers)
    assert {name: part.tolist() for name, part in named.items()} == {
        "first.weight": [[0.0, 1.0], [2.0, 3.0]],
        "last.weight": [[0.0, 1.0], [2.0, 3.0]],
        "frozen.bias": [4.0, 5.0, 6.0],
        "norm.weight": [7.0, 8.0],
        "norm.bias": [9.0, 10.0],
    }
    named["norm.bias"].zero_()
    assert numbers[9:].tolist() == [0.0, 0.0], "parts are views"
    again = vector.vector(named)
    assert torch.equal(again, numbers)
    again.zero_()
    assert numbers[1] == 1.0, "a vector put together is no view"


def test_the_models_own_state_dict_gives_its_values() -> None:
    model = Tied()
    vector = ParameterVector(model)
    assert vector.named(vector.values).keys() == set(trainable_names(model))
    weights = weights_of(model)
    assert torch.equal(vector.vector(weights), vector.values)
    for name, part in vector.named(vector.values).items():
        assert torch.equal(part, weights[name]), name


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


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_steps_are_torchs(weight_decay: float) -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(7, generator=generator)
    theirs = values.clone().requires_grad_()
    optimizer = torch.optim.Adam([theirs], lr=0.01, weight_decay=weight_decay)
    first, second = torch.zeros(7), torch.zeros(7)
    for step in range(1, 6):
        gradient = torch.randn(7, generator=generator)
        adam_step_(
            values, gradient, first, second, step, learning_rate=0.01, weight_decay=weight_decay
        )
        theirs.grad = gradient.clone()
        optimizer.step()
        torch.testing.assert_close(values, theirs.detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_local_steps_are_the_named_optimizers(optimizer: str) -> None:
    """Two epochs of one batch: as many steps, on the same loss."""
    examples = Examples(torch.randn(6, 4), torch.arange(6) % 3)
    models = [nn.Linear(4, 3) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    config = TrainConfig(
        optimizer=optimizer, learning_rate=0.01, weight_decay=0.1, local_epochs=2, batch_size=6
    )
    parameters = ParameterVector(models[0])
    train_locally(parameters, ToyObjective(CrossEntropy(), models[0], examples), config, seed=0)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
    theirs = kind(models[1].parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(2):
        theirs.zero_grad()
        functional.cross_entropy(models[1](examples.inputs), examples.labels).backward()
        theirs.step()
    for ours, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-6)


class CrossEntropy:
    def loss(self, model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(model(inputs), labels, reduction="none")


class Remembering(nn.Module):
    """Buffers of every kind; a tensor that two modules hold."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("listed", torch.zeros(2))
        self.register_buffer("replaced", torch.zeros(2), persistent=False)
        self.register_buffer("lazy", None, persistent=False)
        self.register_buffer("lazy_listed", None)
        shared = torch.zeros(2)
        self.parts = nn.ModuleList([nn.Module(), nn.Module()])
        for part in self.parts:
            part.register_buffer("shared", shared, persistent=False)


def test_buffers_that_the_state_dict_leaves_out_are_given_back() -> None:
    model = Remembering()
    first = UnlistedBuffers(model)
    for _ in range(2):
        parts = [part.get_buffer("shared") for part in model.parts]
        model.get_buffer("listed").add_(1)
        model.replaced = torch.ones(3)
        model.lazy = model.lazy_listed = torch.ones(1)
        model.register_buffer("late", torch.ones(1))
        model.register_buffer("late_unlisted", torch.ones(1), persistent=False)
        parts[0].add_(5)
        first.restore()
        assert {name: value.tolist() for name, value in model.named_buffers()} == {
            "listed": model.get_buffer("listed").tolist(),
            "replaced": [0.0, 0.0],
            "parts.0.shared": [0.0, 0.0],
        }
        assert list(model.state_dict()) == ["listed"]
        assert [part.get_buffer("shared") is parts[0] for part in model.parts] == [True, True]
    assert model.get_buffer("listed").tolist() == [2.0, 2.0]
