from __future__ import annotations

import pytest
import torch
import torchvision.models
from opacus import GradSampleModule
from opacus.validators import ModuleValidator
from torch import nn

from models.resnet import ResNet18


def reference(channels: int, num_classes: int) -> nn.Module:
    """torchvision's own network, stem replaced."""
    net: nn.Module = torchvision.models.resnet18(
        num_classes=num_classes, norm_layer=lambda width: nn.GroupNorm(32, width)
    )
    net.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    net.maxpool = nn.Identity()
    return net


@pytest.mark.parametrize("image_shape", [(3, 32, 32), (1, 28, 28), (1, 8, 8)])
def test_it_is_torchvisions_network(image_shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    model, net = ResNet18(image_shape, 7), reference(image_shape[0], 7)
    ours, theirs = list(model.parameters()), list(net.parameters())
    assert [p.shape for p in ours] == [p.shape for p in theirs]
    with torch.no_grad():
        for parameter, value in zip(theirs, ours, strict=True):
            nn.init.normal_(value, std=0.1)
            parameter.copy_(value)
    x = torch.randn(2, *image_shape)
    torch.testing.assert_close(model(x), net(x))
    assert model.embed(x).shape == (2, 512)
    assert torch.equal(model(x), model.classifier(model.embed(x)))


def test_number_of_parameters() -> None:
    """The published 11,689,512 of ImageNet, less its 7x7 stem and 1,000-way classifier."""
    published = 11_689_512 - 64 * 3 * 49 - (512 + 1) * 1000
    expected = published + 64 * 3 * 9 + (512 + 1) * 10
    assert sum(p.numel() for p in ResNet18((3, 32, 32), 10).parameters()) == expected


def test_initialisation_is_torchvisions() -> None:
    """Normal with variance 2 / fan-out, stem included; group norm the identity."""
    torch.manual_seed(0)
    model = ResNet18((3, 32, 32), 10)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            deviation = float(module.weight.detach().std()) / (2 / fan_out) ** 0.5
            assert abs(deviation - 1) < 5 / (2 * module.weight.numel()) ** 0.5
        if isinstance(module, nn.GroupNorm):
            assert bool((module.weight == 1).all()) and bool((module.bias == 0).all())


def test_opacus_accepts_it_and_gives_per_example_gradients() -> None:
    torch.manual_seed(0)
    # In float64, for rounding may put a unit on the other side of a ReLU's kink.
    model = ResNet18((1, 8, 8), 3).double()
    assert ModuleValidator.validate(model, strict=False) == []
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    expected = [torch.autograd.grad(model(one[None]).sum(), list(model.parameters())) for one in x]
    GradSampleModule(model, loss_reduction="sum")(x.requires_grad_()).sum().backward()
    for position, parameter in enumerate(model.parameters()):
        found = parameter.grad_sample  # type: ignore[attr-defined]
        torch.testing.assert_close(found, torch.stack([grads[position] for grads in expected]))
