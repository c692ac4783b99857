"""The ConvNet of the data-set distillation literature."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

CACHED_BYTES = 8 << 20
"""Activations of one layer that still lie in a CPU's cache, and in memory that malloc keeps."""


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
        self.images_at_once = max(1, CACHED_BYTES // (4 * width * height * width_px))
        blocks: list[nn.Module] = []
        for _ in range(depth):
            convolution = nn.Conv2d(channels, width, kernel_size=3, padding=padding)
            blocks += [convolution, nn.GroupNorm(width, width), nn.ReLU(), nn.AvgPool2d(2)]
            channels, padding = width, 1
        self.blocks = nn.Sequential(*blocks)
        num_features = width * (height >> depth) * (width_px >> depth)
        self.classifier = nn.Linear(num_features, num_classes)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """Features (B, D) of images (B, C, H, W), flattened.

        On a CPU, where no parameter is being trained, the same is computed a few images at a time
        and channels last: the blocks' modules are not called then, nor are hooks on them.
        """
        trains = torch.is_grad_enabled() and self.classifier.weight.requires_grad
        if trains or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            features: torch.Tensor = self.blocks(x)
            return features.flatten(1)
        parts = [self._features(part) for part in x.split(self.images_at_once)]
        return torch.cat(parts) if len(parts) != 1 else parts[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, num_classes) of images (B, C, H, W)."""
        logits: torch.Tensor = self.classifier(self.embed(x))
        return logits

    def _features(self, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        for first in range(0, len(self.blocks), 4):
            convolution, norm = self.blocks[first], self.blocks[first + 1]
            assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.GroupNorm)
            x = _norm_relu_pool(convolution(x), norm)
        return x.flatten(1)


def _norm_relu_pool(x: torch.Tensor, norm: nn.GroupNorm) -> torch.Tensor:
    """Instance norm, ReLU and 2x2 average pooling of images (B, C, H, W) that lie channels last.

    Sums over rows of channels run at the speed of memory; torch's own group norm takes up to ten
    times as long on this layout. Without a gradient `x` is overwritten.
    """
    num_images, channels, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(num_images, height * width, channels)
    if torch.is_grad_enabled():
        centred = rows - rows.mean(1, keepdim=True)
        scale = torch.rsqrt(centred.square().mean(1, keepdim=True) + norm.eps) * norm.weight
        rows = torch.addcmul(norm.bias, centred, scale).relu()
    else:
        rows.sub_(rows.mean(1, keepdim=True))
        scale = rows.square().mean(1, keepdim=True).add_(norm.eps).rsqrt_().mul_(norm.weight)
        torch.addcmul(norm.bias, rows, scale, out=rows).relu_()
    image = rows.view(num_images, height, width, channels).permute(0, 3, 1, 2)
    return functional.avg_pool2d(image, 2)
