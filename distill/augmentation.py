"""Differentiable siamese augmentation: one draw, applied alike to real and synthetic images.

B. Zhao, H. Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021,
arXiv:2102.08259. One operation is drawn per call, and its strength is shared by all images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch.nn import functional

AugmentationKind = Literal["off", "dsa", "dsa-no-flip"]
Augmentation = Callable[[torch.Tensor], torch.Tensor]
"""From images (N, C, H, W) to images of the same shape; differentiable."""

BRIGHTNESS = 1.0
SATURATION = 2.0
CONTRAST = 0.5
CROP_SHARE = 0.125
CUTOUT_SHARE = 0.5
SCALE = 1.2
ROTATION_DEGREES = 15.0


def draw_augmentation(kind: AugmentationKind, generator: torch.Generator) -> Augmentation:
    """Draw one operation and its strength.

    Args:
        kind: ``off`` draws nothing; ``dsa-no-flip`` leaves out the mirror image, for digits and
            letters.
        generator: A CPU generator.
    """
    if kind == "off":
        return _identity
    operations = [_colour, _crop, _cutout, _scale, _rotate]
    if kind == "dsa":
        operations.append(_flip)
    chosen = int(torch.randint(len(operations), (), generator=generator))
    strengths = torch.rand(3, generator=generator).tolist()
    return operations[chosen](strengths)


def _identity(images: torch.Tensor) -> torch.Tensor:
    return images


def _colour(strengths: list[float]) -> Augmentation:
    def apply(images: torch.Tensor) -> torch.Tensor:
        images = images + BRIGHTNESS * (strengths[0] - 0.5)
        grey = images.mean(dim=1, keepdim=True)
        images = (images - grey) * (SATURATION * strengths[1]) + grey
        centre = images.mean(dim=(1, 2, 3), keepdim=True)
        return (images - centre) * (strengths[2] + CONTRAST) + centre

    return apply


def _crop(strengths: list[float]) -> Augmentation:
    def apply(images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[2:]
        pad_y, pad_x = round(height * CROP_SHARE), round(width * CROP_SHARE)
        top = min(int(strengths[0] * (2 * pad_y + 1)), 2 * pad_y)
        left = min(int(strengths[1] * (2 * pad_x + 1)), 2 * pad_x)
        padded = functional.pad(images, (pad_x, pad_x, pad_y, pad_y))
        return padded[:, :, top : top + height, left : left + width]

    return apply


def _cutout(strengths: list[float]) -> Augmentation:
    def apply(images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[2:]
        size_y, size_x = round(height * CUTOUT_SHARE), round(width * CUTOUT_SHARE)
        centre_y, centre_x = int(strengths[0] * height), int(strengths[1] * width)
        top, left = max(centre_y - size_y // 2, 0), max(centre_x - size_x // 2, 0)
        mask = torch.ones((height, width), dtype=images.dtype, device=images.device)
        mask[top : centre_y - size_y // 2 + size_y, left : centre_x - size_x // 2 + size_x] = 0
        return images * mask

    return apply


def _flip(strengths: list[float]) -> Augmentation:
    return (lambda images: images.flip(3)) if strengths[0] < 0.5 else _identity


def _scale(strengths: list[float]) -> Augmentation:
    scale_y = 1 / SCALE + strengths[0] * (SCALE - 1 / SCALE)
    scale_x = 1 / SCALE + strengths[1] * (SCALE - 1 / SCALE)
    return _affine([[scale_x, 0.0, 0.0], [0.0, scale_y, 0.0]])


def _rotate(strengths: list[float]) -> Augmentation:
    angle = math.radians(ROTATION_DEGREES) * (2 * strengths[0] - 1)
    sine, cosine = math.sin(angle), math.cos(angle)
    return _affine([[cosine, -sine, 0.0], [sine, cosine, 0.0]])


def _affine(matrix: list[list[float]]) -> Augmentation:
    def apply(images: torch.Tensor) -> torch.Tensor:
        # Filled where the images are: a tensor made here and sent there would wait for a GPU.
        theta = torch.stack([images.new_full((), value) for row in matrix for value in row])
        grid = functional.affine_grid(
            theta.view(2, 3).expand(len(images), 2, 3), list(images.shape), align_corners=False
        )
        return functional.grid_sample(images, grid, align_corners=False)

    return apply
