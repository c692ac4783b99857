"""Distribution matching: synthetic images whose mean embedding is the real images'.

Y. Xiong, R. Wang, M. Cheng, F. Yu, C.-J. Hsieh, "FedDM: Iterative Distribution Matching for
Communication-Efficient Federated Learning", CVPR 2023: ClientUpdate of Algorithm 3, Equation 5.8
of the thesis chapter. The optimizer of the images follows B. Zhao, H. Bilen, "Dataset Condensation
with Distribution Matching", WACV 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from core.config import choice, flag, number
from core.parameters import ParameterVector, sgd_step_
from distill.augmentation import Augmentation, AugmentationKind, draw_augmentation
from distill.weights import WeightDraw
from models.registry import EmbeddingModel

REAL_CHUNK = 256
"""Real images per forward pass on a CPU; bounds memory and changes no mean but by rounding."""

REAL_CHUNK_CUDA = 2560
"""Likewise on a GPU: 256 of each of ten classes, which 4 GB hold at width 128 and 32x32 pixels."""

DRAWN_AT_ONCE = 64
"""Steps whose batches are drawn, and sent to a GPU, together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MatchingConfig:
    """How clients match their images."""

    iterations: int = number(1000, "matching steps per round (T)", least=1, most=10_000_000)
    learning_rate: float = number(1.0, "step size of the images (eta_c)", above=0)
    momentum: float = number(0.5, "momentum of the images", least=0, below=1)
    real_batch: int = number(
        256,
        "real images per class and step (B^D), fewer if the class is smaller",
        least=1,
        read_if=("feddm.network-pool", ("0",)),
    )
    network_pool: int = number(
        0,
        "networks drawn per round, each met by all real images once and used in turn; 0 draws one "
        "for every step",
        least=0,
        most=1_000_000,
    )
    initialisation: str = choice("real", "what synthetic images start from", ["real", "noise"])
    warm_start: bool = flag(False, "start from the client's last set instead of anew each round")
    logit_weight: float = number(1.0, "weight of the logits' term beside the features'", least=0)
    weight_sampling: str = choice(
        "sphere",
        "networks are drawn on the rho-sphere, uniformly in the rho-ball, or from a "
        "Gaussian clipped to it",
        ["sphere", "ball", "gaussian"],
    )
    weight_sigma: float = number(
        1.0,
        "standard deviation of the clipped Gaussian",
        above=0,
        read_if=("feddm.weight-sampling", ("gaussian",)),
    )
    perturb_norm_affine: bool = flag(True, "draw the norm layers' scales and shifts too")
    first_round: str = choice(
        "current",
        "networks of round 1: drawn around the current weights, or freshly initialised",
        ["current", "fresh"],
    )
    augmentation: str = choice(
        "off",
        "differentiable siamese augmentation, the same draw on both sides",
        ["off", "dsa", "dsa-no-flip"],
    )
    short_classes: str = choice(
        "cap",
        "a class with fewer real images than images-per-class sends as many as it has, or "
        "is filled up with images started from noise",
        ["cap", "noise"],
    )


@dataclass(frozen=True, slots=True)
class ClassImages:
    """Images of one class of one client: real, shape (n_kc, C, H, W), normalised."""

    label: int
    real: torch.Tensor


@dataclass(frozen=True, slots=True)
class Matched:
    """Outcome of matching.

    Attributes:
        images: Shape (M, C, H, W), in the order of the start.
        first_loss: Loss of the first step.
        last_loss: Loss of the last step, before its update.
    """

    images: torch.Tensor
    first_loss: float
    last_loss: float


def class_mean_matrix(
    labels: torch.Tensor, classes: torch.Tensor, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The matrix A with A @ phi = mean of phi over each class.

    A product instead of scattered sums: one operation, and the same bits every time on a GPU too.

    Args:
        labels: int64, shape (N,).
        classes: int64, shape (K,), the rows; each occurs in `labels`.
        dtype: Type of the matrix, the embedding's own.

    Returns:
        Shape (K, N).
    """
    member = (labels[None, :] == classes[:, None]).to(dtype)
    return member / member.sum(dim=1, keepdim=True)


def matching_loss(
    real_features: torch.Tensor,
    real_logits: torch.Tensor,
    synthetic_features: torch.Tensor,
    synthetic_logits: torch.Tensor,
    logit_weight: float,
) -> torch.Tensor:
    """Equation 5.8, summed over classes and features.

    Args:
        real_features: Mean h_w of each class's real images, shape (K, D).
        real_logits: Mean z_w likewise, shape (K, C).
        synthetic_features: Mean h_w of each class's synthetic images, shape (K, D).
        synthetic_logits: Mean z_w likewise, shape (K, C).
        logit_weight: Weight of the second term; the paper's is 1.

    Returns:
        A scalar.
    """
    features = (real_features - synthetic_features).square().sum()
    return features + logit_weight * (real_logits - synthetic_logits).square().sum()


def mean_embedding(
    model: EmbeddingModel, inputs: torch.Tensor, averages: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Means of features and of logits, as `averages` takes them.

    Args:
        model: The network.
        inputs: Shape (N, C, H, W).
        averages: `class_mean_matrix`, shape (K, N).

    Returns:
        Shapes (K, D) and (K, num_classes).
    """
    features = model.embed(inputs).to(averages.dtype)
    with _exact_sums(inputs):
        # Averaging commutes with the affine classifier: K rows through it instead of N.
        means = averages @ features
        return means, model.classifier(means)


def _exact_sums(images: torch.Tensor) -> torch.autocast:
    """Whatever the network computes in: matching is about small differences of large sums."""
    return torch.autocast(images.device.type, enabled=False)


@dataclass(frozen=True, slots=True)
class ClassMeans:
    """Mean embeddings of real images by class, at one network.

    Attributes:
        features: Mean h_w, shape (K, D).
        logits: Mean z_w, shape (K, num_classes).
    """

    features: torch.Tensor
    logits: torch.Tensor


@torch.no_grad()
def real_class_means(
    model: EmbeddingModel, real: torch.Tensor, averages: torch.Tensor, augment: Augmentation
) -> ClassMeans:
    """Mean embeddings of real images; each is passed through the network once.

    Args:
        model: The network.
        real: Shape (N, C, H, W), N at least 1.
        averages: `class_mean_matrix` of the images, shape (K, N).
        augment: Applied first.
    """
    chunk = REAL_CHUNK if real.device.type == "cpu" else REAL_CHUNK_CUDA
    features = averages.new_zeros(len(averages), model.classifier.in_features)
    for images, columns in zip(real.split(chunk), averages.split(chunk, dim=1), strict=True):
        embedded = model.embed(augment(images)).to(averages.dtype)
        with _exact_sums(real):
            features += columns @ embedded
    with _exact_sums(real):
        return ClassMeans(features, model.classifier(features))


def synthetic_gradient(
    model: EmbeddingModel,
    real: ClassMeans,
    synthetic: torch.Tensor,
    synthetic_averages: torch.Tensor,
    *,
    logit_weight: float,
    augment: Augmentation,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of Equation 5.8 against real means, and its gradient in the synthetic images.

    Args:
        model: The network at which the real means were taken.
        real: What is to be matched.
        synthetic: Shape (M, C, H, W).
        synthetic_averages: `class_mean_matrix` of the synthetic images, shape (K, M).
        logit_weight: Weight of the logits' term.
        augment: What the real images went through.

    Returns:
        The loss, a scalar, and the gradient, shape (M, C, H, W).
    """
    leaf = synthetic.detach().requires_grad_(True)
    features, logits = mean_embedding(model, augment(leaf), synthetic_averages)
    loss = matching_loss(real.features, real.logits, features, logits, logit_weight)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


def matching_gradient(
    model: EmbeddingModel,
    real: torch.Tensor,
    real_averages: torch.Tensor,
    synthetic: torch.Tensor,
    synthetic_averages: torch.Tensor,
    *,
    logit_weight: float,
    augment: Augmentation,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of Equation 5.8 at the model's weights, and its gradient in the synthetic images.

    Args:
        model: The network drawn for this step, all classes alike.
        real: Shape (N, C, H, W).
        real_averages: `class_mean_matrix` of the real images, shape (K, N).
        synthetic: Shape (M, C, H, W).
        synthetic_averages: `class_mean_matrix` of the synthetic images, shape (K, M).
        logit_weight: Weight of the logits' term.
        augment: Applied to both sides.

    Returns:
        The loss, a scalar, and the gradient, shape (M, C, H, W).
    """
    return synthetic_gradient(
        model,
        real_class_means(model, real, real_averages, augment),
        synthetic,
        synthetic_averages,
        logit_weight=logit_weight,
        augment=augment,
    )


def match(
    parameters: ParameterVector,
    model: EmbeddingModel,
    classes: list[ClassImages],
    start: torch.Tensor,
    labels: torch.Tensor,
    config: MatchingConfig,
    *,
    draw: WeightDraw,
    generator: torch.Generator,
    count_step: Callable[[], None] = lambda: None,
) -> Matched:
    """T steps of matching, one network per step for all classes.

    Nothing in the loop waits for the device.

    Args:
        parameters: The model's parameters; left at the last network.
        model: The same model.
        classes: The real images by class, every class that `labels` names, in label order.
        start: Initial synthetic images, shape (M, C, H, W); left as they are.
        labels: Their classes, int64, shape (M,).
        config: Steps, optimizer and options.
        draw: Draws a network's weights.
        generator: A CPU generator, for the real batches and the augmentation.
        count_step: Called after every step.
    """
    names = torch.tensor([group.label for group in classes], device=start.device)
    synthetic, velocity = start.clone(), torch.zeros_like(start)
    synthetic_averages = class_mean_matrix(labels, names, start.dtype)
    parameters.model.eval()
    losses: list[torch.Tensor] = []
    with parameters.frozen():
        met = _pooled if config.network_pool else _fresh
        for real, augment in met(parameters, model, classes, config, draw, generator):
            loss, gradient = synthetic_gradient(
                model,
                real,
                synthetic,
                synthetic_averages,
                logit_weight=config.logit_weight,
                augment=augment,
            )
            sgd_step_(
                synthetic,
                gradient,
                velocity,
                learning_rate=config.learning_rate,
                momentum=config.momentum,
            )
            losses.append(loss)
            count_step()
    return Matched(synthetic, float(losses[0]), float(losses[-1]))


def _fresh(
    parameters: ParameterVector,
    model: EmbeddingModel,
    classes: list[ClassImages],
    config: MatchingConfig,
    draw: WeightDraw,
    generator: torch.Generator,
) -> Iterator[tuple[ClassMeans, Augmentation]]:
    """For each of T steps draw a network and meet a batch of every class (the paper's way)."""
    sizes = [min(config.real_batch, len(group.real)) for group in classes]
    pool, averages = _joined(classes, sizes)
    offsets = torch.tensor([0, *(len(group.real) for group in classes)]).cumsum(0).tolist()
    whole = sum(sizes) == len(pool)
    steps = _draws(offsets, sizes, config, generator, pool.device)
    for indices, augment in steps:
        draw(parameters.values)
        real = pool if whole else pool[indices]
        yield real_class_means(model, real, averages, augment), augment


def _pooled(
    parameters: ParameterVector,
    model: EmbeddingModel,
    classes: list[ClassImages],
    config: MatchingConfig,
    draw: WeightDraw,
    generator: torch.Generator,
) -> Iterator[tuple[ClassMeans, Augmentation]]:
    """Draw a pool of networks, meet all real images at each once, and go round the pool."""
    pool, averages = _joined(classes, [len(group.real) for group in classes])
    kind: AugmentationKind = config.augmentation  # type: ignore[assignment]
    met: list[tuple[torch.Tensor, ClassMeans, Augmentation]] = []
    for step in range(config.iterations):
        if step < config.network_pool:
            draw(parameters.values)
            augment = draw_augmentation(kind, generator)
            means = real_class_means(model, pool, averages, augment)
            met.append((parameters.values.clone(), means, augment))
        weights, means, augment = met[step % config.network_pool]
        parameters.values.copy_(weights)
        yield means, augment


def _joined(classes: list[ClassImages], sizes: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """All real images, and `class_mean_matrix` of a batch of `sizes`, classes in order."""
    pool = torch.cat([group.real for group in classes])
    names = torch.tensor([group.label for group in classes], device=pool.device)
    counts = torch.tensor(sizes, device=pool.device)
    labels = torch.repeat_interleave(names, counts, output_size=sum(sizes))
    return pool, class_mean_matrix(labels, names, pool.dtype)


def _draws(
    offsets: list[int],
    sizes: list[int],
    config: MatchingConfig,
    generator: torch.Generator,
    device: torch.device,
) -> Iterator[tuple[torch.Tensor, Augmentation]]:
    """Indices of the real batch, on the device, and the augmentation of each of T steps.

    They are drawn a block of steps ahead: sending each step's own would make it wait for the GPU.
    """
    kind: AugmentationKind = config.augmentation  # type: ignore[assignment]
    for first in range(0, config.iterations, DRAWN_AT_ONCE):
        count = min(DRAWN_AT_ONCE, config.iterations - first)
        drawn = [
            (_sample(offsets, sizes, generator), draw_augmentation(kind, generator))
            for _ in range(count)
        ]
        indices = torch.stack([batch for batch, _ in drawn])
        if device.type == "cuda":
            indices = indices.pin_memory().to(device, non_blocking=True)
        yield from zip(indices, (augment for _, augment in drawn), strict=True)


def _sample(offsets: list[int], sizes: list[int], generator: torch.Generator) -> torch.Tensor:
    """Indices of a fresh batch without replacement from each class, classes in order."""
    batches = []
    for start, end, size in zip(offsets[:-1], offsets[1:], sizes, strict=True):
        if end - start == size:
            batches.append(torch.arange(start, end))
        else:
            batches.append(start + torch.randperm(end - start, generator=generator)[:size])
    return torch.cat(batches)
