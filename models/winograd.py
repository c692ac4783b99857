"""Convolutions with large kernels by minimal filtering, which multiplies less.

S. Winograd, "Arithmetic Complexity of Computations", SIAM 1980, as A. Lavin and S. Gray use it
("Fast Algorithms for Convolutional Neural Networks", CVPR 2016), with the matrices of Toom and
Cook.

A tile of n x n inputs, n = m + r - 1, gives m x m outputs of an r x r kernel. Both are taken as
polynomials and evaluated at n points in each direction; there a convolution is n * n products
instead of m * m * r * r, and each of them is a matrix product over channels. For 5x5 kernels and
4x4 outputs that is 64 instead of 400. To evaluate and to interpolate are matrix products too.
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

CACHED_BYTES = 8 << 20
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
        if images.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return False
        if images.dtype != torch.float32 or self.weight.dtype != torch.float32:
            return False
        inner, outer, size = self.in_channels, self.out_channels, self.kernel_size[0]
        num_images, _, height, width = images.shape
        points = (OUTPUTS + size - 1) ** 2
        num_tiles = num_images * -(-height // OUTPUTS) * -(-width // OUTPUTS)
        of_a_tile = points * (points * inner + inner * outer + OUTPUTS**2 * outer)
        of_the_kernel = points * size**2 * inner * outer
        plain = num_images * height * width * size**2 * inner * outer
        return 2 * (num_tiles * of_a_tile + of_the_kernel) <= plain


class _Convolution(torch.autograd.Function):
    """Images (B, I, H, W), a kernel (O, I, r, r) and a bias (O,) to (B, O, H, W), channels last."""

    @staticmethod
    def forward(
        ctx: Any, images: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(images, kernel)
        by = filtering(kernel.shape[-1])
        kernel_points = by.evaluate_kernel(kernel)
        outputs, image_points = [], []
        for part in images.split(by.images_at_once(images, kernel)):
            points = by.evaluate_images(part)
            sums = by.interpolate(points @ kernel_points, part.shape)
            outputs.append(sums.add_(bias[:, None, None]))
            if ctx.needs_input_grad[1]:
                image_points.append(points)
        # Constants to a second derivative, which does not use them.
        ctx.kernel_points = kernel_points if ctx.needs_input_grad[0] else None
        ctx.image_points = image_points
        return torch.cat(outputs) if len(outputs) != 1 else outputs[0]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        images, kernel = ctx.saved_tensors
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
        image_gradients, kernel_sum = [], None
        for index, part in enumerate(gradient.split(by.images_at_once(images, kernel))):
            points = by.interpolate_adjoint(part)
            if of_kernel:
                of_part = ctx.image_points[index].transpose(1, 2) @ points
                kernel_sum = of_part if kernel_sum is None else kernel_sum.add_(of_part)
            if of_images:
                spread = points @ ctx.kernel_points.transpose(1, 2)
                image_gradients.append(by.evaluate_images_adjoint(spread, part.shape))
        if of_images:
            by_images = (
                torch.cat(image_gradients) if len(image_gradients) != 1 else image_gradients[0]
            )
        if kernel_sum is not None:
            by_kernel = by.evaluate_kernel_adjoint(kernel_sum)
        return by_images, by_kernel, by_bias


class Filtering:
    """The matrices of F(m x m, r x r), for rows and columns at once, and what they are applied to.

    With a tile d of n x n inputs and a kernel g of r x r, flattened, the m x m outputs are
    ``outputs @ ((kernel @ g) * (inputs @ d))``.

    Polynomials of m and of r terms are multiplied by evaluating both at n points and interpolating
    (Toom, Cook). Filtering is the transpose of that, in which the interpolation falls to the inputs
    and an evaluation to the outputs.

    Attributes:
        size: Of the kernel (r).
        points: Points of each direction (n).
        inputs: float32, shape (n * n, n * n).
        kernel: float32, shape (n * n, r * r).
        outputs: float32, shape (m * m, n * n).
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
        self.inputs = _both_directions(inputs)
        self.kernel = _both_directions(kernel)
        self.outputs = _both_directions(outputs).t().contiguous()

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
        tiles = padded.as_strided(
            (n, n, num_images, rows, columns, channels),
            (by_row, by_column, by_image, OUTPUTS * by_row, OUTPUTS * by_column, by_channel),
        )
        points = self.inputs @ tiles.reshape(n * n, -1)
        return points.view(n * n, -1, channels)

    def evaluate_images_adjoint(self, points: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """(n * n, tiles, I) to images (B, I, H, W), channels last: inputs of tiles, added up.

        Args:
            points: What `evaluate_images` would give.
            shape: The images', of which channels are not read.
        """
        num_images, _, height, width = shape
        rows, columns = _tiles(shape)
        n, before, channels = self.points, self.size // 2, points.shape[-1]
        tiles = (self.inputs.t() @ points.view(n * n, -1)).view(
            n, n, num_images, rows, columns, channels
        )
        images = points.new_empty(num_images, rows, OUTPUTS, columns, OUTPUTS, channels)
        # The middle of each tile is its own; its edges belong to the tiles beside it.
        middle = (slice(before, before + OUTPUTS), slice(None), slice(None), slice(None))
        edges = (
            (slice(0, before), slice(1, None), slice(None, -1), slice(OUTPUTS - before, None)),
            (slice(before + OUTPUTS, n), slice(None, -1), slice(1, None), slice(0, before)),
        )
        for of_row, row, to_row, at_row in (middle, *edges):
            for of_column, column, to_column, at_column in (middle, *edges):
                part = tiles[of_row, of_column, :, row, column].permute(2, 3, 0, 4, 1, 5)
                target = images[:, to_row, at_row, to_column, at_column]
                if of_row == middle[0] and of_column == middle[0]:
                    target.copy_(part)
                else:
                    target.add_(part)
        whole = images.view(num_images, rows * OUTPUTS, columns * OUTPUTS, channels)
        return whole[:, :height, :width].permute(0, 3, 1, 2)

    def interpolate(self, products: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """(n * n, tiles, O) to (B, O, H, W), channels last, of images of `shape` (B, I, H, W)."""
        num_images, _, height, width = shape
        rows, columns = _tiles(shape)
        outer = products.shape[-1]
        tiles = (self.outputs @ products.view(self.points**2, -1)).view(
            OUTPUTS, OUTPUTS, num_images, rows, columns, outer
        )
        whole = tiles.permute(2, 3, 0, 4, 1, 5).reshape(
            num_images, rows * OUTPUTS, columns * OUTPUTS, outer
        )
        return whole[:, :height, :width].permute(0, 3, 1, 2)

    def interpolate_adjoint(self, outputs: torch.Tensor) -> torch.Tensor:
        """(B, O, H, W), any layout, to (n * n, tiles, O)."""
        num_images, outer, height, width = outputs.shape
        rows, columns = _tiles(outputs.shape)
        whole = outputs.permute(0, 2, 3, 1)
        below, right = rows * OUTPUTS - height, columns * OUTPUTS - width
        if below or right:
            whole = functional.pad(whole, (0, 0, 0, right, 0, below))
        tiles = whole.reshape(num_images, rows, OUTPUTS, columns, OUTPUTS, outer)
        flat = tiles.permute(2, 4, 0, 1, 3, 5).reshape(OUTPUTS**2, -1)
        return (self.outputs.t() @ flat).view(self.points**2, -1, outer)

    def evaluate_kernel(self, kernel: torch.Tensor) -> torch.Tensor:
        """A kernel (O, I, r, r) to (n * n, I, O)."""
        outer, inner = kernel.shape[:2]
        flat = kernel.permute(2, 3, 1, 0).reshape(self.size**2, -1)
        return (self.kernel @ flat).view(self.points**2, inner, outer)

    def evaluate_kernel_adjoint(self, points: torch.Tensor) -> torch.Tensor:
        """(n * n, I, O) to a kernel (O, I, r, r)."""
        _, inner, outer = points.shape
        flat = self.kernel.t() @ points.view(self.points**2, -1)
        return flat.view(self.size, self.size, inner, outer).permute(3, 2, 0, 1)


@lru_cache
def filtering(size: int) -> Filtering:
    """The one `Filtering` of kernels of `size`."""
    return Filtering(size)


def _tiles(shape: torch.Size) -> tuple[int, int]:
    """Tiles down and across images of (B, C, H, W); the last may reach over the edge."""
    return -(-shape[2] // OUTPUTS), -(-shape[3] // OUTPUTS)


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


def _both_directions(rows: list[list[Fraction]]) -> torch.Tensor:
    """The matrix for rows and columns of a tile at once, of the one for either."""
    one = torch.tensor([[float(value) for value in row] for row in rows], dtype=torch.float64)
    return torch.kron(one, one).float()
