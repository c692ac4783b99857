"""Minimal filtering against the definition of a convolution and its derivatives."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import correlate2d
from torch import nn
from torch.autograd import grad

import models.winograd
from models.cnn import CNN
from models.winograd import OUTPUTS, WinogradConv2d, filtering

SIZES = st.tuples(
    st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(1, 13), st.integers(1, 13)
)
"""Images, channels in and out, height, width."""


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WinogradConv2d, "_pays", lambda layer, images: True)


def of_plain(layer: WinogradConv2d) -> nn.Conv2d:
    """torch's layer with the same parameters, in float64."""
    size = layer.kernel_size[0]
    plain = nn.Conv2d(layer.in_channels, layer.out_channels, size, padding=size // 2)
    plain.load_state_dict(layer.state_dict())
    return plain.double()


def assert_near(
    actual: torch.Tensor, expected: torch.Tensor, magnitudes: torch.Tensor | None = None
) -> None:
    """Equal but for float32's rounding of sums whose terms add up to `magnitudes` at most."""
    assert actual.dtype == torch.float32
    most = float((expected if magnitudes is None else magnitudes).detach().abs().max())
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-4 * most)


def outputs_and_gradients(
    layer: nn.Conv2d, x: torch.Tensor, along: torch.Tensor
) -> list[torch.Tensor]:
    """What it gives for `x`, and the gradients of that `along` a direction."""
    x = x.clone().requires_grad_()
    y = layer(x)
    return [y.detach(), *grad(y, (x, *layer.parameters()), along)]


@pytest.mark.parametrize("size", [3, 5])
def test_a_tile_is_filtered_as_defined(size: int) -> None:
    by, n = filtering(size), OUTPUTS + size - 1
    generator = torch.Generator().manual_seed(0)
    tile, kernel = (
        torch.randn(n, n, generator=generator),
        torch.randn(size, size, generator=generator),
    )
    products = (by.kernel @ kernel @ by.kernel.t()) * (by.inputs @ tile @ by.inputs.t())
    outputs = by.outputs @ products @ by.outputs.t()
    expected = correlate2d(tile.double().numpy(), kernel.double().numpy(), mode="valid")
    assert_near(outputs, torch.from_numpy(expected))


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("size", [3, 5])
@settings(max_examples=40, deadline=None)
@given(shape=SIZES, seed=st.integers(0, 99), at_once=st.sampled_from([1, 8 << 20]))
def test_outputs_and_gradients_are_a_convolutions(
    size: int, shape: tuple[int, int, int, int, int], seed: int, at_once: int
) -> None:
    torch.manual_seed(seed)
    num_images, inner, outer, height, width = shape
    layer = WinogradConv2d(inner, outer, size)
    x = torch.randn(num_images, inner, height, width)
    along = torch.randn(num_images, outer, height, width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models.winograd, "CACHED_BYTES", at_once)
        found = outputs_and_gradients(layer, x, along)
    plain = of_plain(layer)
    expected = outputs_and_gradients(plain, x.double(), along.double())
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.abs_()
    magnitudes = outputs_and_gradients(plain, x.double().abs(), along.double().abs())
    for actual, true, most in zip(found, expected, magnitudes, strict=True):
        assert_near(actual, true, most)


@pytest.mark.usefixtures("always")
def test_a_gradient_can_be_differentiated() -> None:
    torch.manual_seed(0)
    layer = WinogradConv2d(2, 3, 5)
    x = torch.randn(2, 2, 6, 7)

    def second(layer: nn.Conv2d, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = x.clone().requires_grad_()
        of = (x, *layer.parameters())
        loss = layer(x).sin().mean()
        first = grad(loss, of, create_graph=True)
        return grad(sum((g.square().sum() for g in first), torch.zeros(())), of)

    for actual, true in zip(second(layer, x), second(of_plain(layer), x.double()), strict=True):
        assert_near(actual, true)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("trained", ["weight", "bias", "neither"])
def test_only_what_is_asked_for_is_differentiated(trained: str) -> None:
    layer = WinogradConv2d(2, 3, 5)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name == trained)
    x = torch.randn(2, 2, 6, 7).requires_grad_(trained == "neither")
    y = layer(x)
    y.sum().backward()
    assert (x.grad is not None) == (trained == "neither")
    for name, parameter in layer.named_parameters():
        assert (parameter.grad is not None) == (name == trained)


def kept_by(layer: nn.Module, x: torch.Tensor) -> list[tuple[int, ...]]:
    """Shapes of what is kept for the backward pass."""
    kept: list[tuple[int, ...]] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x)
    return kept


@pytest.mark.usefixtures("always")
def test_what_no_gradient_needs_is_not_kept() -> None:
    layer, x = WinogradConv2d(2, 3, 5), torch.randn(4, 2, 6, 7)
    of_images, of_kernel = (64, 4 * 2 * 2, 2), (64, 2, 3)
    kept = kept_by(layer, x)
    assert of_images in kept and of_kernel not in kept
    assert of_kernel in kept_by(layer, x.requires_grad_())
    with torch.no_grad():
        assert kept_by(layer, x) == []
        without = layer(x)
    assert torch.equal(without, layer(x))
    layer.requires_grad_(False)
    kept = kept_by(layer, x)
    assert of_kernel in kept and of_images not in kept


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("at_once", [1, 8 << 20])
def test_many_gradients_at_once_are_each_of_theirs(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models.winograd, "CACHED_BYTES", at_once)
    torch.manual_seed(0)
    layer, x = WinogradConv2d(2, 3, 5), torch.randn(2, 2, 6, 7, requires_grad=True)
    y = layer(x)
    along = torch.randn(4, *y.shape)
    for of in (x, *layer.parameters()):
        (together,) = grad(y, of, along, retain_graph=True, is_grads_batched=True)
        for found, one in zip(together, along, strict=True):
            (alone,) = grad(y, of, one, retain_graph=True)
            torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("always")
def test_outputs_may_be_changed_in_place_and_lie_channels_last() -> None:
    torch.manual_seed(0)
    layer, x = WinogradConv2d(2, 3, 5), torch.randn(2, 2, 8, 8)
    expected = layer(x)
    assert expected.is_contiguous(memory_format=torch.channels_last)
    changed = nn.functional.relu(layer(x), inplace=True)
    assert torch.equal(changed, expected.relu())
    direct = grad(changed.sum(), layer.weight)
    plain = grad(expected.relu().sum(), layer.weight)
    assert torch.equal(direct[0], plain[0])


def test_images_at_once_are_as_many_as_the_products_fit() -> None:
    by, images, kernel = filtering(5), torch.empty(9, 2, 8, 12), torch.empty(3, 2, 5, 5)
    of_an_image = 4 * 64 * 2 * 3 * 3  # bytes, points, tiles down and across, channels
    with pytest.MonkeyPatch.context() as patch:
        for cached, images_at_once in ((0, 1), (5 * of_an_image, 5), (6 * of_an_image - 1, 5)):
            patch.setattr(models.winograd, "CACHED_BYTES", cached)
            assert by.images_at_once(images, kernel) == images_at_once


def test_parameters_are_drawn_as_torchs() -> None:
    torch.manual_seed(3)
    ours = WinogradConv2d(4, 6, 5).state_dict()
    torch.manual_seed(3)
    theirs = nn.Conv2d(4, 6, 5, padding=2).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("shape", "pays"),
    [
        ((32, 32, 16, 16), True),
        ((4, 32, 16, 16), True),
        ((4, 32, 4, 4), False),
        ((0, 32, 16, 16), False),
    ],
)
def test_it_is_taken_where_it_halves_the_multiplications(
    shape: tuple[int, ...], pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = WinogradConv2d(32, 64, 5), torch.randn(shape)
    taken: list[torch.Size] = []

    def take(images: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        taken.append(images.shape)
        return images

    monkeypatch.setattr(models.winograd._Convolution, "apply", take)
    layer(x)
    assert bool(taken) == pays


def test_elsewhere_it_is_torchs_to_the_bit() -> None:
    layer = WinogradConv2d(32, 64, 5)
    plain = nn.Conv2d(32, 64, 5, padding=2)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(8, 32, 16, 16)
    assert not torch.equal(layer(x), plain(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), plain(x))
    assert torch.equal(layer(x[0]), plain(x[0]))
    double = copy.deepcopy(layer).double()
    assert torch.equal(double(x.double()), plain.double()(x.double()))


def test_it_is_for_processors_and_weights_in_float32() -> None:
    layer = WinogradConv2d(32, 64, 5).to("meta")
    assert layer(torch.empty(8, 32, 16, 16, device="meta")).shape == (8, 64, 16, 16)
    half = WinogradConv2d(32, 64, 5).half()
    with pytest.raises(RuntimeError, match="type"):  # as torch's own layer
        half(torch.randn(8, 32, 16, 16))


def test_the_network_of_the_federated_averaging_paper_takes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x = CNN((3, 32, 32), 10), torch.randn(8, 3, 32, 32)
    target = torch.arange(8)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        nn.functional.cross_entropy(model(x), target).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    fast = gradients()
    assert all(torch.equal(a, b) for a, b in zip(fast, gradients(), strict=True))
    monkeypatch.setattr(WinogradConv2d, "_pays", lambda layer, images: False)
    plain = gradients()
    assert not all(torch.equal(a, b) for a, b in zip(fast, plain, strict=True))
    for actual, true in zip(fast, plain, strict=True):
        assert float((actual - true).norm()) < 1e-4 * float(true.norm())
