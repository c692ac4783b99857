"""Matching against its definition: Equation 5.8, finite differences, per-example gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from core.device import numerics
from core.parameters import ParameterVector
from core.seeds import torch_generator
from distill.augmentation import draw_augmentation
from distill.matching import (
    ClassImages,
    MatchingConfig,
    class_mean_matrix,
    match,
    matching_gradient,
    matching_loss,
)
from models.convnet import ConvNet


class SmoothNet(nn.Module):
    """An embedding without kinks, so that finite differences converge."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 3, padding=1)
        self.classifier = nn.Linear(4 * 4 * 4, 3)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.convolution(x)).flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.embed(x))
        return logits


def make_net(dtype: torch.dtype = torch.float64) -> SmoothNet:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return SmoothNet().to(dtype)


def draw_problem(dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    generator = torch_generator(11)
    real = torch.randn(7, 1, 4, 4, generator=generator, dtype=torch.float64).to(dtype)
    synthetic = torch.randn(3, 1, 4, 4, generator=generator, dtype=torch.float64).to(dtype)
    classes = torch.tensor([0, 2])
    real_labels, labels = torch.tensor([0, 0, 0, 0, 2, 2, 2]), torch.tensor([0, 0, 2])
    return {
        "real": real,
        "real_labels": real_labels,
        "real_averages": class_mean_matrix(real_labels, classes, dtype),
        "synthetic": synthetic,
        "labels": labels,
        "synthetic_averages": class_mean_matrix(labels, classes, dtype),
    }


def gradient_of(
    net: SmoothNet, problem: dict[str, Any], synthetic: torch.Tensor, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    return matching_gradient(
        net,
        problem["real"],
        problem["real_averages"],
        synthetic,
        problem["synthetic_averages"],
        logit_weight=options.get("logit_weight", 1.0),
        augment=options.get("augment", draw_augmentation("off", torch_generator(0))),
    )


def loss_by_loops(
    net: SmoothNet, problem: dict[str, Any], synthetic: torch.Tensor, logit_weight: float
) -> torch.Tensor:
    """Equation 5.8 written out: a loop over classes, features and logits apart."""
    total = torch.zeros((), dtype=synthetic.dtype)
    for label in (0, 2):
        real = problem["real"][problem["real_labels"] == label]
        fake = synthetic[problem["labels"] == label]
        feature_gap = net.embed(real).mean(0) - net.embed(fake).mean(0)
        logit_gap = net(real).mean(0) - net(fake).mean(0)
        total = total + (feature_gap**2).sum() + logit_weight * (logit_gap**2).sum()
    return total


@pytest.mark.parametrize("logit_weight", [0.0, 1.0, 2.5])
def test_loss_is_equation_5_8(logit_weight: float) -> None:
    net, problem = make_net(), draw_problem()
    loss, _ = gradient_of(net, problem, problem["synthetic"], logit_weight=logit_weight)
    expected = loss_by_loops(net, problem, problem["synthetic"], logit_weight)
    assert torch.allclose(loss, expected, rtol=1e-12)


@pytest.mark.parametrize("kind", ["off", "dsa"])
def test_gradient_agrees_with_finite_differences(kind: Any) -> None:
    net, problem = make_net(), draw_problem()
    for seed in range(6 if kind == "dsa" else 1):
        augment = draw_augmentation(kind, torch_generator(seed))
        synthetic = problem["synthetic"]
        _, gradient = gradient_of(net, problem, synthetic, augment=augment)
        numeric = torch.zeros_like(synthetic)
        step = 1e-5
        for index in range(synthetic.numel()):
            moved = []
            for sign in (1, -1):
                shifted = synthetic.clone()
                shifted.view(-1)[index] += sign * step
                moved.append(gradient_of(net, problem, shifted, augment=augment)[0])
            numeric.view(-1)[index] = (moved[0] - moved[1]) / (2 * step)
        assert gradient.abs().max() > 1e-3
        assert torch.allclose(gradient, numeric, rtol=1e-6, atol=1e-8)


def test_gradient_is_the_mean_of_the_per_example_gradients() -> None:
    net, problem = make_net(), draw_problem()
    _, gradient = gradient_of(net, problem, problem["synthetic"])
    expected = torch.zeros_like(gradient)
    for image, label in zip(problem["real"], problem["real_labels"].tolist(), strict=True):
        leaf = problem["synthetic"].clone().requires_grad_(True)
        fake = leaf[problem["labels"] == label]
        gap = torch.cat(
            [
                net.embed(image[None])[0] - net.embed(fake).mean(0),
                net(image[None])[0] - net(fake).mean(0),
            ]
        )
        (one,) = torch.autograd.grad((gap**2).sum(), leaf)
        expected += one / (problem["real_labels"] == label).sum()
    assert torch.allclose(gradient, expected, rtol=1e-10)


def test_equal_sets_have_no_loss_and_no_gradient() -> None:
    net, problem = make_net(), draw_problem()
    problem |= {"synthetic": problem["real"], "synthetic_averages": problem["real_averages"]}
    loss, gradient = gradient_of(net, problem, problem["real"])
    assert loss < 1e-28
    assert gradient.abs().max() < 1e-13


def test_loss_sums_over_classes_and_features() -> None:
    real, fake = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 3.0]])
    logits = torch.tensor([[2.0], [1.0]])
    assert matching_loss(real, logits, fake, logits - 1, 0.5) == (1 + 4 + 9) + 0.5 * 2


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_class_means_are_means(labels: list[int]) -> None:
    named = torch.tensor(labels)
    values = torch.arange(len(labels), dtype=torch.float32)
    classes = named.unique()
    means = class_mean_matrix(named, classes) @ values
    for mean, label in zip(means, classes, strict=True):
        assert mean == pytest.approx(values[named == label].mean().item(), rel=1e-6)


def run_match(
    config: MatchingConfig, sizes: dict[int, int], per_class: int, seed: int = 0
) -> tuple[Any, list[torch.Tensor], int]:
    net = make_net(torch.float32)
    parameters = ParameterVector(net)
    generator = torch_generator(5)
    classes = [
        ClassImages(label, torch.randn(size, 1, 4, 4, generator=generator) + label)
        for label, size in sizes.items()
    ]
    labels = torch.tensor(list(sizes)).repeat_interleave(per_class)
    start = torch.randn(len(labels), 1, 4, 4, generator=generator)
    centre, drawn, steps = parameters.values.clone(), [], 0

    def draw(out: torch.Tensor) -> None:
        out.copy_(centre)
        drawn.append(out.clone())

    def count() -> None:
        nonlocal steps
        steps += 1

    matched = match(
        parameters,
        net,
        classes,
        start,
        labels,
        config,
        draw=draw,
        generator=torch_generator(seed),
        count_step=count,
    )
    assert all(p.requires_grad for p in net.parameters())
    return matched, drawn, steps


def test_one_network_is_drawn_per_step_for_all_classes() -> None:
    _, drawn, steps = run_match(MatchingConfig(iterations=4), {0: 5, 1: 5, 2: 5}, 2)
    assert len(drawn) == 4
    assert steps == 4


def test_matching_at_a_fixed_network_drives_the_loss_down() -> None:
    config = MatchingConfig(iterations=200, learning_rate=0.3)
    matched, _, _ = run_match(config, {0: 8, 2: 6}, 3)
    assert matched.last_loss < 1e-3 * matched.first_loss


def test_images_follow_sgd_with_momentum() -> None:
    config = MatchingConfig(iterations=3, learning_rate=0.2, momentum=0.5)
    matched, _, _ = run_match(config, {0: 4, 2: 3}, 1)
    net = make_net(torch.float32)
    generator = torch_generator(5)
    real = [torch.randn(n, 1, 4, 4, generator=generator) + c for c, n in ((0, 4), (2, 3))]
    leaf = nn.Parameter(torch.randn(2, 1, 4, 4, generator=generator))
    optimizer = torch.optim.SGD([leaf], lr=0.2, momentum=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        loss = sum(
            ((net.embed(x).mean(0) - net.embed(s[None])[0]) ** 2).sum()
            + ((net(x).mean(0) - net(s[None])[0]) ** 2).sum()
            for x, s in zip(real, leaf, strict=True)
        )
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        optimizer.step()
    assert torch.allclose(matched.images, leaf, atol=1e-5)


class CountingNet(SmoothNet):
    """Counts the images it embeds without a gradient: the real ones."""

    num_real = 0

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        self.num_real += 0 if torch.is_grad_enabled() else len(x)
        return super().embed(x)


def match_at_random_networks(
    config: MatchingConfig, chosen: list[int] | None = None
) -> tuple[torch.Tensor, int]:
    """Images matched at networks 0, 1, ... (or `chosen`), and how many real ones were embedded."""
    net = CountingNet().double()
    parameters = ParameterVector(net)
    networks = torch.randn(
        20, len(parameters.values), generator=torch_generator(1), dtype=torch.float64
    )
    order = iter(range(20) if chosen is None else chosen)

    def draw(out: torch.Tensor) -> None:
        out.copy_(networks[next(order)])

    generator = torch_generator(5)
    real = [torch.randn(n, 1, 4, 4, generator=generator, dtype=torch.float64) for n in (5, 3)]
    start = torch.randn(3, 1, 4, 4, generator=generator, dtype=torch.float64)
    matched = match(
        parameters,
        net,
        [ClassImages(0, real[0]), ClassImages(2, real[1])],
        start,
        torch.tensor([0, 0, 2]),
        config,
        draw=draw,
        generator=torch_generator(2),
    )
    return matched.images, net.num_real


@pytest.mark.parametrize("augmentation", ["off", "dsa"])
def test_a_pool_as_large_as_the_steps_changes_nothing(augmentation: str) -> None:
    """Where a batch holds the whole class anyway."""
    config = MatchingConfig(iterations=6, learning_rate=0.1, augmentation=augmentation)
    exact, _ = match_at_random_networks(config)
    pooled, num_real = match_at_random_networks(replace(config, network_pool=6))
    assert torch.equal(exact, pooled)
    assert num_real == 6 * 8


@pytest.mark.parametrize("pool", [1, 3])
def test_a_pool_is_met_once_and_used_in_turn(pool: int) -> None:
    config = MatchingConfig(iterations=7, learning_rate=0.1)
    turns = [step % pool for step in range(7)]
    exact, _ = match_at_random_networks(config, turns)
    pooled, num_real = match_at_random_networks(replace(config, network_pool=pool))
    assert torch.equal(exact, pooled)
    assert num_real == pool * 8


def test_batches_do_not_depend_on_how_many_are_drawn_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = MatchingConfig(iterations=5, learning_rate=0.1, real_batch=2, augmentation="dsa")
    expected, num_real = match_at_random_networks(config)
    assert num_real == 5 * 4
    monkeypatch.setattr("distill.matching.DRAWN_AT_ONCE", 2)
    assert torch.equal(match_at_random_networks(config)[0], expected)


def test_in_bf16_the_gradient_points_where_it_does_in_float32() -> None:
    torch.manual_seed(0)
    net = ConvNet((1, 8, 8), 3, width=16, depth=2)
    classes = torch.arange(3)
    real = torch.randn(60, 1, 8, 8) + torch.arange(60).remainder(3)[:, None, None, None]
    real_averages = class_mean_matrix(torch.arange(60).remainder(3), classes)
    synthetic, synthetic_averages = torch.randn(3, 1, 8, 8), class_mean_matrix(classes, classes)
    found = []
    for precision in ("float32", "bf16"):
        with numerics(precision, torch.device("cpu")):
            _, gradient = matching_gradient(
                net,
                real,
                real_averages,
                synthetic,
                synthetic_averages,
                logit_weight=1.0,
                augment=draw_augmentation("off", torch_generator(0)),
            )
        assert gradient.dtype == torch.float32
        found.append(gradient.flatten())
    assert not torch.equal(found[0], found[1])
    assert nn.functional.cosine_similarity(found[0], found[1], dim=0) > 0.99


@settings(max_examples=20)
@given(st.integers(1, 6), st.integers(1, 9))
def test_real_batches_are_fresh_and_without_replacement(batch: int, size: int) -> None:
    from distill.matching import _sample

    generator = torch_generator(0)
    sizes, offsets = [min(batch, size), min(batch, 4)], [0, size, size + 4]
    seen = [_sample(offsets, sizes, generator) for _ in range(30)]
    for indices in seen:
        first, second = indices.split(sizes)
        assert len(first.unique()) == len(first)
        assert ((first >= 0) & (first < size)).all()
        assert ((second >= size) & (second < size + 4)).all()
    assert (
        torch.cat([indices[: sizes[0]] for indices in seen]).unique().numel() == size or batch < 2
    )
