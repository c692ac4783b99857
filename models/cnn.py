"""The convolutional network of the federated-averaging paper."""

from __future__ import annotations

import torch
from torch import nn

from models.winograd import WinogradConv2d

HIDDEN = 512
"""Units of the layer before the last."""


class CNN(nn.Module):
    """Two 5x5 convolutions of 32 and 64 channels, each with ReLU and 2x2 max pooling; 512; C.

    ReLU comes after pooling, which is the same and a quarter of the work.

    H. B. McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
    Data", AISTATS 2017, section 3: 1,663,370 parameters on 28x28 greyscale images of ten classes,
    2,156,490 on 32x32 colour ones.
    """

    classifier: nn.Linear

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        """Draw the parameters from torch's global generator.

        Args:
            image_shape: Channels, height, width; each side is halved twice and must stay above 0.
            num_classes: Number of classes (C).

        Raises:
            ValueError: The image is too small.
        """
        super().__init__()
        channels, height, width = image_shape
        if min(height, width) < 4:
            raise ValueError(f"images of {height}x{width} are too small; at least 4x4 are needed")
        self.blocks = nn.Sequential(
            nn.Conv2d(channels, 32, kernel_size=5, padding=2),
            nn.MaxPool2d(2),
            nn.ReLU(),
            WinogradConv2d(32, 64, kernel_size=5),
            nn.MaxPool2d(2),
            nn.ReLU(),
        )
        self.hidden = nn.Linear(64 * (height // 4) * (width // 4), HIDDEN)
        self.classifier = nn.Linear(HIDDEN, num_classes)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """Features (B, 512) of images (B, C, H, W)."""
        if x.device.type == "cpu":
            # Max pooling is ten times as fast channels last there, convolution as fast as before.
            x = x.contiguous(memory_format=torch.channels_last)
        return torch.relu(self.hidden(self.blocks(x).flatten(1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, num_classes) of images (B, C, H, W)."""
        logits: torch.Tensor = self.classifier(self.embed(x))
        return logits
