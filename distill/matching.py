"""Distribution matching: synthetic images whose mean embedding is the real images'.

Y. Xiong, R. Wang, M. Cheng, F. Yu, C.-J. Hsieh, "FedDM: Iterative Distribution Matching for
Communication-Efficient Federated Learning", CVPR 2023: ClientUpdate of Algorithm 3, Equation 5.8
of the thesis chapter. The optimizer of the images follows B. Zhao, H. Bilen, "Dataset Condensation
with Distribution Matching", WACV 2023.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from core.config import choice, flag, number
from core.parameters import ParameterVector, sgd_step_
from distill.augmentation import Augmentation, AugmentationKind, draw_augmentation
from distill.weights import WeightDraw
from models.registry import EmbeddingModel

REAL_CHUNK = 256
"""Real images per forward pass; bounds memory and changes no mean but by rounding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MatchingConfig:
    """How clients match their images."""

    iterations: int = number(1000, "matching steps per round (T)", least=1, most=10_000_000)
    learning_rate: float = number(1.0, "step size of the images (eta_c)", above=0)
    momentum: float = number(0.5, "momentum of the images", least=0, below=1)
    real_batch: int = number(
        256, "real images per class and step (B^D), fewer if the class is smaller", least=1
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
    features = model.embed(inputs)
    # Averaging commutes with the affine classifier: K rows through it instead of N.
    means = averages @ features
    return means, model.classifier(means)


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
    with torch.no_grad():
        real_features = sum(
            averages @ model.embed(augment(images))
            for images, averages in zip(
                real.split(REAL_CHUNK), real_averages.split(REAL_CHUNK, dim=1), strict=True
            )
        )
        assert isinstance(real_features, torch.Tensor)
        real_logits = model.classifier(real_features)
    leaf = synthetic.detach().requires_grad_(True)
    features, logits = mean_embedding(model, augment(leaf), synthetic_averages)
    loss = matching_loss(real_features, real_logits, features, logits, logit_weight)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


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
    """T steps of matching, one drawn network per step for all classes.

    Args:
        parameters: The model's parameters; left at the last draw.
        model: The same model.
        classes: The real images by class, every class that `labels` names, in label order.
        start: Initial synthetic images, shape (M, C, H, W); left as they are.
        labels: Their classes, int64, shape (M,).
        config: Steps, optimizer and options.
        draw: Draws a network's weights.
        generator: A CPU generator, for the real batches and the augmentation.
        count_step: Called after every step.
    """
    device = start.device
    names = torch.tensor([group.label for group in classes], device=device)
    synthetic, velocity = start.clone(), torch.zeros_like(start)
    synthetic_averages = class_mean_matrix(labels, names, start.dtype)
    sizes = [min(config.real_batch, len(group.real)) for group in classes]
    batch_labels = torch.repeat_interleave(names, torch.tensor(sizes, device=device))
    real_averages = class_mean_matrix(batch_labels, names, start.dtype)
    whole = all(len(group.real) == size for group, size in zip(classes, sizes, strict=True))
    pool = torch.cat([group.real for group in classes])
    offsets = torch.tensor([0, *(len(group.real) for group in classes)]).cumsum(0).tolist()
    kind: AugmentationKind = config.augmentation  # type: ignore[assignment]
    parameters.model.eval()
    losses: list[torch.Tensor] = []
    with parameters.frozen():
        for _ in range(config.iterations):
            draw(parameters.values)
            real = pool if whole else pool[_sample(offsets, sizes, generator).to(device)]
            loss, gradient = matching_gradient(
                model,
                real,
                real_averages,
                synthetic,
                synthetic_averages,
                logit_weight=config.logit_weight,
                augment=draw_augmentation(kind, generator),
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


def _sample(offsets: list[int], sizes: list[int], generator: torch.Generator) -> torch.Tensor:
    """Indices of a fresh batch without replacement from each class, classes in order."""
    batches = []
    for start, end, size in zip(offsets[:-1], offsets[1:], sizes, strict=True):
        if end - start == size:
            batches.append(torch.arange(start, end))
        else:
            batches.append(start + torch.randperm(end - start, generator=generator)[:size])
    return torch.cat(batches)
