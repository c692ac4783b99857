"""Convolutions with large kernels by minimal filtering, which multiplies less.

S. Winograd, "Arithmetic Complexity of Computations", SIAM 1980, as A. Lavin and S. Gray use it
("Fast Algorithms for Convolutional Neural Networks", CVPR 2016), with the matrices of Toom and
Cook.

A tile of n x n inputs, n = m + r - 1, gives m x m outputs of an r x r kernel. Both are taken as
polynomials and evaluated at n points in each direction; there a convolution is n * n products
instead of m * m * r * r, and each of them is a matrix product over channels. For 5x5 kernels and
4x4 outputs that is 64 instead of 400. To evaluate and to interpolate are matrix products too, one
direction after the other.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional, grad

OUTPUTS = 4
"""Outputs of a tile in each direction (m)."""

POINTS = tuple(Fraction(point) for point in ("0", "1", "-1", "2", "-2", "1/2", "-1/2"))
"""Where polynomials are evaluated, beside infinity: small numbers, for the sake of rounding."""

CACHED_BYTES = 4 << 20
"""Products at a time that still lie in a CPU's cache, and in memory that malloc keeps."""


class WinogradConv2d(nn.Conv2d):
    """A convolution of stride 1 that keeps height and width, by minimal filtering where it pays.

    That is on a CPU in float32, where it at least halves the multiplications. The parameters, their
    initial values and what the layer computes are those of `torch.nn.Conv2d`, but for rounding: its
    relative error is several times as large, a few millionths.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        """Draw the parameters as `torch.nn.Conv2d` does; `kernel_size` is 3 or 5."""
        assert kernel_size in (3, 5), kernel_size
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Outputs (B, out_channels, H, W) of images (B, in_channels, H, W)."""
        if not self._pays(input):
            return super().forward(input)
        # By the parameter the convolution tells whether a gradient will be asked for.
        weight = self.weight if torch.is_grad_enabled() else self.weight.detach()
        return cast(torch.Tensor, _Convolution.apply(input, weight, self.bias))

    def _pays(self, images: torch.Tensor) -> bool:
        if images.ndim != 4 or images.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return False
        if images.dtype != torch.float32 or self.weight.dtype != torch.float32:
            return False
        inner, outer, size = self.in_channels, self.out_channels, self.kernel_size[0]
        num_images, _, height, width = images.shape
        n = OUTPUTS + size - 1
        num_tiles = num_images * -(-height // OUTPUTS) * -(-width // OUTPUTS)
        of_a_tile = n**2 * (2 * n * inner + inner * outer) + (n + OUTPUTS) * n * OUTPUTS * outer
        of_the_kernel = (n + size) * n * size * inner * outer
        plain = num_images * height * width * size**2 * inner * outer
        return 2 * (num_tiles * of_a_tile + of_the_kernel) <= plain


class _Convolution(torch.autograd.Function):
    """Images (B, I, H, W), a kernel (O, I, r, r) and a bias (O,) to (B, O, H, W), channels last."""

    @staticmethod
    def forward(
        ctx: Any, images: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        by = filtering(kernel.shape[-1])
        kernel_points = by.evaluate_kernel(kernel)
        num_images, _, height, width = images.shape
        outputs = torch.empty(
            (num_images, len(kernel), height, width),
            dtype=images.dtype,
            memory_format=torch.channels_last,
        )
        at_once, image_points = by.images_at_once(images, kernel), []
        for part, into in zip(images.split(at_once), outputs.split(at_once), strict=True):
            points = by.evaluate_images(part)
            by.interpolate(points @ kernel_points, bias, into)
            if ctx.needs_input_grad[1]:
                image_points.append(points)
        # Points are constants to a second derivative, which does not use them.
        of_kernel = kernel_points if ctx.needs_input_grad[0] else None
        ctx.save_for_backward(images, kernel, of_kernel, *image_points)
        return outputs

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        images, kernel, kernel_points, *image_points = ctx.saved_tensors
        of_images, of_kernel, of_bias = ctx.needs_input_grad
        by_images = by_kernel = None
        by_bias = gradient.sum((0, 2, 3)) if of_bias else None
        if torch.is_grad_enabled():  # the gradient will be differentiated itself
            padding = kernel.shape[-1] // 2
            if of_images:
                by_images = grad.conv2d_input(images.shape, kernel, gradient, padding=padding)
            if of_kernel:
                by_kernel = grad.conv2d_weight(images, kernel.shape, gradient, padding=padding)
            return by_images, by_kernel, by_bias
        by = filtering(kernel.shape[-1])
        at_once, kernel_sum = by.images_at_once(images, kernel), None
        if of_images:
            # Of the gradient, for it may be many at once (`is_grads_batched`) where images are not.
            num_images, inner, height, width = images.shape
            room = gradient.new_empty(num_images, height, width, inner)
            by_images = room.permute(0, 3, 1, 2)
        for index, part in enumerate(gradient.split(at_once)):
            points = by.interpolate_adjoint(part)
            if of_kernel:
                of_part = image_points[index].transpose(1, 2) @ points
                kernel_sum = of_part if kernel_sum is None else kernel_sum.add_(of_part)
            if by_images is not None:
                spread = points @ kernel_points.transpose(1, 2)
                by.evaluate_images_adjoint(spread, by_images.narrow(0, index * at_once, len(part)))
        if kernel_sum is not None:
            by_kernel = by.evaluate_kernel_adjoint(kernel_sum)
        return by_images, by_kernel, by_bias


class Filtering:
    """The matrices of F(m x m, r x r) in one direction, and what they are applied to in both.

    In either direction the m outputs of a tile d of n inputs under a kernel g of r are
    ``outputs @ ((kernel @ g) * (inputs @ d))``.

    Polynomials of m and of r terms are multiplied by evaluating both at n points and interpolating
    (Toom, Cook). Filtering is the transpose of that, in which the interpolation falls to the inputs
    and an evaluation to the outputs.

    Points of both directions are numbered ``column * n + row``.

    Attributes:
        size: Of the kernel (r).
        points: Points of each direction (n).
        inputs: float32, shape (n, n).
        kernel: float32, shape (n, r).
        outputs: float32, shape (m, n).
    """

    def __init__(self, size: int) -> None:
        """The matrices for kernels of `size` in each direction."""
        self.size, self.points = size, OUTPUTS + size - 1
        at = POINTS[: self.points - 1]
        assert len(at) == self.points - 1, "as many points as there are"
        inputs = [_monic([q for q in at if q != p], self.points) for p in (*at, None)]
        scales = [math.prod(p - q for q in at if q != p) for p in at]
        kernel = [[x / by for x in _powers(p, size)] for p, by in zip(at, scales, strict=True)]
        kernel.append(_powers(None, size))
        outputs = [_powers(p, OUTPUTS) for p in (*at, None)]
        self.inputs, self.kernel = _matrix(inputs), _matrix(kernel)
        self.outputs = _matrix(outputs).t().contiguous()

    def images_at_once(self, images: torch.Tensor, kernel: torch.Tensor) -> int:
        """As many images of (B, I, H, W) as `CACHED_BYTES` hold the products of."""
        rows, columns = _tiles(images.shape)
        products = rows * columns * self.points**2 * max(kernel.shape[:2])
        return max(1, CACHED_BYTES // (4 * products))

    def evaluate_images(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, I, H, W), any layout, to (n * n, tiles, I)."""
        num_images, channels, height, width = images.shape
        rows, columns = _tiles(images.shape)
        n, before = self.points, self.size // 2
        below = rows * OUTPUTS - height + before
        right = columns * OUTPUTS - width + before
        padded = functional.pad(images.permute(0, 2, 3, 1), (0, 0, before, right, before, below))
        by_image, by_row, by_column, by_channel = padded.stride()
        across = padded.shape[2]
        strips = padded.as_strided(
            (n, num_images, rows, across, channels),
            (by_row, by_image, OUTPUTS * by_row, by_column, by_channel),
        )
        strips = (self.inputs @ strips.reshape(n, -1)).view(n, -1, across, channels)
        by_point, by_strip, by_column, by_channel = strips.stride()
        tiles = strips.as_strided(
            (n, n, num_images * rows, columns, channels),
            (by_column, by_point, by_strip, OUTPUTS * by_column, by_channel),
        )
        return (self.inputs @ tiles.reshape(n, -1)).view(n * n, -1, channels)

    def evaluate_images_adjoint(self, points: torch.Tensor, into: torch.Tensor) -> None:
        """(n * n, tiles, I) to images (B, I, H, W), channels last: inputs of tiles, added up.

        Args:
            points: What `evaluate_images` would give.
            into: Where the images are written.
        """
        num_images, channels, height, width = into.shape
        rows, columns = _tiles(into.shape)
        n, before = self.points, self.size // 2
        tiles = self.inputs.t() @ points.view(n, -1)
        tiles = tiles.view(n, n, num_images * rows, columns, channels)
        strips = _overlaid(tiles.permute(1, 2, 3, 0, 4))[:, :, before : before + width]
        lines = (self.inputs.t() @ strips.reshape(n, -1)).view(n, num_images, rows, -1)
        images = _overlaid(lines.permute(1, 2, 0, 3).unsqueeze(0)).squeeze(0)
        images = images[:, before : before + height]
        into.permute(0, 2, 3, 1).copy_(images.view(num_images, height, width, channels))

    def interpolate(self, products: torch.Tensor, bias: torch.Tensor, into: torch.Tensor) -> None:
        """(n * n, tiles, O) and a bias (O,) to images (B, O, H, W), channels last.

        Args:
            products: Of points of images and of a kernel.
            bias: Added to the outputs.
            into: Where the images are written.
        """
        num_images, outer, height, width = into.shape
        rows, columns = _tiles(into.shape)
        strips = self.outputs @ products.view(self.points, -1)
        tiles = self.outputs @ strips.view(OUTPUTS, self.points, -1)
        tiles = tiles.view(OUTPUTS, OUTPUTS, num_images, rows, columns, outer)
        tiles, into = tiles.permute(2, 3, 1, 4, 0, 5), into.permute(0, 2, 3, 1)
        if height == rows * OUTPUTS and width == columns * OUTPUTS:
            torch.add(tiles, bias, out=into.view(tiles.shape))
        else:
            whole = tiles.reshape(num_images, rows * OUTPUTS, columns * OUTPUTS, outer)
            torch.add(whole[:, :height, :width], bias, out=into)

    def interpolate_adjoint(self, outputs: torch.Tensor) -> torch.Tensor:
        """(B, O, H, W), any layout, to (n * n, tiles, O)."""
        num_images, outer, height, width = outputs.shape
        rows, columns = _tiles(outputs.shape)
        whole = outputs.permute(0, 2, 3, 1)
        below, right = rows * OUTPUTS - height, columns * OUTPUTS - width
        if below or right:
            whole = functional.pad(whole, (0, 0, 0, right, 0, below))
        tiles = whole.reshape(num_images, rows, OUTPUTS, columns, OUTPUTS, outer)
        flat = tiles.permute(4, 2, 0, 1, 3, 5).reshape(OUTPUTS, OUTPUTS, -1)
        strips = (self.outputs.t() @ flat).view(OUTPUTS, -1)
        return (self.outputs.t() @ strips).view(self.points**2, -1, outer)

    def evaluate_kernel(self, kernel: torch.Tensor) -> torch.Tensor:
        """A kernel (O, I, r, r) to (n * n, I, O)."""
        outer, inner = kernel.shape[:2]
        columns = self.kernel @ kernel.permute(3, 2, 1, 0).reshape(self.size, -1)
        points = self.kernel @ columns.view(self.points, self.size, -1)
        return points.view(self.points**2, inner, outer)

    def evaluate_kernel_adjoint(self, points: torch.Tensor) -> torch.Tensor:
        """(n * n, I, O) to a kernel (O, I, r, r)."""
        _, inner, outer = points.shape
        columns = self.kernel.t() @ points.view(self.points, self.points, -1)
        kernel = self.kernel.t() @ columns.view(self.points, -1)
        return kernel.view(self.size, self.size, inner, outer).permute(3, 2, 1, 0)


@lru_cache
def filtering(size: int) -> Filtering:
    """The one `Filtering` of kernels of `size`."""
    return Filtering(size)


def _tiles(shape: torch.Size) -> tuple[int, int]:
    """Tiles down and across images of (B, C, H, W); the last may reach over the edge."""
    return -(-shape[2] // OUTPUTS), -(-shape[3] // OUTPUTS)


def _overlaid(tiles: torch.Tensor) -> torch.Tensor:
    """Tiles side by side in a line, what they overlap by added up.

    Args:
        tiles: Shape (P, S, K, n, C): K tiles of n places each, every one m places after the last.

    Returns:
        Shape (P, S, (K + 1) * m, C), of which places after the last tile's are zeros.
    """
    *outer, num_tiles, places, channels = tiles.shape
    own, over = tiles.split((OUTPUTS, places - OUTPUTS), dim=3)
    line = tiles.new_empty(*outer, num_tiles + 1, OUTPUTS, channels)
    line[:, :, :-1] = own
    line[:, :, -1, : places - OUTPUTS] = over[:, :, -1]
    line[:, :, -1, places - OUTPUTS :] = 0
    line[:, :, 1:-1, : places - OUTPUTS] += over[:, :, :-1]
    return line.view(*outer, (num_tiles + 1) * OUTPUTS, channels)


def _powers(point: Fraction | None, length: int) -> list[Fraction]:
    """1, p, p**2, ...; at infinity, which is None, only the highest counts."""
    if point is None:
        return [Fraction(0)] * (length - 1) + [Fraction(1)]
    return [point**power for power in range(length)]


def _monic(roots: list[Fraction], length: int) -> list[Fraction]:
    """Coefficients of prod (x - root), lowest first, filled up with zeros."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        scaled = [*(root * c for c in coefficients), Fraction(0)]
        coefficients = [a - b for a, b in zip(shifted, scaled, strict=True)]
    return coefficients + [Fraction(0)] * (length - len(coefficients))


def _matrix(rows: list[list[Fraction]]) -> torch.Tensor:
    return torch.tensor([[float(value) for value in row] for row in rows])
