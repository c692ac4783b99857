"""Distribution matching that sees the real images through noised sums alone.

Two mechanisms, both with the loss of Equation 5.8 in `distill.matching`, whose gradient in the
synthetic images S_c of a class is the mean of g_i = grad ||phi(x_i) - mean_j phi(s_j)||^2 over the
class's real images x_i (the variance of phi(x) does not depend on S_c), phi = [h, z]:

``gradient``
    The paper's (Y. Xiong et al., "FedDM", section 5.4.3 of the thesis): every step, each g_i of a
    Poisson batch is clipped, the sum of each class noised and divided by a constant.
``feature``
    In the manner of data-set condensation from noised features: for each of some networks, each
    [phi(x_i), a] of a Poisson batch, a a constant, is clipped and the sum of each class noised
    once. A class's mean is its noised sum over its noised count. What follows is made of that.

In both the whole data of the client is sampled once per step and then split by label, so that an
example takes part with the same probability whatever its class; every class has synthetic images,
whether the client holds it or not, and they start from noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from core.examples import Examples
from core.parameters import ParameterVector, sgd_step_
from distill.augmentation import Augmentation, AugmentationKind, draw_augmentation
from distill.matching import REAL_CHUNK, MatchingConfig, class_mean_matrix, mean_embedding
from distill.weights import WeightDraw
from models.registry import EmbeddingModel

ROWS_AT_ONCE = 32
"""Per-example gradients computed together; bounds memory."""


class NoisedSums(Protocol):
    """What samples, clips and noises; `privacy.mechanism` is one."""

    @property
    def kind(self) -> str:
        """``gradient`` or ``feature``."""

    @property
    def count_scale(self) -> float:
        """The constant coordinate (a)."""

    @property
    def count_floor(self) -> float:
        """Least count that a sum is divided by."""

    def batches(self, num_examples: int) -> Iterator[torch.Tensor]:
        """Poisson batches of indices, one per sum that will be released."""

    def clip_factors(self, norms: torch.Tensor) -> torch.Tensor:
        """From norms, shape (B,), to factors in [0, 1] of that shape."""

    def finite_rows(self, parts: torch.Tensor) -> torch.Tensor:
        """`parts`, shape (B, ...), with zeros in place of those whose norm is not finite."""

    def release(self, total: torch.Tensor) -> torch.Tensor:
        """A sum of clipped parts, with noise."""

    def release_mean(self, total: torch.Tensor, denominator: float) -> torch.Tensor:
        """The same divided by a constant."""


@dataclass(frozen=True, slots=True)
class NoisedMatch:
    """Outcome of noised matching.

    Attributes:
        images: Shape (M, C, H, W), in the order of the start.
        class_counts: Estimated real images of each class in a batch, float32, shape (K,), at least
            zero; None where the mechanism releases none.
    """

    images: torch.Tensor
    class_counts: torch.Tensor | None


def match_noised(
    parameters: ParameterVector,
    model: EmbeddingModel,
    examples: Examples,
    start: torch.Tensor,
    labels: torch.Tensor,
    config: MatchingConfig,
    *,
    num_classes: int,
    mechanism: NoisedSums,
    draw: WeightDraw,
    generator: torch.Generator,
    count_step: Callable[[], None] = lambda: None,
) -> NoisedMatch:
    """T steps of matching against what the mechanism releases.

    Args:
        parameters: The model's parameters; left at the last network.
        model: The same model.
        examples: All real images of the client, at least one.
        start: Initial synthetic images, the same number of each class, shape (M, C, H, W); left as
            they are.
        labels: Their classes, int64, shape (M,), ascending.
        config: Steps, optimizer and options; ``real_batch`` is the constant that a class's summed
            gradient is divided by.
        num_classes: K; each has synthetic images.
        mechanism: Samples and noises.
        draw: Draws a network's weights.
        generator: A CPU generator for the augmentation.
        count_step: Called after every step.
    """
    matcher = _Matcher(parameters, model, start, labels, config, num_classes)
    augmentations = _augmentations(config, generator)
    parameters.model.eval()
    with parameters.frozen():
        if mechanism.kind == "gradient":
            for batch in mechanism.batches(len(examples)):
                draw(parameters.values)
                matcher.step(
                    noised_gradient(
                        model,
                        _chosen(examples, batch),
                        matcher.images,
                        labels,
                        num_classes=num_classes,
                        config=config,
                        mechanism=mechanism,
                        augment=next(augmentations),
                    )
                )
                count_step()
            return NoisedMatch(matcher.images, None)
        released = [
            _release(parameters, model, examples, batch, mechanism, draw, augment, num_classes)
            for batch, augment in zip(mechanism.batches(len(examples)), augmentations, strict=False)
        ]
        counts = torch.stack([means.counts for means in released]).mean(dim=0)
        known = counts >= mechanism.count_floor
        for number in range(config.iterations):
            matcher.follow(released[number % len(released)], known)
            count_step()
        return NoisedMatch(matcher.images, torch.where(known, counts, 0.0))


def example_gradients(
    model: EmbeddingModel,
    real: torch.Tensor,
    synthetic: torch.Tensor,
    *,
    logit_weight: float,
    augment: Augmentation,
) -> Iterator[torch.Tensor]:
    """The gradients g_i of one class's images, a few real images at a time.

    One forward pass of the synthetic images, and their backward passes vectorised over the real
    ones: g_i = -2 J^T W (phi(x_i) - mean_j phi(s_j)), J the Jacobian of that mean, W = 1 on
    features and `logit_weight` on logits.

    Args:
        model: The network of this step.
        real: Shape (B, C, H, W).
        synthetic: Shape (M, C, H, W).
        logit_weight: Weight of the logits' term.
        augment: Applied to both sides.

    Yields:
        Shape (b, M, C, H, W), in the order of `real`.
    """
    with torch.no_grad():
        parts = [model.embed(augment(part)) for part in real.split(REAL_CHUNK)]
        features = torch.cat(parts)
        logits = model.classifier(features)
    leaf = synthetic.detach().requires_grad_(True)
    averages = torch.full((1, len(leaf)), 1 / len(leaf), dtype=leaf.dtype, device=leaf.device)
    with torch.enable_grad():
        own_features, own_logits = mean_embedding(model, augment(leaf), averages)
    feature_pull = 2 * (own_features.detach() - features)
    logit_pull = 2 * logit_weight * (own_logits.detach() - logits)
    for rows in torch.arange(len(real), device=real.device).split(ROWS_AT_ONCE):
        (found,) = torch.autograd.grad(
            (own_features, own_logits),
            leaf,
            (feature_pull[rows].unsqueeze(1), logit_pull[rows].unsqueeze(1)),
            retain_graph=True,
            is_grads_batched=True,
        )
        yield found


def noised_gradient(
    model: EmbeddingModel,
    real: Examples,
    synthetic: torch.Tensor,
    labels: torch.Tensor,
    *,
    num_classes: int,
    config: MatchingConfig,
    mechanism: NoisedSums,
    augment: Augmentation,
) -> torch.Tensor:
    """What ``gradient`` releases in one step: the noised mean of clipped g_i, class by class.

    Without noise and clip, and with ``config.real_batch`` examples of each class, it is the
    gradient of `distill.matching.matching_gradient`.

    Args:
        model: The network of this step.
        real: A Poisson batch, of whatever length.
        synthetic: Shape (M, C, H, W).
        labels: Their classes, int64, shape (M,).
        num_classes: K.
        config: Weight of the logits, and the denominator of each class.
        mechanism: Clips and noises.
        augment: Applied to both sides.

    Returns:
        Shape (M, C, H, W).
    """
    total = torch.zeros_like(synthetic)
    for label in range(num_classes):
        own = torch.nonzero(real.labels == label).flatten()
        if len(own) == 0:
            continue
        members = torch.nonzero(labels == label).flatten()
        gradients = example_gradients(
            model,
            real.inputs[own],
            synthetic[members],
            logit_weight=config.logit_weight,
            augment=augment,
        )
        for part in map(mechanism.finite_rows, gradients):
            factors = mechanism.clip_factors(part.flatten(1).norm(dim=1))
            total[members] += torch.tensordot(factors, part, dims=1)
    return mechanism.release_mean(total, config.real_batch)


def clipped_class_sums(
    embeddings: torch.Tensor, labels: torch.Tensor, num_classes: int, mechanism: NoisedSums
) -> torch.Tensor:
    """The sums that ``feature`` releases, before their noise.

    Args:
        embeddings: phi, shape (B, D); the constant coordinate is appended here.
        labels: int64, shape (B,).
        num_classes: K.
        mechanism: Clips.

    Returns:
        Shape (K, D + 1).
    """
    constant = embeddings.new_full((len(embeddings), 1), mechanism.count_scale)
    joint = mechanism.finite_rows(torch.cat([embeddings, constant], dim=1))
    joint = joint * mechanism.clip_factors(joint.norm(dim=1)).unsqueeze(1)
    classes = torch.arange(num_classes, device=labels.device)
    return (labels[None, :] == classes[:, None]).to(joint.dtype) @ joint


@dataclass(frozen=True, slots=True)
class _Released:
    """Noised means at one network.

    Attributes:
        weights: The network, shape (d,).
        augment: The draw that the real images went through.
        features: Shape (K, D).
        logits: Shape (K, K).
        counts: Noised, shape (K,).
    """

    weights: torch.Tensor
    augment: Augmentation
    features: torch.Tensor
    logits: torch.Tensor
    counts: torch.Tensor


@torch.no_grad()
def _release(
    parameters: ParameterVector,
    model: EmbeddingModel,
    examples: Examples,
    batch: torch.Tensor,
    mechanism: NoisedSums,
    draw: WeightDraw,
    augment: Augmentation,
    num_classes: int,
) -> _Released:
    """Look at one Poisson batch through one network, once."""
    draw(parameters.values)
    chosen = _chosen(examples, batch)
    total = torch.zeros(
        (num_classes, model.classifier.in_features + model.classifier.out_features + 1),
        dtype=parameters.values.dtype,
        device=parameters.values.device,
    )
    everyone = torch.arange(len(chosen), device=total.device)
    for part in everyone.split(REAL_CHUNK) if len(chosen) else ():
        features = model.embed(augment(chosen.inputs[part]))
        phi = torch.cat([features, model.classifier(features)], dim=1)
        total += clipped_class_sums(phi, chosen.labels[part], num_classes, mechanism)
    noised = mechanism.release(total)
    counts = noised[:, -1] / mechanism.count_scale
    means = noised[:, :-1] / counts.clamp(min=mechanism.count_floor).unsqueeze(1)
    features, logits = means.split(
        [model.classifier.in_features, model.classifier.out_features], dim=1
    )
    return _Released(parameters.values.clone(), augment, features, logits, counts)


class _Matcher:
    """The synthetic images and the steps on them."""

    def __init__(
        self,
        parameters: ParameterVector,
        model: EmbeddingModel,
        start: torch.Tensor,
        labels: torch.Tensor,
        config: MatchingConfig,
        num_classes: int,
    ) -> None:
        self.images = start.clone()
        self._velocity = torch.zeros_like(start)
        self._parameters, self._model, self._config = parameters, model, config
        classes = torch.arange(num_classes, device=start.device)
        self._averages = class_mean_matrix(labels, classes, start.dtype)

    def step(self, gradient: torch.Tensor) -> None:
        """One step of SGD."""
        sgd_step_(
            self.images,
            gradient,
            self._velocity,
            learning_rate=self._config.learning_rate,
            momentum=self._config.momentum,
        )

    def follow(self, means: _Released, known: torch.Tensor) -> None:
        """One step of Equation 5.8 towards noised means, of the classes in `known`, shape (K,)."""
        self._parameters.values.copy_(means.weights)
        leaf = self.images.detach().requires_grad_(True)
        features, logits = mean_embedding(self._model, means.augment(leaf), self._averages)
        losses = (means.features - features).square().sum(dim=1)
        losses = losses + self._config.logit_weight * (means.logits - logits).square().sum(dim=1)
        (gradient,) = torch.autograd.grad((losses * known).sum(), leaf)
        self.step(gradient)


def _chosen(examples: Examples, batch: torch.Tensor) -> Examples:
    indices = batch.to(examples.labels.device)
    return Examples(examples.inputs[indices], examples.labels[indices])


def _augmentations(config: MatchingConfig, generator: torch.Generator) -> Iterator[Augmentation]:
    kind: AugmentationKind = config.augmentation  # type: ignore[assignment]
    while True:
        yield draw_augmentation(kind, generator)
