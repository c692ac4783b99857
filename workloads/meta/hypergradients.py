"""Gradients of a primary loss with respect to a learned loss: six ways, one interface.

The problem of MELTR (CVPR 2023, equations 6 to 8): phi makes one auxiliary loss of several,
``L_aux(w, phi) = MELTR(l(w); phi)``, weights follow it, and phi is to make them good at
``L_pri = l_0 + gamma |MELTR(l; phi) - sum_t l_t|``. With H the Hessian of L_aux in w, v the
gradient of L_pri in w and ``M(u) = u^T d2 L_aux / d phi d w``, the implicit gradient is
``-M(H^-1 v)``:

============  =====================================================================
itd           none of it: differentiate through unrolled steps (Meta-Weight-Net)
stocbio       eta sum of products of (I - eta H_j), each of a batch of its own (Ji et al.)
aid-cg        i steps of conjugate gradients on (H + damping I) p = v
aid-fp        p = eta sum_{j <= i} (I - eta H)^j v, Neumann's series (AuxiLearn)
aid-fp-lite   p = v, H taken for the identity (MELTR, equation 11)
============  =====================================================================

The sixth, ``multi-task``, has no learned loss and no hypergradient. All of the implicit ones leave
out that L_pri depends on phi directly, through its regulariser, unless asked not to.

Everything here is a function of its arguments; batches are drawn by the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

Weights = Mapping[str, torch.Tensor]

MetaOptimizer = Literal["multi-task", "itd", "stocbio", "aid-cg", "aid-fp", "aid-fp-lite"]
META_OPTIMIZERS: tuple[MetaOptimizer, ...] = (
    "aid-fp-lite",
    "aid-fp",
    "aid-cg",
    "stocbio",
    "itd",
    "multi-task",
)


@dataclass(frozen=True, slots=True)
class Bilevel:
    """The two levels.

    Attributes:
        losses: From weights and a batch to the tasks' losses, shape (k,), the primary one first;
            differentiable twice in the weights.
        combine: From phi and losses, shape (k,), to the learned loss, shape ().
        regularisation: Weight of the regulariser (gamma).
        include_direct_term: Whether L_pri's own dependence on phi is part of the hypergradient.
    """

    losses: Callable[[Weights, Any], torch.Tensor]
    combine: Callable[[Weights, torch.Tensor], torch.Tensor]
    regularisation: float
    include_direct_term: bool

    def auxiliary(self, w: Weights, phi: Weights, batch: Any) -> torch.Tensor:
        """L_aux(w, phi)."""
        return self.combine(phi, self.losses(w, batch))

    def primary(self, w: Weights, phi: Weights, batch: Any) -> torch.Tensor:
        """L_pri(w, phi)."""
        losses = self.losses(w, batch)
        if not self.regularisation:
            return losses[0]
        gap = (self.combine(phi, losses) - losses.sum()).abs()
        return losses[0] + self.regularisation * gap


@dataclass(frozen=True, slots=True)
class Passes:
    """What a computation costs, in passes over batches.

    Attributes:
        forwards: Evaluations of the tasks' losses.
        backwards: Gradients.
        graph_backwards: Gradients that are differentiated again.
        double_backwards: Products of second derivatives with a vector.
    """

    forwards: int = 0
    backwards: int = 0
    graph_backwards: int = 0
    double_backwards: int = 0

    def __add__(self, other: Passes) -> Passes:
        return Passes(
            self.forwards + other.forwards,
            self.backwards + other.backwards,
            self.graph_backwards + other.graph_backwards,
            self.double_backwards + other.double_backwards,
        )

    @property
    def equivalent_forwards(self) -> int:
        """Forward passes that cost as much, if a backward pass costs two and one through it four.

        >>> Passes(2, 1, 1, 1).equivalent_forwards
        10
        """
        backwards = self.backwards + self.graph_backwards
        return self.forwards + 2 * backwards + 4 * self.double_backwards


@dataclass(frozen=True, kw_only=True, slots=True)
class HypergradientSettings:
    """How the hypergradient is approximated.

    Attributes:
        optimizer: Which of the module's table; not ``multi-task``.
        steps: Terms beyond the first, of aid-fp, or steps of aid-cg (i), or factors of stocbio (Q).
        step_size: Of Neumann's series (eta).
        damping: Added to the Hessian's diagonal in aid-cg.
        inner_learning_rate: Of the steps that itd unrolls (alpha).
        unrolled_steps: How many it unrolls.
        auxilearn_scale: Whether aid-fp leaves out the factor eta, as AuxiLearn's code does.
    """

    optimizer: MetaOptimizer
    steps: int = 3
    step_size: float = 0.1
    damping: float = 1e-2
    inner_learning_rate: float = 0.1
    unrolled_steps: int = 1
    auxilearn_scale: bool = False


@dataclass(frozen=True, slots=True)
class Hypergradient:
    """An approximation of d L_pri / d phi, by phi's names and without a graph, and its cost."""

    gradient: dict[str, torch.Tensor]
    passes: Passes


def hypergradient(
    settings: HypergradientSettings,
    bilevel: Bilevel,
    w: Weights,
    phi: Weights,
    training_batch: Callable[[], Any],
    meta_batch: Callable[[], Any],
) -> Hypergradient:
    """Approximate the gradient that phi is to descend.

    Args:
        settings: How.
        bilevel: The problem.
        w: Weights, the point of differentiation; left as they are.
        phi: Parameters of the learned loss, likewise.
        training_batch: Draws a batch for L_aux.
        meta_batch: Draws a batch for L_pri.
    """
    assert settings.optimizer != "multi-task", "a plain sum has no parameters"
    with torch.enable_grad():
        point = _Point(bilevel, _leaves(w), _leaves(phi))
        if settings.optimizer == "itd":
            return _unrolled(settings, point, training_batch, meta_batch)
        v, direct = point.primary_gradients(meta_batch())
        if settings.optimizer == "stocbio":
            p = _stocbio(settings, point, v, training_batch)
            mixed = point.curvature(training_batch()).mixed(p)
        else:
            curvature = point.curvature(training_batch())
            p = _INVERSES[settings.optimizer](settings, curvature, v)
            mixed = curvature.mixed(p)
        total = [own - other for own, other in zip(direct, mixed, strict=True)]
    return Hypergradient(dict(zip(phi, total, strict=True)), point.passes)


def clip_by_norm(gradient: Weights, most: float) -> dict[str, torch.Tensor]:
    """The gradient, shortened where its Euclidean norm over all entries is above `most`.

    >>> clip_by_norm({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}, 1.0)["b"]
    tensor([0.8000])
    """
    norm = torch.stack([torch.linalg.vector_norm(value) for value in gradient.values()]).norm()
    factor = (most / norm.clamp(min=torch.finfo(norm.dtype).tiny)).clamp(max=1.0)
    return {name: value * factor for name, value in gradient.items()}


_Vector = Sequence[torch.Tensor]
"""A vector in the space of w, or of phi, in parts."""


@dataclass
class _Point:
    """Where derivatives are taken, and what taking them has cost."""

    bilevel: Bilevel
    w: dict[str, torch.Tensor]
    phi: dict[str, torch.Tensor]
    passes: Passes = field(default_factory=Passes)

    def primary_gradients(self, batch: Any) -> tuple[_Vector, _Vector]:
        """v, and L_pri's direct gradient in phi, or zeros where it is left out."""
        primary = self.bilevel.primary(self.w, self.phi, batch)
        self.passes += Passes(forwards=1, backwards=1)
        wanted = list(self.w.values())
        if not self.bilevel.include_direct_term:
            return _gradient(primary, wanted), [torch.zeros_like(p) for p in self.phi.values()]
        both = _gradient(primary, [*wanted, *self.phi.values()])
        return both[: len(wanted)], both[len(wanted) :]

    def curvature(self, batch: Any) -> _Curvature:
        """Second derivatives of L_aux on one batch."""
        auxiliary = self.bilevel.auxiliary(self.w, self.phi, batch)
        self.passes += Passes(forwards=1, graph_backwards=1)
        return _Curvature(self, _gradient(auxiliary, list(self.w.values()), create_graph=True))


@dataclass
class _Curvature:
    """Products with second derivatives, all through one gradient of L_aux."""

    point: _Point
    gradient: _Vector

    def hessian(self, u: _Vector) -> _Vector:
        """H u."""
        return self._product(u, list(self.point.w.values()))

    def mixed(self, u: _Vector) -> _Vector:
        """M(u)."""
        return self._product(u, list(self.point.phi.values()))

    def _product(self, u: _Vector, wanted: list[torch.Tensor]) -> _Vector:
        self.point.passes += Passes(double_backwards=1)
        pairs = [(g, part) for g, part in zip(self.gradient, u, strict=True) if g.requires_grad]
        if not pairs:
            return [torch.zeros_like(value) for value in wanted]
        outputs, along = zip(*pairs, strict=True)
        return torch.autograd.grad(
            outputs, wanted, along, retain_graph=True, allow_unused=True, materialize_grads=True
        )


def _gradient(
    loss: torch.Tensor, wanted: list[torch.Tensor], *, create_graph: bool = False
) -> _Vector:
    """The gradient, zero where the loss does not depend on an entry."""
    if not loss.requires_grad:
        return [torch.zeros_like(value) for value in wanted]
    found = torch.autograd.grad(loss, wanted, create_graph=create_graph, allow_unused=True)
    return [
        torch.zeros_like(value) if part is None else part
        for value, part in zip(wanted, found, strict=True)
    ]


def _leaves(weights: Weights) -> dict[str, torch.Tensor]:
    return {name: value.detach().requires_grad_() for name, value in weights.items()}


def _lite(settings: HypergradientSettings, curvature: _Curvature, v: _Vector) -> _Vector:
    return v


def _neumann(settings: HypergradientSettings, curvature: _Curvature, v: _Vector) -> _Vector:
    term, total = list(v), list(v)
    for _ in range(settings.steps):
        product = curvature.hessian(term)
        term = [t - settings.step_size * h for t, h in zip(term, product, strict=True)]
        total = [p + t for p, t in zip(total, term, strict=True)]
    scale = 1.0 if settings.auxilearn_scale else settings.step_size
    return [scale * part for part in total]


def _conjugate(settings: HypergradientSettings, curvature: _Curvature, v: _Vector) -> _Vector:
    solution = [torch.zeros_like(part) for part in v]
    residual, direction = list(v), list(v)
    squared = _dot(residual, residual)
    for _ in range(settings.steps):
        if not squared > 0:  # solved, or no finite gradient to solve for
            break
        product = [
            h + settings.damping * d
            for h, d in zip(curvature.hessian(direction), direction, strict=True)
        ]
        curvature_along = _dot(direction, product)
        if curvature_along == 0:  # no step along a flat direction is longest
            break
        length = squared / curvature_along
        solution = [s + length * d for s, d in zip(solution, direction, strict=True)]
        residual = [r - length * p for r, p in zip(residual, product, strict=True)]
        before, squared = squared, _dot(residual, residual)
        direction = [r + squared / before * d for r, d in zip(residual, direction, strict=True)]
    return solution


_INVERSES: Mapping[str, Callable[[HypergradientSettings, _Curvature, _Vector], _Vector]] = {
    "aid-fp-lite": _lite,
    "aid-fp": _neumann,
    "aid-cg": _conjugate,
}


def _stocbio(
    settings: HypergradientSettings,
    point: _Point,
    v: _Vector,
    training_batch: Callable[[], Any],
) -> _Vector:
    """Eta sum_{q=-1}^{Q-1} prod_{j=Q-q}^{Q} (I - eta H_j) v."""
    term, total = list(v), list(v)
    for _ in range(settings.steps):
        product = point.curvature(training_batch()).hessian(term)
        term = [t - settings.step_size * h for t, h in zip(term, product, strict=True)]
        total = [p + t for p, t in zip(total, term, strict=True)]
    return [settings.step_size * part for part in total]


def _unrolled(
    settings: HypergradientSettings,
    point: _Point,
    training_batch: Callable[[], Any],
    meta_batch: Callable[[], Any],
) -> Hypergradient:
    """D L_pri(w'(phi)) / d phi, with w' the weights after steps along L_aux."""
    bilevel, w, phi = point.bilevel, dict(point.w), point.phi
    for _ in range(settings.unrolled_steps):
        auxiliary = bilevel.auxiliary(w, phi, training_batch())
        gradient = _gradient(auxiliary, list(w.values()), create_graph=True)
        w = {
            name: value - settings.inner_learning_rate * part
            for (name, value), part in zip(w.items(), gradient, strict=True)
        }
    fixed = {name: value.detach() for name, value in phi.items()}
    primary = bilevel.primary(w, phi if bilevel.include_direct_term else fixed, meta_batch())
    found = _gradient(primary, list(phi.values()))
    steps = settings.unrolled_steps
    passes = Passes(steps + 1, 1, steps, steps)
    return Hypergradient(dict(zip(phi, found, strict=True)), point.passes + passes)


def _dot(a: _Vector, b: _Vector) -> torch.Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()
