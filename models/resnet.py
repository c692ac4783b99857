"""ResNet-18 for small images, without batch norm. Imports torchvision, which takes two seconds."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

_GROUPS = 32


class _Block(BasicBlock):  # type: ignore[misc]
    """torchvision's block without in-place operations, which per-example gradients forbid."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn1(self.conv1(x)).relu()
        out = self.bn2(self.conv2(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        return torch.relu(out + shortcut)


class ResNet18(nn.Module):
    """torchvision's ResNet-18 with group norm, a 3x3 stem of stride 1 and no max-pooling.

    K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; 32 groups as in Y. Wu
    and K. He, "Group Normalization", ECCV 2018. Initialised as torchvision does.
    """

    classifier: nn.Linear

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        """Draw the parameters from torch's global generator.

        Args:
            image_shape: Channels, height, width; any size.
            num_classes: Number of classes (C).
        """
        super().__init__()
        net = ResNet(
            _Block, [2, 2, 2, 2], num_classes, norm_layer=lambda width: nn.GroupNorm(_GROUPS, width)
        )
        stem = nn.Conv2d(image_shape[0], 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        self.stem = nn.Sequential(stem, net.bn1, nn.ReLU())
        self.stages = nn.Sequential(net.layer1, net.layer2, net.layer3, net.layer4)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = net.fc

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """Features (B, 512) of images (B, C, H, W)."""
        features: torch.Tensor = self.pool(self.stages(self.stem(x)))
        return features.flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, num_classes) of images (B, C, H, W)."""
        logits: torch.Tensor = self.classifier(self.embed(x))
        return logits
