from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.grad_sample import GradSampleHooks
from torch import nn
from torch.nn import functional

from core.config import ModelConfig
from core.parameters import ParameterVector
from models.convnet import ConvNet
from models.registry import build_model
from models.winograd import WinogradConv2d
from privacy import dp_optimizer
from privacy.dp_optimizer import ExampleGradients, unfit_layers
from privacy.mechanism import GaussianSums
from privacy.noise import NoiseSource, SystemNoise
from tests.unit.privacy.noises import NoNoise


def mechanism(clip: float, sigma: float, source: NoiseSource) -> GaussianSums:
    return GaussianSums(
        "dp-sgd", clip=clip, noise_multiplier=sigma, sampling_rate=0.5, steps=100, source=source
    )


class Case:
    """A small model, data, and its DP-SGD gradient."""

    def __init__(
        self,
        num_examples: int = 12,
        seed: int = 0,
        *,
        image: tuple[int, int, int] = (1, 8, 8),
        num_classes: int = 3,
        width: int = 4,
        depth: int = 2,
        model: nn.Module | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        torch.manual_seed(seed)
        model = model or ConvNet(image, num_classes, width=width, depth=depth)
        model = model.to(dtype)
        self.parameters = ParameterVector(model)
        self.inputs = torch.randn(num_examples, *image, dtype=torch.float64).to(dtype)
        self.labels = torch.randint(num_classes, (num_examples,))

    def losses(self, batch: torch.Tensor) -> torch.Tensor:
        logits = self.parameters.model(self.inputs[batch])
        return functional.cross_entropy(logits, self.labels[batch], reduction="none")

    def literal(self, batch: torch.Tensor, clip: float) -> torch.Tensor:
        """One backward pass per example, clipped, summed."""
        total = torch.zeros_like(self.parameters.values)
        trained = list(self.parameters.model.parameters())
        for index in batch:
            loss = self.losses(index[None]).sum()
            own = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, trained)])
            total += own * min(1.0, clip / float(own.norm()))
        return total

    def filled(
        self, batch: torch.Tensor, source: GaussianSums, denominator: float = 1.0
    ) -> torch.Tensor:
        gradients = ExampleGradients(source, self.parameters, denominator)
        with gradients.attached():
            gradients.fill(batch, self.losses)
            return self.parameters.gradient.clone()


@pytest.mark.parametrize("clip", [0.05, 1.0, math.inf])
@pytest.mark.parametrize("size", [1, 5, 12])
def test_equals_one_backward_pass_per_example(clip: float, size: int) -> None:
    case = Case()
    batch = torch.arange(size)
    expected = case.literal(batch, clip) / 7.0
    found = case.filled(batch, mechanism(clip, 0.0, NoNoise()), 7.0)
    # Opacus divides by the norm plus 1e-6, so that it clips a little below C.
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-9)


class ChannelsLast(nn.Module):
    """A user's network that lays its images out channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.second = nn.Conv2d(4, 6, 3, padding=1, groups=2)
        self.last = nn.Linear(6 * 4 * 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        logits: torch.Tensor = self.last(self.second(self.first(x).tanh()).tanh().flatten(1))
        return logits


@pytest.mark.parametrize(
    ("name", "side"),
    [("convnet", 8), ("cnn", 8), ("cnn", 32), ("resnet18", 8), ("channels-last", 8)],
)
def test_equals_one_backward_pass_per_example_of_every_model_on_colour_images(
    name: str, side: int
) -> None:
    image = (3, side, side)
    if name == "channels-last":
        model: nn.Module = ChannelsLast()
    else:
        keys = {"width": 4} if name == "convnet" else {}
        model = build_model(ModelConfig(name=name, **keys), image, 3, seed=0)
    case = Case(4, image=image, model=model)
    batch = torch.arange(4)
    expected = case.literal(batch, 1.0)
    found = case.filled(batch, mechanism(1.0, 0.0, NoNoise()))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-9)


def test_minimal_filtering_has_each_examples_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle is in float64, where the convolution is computed as it is written."""
    assert WinogradConv2d in GradSampleHooks.GRAD_SAMPLERS
    model = build_model(ModelConfig(name="cnn"), (3, 32, 32), 3, seed=0)
    oracle = Case(8, image=(3, 32, 32), model=copy.deepcopy(model))
    batch = torch.arange(8)
    expected = oracle.literal(batch, 1.0)
    case = Case(8, image=(3, 32, 32), model=model, dtype=torch.float32)
    taken: list[bool] = []
    pays = WinogradConv2d._pays

    def watched(layer: WinogradConv2d, images: torch.Tensor) -> bool:
        taken.append(pays(layer, images))
        return taken[-1]

    monkeypatch.setattr(WinogradConv2d, "_pays", watched)
    found = case.filled(batch, mechanism(1.0, 0.0, NoNoise()))
    assert taken == [True]
    assert float((found - expected).norm()) < 1e-4 * float(expected.norm())


def test_a_backward_pass_that_fails_leaves_nothing_to_the_next() -> None:
    case, batch = Case(), torch.arange(5)
    source = mechanism(1.0, 0.0, NoNoise())
    expected = case.filled(batch, source)
    gradients = ExampleGradients(source, case.parameters, 1.0)
    model = case.parameters.model
    assert isinstance(model, ConvNet)

    def failing(batch: torch.Tensor) -> torch.Tensor:
        def fail(gradient: torch.Tensor) -> None:
            raise MemoryError("in the midst of the backward pass")

        features = model.embed(case.inputs[batch])
        features.register_hook(fail)
        pulled: torch.Tensor = model.classifier(features).sum(dim=1)
        return pulled

    with gradients.attached(), pytest.raises(MemoryError):
        gradients.fill(torch.arange(9), failing)
    assert torch.equal(case.filled(batch, source), expected)


class WithActivations(ConvNet):
    """A user's network that has an attribute of a name that Opacus uses."""

    def __init__(self) -> None:
        super().__init__((1, 8, 8), 3, width=4, depth=2)
        self.activations = [torch.tanh]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.activations[0](x))


def test_what_a_network_has_of_its_own_stays() -> None:
    case, batch = Case(model=WithActivations()), torch.arange(5)
    source = mechanism(1.0, 0.0, NoNoise())
    first = case.filled(batch, source)
    assert torch.equal(case.filled(batch, source), first)


def test_physical_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case, batch = Case(), torch.arange(12)
    whole = case.filled(batch, mechanism(0.3, 0.0, NoNoise()))
    monkeypatch.setattr(dp_optimizer, "PHYSICAL_BATCH", 5)
    assert torch.allclose(case.filled(batch, mechanism(0.3, 0.0, NoNoise())), whole)


@settings(max_examples=25)
@given(
    size=st.integers(0, 12),
    seed=st.integers(0, 5),
    clip=st.floats(0.01, 3.0),
    image=st.tuples(st.integers(1, 3), st.integers(4, 9), st.integers(4, 9)),
    num_classes=st.integers(2, 5),
    width=st.integers(1, 5),
    depth=st.integers(1, 2),
)
def test_one_example_moves_the_sum_by_at_most_the_clip(
    size: int,
    seed: int,
    clip: float,
    image: tuple[int, int, int],
    num_classes: int,
    width: int,
    depth: int,
) -> None:
    """Adding one by C, swapping one by 2 C. Clipping the batch's gradient instead fails this."""
    case = Case(13, seed, image=image, num_classes=num_classes, width=width, depth=depth)
    source = mechanism(clip, 0.0, NoNoise())
    rest = torch.arange(size)
    without = case.filled(rest, source)
    added = case.filled(torch.cat([rest, torch.tensor([12])]), source)
    assert float((added - without).norm()) <= clip * (1 + 1e-9)
    if size:
        swapped = case.filled(torch.cat([rest[1:], torch.tensor([12])]), source)
        assert float((swapped - without).norm()) <= 2 * clip * (1 + 1e-9)


def test_the_test_above_catches_clipping_of_the_batch() -> None:
    """The known-bad pattern: clip the mean gradient of the batch to C, and scale it up."""
    clip, moved = 0.05, 0.0
    for seed in range(5):
        case = Case(13, seed)

        def batch_clipped(batch: torch.Tensor, case: Case = case) -> torch.Tensor:
            mean = case.literal(batch, math.inf) / len(batch)
            return mean * min(1.0, clip / float(mean.norm())) * len(batch)

        rest = torch.arange(12)
        swapped = torch.cat([rest[1:], torch.tensor([12])])
        moved = max(moved, float((batch_clipped(rest) - batch_clipped(swapped)).norm()))
    assert moved > 2 * clip


def test_an_image_that_overflows_is_left_out() -> None:
    """It would otherwise be seen in a sum that is not finite."""
    case, rest = Case(), torch.arange(4)
    source = mechanism(1.0, 0.0, NoNoise())
    expected = case.filled(rest, source)
    case.inputs[4] = math.inf
    assert torch.equal(case.filled(torch.arange(5), source), expected)


def test_an_empty_batch_still_takes_its_noisy_step() -> None:
    case = Case()
    source = mechanism(2.0, 1.5, SystemNoise())
    steps = [case.filled(torch.arange(0), source, 4.0) for _ in range(40)]
    drawn = torch.stack(steps)
    assert drawn.std().item() == pytest.approx(1.5 * 2.0 / 4.0, rel=0.05)
    assert not torch.equal(steps[0], steps[1])


def test_noise_is_of_the_stated_deviation_around_the_clipped_sum() -> None:
    case, batch = Case(), torch.arange(6)
    expected = case.literal(batch, 0.5)
    source = mechanism(0.5, 2.0, SystemNoise())
    drawn = torch.stack([case.filled(batch, source) - expected for _ in range(60)])
    assert drawn.std().item() == pytest.approx(1.0, rel=0.05)
    assert drawn.mean().abs().item() < 6 / drawn.numel() ** 0.5


def test_the_model_is_left_as_it_was() -> None:
    case = Case()
    before = case.parameters.values.clone()
    case.filled(torch.arange(4), mechanism(1.0, 1.0, SystemNoise()))
    assert torch.equal(case.parameters.values, before)
    assert not case.parameters.gradient.any()
    case.losses(torch.arange(4)).sum().backward()
    views = torch.cat(
        [p.grad.reshape(-1) for p in case.parameters.model.parameters() if p.grad is not None]
    )
    assert torch.equal(views, case.parameters.gradient) and views.any()
    for parameter in case.parameters.model.parameters():
        assert not hasattr(parameter, "grad_sample") and not hasattr(parameter, "summed_grad")


def test_layers_that_mix_examples_are_told() -> None:
    assert unfit_layers(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))
    assert unfit_layers(ConvNet((1, 8, 8), 3, width=4, depth=2)) == []
