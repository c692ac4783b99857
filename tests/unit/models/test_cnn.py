from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from core.config import ModelConfig
from core.errors import ConfigError
from models.cnn import CNN
from models.registry import build_model


@pytest.mark.parametrize(
    ("image_shape", "num_parameters"), [((1, 28, 28), 1_663_370), ((3, 32, 32), 2_156_490)]
)
def test_parameters_are_the_papers(image_shape: tuple[int, int, int], num_parameters: int) -> None:
    model = build_model(ModelConfig(name="cnn"), image_shape, 10, seed=0)
    assert sum(p.numel() for p in model.parameters()) == num_parameters


def test_it_computes_what_the_paper_draws() -> None:
    model = CNN((3, 8, 12), 4)
    named = dict(model.named_parameters())
    x = torch.randn(5, 3, 8, 12)
    hidden = x
    for layer in ("blocks.0", "blocks.3"):
        weight, bias = named[f"{layer}.weight"], named[f"{layer}.bias"]
        hidden = functional.conv2d(hidden, weight, bias, padding=2)
        hidden = functional.max_pool2d(functional.relu(hidden), 2)
    hidden = hidden.reshape(5, -1) @ named["hidden.weight"].T + named["hidden.bias"]
    hidden = hidden.clamp(min=0)
    torch.testing.assert_close(model.embed(x), hidden)
    logits = hidden @ named["classifier.weight"].T + named["classifier.bias"]
    torch.testing.assert_close(model(x), logits)


def test_too_small_an_image_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"images of 3x9 are too small; at least 4x4"):
        build_model(ModelConfig(name="cnn"), (1, 3, 9), 2, seed=0)


def test_keys_of_the_convnet_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.width=64: model.name=cnn does not read it"):
        build_model(ModelConfig(name="cnn", width=64), (3, 32, 32), 10, seed=0)
