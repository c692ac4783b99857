from __future__ import annotations

import pytest
import torch

from core.config import ModelConfig
from models.registry import build_model, embedding_of
from models.resnet_cifar import ResNet32, shortcut


@pytest.mark.parametrize(("num_classes", "count"), [(10, 464_154), (100, 470_004)])
def test_it_has_the_parameters_of_the_papers_network(num_classes: int, count: int) -> None:
    """0.46 million, as in the paper's Table 6; 65 more for each further class."""
    model = ResNet32((3, 32, 32), num_classes)
    assert sum(value.numel() for value in model.parameters()) == count
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) + 1 == 32


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8)])
def test_logits_are_one_layer_on_features(shape: tuple[int, int, int]) -> None:
    model = build_model(ModelConfig(name="resnet32"), shape, 10, seed=0).eval()
    images = torch.randn(2, *shape)
    features = embedding_of(model).embed(images)
    assert features.shape == (2, 64)
    torch.testing.assert_close(model(images), embedding_of(model).classifier(features))


def test_a_shortcut_drops_pixels_and_adds_empty_channels() -> None:
    image = torch.arange(32.0).view(1, 2, 4, 4)
    found = shortcut(image, 2, 2)
    assert found.shape == (1, 4, 2, 2)
    assert found[0, 1].tolist() == [[0.0, 2.0], [8.0, 10.0]]
    assert found[0, 2].tolist() == [[16.0, 18.0], [24.0, 26.0]]
    assert not found[0, [0, 3]].any()
    assert shortcut(image, 1, 0) is not None and torch.equal(shortcut(image, 1, 0), image)


def test_it_is_differentiated_twice() -> None:
    model = ResNet32((1, 8, 8), 3).train()
    loss = model(torch.randn(4, 1, 8, 8)).square().mean()
    weights = list(model.parameters())
    first = torch.autograd.grad(loss, weights, create_graph=True)
    total = torch.stack([part.square().sum() for part in first]).sum()
    second = torch.autograd.grad(total, weights[0])[0]
    assert second.abs().sum() > 0
