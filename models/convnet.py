"""The ConvNet of the data-set distillation literature."""

from __future__ import annotations

import torch
from torch import nn


class ConvNet(nn.Module):
    """Blocks of 3x3 convolution, instance norm, ReLU and 2x2 average pooling; one linear layer.

    S. Gidaris and N. Komodakis, "Dynamic Few-Shot Visual Learning without Forgetting", CVPR 2018,
    as B. Zhao and H. Bilen use it ("Dataset Condensation with Distribution Matching", WACV 2023).
    Instance norm is group norm with one channel per group, with affine parameters. Images of 28x28
    are padded to 32x32 by the first convolution.
    """

    classifier: nn.Linear

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, *, width: int = 128, depth: int
    ) -> None:
        """Draw the parameters from torch's global generator.

        Args:
            image_shape: Channels, height, width.
            num_classes: Number of classes (C).
            width: Channels of each block.
            depth: Number of blocks; each halves height and width, which must stay above 0.

        Raises:
            ValueError: The image is too small for `depth`.
        """
        super().__init__()
        channels, height, width_px = image_shape
        padding = 3 if (height, width_px) == (28, 28) else 1
        height, width_px = height + 2 * (padding - 1), width_px + 2 * (padding - 1)
        most = min(height, width_px).bit_length() - 1
        if depth > most:
            raise ValueError(
                f"{depth} blocks halve {height}x{width_px} pixels to nothing; at most {most} fit"
            )
        blocks: list[nn.Module] = []
        for _ in range(depth):
            convolution = nn.Conv2d(channels, width, kernel_size=3, padding=padding)
            blocks += [convolution, nn.GroupNorm(width, width), nn.ReLU(), nn.AvgPool2d(2)]
            channels, padding = width, 1
        self.blocks = nn.Sequential(*blocks)
        num_features = width * (height >> depth) * (width_px >> depth)
        self.classifier = nn.Linear(num_features, num_classes)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """Features (B, D) of images (B, C, H, W), flattened."""
        features: torch.Tensor = self.blocks(x)
        return features.flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, num_classes) of images (B, C, H, W)."""
        logits: torch.Tensor = self.classifier(self.embed(x))
        return logits
