from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from core.examples import Examples
from core.parameters import ParameterVector
from distill import noised_matching
from distill.matching import MatchingConfig, class_mean_matrix, matching_gradient, matching_loss
from distill.noised_matching import (
    NoisedMatch,
    clipped_class_sums,
    example_gradients,
    match_noised,
    noised_gradient,
)
from distill.weights import WeightDraw
from models.cnn import CNN
from models.convnet import ConvNet
from privacy.mechanism import GaussianSums
from privacy.noise import NoiseSource, SystemNoise
from tests.unit.privacy.noises import NoNoise

CLASSES, IPC = 3, 2


def mechanism(
    kind: str,
    clip: float = math.inf,
    sigma: float = 0.0,
    rate: float = 1.0,
    steps: int = 1,
    source: NoiseSource | None = None,
    count_scale: float = 1.0,
    count_floor: float = 1.0,
) -> GaussianSums:
    return GaussianSums(
        kind,
        clip=clip,
        noise_multiplier=sigma,
        sampling_rate=rate,
        steps=steps,
        source=source or NoNoise(),
        count_scale=count_scale,
        count_floor=count_floor,
    )


class Case:
    def __init__(
        self,
        num_examples: int,
        seed: int = 0,
        *,
        image: tuple[int, int, int] = (2, 8, 8),
        num_classes: int = CLASSES,
        ipc: int = IPC,
        width: int = 4,
        depth: int = 2,
    ) -> None:
        torch.manual_seed(seed)
        self.num_classes = num_classes
        self.model = ConvNet(image, num_classes, width=width, depth=depth).double().eval()
        self.parameters = ParameterVector(self.model)
        self.real = Examples(
            torch.randn(num_examples, *image, dtype=torch.float64),
            torch.randint(num_classes, (num_examples,)),
        )
        self.synthetic = torch.randn(num_classes * ipc, *image, dtype=torch.float64)
        self.labels = torch.arange(num_classes).repeat_interleave(ipc)

    def noised(self, real: Examples, sums: GaussianSums, config: MatchingConfig) -> torch.Tensor:
        with self.parameters.frozen():
            return noised_gradient(
                self.model,
                real,
                self.synthetic,
                self.labels,
                num_classes=self.num_classes,
                config=config,
                mechanism=sums,
                augment=identity,
            )

    def literal(self, real: Examples, clip: float, logit_weight: float) -> torch.Tensor:
        """One backward pass per example, of the example's own loss."""
        total = torch.zeros_like(self.synthetic)
        for image, label in zip(real.inputs, real.labels, strict=True):
            leaf = self.synthetic.clone().requires_grad_(True)
            own = leaf[self.labels == label]
            features, logits = self.model.embed(own).mean(0), self.model(own).mean(0)
            target = self.model.embed(image[None])[0]
            loss = matching_loss(
                target, self.model.classifier(target), features, logits, logit_weight
            )
            (gradient,) = torch.autograd.grad(loss, leaf)
            total += gradient * min(1.0, clip / float(gradient.norm()))
        return total

    def matched(self, sums: GaussianSums, config: MatchingConfig, seed: int = 0) -> NoisedMatch:
        """At the model's own weights throughout."""
        return match_noised(
            self.parameters,
            self.model,
            self.real,
            self.synthetic,
            self.labels,
            config,
            num_classes=self.num_classes,
            mechanism=sums,
            draw=drawing(lambda out: out.mul_(1.0)),
            generator=torch.Generator().manual_seed(seed),
        )

    def class_sums(self, clip: float, count_scale: float) -> torch.Tensor:
        """Of each class, the sum of its examples' [h, z, a], each clipped by itself."""
        linear = self.model.classifier
        length = linear.in_features + linear.out_features + 1
        total = torch.zeros(self.num_classes, length, dtype=torch.float64)
        for image, label in zip(self.real.inputs, self.real.labels, strict=True):
            h, z = self.model.embed(image[None])[0], self.model(image[None])[0]
            row = torch.cat([h, z, h.new_tensor([count_scale])])
            total[label] += row * min(1.0, clip / float(row.norm()))
        return total


def drawing(change: Callable[[torch.Tensor], torch.Tensor]) -> WeightDraw:
    """Draws that change the weights in place."""

    def draw(out: torch.Tensor) -> None:
        change(out)

    return draw


def identity(images: torch.Tensor) -> torch.Tensor:
    return images


@pytest.mark.parametrize("logit_weight", [1.0, 0.3])
def test_without_noise_and_clip_it_is_the_gradient_that_is_not_private(logit_weight: float) -> None:
    """Same batch and denominator: as many examples of every class as the constant says."""
    case, size = Case(0), 5
    labels = torch.arange(CLASSES).repeat(size)
    real = Examples(torch.randn(len(labels), 2, 8, 8, dtype=torch.float64), labels)
    config = MatchingConfig(real_batch=size, logit_weight=logit_weight)
    classes = torch.arange(CLASSES)
    with case.parameters.frozen():
        _, expected = matching_gradient(
            case.model,
            real.inputs,
            class_mean_matrix(real.labels, classes, torch.float64),
            case.synthetic,
            class_mean_matrix(case.labels, classes, torch.float64),
            logit_weight=logit_weight,
            augment=identity,
        )
    found = case.noised(real, mechanism("gradient"), config)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("clip", [0.02, math.inf])
@pytest.mark.parametrize("num_examples", [1, 9, 40])
def test_the_fast_way_equals_one_backward_pass_per_example(clip: float, num_examples: int) -> None:
    case = Case(num_examples)
    config = MatchingConfig(real_batch=1, logit_weight=0.7)
    with case.parameters.frozen():
        expected = case.literal(case.real, clip, 0.7)
    found = case.noised(case.real, mechanism("gradient", clip), config)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_each_example_has_its_own_gradient() -> None:
    case = Case(5)
    with case.parameters.frozen():
        parts = example_gradients(
            case.model,
            case.real.inputs,
            case.synthetic[:IPC],
            logit_weight=1.0,
            augment=identity,
        )
        assert torch.cat(list(parts)).shape == (5, IPC, 2, 8, 8)


def test_so_has_each_where_convolutions_multiply_less() -> None:
    """In float32 the network's large convolution is filtered minimally, in float64 it is not."""
    torch.manual_seed(0)
    model, real, own = CNN((3, 32, 32), 3), torch.randn(5, 3, 32, 32), torch.randn(6, 3, 32, 32)

    def gradients(dtype: torch.dtype) -> torch.Tensor:
        network = copy.deepcopy(model).to(dtype)
        with ParameterVector(network).frozen():
            parts = example_gradients(
                network, real.to(dtype), own.to(dtype), logit_weight=1.0, augment=identity
            )
            return torch.cat(list(parts))

    found, expected = gradients(torch.float32), gradients(torch.float64)
    for gradient, exact in zip(found, expected, strict=True):
        assert 0 < float((gradient - exact).norm()) < 1e-4 * float(exact.norm())


def neighbours(case: Case, size: int) -> tuple[Examples, Examples, Examples]:
    """A batch, the batch with one example more, and the batch with one swapped for it."""
    kept, last = slice(0, size), slice(size, size + 1)
    real = case.real

    def chosen(*parts: slice) -> Examples:
        return Examples(
            torch.cat([real.inputs[p] for p in parts]), torch.cat([real.labels[p] for p in parts])
        )

    return chosen(kept), chosen(kept, last), chosen(slice(1, size), last)


@settings(max_examples=25)
@given(
    size=st.integers(0, 6),
    seed=st.integers(0, 4),
    clip=st.floats(1e-3, 2.0),
    image=st.tuples(st.integers(1, 3), st.integers(4, 9), st.integers(4, 9)),
    num_classes=st.integers(2, 5),
    ipc=st.integers(1, 4),
    width=st.integers(1, 5),
    depth=st.integers(1, 2),
    logit_weight=st.floats(0, 10),
)
def test_one_example_moves_the_gradients_sum_by_at_most_the_clip(
    size: int,
    seed: int,
    clip: float,
    image: tuple[int, int, int],
    num_classes: int,
    ipc: int,
    width: int,
    depth: int,
    logit_weight: float,
) -> None:
    case = Case(7, seed, image=image, num_classes=num_classes, ipc=ipc, width=width, depth=depth)
    config = MatchingConfig(real_batch=1, logit_weight=logit_weight)
    sums = mechanism("gradient", clip, steps=3)
    batch, added, swapped = (case.noised(b, sums, config) for b in neighbours(case, size))
    assert float((added - batch).norm()) <= clip * (1 + 1e-9)
    if size:
        assert float((swapped - batch).norm()) <= 2 * clip * (1 + 1e-9)


def test_the_test_above_catches_clipping_of_a_class() -> None:
    """The known-bad pattern: clip the mean gradient of each class to C, and scale it up."""
    clip, moved = 0.02, 0.0
    for seed in range(5):
        case = Case(13, seed)

        def class_clipped(real: Examples, case: Case = case) -> torch.Tensor:
            means = case.literal(real, math.inf, 1.0)
            for label in real.labels.unique():
                own, count = case.labels == label, int((real.labels == label).sum())
                mean = means[own] / count
                means[own] = mean * min(1.0, clip / float(mean.norm())) * count
            return means

        with case.parameters.frozen():
            batch, _, swapped = (class_clipped(b) for b in neighbours(case, 12))
        moved = max(moved, float((swapped - batch).norm()))
    assert moved > 2 * clip


@given(
    size=st.integers(0, 6),
    features=st.integers(1, 5),
    seed=st.integers(0, 100),
    clip=st.floats(1e-3, 10.0),
)
def test_one_example_moves_the_class_sums_by_at_most_the_clip(
    size: int, features: int, seed: int, clip: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    phi = 3 * torch.randn(size + 1, features, generator=generator, dtype=torch.float64)
    labels = torch.randint(CLASSES, (size + 1,), generator=generator)
    sums = mechanism("feature", clip)

    def total(rows: list[int]) -> torch.Tensor:
        return clipped_class_sums(phi[rows], labels[rows], CLASSES, sums)

    batch = total(list(range(size)))
    assert batch.shape == (CLASSES, features + 1)
    assert float((total([*range(size), size]) - batch).norm()) <= clip * (1 + 1e-9)
    if size:
        assert float((total([*range(1, size), size]) - batch).norm()) <= 2 * clip * (1 + 1e-9)


def test_class_sums_by_hand() -> None:
    sums = mechanism("feature", clip=5.0)
    phi = torch.tensor([[3.0], [0.0], [4.0]])
    labels = torch.tensor([0, 0, 2])
    found = clipped_class_sums(phi, labels, CLASSES, sums)
    # Norms with the constant 1 are sqrt(10), 1 and sqrt(17), all below 5.
    assert found.tolist() == [[3.0, 2.0], [0.0, 0.0], [4.0, 1.0]]
    clipped = clipped_class_sums(phi, labels, CLASSES, mechanism("feature", clip=1.0))
    expected = torch.tensor([[3 / 10**0.5, 1 + 1 / 10**0.5], [0, 0], [4 / 17**0.5, 1 / 17**0.5]])
    assert torch.allclose(clipped, expected)


def test_features_without_noise_are_matched_as_the_plain_gradient_does() -> None:
    """One network, all examples, no noise and no clip: a step of Equation 5.8 on the real means."""
    case = Case(30)
    config = MatchingConfig(iterations=1, learning_rate=0.5, momentum=0.0)
    point = case.parameters.values.clone()
    matched = match_noised(
        case.parameters,
        case.model,
        case.real,
        case.synthetic,
        case.labels,
        config,
        num_classes=CLASSES,
        mechanism=mechanism("feature"),
        draw=drawing(lambda out: out.copy_(point)),
        generator=torch.Generator().manual_seed(0),
    )
    classes = torch.arange(CLASSES)
    with case.parameters.frozen():
        _, gradient = matching_gradient(
            case.model,
            case.real.inputs,
            class_mean_matrix(case.real.labels, classes, torch.float64),
            case.synthetic,
            class_mean_matrix(case.labels, classes, torch.float64),
            logit_weight=1.0,
            augment=identity,
        )
    assert torch.allclose(matched.images, case.synthetic - 0.5 * gradient, rtol=1e-9, atol=1e-12)
    assert matched.class_counts is not None
    assert matched.class_counts.tolist() == torch.bincount(case.real.labels).tolist()


def test_a_class_that_is_not_there_is_not_followed_and_has_count_zero() -> None:
    case = Case(20)
    real = Examples(case.real.inputs, torch.zeros(20, dtype=torch.int64))
    matched = match_noised(
        case.parameters,
        case.model,
        real,
        case.synthetic,
        case.labels,
        MatchingConfig(iterations=3),
        num_classes=CLASSES,
        mechanism=mechanism("feature", steps=2),
        draw=drawing(lambda out: out.add_(0.01)),
        generator=torch.Generator().manual_seed(0),
    )
    assert matched.class_counts is not None
    assert matched.class_counts.tolist() == [20, 0, 0]
    assert torch.equal(matched.images[IPC:], case.synthetic[IPC:])
    assert not torch.equal(matched.images[:IPC], case.synthetic[:IPC])


@pytest.mark.parametrize("kind", ["gradient", "feature"])
def test_data_are_looked_at_once_per_release(kind: str) -> None:
    """T steps of `gradient` are T releases; T steps of `feature` reuse the few there are."""
    case = Case(20)
    steps = 6 if kind == "gradient" else 2
    sums = mechanism(kind, clip=1.0, sigma=1.0, rate=0.3, steps=steps, source=SystemNoise())
    released = 0
    plain = sums.release

    def release(total: torch.Tensor) -> torch.Tensor:
        nonlocal released
        released += 1
        return plain(total)

    sums.release = release  # type: ignore[method-assign]
    match_noised(
        case.parameters,
        case.model,
        case.real,
        case.synthetic,
        case.labels,
        MatchingConfig(iterations=6),
        num_classes=CLASSES,
        mechanism=sums,
        draw=drawing(lambda out: out.mul_(1.01)),
        generator=torch.Generator().manual_seed(0),
    )
    assert released == steps


@pytest.mark.parametrize("augmentation", ["off", "dsa"])
def test_empty_batches_still_take_their_noisy_steps(augmentation: str) -> None:
    case = Case(4)
    sums = mechanism("gradient", clip=1.0, sigma=2.0, rate=1e-12, steps=30, source=SystemNoise())
    config = MatchingConfig(
        iterations=30, learning_rate=1.0, momentum=0.0, real_batch=4, augmentation=augmentation
    )
    matched = case.matched(sums, config)
    moved = (matched.images - case.synthetic).std().item()
    assert moved == pytest.approx(2.0 / 4 * 30**0.5, rel=0.15)


@pytest.mark.parametrize("augmentation", ["off", "dsa"])
def test_empty_batches_have_noisy_class_sums_too(augmentation: str) -> None:
    """Counts are the mean of one draw per network, each of deviation sigma C / a."""
    steps, clip, sigma, scale = 20, 1.5, 2.0, 0.5
    case = Case(4, image=(1, 4, 4), num_classes=200, ipc=1, width=1)
    sums = mechanism("feature", clip, sigma, 1e-12, steps, SystemNoise(), scale, -1e9)
    matched = case.matched(sums, MatchingConfig(iterations=1, augmentation=augmentation))
    assert matched.class_counts is not None
    squares = matched.class_counts.square().sum() * steps / (sigma * clip / scale) ** 2
    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], 200)
    assert low < float(squares) < high


@pytest.mark.parametrize("rate", [1e-12, 1.0])
def test_class_sums_are_noised_on_every_coordinate_as_stated(rate: float) -> None:
    """What is followed is the clipped sum plus noise; counts too; each network has its own."""
    networks, clip, sigma, scale, floor = 300, 1.2, 1.5, 0.7, 1.0
    case = Case(9, image=(1, 4, 4), width=2)
    sums = mechanism("feature", clip, sigma, rate, networks, SystemNoise(), scale, floor)
    with torch.no_grad():
        expected = case.class_sums(clip, scale) * (rate == 1.0)
    drawn = []
    for batch in sums.batches(len(case.real)):
        found = noised_matching._release(
            case.parameters,
            case.model,
            case.real,
            batch,
            sums,
            drawing(lambda out: out.mul_(1.0)),
            identity,
            CLASSES,
        )
        means = torch.cat([found.features, found.logits], dim=1)
        totals = means * found.counts.clamp(min=floor).unsqueeze(1)
        released = torch.cat([totals, found.counts.unsqueeze(1) * scale], dim=1)
        drawn.append((released - expected).flatten() / (sigma * clip))
    squares, count = torch.stack(drawn).square(), expected.numel()
    low, high = stats.chi2.ppf([1e-10, 1 - 1e-10], networks)
    assert ((squares.sum(0) > low) & (squares.sum(0) < high)).all()
    low, high = stats.chi2.ppf([1e-10, 1 - 1e-10], networks * count)
    assert low < float(squares.sum()) < high
    among_coordinates = np.corrcoef(torch.stack(drawn).T.numpy()) - np.eye(count)
    assert np.abs(among_coordinates).max() < 6.5 / networks**0.5
    among_networks = np.corrcoef(torch.stack(drawn).numpy()) - np.eye(networks)
    assert np.abs(among_networks).max() < 0.99
