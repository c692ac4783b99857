from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from core.config import ModelConfig
from core.errors import ConfigError
from models.convnet import ConvNet
from models.registry import WITHOUT_BATCH_NORM, build_model, embedding_of, refuse_batch_norm

SHAPE = (1, 8, 8)


@pytest.mark.parametrize("name", ["convnet", "cnn", "resnet18"])
def test_the_seed_decides_and_the_global_generator_is_left_alone(name: str) -> None:
    config = ModelConfig(name=name)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = build_model(config, SHAPE, 3, seed=1).state_dict()
    assert torch.equal(torch.rand(3), expected)
    again, other = (build_model(config, SHAPE, 3, seed=s).state_dict() for s in (1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_initialisation_is_pytorchs_default() -> None:
    model = build_model(ModelConfig(), (3, 32, 32), 10, seed=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        first = nn.Conv2d(3, 128, 3, padding=1)
    assert torch.equal(next(iter(model.parameters())), first.weight)


@pytest.mark.parametrize(
    ("image_shape", "depth"), [((1, 8, 8), 2), ((1, 15, 40), 2), ((1, 16, 16), 3), ((3, 32, 32), 3)]
)
def test_depth_0_fits_the_image(image_shape: tuple[int, int, int], depth: int) -> None:
    model = build_model(ModelConfig(width=4), image_shape, 2, seed=0)
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == depth


def test_width_and_depth_are_read() -> None:
    model = build_model(ModelConfig(width=5, depth=1), SHAPE, 2, seed=0)
    assert embedding_of(model).classifier.in_features == 5 * 4 * 4


def test_too_deep_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.depth=4: 4 blocks halve 8x8 .* at most 3 fit"):
        build_model(ModelConfig(depth=4), SHAPE, 2, seed=0)


def test_keys_that_are_not_read_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        build_model(ModelConfig(name="resnet18", width=64, depth=2), SHAPE, 2, seed=0)
    assert [problem.key for problem in caught.value.problems] == ["model.width", "model.depth"]


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.name=vgg: must be one of convnet, cnn, resnet18"):
        build_model(ModelConfig(name="vgg"), SHAPE, 2, seed=0)


def test_importing_does_not_import_torchvision() -> None:
    code = "import sys, models.registry; print('torchvision' in sys.modules)"
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


PLUGIN = """
import torch
from torch import nn

def net(image_shape, num_classes):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(image_shape[1] * image_shape[2], 4), nn.BatchNorm1d(4),
        nn.Dropout(), nn.Linear(4, num_classes),
    )

def frozen(image_shape, num_classes):
    model = net(image_shape, num_classes)
    model[2].eval()
    return model

def lazy(image_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))

def number(image_shape, num_classes):
    return 3

def one_too_many(image_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes + 1))

def pair(image_shape, num_classes):
    class Pair(nn.Module):
        def forward(self, x):
            return x, x
    return Pair()

def bare(image_shape, num_classes):
    class Bare(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :num_classes]
    return Bare()

def halved(image_shape, num_classes):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
    net.register_buffer("scale", torch.ones(1, dtype=torch.bfloat16))
    return net

def fails(image_shape, num_classes):
    return nn.Linear(3, num_classes)
"""


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(PLUGIN)
    return str(tmp_path / "mine.py")


def test_a_users_model_is_seeded_and_left_as_it_was(plugin: str) -> None:
    config = ModelConfig(name=f"{plugin}:net")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model = build_model(config, SHAPE, 3, seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert all(module.training for module in model.modules())
    again = build_model(config, SHAPE, 3, seed=1)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )
    buffers = dict(model.named_buffers())
    assert int(buffers["2.num_batches_tracked"]) == 0


def test_a_users_frozen_layers_stay_frozen(plugin: str) -> None:
    model = build_model(ModelConfig(name=f"{plugin}:frozen"), SHAPE, 3, seed=1)
    assert [module.training for module in model.children()] == [True, True, False, True, True]


def test_a_users_lazy_layers_are_made(plugin: str) -> None:
    model = build_model(ModelConfig(name=f"{plugin}:lazy"), SHAPE, 3, seed=1)
    assert [tuple(parameter.shape) for parameter in model.parameters()] == [(3, 64), (3,)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("number", "it returned a int, not a torch.nn.Module"),
        ("one_too_many", r"a batch of 2 gave \(2, 4\), not logits of \(2, 3\)"),
        ("pair", r"a batch of 2 gave .*tuple"),
        ("fails", r"RuntimeError: "),
        ("bare", r"no trainable parameter"),
        ("halved", r"scale is torch.bfloat16"),
        ("absent", "defines no 'absent'"),
    ],
)
def test_a_users_function_that_does_not_do_its_part(plugin: str, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(ModelConfig(name=f"{plugin}:{name}"), SHAPE, 3, seed=1)


@pytest.mark.parametrize("name", WITHOUT_BATCH_NORM)
def test_built_in_models_have_features_and_no_batch_norm(name: str) -> None:
    model = build_model(ModelConfig(name=name), SHAPE, 3, seed=0)
    assert id(embedding_of(model)) == id(model)
    refuse_batch_norm(model, "examples must not see each other")
    x = torch.randn(4, *SHAPE)
    assert torch.equal(model(x), embedding_of(model).classifier(embedding_of(model).embed(x)))


def test_a_model_without_features_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Linear has no method embed.* and no torch.nn.Li") as no:
        embedding_of(nn.Linear(2, 2))
    assert str(no.value).endswith("or use convnet, cnn or resnet18")  # which all that ask take
    model = ConvNet(SHAPE, 2, width=2, depth=1)
    model.classifier = nn.Identity()  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"ConvNet has no torch.nn.Linear called classifier.*use"):
        embedding_of(model)


def test_batch_norm_is_refused_and_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2)))
    with pytest.raises(ConfigError) as caught:
        refuse_batch_norm(model, "its statistics mix examples")
    message = str(caught.value)
    assert "layer 1.0 of Sequential is BatchNorm1d: its statistics mix examples" in message
    assert "GroupNorm" in message
