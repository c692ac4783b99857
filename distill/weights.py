"""Which networks a matching step may meet: weights drawn around the server's, P_w(w_r)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

WeightSampling = Literal["sphere", "ball", "gaussian"]
WeightDraw = Callable[[torch.Tensor], None]
"""Fills a vector, shape (d,), with freshly drawn weights."""


def draws_around(
    centre: torch.Tensor,
    *,
    kind: WeightSampling,
    radius: float,
    sigma: float,
    mask: torch.Tensor | None,
    generator: torch.Generator,
) -> WeightDraw:
    """Draws around `centre` within `radius` (FedDM, section 5.4.5: P_w, rho).

    The paper clips N(w_r, 1) to a ball. In d dimensions that Gaussian has norm near sqrt(d), so
    the clip always binds and what is drawn lies on the sphere: ``sphere`` says so and needs no
    sigma. ``gaussian`` is the clip itself, for a sigma small enough that it does not always bind;
    ``ball`` is uniform in the ball, which in many dimensions again lies close to the sphere.

    Args:
        centre: w_r, shape (d,).
        kind: The distribution.
        radius: rho, the Euclidean norm over all parameters.
        sigma: Standard deviation per coordinate; read by ``gaussian`` only.
        mask: Shape (d,), 0 where a parameter stays as in `centre`; None perturbs all.
        generator: On the device of `centre`.
    """

    def draw(out: torch.Tensor) -> None:
        torch.randn(out.shape, generator=generator, out=out)
        if mask is not None:
            out.mul_(mask)
        norm = torch.linalg.vector_norm(out)
        if kind == "gaussian":
            out.mul_(sigma * torch.clamp(radius / (sigma * norm), max=1.0))
        elif kind == "ball":
            uniform = torch.rand((), generator=generator, device=out.device, dtype=torch.float64)
            num_free = out.numel() if mask is None else mask.sum()
            out.mul_((radius * uniform ** (1.0 / num_free)).to(out.dtype) / norm)
        else:
            out.mul_(radius / norm)
        out.add_(centre)

    return draw
