"""ResNet-32 for images of 32x32 and less, with batch norm and shortcuts without parameters.

K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
section 4.2 with n = 5 and shortcuts of kind A.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

_BLOCKS_PER_STAGE = 5
_WIDTHS = (16, 32, 64)


class _Block(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self._stride, self._more = stride, width - before

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.norm1(self.conv1(x)).relu()
        out = self.norm2(self.conv2(out))
        return torch.relu(out + shortcut(x, self._stride, self._more))


def shortcut(x: torch.Tensor, stride: int, more: int) -> torch.Tensor:
    """Every `stride`-th pixel, and `more` channels of zeros, half before and half behind."""
    kept = x[:, :, ::stride, ::stride]
    return functional.pad(kept, (0, 0, 0, 0, more // 2, more - more // 2)) if more else kept


class ResNet32(nn.Module):
    """Three stages of five blocks of 16, 32 and 64 channels."""

    classifier: nn.Linear

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        """Draw the parameters from torch's global generator.

        Args:
            image_shape: Channels, height, width; any size.
            num_classes: Number of classes (C).
        """
        super().__init__()
        self.stem = nn.Conv2d(image_shape[0], _WIDTHS[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(_WIDTHS[0])
        blocks, before = [], _WIDTHS[0]
        for stage, width in enumerate(_WIDTHS):
            for place in range(_BLOCKS_PER_STAGE):
                stride = 2 if stage and place == 0 else 1
                blocks.append(_Block(before, width, stride))
                before = width
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(_WIDTHS[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """Features (B, 64) of images (B, C, H, W)."""
        features: torch.Tensor = self.blocks(self.norm(self.stem(x)).relu())
        return features.mean(dim=(2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, num_classes) of images (B, C, H, W)."""
        logits: torch.Tensor = self.classifier(self.embed(x))
        return logits
