"""Models by name, and what a strategy may ask of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from core.config import ModelConfig
from core.errors import ConfigError, Problem
from core.plugins import is_plugin, load_plugin
from core.seeds import seeded_globals
from models.cnn import CNN
from models.convnet import ConvNet
from models.resnet_cifar import ResNet32

ImageShape = tuple[int, int, int]
"""Channels, height, width."""

WITHOUT_BATCH_NORM = ("convnet", "cnn", "resnet18")
"""Built-in models of which each example's features are its own, whatever is beside it."""


class EmbeddingModel(Protocol):
    """A model whose logits are one linear layer on its features.

    ``model(x)`` equals ``model.classifier(model.embed(x))``.
    """

    classifier: nn.Linear

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """Features (B, D) of images (B, C, H, W)."""
        ...

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, num_classes) of images (B, C, H, W)."""
        ...


def make_model(config: ModelConfig, image_shape: ImageShape, num_classes: int) -> nn.Module:
    """Make the model that ``config.name`` names, on the CPU, from torch's global generators.

    A plugin ``FILE.py:FUNCTION`` is called as ``function(image_shape, num_classes)``, tried on a
    batch of two blank images, and draws its parameters from torch's global generator.

    Args:
        config: Name, and width and depth of the ConvNet.
        image_shape: Channels, height, width.
        num_classes: Number of classes (C).

    Raises:
        ConfigError: The name is unknown, the image too small for the depth, a key is given that
            the model does not read, or the plugin does not yield such a model.
    """
    if is_plugin(config.name):
        _refuse_unread(config)
        return _plugin(config, image_shape, num_classes)
    if config.name not in _BUILDERS:
        rule = f"must be one of {', '.join(_BUILDERS)} or FILE.py:FUNCTION"
        raise ConfigError([Problem("model.name", config.name, rule)])
    return _BUILDERS[config.name](config, image_shape, num_classes)


def build_model(
    config: ModelConfig, image_shape: ImageShape, num_classes: int, seed: int
) -> nn.Module:
    """As `make_model`, drawn from `seed`; torch's global generators are left as they were."""
    with seeded_globals(seed):
        return make_model(config, image_shape, num_classes)


def embedding_of(model: nn.Module) -> EmbeddingModel:
    """`model` itself, where it has features and a linear classifier.

    Raises:
        ConfigError: It lacks either.
    """
    missing = [] if callable(getattr(model, "embed", None)) else ["method embed(x) -> (B, D)"]
    if not isinstance(getattr(model, "classifier", None), nn.Linear):
        missing.append("torch.nn.Linear called classifier")
    if missing:
        rule = (
            f"{type(model).__name__} has no {' and no '.join(missing)}, so its features cannot be "
            "matched; add them such that model(x) is classifier(embed(x)), or use "
            f"{', '.join(WITHOUT_BATCH_NORM[:-1])} or {WITHOUT_BATCH_NORM[-1]}"
        )
        raise ConfigError([Problem("model.name", "", rule)])
    return cast(EmbeddingModel, model)


def refuse_batch_norm(model: nn.Module, why: str) -> None:
    """Refuse a model that mixes the examples of a batch.

    Args:
        model: The model.
        why: Why it cannot be used here, as a clause.

    Raises:
        ConfigError: A layer of it is batch norm.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            rule = (
                f"layer {name or 'itself'} of {type(model).__name__} is {type(module).__name__}: "
                f"{why}; use torch.nn.GroupNorm in its place"
            )
            raise ConfigError([Problem("model.name", "", rule)])


def _convnet(config: ModelConfig, image_shape: ImageShape, num_classes: int) -> nn.Module:
    depth = config.depth or (2 if min(image_shape[1:]) < 16 else 3)
    try:
        return ConvNet(image_shape, num_classes, width=config.width, depth=depth)
    except ValueError as error:
        raise ConfigError([Problem("model.depth", str(config.depth), str(error))]) from error


def _cnn(config: ModelConfig, image_shape: ImageShape, num_classes: int) -> nn.Module:
    _refuse_unread(config)
    try:
        return CNN(image_shape, num_classes)
    except ValueError as error:
        raise ConfigError([Problem("model.name", config.name, str(error))]) from error


def _resnet18(config: ModelConfig, image_shape: ImageShape, num_classes: int) -> nn.Module:
    from models.resnet import ResNet18  # imports torchvision

    _refuse_unread(config)
    return ResNet18(image_shape, num_classes)


def _resnet32(config: ModelConfig, image_shape: ImageShape, num_classes: int) -> nn.Module:
    _refuse_unread(config)
    return ResNet32(image_shape, num_classes)


def _plugin(config: ModelConfig, image_shape: ImageShape, num_classes: int) -> nn.Module:
    function = load_plugin("model.name", config.name)
    try:
        model = function(image_shape, num_classes)
        if not isinstance(model, nn.Module):
            raise TypeError(f"it returned a {type(model).__name__}, not a torch.nn.Module")
        modes = {module: module.training for module in model.modules()}
        with torch.no_grad():
            logits = model.eval()(torch.zeros(2, *image_shape))
        for module, mode in modes.items():
            module.training = mode
        if not isinstance(logits, torch.Tensor) or logits.shape != (2, num_classes):
            given = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits)
            raise ValueError(f"a batch of 2 gave {given}, not logits of {(2, num_classes)}")
        _refuse_unfit_state(model)
    except Exception as error:
        rule = (
            f"must be a function (image_shape, num_classes) that returns a torch.nn.Module for "
            f"images {image_shape}: {type(error).__name__}: {error}"
        )
        raise ConfigError([Problem("model.name", config.name, rule)]) from error
    return model


def _refuse_unfit_state(model: nn.Module) -> None:
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("it has no trainable parameter")
    for name, value in model.state_dict().items():
        trained = isinstance(value, torch.Tensor) and value.is_floating_point()
        if trained and value.dtype != torch.float32:
            raise TypeError(f"{name} is {value.dtype}; parameters and buffers must be float32")


def _refuse_unread(config: ModelConfig) -> None:
    default = ModelConfig()
    problems = [
        Problem(f"model.{key}", str(value), f"model.name={config.name} does not read it; leave out")
        for key, value in (("width", config.width), ("depth", config.depth))
        if value != getattr(default, key)
    ]
    if problems:
        raise ConfigError(problems)


_BUILDERS: dict[str, Callable[[ModelConfig, ImageShape, int], nn.Module]] = {
    "convnet": _convnet,
    "cnn": _cnn,
    "resnet18": _resnet18,
    "resnet32": _resnet32,
}
