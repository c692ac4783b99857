"""Each hypergradient against its own definition, in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from workloads.meta.hypergradients import (
    Bilevel,
    Hypergradient,
    HypergradientSettings,
    MetaOptimizer,
    Passes,
    Weights,
    clip_by_norm,
    hypergradient,
)
from workloads.meta.loss_networks import LossTransformer

ETA, STEP = 0.3, 1e-5
POINT = torch.tensor([0.5, -1.0, 2.0, 0.1], dtype=torch.float64)


def flat(weights: Weights) -> torch.Tensor:
    return torch.cat([value.detach().reshape(-1) for value in weights.values()])


def shifted(weights: Weights, direction: Weights, by: float) -> dict[str, torch.Tensor]:
    return {name: value.detach() + by * direction[name] for name, value in weights.items()}


def check_by_differences(
    found: Weights, phi: Weights, value_at: Callable[[Weights], torch.Tensor], rel: float = 1e-6
) -> None:
    """Central differences along random directions."""
    generator = torch.Generator().manual_seed(8)
    for _ in range(6):
        direction = {
            name: torch.randn(value.shape, generator=generator, dtype=torch.float64)
            for name, value in phi.items()
        }
        ends = [float(value_at(shifted(phi, direction, sign * STEP))) for sign in (1, -1)]
        along = sum(float((found[name] * direction[name]).sum()) for name in phi)
        assert along == pytest.approx((ends[0] - ends[1]) / (2 * STEP), rel=rel, abs=1e-9)


@dataclass(frozen=True)
class Quadratic:
    """L_aux = w' H w / 2 + (B phi - c)' w, L_pri = |w - t|^2 / 2 and more; one batch is one H.

    The learned loss of losses (l_0, q, w) is ``q + (B phi)' w``: losses carry the weights
    themselves, so that any dependence on phi can be built.
    """

    hessians: tuple[torch.Tensor, ...]
    mixing: torch.Tensor
    target: torch.Tensor
    regularisation: float = 0.0
    include_direct_term: bool = False

    def losses(self, w: Weights, batch: int) -> torch.Tensor:
        value = w["w"]
        primary = (value - self.target).square().sum() / 2
        curved = value @ self.hessians[batch] @ value / 2
        return torch.cat([torch.stack([primary, curved]), value])

    def combine(self, phi: Weights, losses: torch.Tensor) -> torch.Tensor:
        return losses[1] + (self.mixing @ phi["phi"]) @ losses[2:] + phi["phi"].square().sum()

    def bilevel(self) -> Bilevel:
        return Bilevel(self.losses, self.combine, self.regularisation, self.include_direct_term)


def quadratic(count: int = 1, **keys: Any) -> tuple[Quadratic, Weights, Weights]:
    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    roots = [draw(4, 4) for _ in range(count)]
    hessians = tuple(0.3 * root @ root.T + torch.eye(4, dtype=torch.float64) for root in roots)
    problem = Quadratic(hessians, draw(4, 3), draw(4), **keys)
    return problem, {"w": draw(4)}, {"phi": draw(3)}


def solve(
    optimizer: MetaOptimizer, problem: Quadratic, w: Weights, phi: Weights, **keys: Any
) -> Hypergradient:
    settings = HypergradientSettings(optimizer=optimizer, **{"step_size": ETA, **keys})
    return hypergradient(settings, problem.bilevel(), w, phi, lambda: 0, lambda: 0)


def neumann(hessians: list[torch.Tensor], v: torch.Tensor) -> torch.Tensor:
    """eta times the sum of growing products of (I - eta H)."""
    term, total = v, v.clone()
    for hessian in hessians:
        term = term - ETA * hessian @ term
        total += term
    return ETA * total


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_neumanns_series_is_its_partial_sum(steps: int) -> None:
    problem, w, phi = quadratic()
    (hessian,) = problem.hessians
    v = w["w"] - problem.target
    found = solve("aid-fp", problem, w, phi, steps=steps).gradient["phi"]
    expected = -problem.mixing.T @ neumann([hessian] * steps, v)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    scaled = HypergradientSettings(
        optimizer="aid-fp", steps=steps, step_size=ETA, auxilearn_scale=True
    )
    other = hypergradient(scaled, problem.bilevel(), w, phi, lambda: 0, lambda: 0).gradient["phi"]
    torch.testing.assert_close(ETA * other, found, rtol=1e-10, atol=1e-12)


def test_the_first_term_alone_is_lite() -> None:
    problem, w, phi = quadratic()
    found = solve("aid-fp-lite", problem, w, phi).gradient["phi"]
    expected = -problem.mixing.T @ (w["w"] - problem.target)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def exact(problem: Quadratic, w: Weights, damping: float = 0.0) -> torch.Tensor:
    (hessian,) = problem.hessians
    damped = hessian + damping * torch.eye(4, dtype=torch.float64)
    solution: torch.Tensor = torch.linalg.solve(damped, w["w"] - problem.target)
    return -problem.mixing.T @ solution


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_conjugate_gradients_minimise_over_krylovs_space(steps: int) -> None:
    """Step i of CG is the Galerkin solution on span(v, H v, ..., H^(i-1) v)."""
    problem, w, phi = quadratic()
    (hessian,) = problem.hessians
    v = w["w"] - problem.target
    powers = [v]
    for _ in range(steps - 1):
        powers.append(hessian @ powers[-1])
    basis, _ = torch.linalg.qr(torch.stack(powers, dim=1))
    solution = basis @ torch.linalg.solve(basis.T @ hessian @ basis, basis.T @ v)
    found = solve("aid-cg", problem, w, phi, steps=steps, damping=0.0).gradient["phi"]
    torch.testing.assert_close(found, -problem.mixing.T @ solution, rtol=1e-10, atol=1e-12)


def test_both_inverses_reach_the_exact_implicit_gradient() -> None:
    problem, w, phi = quadratic()
    ours = solve("aid-cg", problem, w, phi, steps=8, damping=0.0).gradient["phi"]
    torch.testing.assert_close(ours, exact(problem, w), rtol=1e-10, atol=1e-12)
    damped = solve("aid-cg", problem, w, phi, steps=8, damping=0.5).gradient["phi"]
    torch.testing.assert_close(damped, exact(problem, w, 0.5), rtol=1e-10, atol=1e-12)
    assert torch.linalg.eigvalsh(problem.hessians[0]).max() * 0.1 < 1
    series = solve("aid-fp", problem, w, phi, steps=600, step_size=0.1).gradient["phi"]
    torch.testing.assert_close(series, exact(problem, w), rtol=1e-10, atol=1e-12)


def test_where_nothing_depends_on_anything_the_gradient_is_zero() -> None:
    flat = Quadratic((torch.zeros(4, 4, dtype=torch.float64),), torch.zeros(4, 3).double(), POINT)
    w, phi = {"w": POINT + 1}, {"phi": torch.ones(3, dtype=torch.float64)}
    for optimizer in OPTIMIZERS:
        found = solve(optimizer, flat, w, phi, damping=0.0).gradient["phi"]
        assert torch.equal(found, torch.zeros(3, dtype=torch.float64)), optimizer
    constant = Bilevel(lambda w, batch: torch.ones(2), lambda phi, losses: losses.sum(), 0.0, False)
    settings = HypergradientSettings(optimizer="itd")
    found = hypergradient(settings, constant, w, phi, lambda: 0, lambda: 0).gradient["phi"]
    assert not found.any()


def test_stocbio_is_a_polynomial_in_one_batch() -> None:
    problem, w, phi = quadratic()
    found = solve("stocbio", problem, w, phi, steps=3).gradient["phi"]
    v = w["w"] - problem.target
    expected = -problem.mixing.T @ neumann([problem.hessians[0]] * 3, v)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_stocbio_is_right_in_expectation() -> None:
    """Over all equally likely sequences of batches; factors are independent, so means multiply."""
    problem, w, phi = quadratic(count=3)
    settings = HypergradientSettings(optimizer="stocbio", steps=2, step_size=ETA)
    total = torch.zeros(3, dtype=torch.float64)
    sequences = list(itertools.product(range(3), repeat=3))
    for sequence in sequences:
        order = iter(sequence)
        found = hypergradient(settings, problem.bilevel(), w, phi, partial(next, order), lambda: 0)
        total += found.gradient["phi"]
        assert next(order, None) is None, "a batch for each factor and one for the mixed term"
    mean = sum(problem.hessians, torch.zeros(4, 4, dtype=torch.float64)) / 3
    v = w["w"] - problem.target
    expected = -problem.mixing.T @ neumann([mean, mean], v)
    torch.testing.assert_close(total / len(sequences), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("include", [False, True])
def test_the_regularisers_own_gradient_makes_the_whole(include: bool) -> None:
    """phi -> L_pri(w*(phi), phi) at its true w*; only with the direct term is it matched."""
    problem, _, phi = quadratic(regularisation=0.4, include_direct_term=include)
    (hessian,) = problem.hessians

    def best(phi: Weights) -> dict[str, torch.Tensor]:
        return {"w": torch.linalg.solve(hessian, -problem.mixing @ phi["phi"])}

    def value_at(phi: Weights) -> torch.Tensor:
        return problem.bilevel().primary(best(phi), phi, 0)

    found = solve("aid-cg", problem, best(phi), phi, steps=8, damping=0.0).gradient
    if include:
        check_by_differences(found, phi, value_at)
    else:
        with pytest.raises(AssertionError):
            check_by_differences(found, phi, value_at)


TASKS = ("own", "twice", "other")


@dataclass(frozen=True)
class Network:
    """A smooth network with three tasks and a small loss transformer: nothing is quadratic."""

    regularisation: float = 0.0
    include_direct_term: bool = False

    def __post_init__(self) -> None:
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        learned = LossTransformer(TASKS, width=16, scale_width=6, feedforward=8, heads=2).double()
        inputs = torch.randn(4, 6, 3, dtype=torch.float64)
        object.__setattr__(self, "parts", (model, learned, inputs))

    parts: tuple[nn.Module, LossTransformer, torch.Tensor] = ()  # type: ignore[assignment]

    @property
    def w(self) -> dict[str, torch.Tensor]:
        unused = {"unused": torch.ones(2, dtype=torch.float64)}
        return {**dict(self.parts[0].named_parameters()), **unused}

    @property
    def phi(self) -> dict[str, torch.Tensor]:
        return dict(self.parts[1].named_parameters())

    def losses(self, w: Weights, batch: int) -> torch.Tensor:
        model, _, inputs = self.parts
        used = {name: value for name, value in w.items() if name != "unused"}
        out = functional_call(model, used, (inputs[batch],))
        labels = torch.arange(6) % 2
        own = functional.cross_entropy(out, labels)
        return torch.stack([own, out.square().mean(), functional.softplus(out[:, 0]).mean()])

    def combine(self, phi: Weights, losses: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = functional_call(self.parts[1], dict(phi), (losses, TASKS))
        return found

    def bilevel(self) -> Bilevel:
        return Bilevel(self.losses, self.combine, self.regularisation, self.include_direct_term)


REGULARISERS = [(0.0, False), (0.3, False), (0.3, True)]


@pytest.mark.parametrize("unrolled", [1, 3])
@pytest.mark.parametrize(("gamma", "include"), REGULARISERS)
def test_itd_is_the_gradient_of_the_unrolled_objective(
    unrolled: int, gamma: float, include: bool
) -> None:
    network = Network(gamma, include)
    bilevel, w, phi = network.bilevel(), network.w, network.phi
    settings = HypergradientSettings(
        optimizer="itd", inner_learning_rate=0.2, unrolled_steps=unrolled
    )
    batches = iter(range(unrolled))
    found = hypergradient(settings, bilevel, w, phi, lambda: next(batches), lambda: 3)
    assert found.passes == Passes(unrolled + 1, 1, unrolled, unrolled)

    def value_at(moved: Weights) -> torch.Tensor:
        stepped: Mapping[str, torch.Tensor] = w
        for batch in range(unrolled):
            leaves = {name: value.detach().requires_grad_() for name, value in stepped.items()}
            loss = bilevel.auxiliary(leaves, moved, batch)
            parts = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            stepped = {
                name: value.detach() - (0 if part is None else 0.2 * part)
                for (name, value), part in zip(leaves.items(), parts, strict=True)
            }
        return bilevel.primary(stepped, moved if include else phi, 3).detach()

    check_by_differences(found.gradient, phi, value_at)


@pytest.mark.parametrize(("gamma", "include"), REGULARISERS)
def test_lite_is_the_gradient_of_alignment(gamma: float, include: bool) -> None:
    """-<v, grad_w L_aux(w, phi)> with v fixed, and gamma L_reg at fixed w where it is asked for."""
    network = Network(gamma, include)
    bilevel, w, phi = network.bilevel(), network.w, network.phi
    settings = HypergradientSettings(optimizer="aid-fp-lite")
    found = hypergradient(settings, bilevel, w, phi, lambda: 1, lambda: 3)

    def gradient(loss: Callable[[Weights], torch.Tensor]) -> torch.Tensor:
        leaves = {name: value.detach().requires_grad_() for name, value in w.items()}
        parts = torch.autograd.grad(loss(leaves), list(leaves.values()), allow_unused=True)
        return torch.cat(
            [
                (torch.zeros_like(value) if part is None else part).reshape(-1)
                for value, part in zip(leaves.values(), parts, strict=True)
            ]
        )

    v = gradient(lambda at: bilevel.primary(at, phi, 3))

    def value_at(moved: Weights) -> torch.Tensor:
        aligned = -v @ gradient(lambda at: bilevel.auxiliary(at, moved, 1))
        return aligned + (bilevel.primary(w, moved, 3).detach() if include else 0)

    check_by_differences(found.gradient, phi, value_at)


def test_what_each_costs_in_passes() -> None:
    problem, w, phi = quadratic()
    costs = {name: solve(name, problem, w, phi, steps=3).passes for name in OPTIMIZERS}
    assert costs == {
        "aid-fp-lite": Passes(2, 1, 1, 1),
        "aid-fp": Passes(2, 1, 1, 4),
        "aid-cg": Passes(2, 1, 1, 4),
        "stocbio": Passes(5, 1, 4, 4),
        "itd": Passes(2, 1, 1, 1),
    }
    work = {name: cost.equivalent_forwards for name, cost in costs.items()}
    assert work["aid-fp-lite"] == 10
    assert work["aid-fp-lite"] < work["aid-fp"] <= work["aid-cg"] < work["stocbio"]


OPTIMIZERS: tuple[MetaOptimizer, ...] = ("aid-fp-lite", "aid-fp", "aid-cg", "stocbio", "itd")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_arguments_are_left_as_they_were(optimizer: MetaOptimizer) -> None:
    network = Network(0.3)
    before = flat(network.w), flat(network.phi)
    settings = HypergradientSettings(optimizer=optimizer)
    found = hypergradient(settings, network.bilevel(), network.w, network.phi, lambda: 0, lambda: 1)
    assert torch.equal(flat(network.w), before[0]) and torch.equal(flat(network.phi), before[1])
    assert all(value.grad is None for value in (*network.w.values(), *network.phi.values()))
    assert found.gradient.keys() == network.phi.keys()
    assert all(not value.requires_grad for value in found.gradient.values())
    assert flat(found.gradient).norm() > 0


def test_clipping_keeps_the_direction() -> None:
    gradient = {"a": torch.tensor([3.0]), "b": torch.tensor([0.0, 4.0])}
    clipped = clip_by_norm(gradient, 1.0)
    torch.testing.assert_close(flat(clipped), torch.tensor([0.6, 0.0, 0.8]))
    assert torch.equal(flat(clip_by_norm(gradient, 5.0)), flat(gradient))
    zeros = {"a": torch.zeros(2)}
    assert torch.equal(flat(clip_by_norm(zeros, 1.0)), torch.zeros(2))
