from __future__ import annotations

import pytest
import torch
from opacus import GradSampleModule
from opacus.validators import ModuleValidator
from torch import nn
from torch.nn import functional as F  # noqa: N812

from models.convnet import ConvNet


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("image_shape", "num_classes", "depth", "expected"),
    [
        ((3, 32, 32), 10, 3, 320_010),
        ((1, 28, 28), 10, 3, 317_706),
        ((3, 32, 32), 100, 3, 504_420),
        # 1 and 128 channels into 128 of 3x3, biases, two affine pairs; 128 x 2 x 2 features.
        ((1, 8, 8), 10, 2, (9 + 1) * 128 + (9 * 128 + 1) * 128 + 4 * 128 + (512 + 1) * 10),
    ],
)
def test_number_of_parameters(
    image_shape: tuple[int, int, int], num_classes: int, depth: int, expected: int
) -> None:
    model = ConvNet(image_shape, num_classes, depth=depth)
    assert num_parameters(model) == expected
    assert model(torch.zeros(2, *image_shape)).shape == (2, num_classes)


@pytest.mark.parametrize("image_shape", [(3, 32, 32), (1, 28, 28), (1, 8, 8), (2, 9, 13)])
def test_it_is_the_definition(image_shape: tuple[int, int, int]) -> None:
    """Against torch's instance norm, with affine parameters that are not the identity."""
    torch.manual_seed(0)
    model = ConvNet(image_shape, 5, width=6, depth=2).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(3, *image_shape, dtype=torch.float64)
    weights = list(model.parameters())
    features = x
    for block in range(2):
        kernel, bias, scale, shift = weights[4 * block : 4 * block + 4]
        padding = 3 if block == 0 and image_shape[1:] == (28, 28) else 1
        features = F.conv2d(features, kernel, bias, padding=padding)
        features = F.instance_norm(features, weight=scale, bias=shift)
        features = F.avg_pool2d(features.clamp(min=0), 2)
    features = features.flatten(1)
    torch.testing.assert_close(model.embed(x), features)
    torch.testing.assert_close(model(x), features @ weights[8].T + weights[9])
    assert torch.equal(model(x), model.classifier(model.embed(x)))


@pytest.mark.parametrize("num_images", [0, 1, 4, 5, 9])
@pytest.mark.parametrize("image_shape", [(3, 32, 32), (1, 28, 28), (2, 9, 13)])
def test_the_fast_way_is_the_plain_one(
    image_shape: tuple[int, int, int], num_images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without gradients of parameters; in chunks, and the gradient of the images too."""
    torch.manual_seed(0)
    monkeypatch.setattr("models.convnet.CACHED_BYTES", 4 * (8 * 6 * 32 * 32))
    model = ConvNet(image_shape, 5, width=6, depth=2).double()
    monkeypatch.undo()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(num_images, *image_shape, dtype=torch.float64, requires_grad=True)
    before = x.detach().clone()
    expected = model.blocks(x).flatten(1)
    weights = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad((weights * expected).sum(), x)
    torch.testing.assert_close(model.embed(x), expected, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(model.embed(x), expected, rtol=1e-10, atol=1e-10)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    features = model.embed(x)
    torch.testing.assert_close(features, expected, rtol=1e-10, atol=1e-10)
    (found,) = torch.autograd.grad((weights * features).sum(), x)
    torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-9)
    assert torch.equal(x, before)


def test_the_fast_way_calls_no_module_and_the_plain_one_does() -> None:
    """Opacus hooks on the modules: where parameters are trained they must be called."""
    model = ConvNet((1, 8, 8), 3, width=4, depth=1)
    called: list[nn.Module] = []
    model.blocks[1].register_forward_hook(lambda module, *_: called.append(module))
    x = torch.randn(2, 1, 8, 8)
    model(x)
    assert called == [model.blocks[1]]
    with torch.no_grad():
        model(x)
    assert called == [model.blocks[1]]


def test_examples_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    model = ConvNet((3, 16, 16), 4, width=8, depth=3).double()
    x = torch.randn(5, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(model(x), torch.cat([model(one[None]) for one in x]))


def test_opacus_accepts_it_and_gives_per_example_gradients() -> None:
    torch.manual_seed(0)
    model = ConvNet((1, 8, 8), 3, width=4, depth=2).double()
    assert ModuleValidator.validate(model, strict=False) == []
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    expected = []
    for one in x:
        grads = torch.autograd.grad(model(one[None]).square().sum(), list(model.parameters()))
        expected.append(grads)
    wrapped = GradSampleModule(model, loss_reduction="sum")
    wrapped(x.requires_grad_()).square().sum().backward()
    for position, parameter in enumerate(model.parameters()):
        found = parameter.grad_sample  # type: ignore[attr-defined]
        torch.testing.assert_close(found, torch.stack([g[position] for g in expected]))


@pytest.mark.parametrize(("side", "most"), [(8, 3), (28, 5), (32, 5), (33, 5), (7, 2)])
def test_depth_is_limited_by_the_image(side: int, most: int) -> None:
    model = ConvNet((1, side, side), 2, width=2, depth=most)
    assert model.embed(torch.zeros(1, 1, side, side)).shape == (1, 2)
    with pytest.raises(ValueError, match=f"{most + 1} blocks halve .* at most {most} fit"):
        ConvNet((1, side, side), 2, width=2, depth=most + 1)
