from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from core.parameters import ParameterVector
from workloads.meta.loss_networks import (
    LinearLoss,
    LossNetwork,
    LossTransformer,
    fit_to_sum,
    sensitivities,
)

TASKS = ("a", "b", "c")
POINT = torch.tensor([0.7, 2.1, 1.3], dtype=torch.float64)


def small(tasks: tuple[str, ...] = TASKS, **keys: bool) -> LossTransformer:
    torch.manual_seed(3)
    return LossTransformer(tasks, width=8, scale_width=4, feedforward=12, heads=2, **keys).double()


@pytest.mark.parametrize(
    ("width", "scale_width", "count"), [(256, 128, 562_688), (512, 256, 1_714_688)]
)
def test_sizes_are_those_of_the_papers_backbones(width: int, scale_width: int, count: int) -> None:
    tasks = [f"task-{t}" for t in range(8)]
    network = LossTransformer(tasks, width=width, scale_width=scale_width, feedforward=512)
    assert sum(value.numel() for value in network.parameters()) == count


def test_the_count_follows_from_the_sizes() -> None:
    d, h, f = 8, 4, 12
    expected = 3 * d + 2 * h + (h * d + d) + (4 * d * d + 4 * d) + (2 * d * f + f + d) + 4 * d + d
    assert sum(value.numel() for value in small().parameters()) == expected


def test_a_token_is_the_scale_of_a_loss_and_its_task() -> None:
    """Redone with the layers' own numbers, attention written out."""
    network = small()
    heads, d = 2, 8
    scale = network.scale_embedding
    first, last = (cast(nn.Linear, scale[place]) for place in (0, 2))
    hidden = torch.relu(POINT[:, None] @ first.weight.T + first.bias)
    tokens = hidden @ last.weight.T + last.bias
    tokens = tokens + torch.stack([network.task_embedding[task] for task in TASKS])
    layer = network.encoder
    mixed = tokens @ layer.self_attn.in_proj_weight.T + layer.self_attn.in_proj_bias
    q, k, v = (part.view(3, heads, d // heads).transpose(0, 1) for part in mixed.split(d, dim=1))
    weights = torch.softmax(q @ k.transpose(1, 2) / (d // heads) ** 0.5, dim=-1)
    attended = (weights @ v).transpose(0, 1).reshape(3, d)
    attended = attended @ layer.self_attn.out_proj.weight.T + layer.self_attn.out_proj.bias
    x = layer.norm1(tokens + attended)
    x = layer.norm2(x + layer.linear2(torch.relu(layer.linear1(x))))
    expected = (x.mean(dim=0) @ network.head.weight.T).reshape(())
    torch.testing.assert_close(network(POINT, TASKS), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("make", [small, lambda: LinearLoss(TASKS).double()])
def test_the_order_of_tasks_does_not_matter(make: Callable[[], LossNetwork]) -> None:
    network, order = make(), [2, 0, 1]
    again = network(POINT[order], [TASKS[i] for i in order])
    torch.testing.assert_close(again, network(POINT, TASKS), rtol=1e-10, atol=1e-12)


def test_tasks_that_are_left_out_leave_no_trace() -> None:
    whole, part = small(), small(("a", "c"))
    part.load_state_dict({k: v for k, v in whole.state_dict().items() if k in part.state_dict()})
    losses = POINT[[0, 2]]
    assert torch.equal(whole(losses, ("a", "c")), part(losses, ("a", "c")))


def test_many_points_at_once_are_many_points() -> None:
    network = small()
    points = torch.stack([POINT, 2 * POINT])
    one_by_one = torch.stack([network(point, TASKS) for point in points])
    torch.testing.assert_close(network(points, TASKS), one_by_one)


def test_without_task_embeddings_equal_losses_are_alike() -> None:
    network = small(task_embeddings=False)
    assert not any("task_embedding" in name for name in network.state_dict())
    _, partials = sensitivities(network, torch.full((3,), 1.5, dtype=torch.float64), TASKS)
    torch.testing.assert_close(partials, partials[:1].expand(3))


def test_a_linear_loss_starts_as_the_plain_sum() -> None:
    assert LinearLoss(TASKS)(POINT.float(), TASKS) == POINT.float().sum()


@pytest.mark.parametrize("make", [small, lambda: LinearLoss(TASKS).double()])
def test_sensitivities_are_partial_derivatives(make: Callable[[], LossNetwork]) -> None:
    network, step = make(), 1e-6
    learned, partials = sensitivities(network, POINT, TASKS)
    assert learned == network(POINT, TASKS) and not learned.requires_grad
    for place in range(3):
        shift = step * torch.eye(3, dtype=torch.float64)[place]
        rise = network(POINT + shift, TASKS) - network(POINT - shift, TASKS)
        assert float(partials[place]) == pytest.approx(float(rise) / (2 * step), rel=1e-6)


def devices() -> list[object]:
    missing = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    return ["cpu", pytest.param("cuda", marks=missing)]


@pytest.mark.parametrize("device", devices())
def test_attention_is_differentiated_twice(device: str) -> None:
    network = small().to(device)
    point = POINT.to(device).requires_grad_()
    (first,) = torch.autograd.grad(network(point, TASKS), point, create_graph=True)
    second = torch.autograd.grad(first.square().sum(), network.encoder.self_attn.in_proj_weight)
    assert float(second[0].abs().sum()) > 0
    assert torch.autograd.gradgradcheck(lambda x: network(x, TASKS), point)


class Operations(TorchDispatchMode):
    """Notes what is computed inside the block."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[OpOverload] = set()

    def __torch_dispatch__(
        self,
        operation: OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        self.seen.add(operation)
        return operation(*args, **(kwargs or {}))


@pytest.mark.skipif(torch.version.cuda is None, reason="needs a build of torch for GPUs")
def test_all_that_differentiating_twice_computes_there_are_kernels_of_for_gpus() -> None:
    """Where no GPU is at hand; the test above runs on one."""
    network, point = small(), POINT.clone().requires_grad_()
    with Operations() as operations:
        (first,) = torch.autograd.grad(network(point, TASKS), point, create_graph=True)
        torch.autograd.grad(first.square().sum(), list(network.parameters()), allow_unused=True)
    assert {torch.ops.aten.bmm.default, torch.ops.aten._softmax_backward_data.default} <= (
        operations.seen
    )
    keys = ("CUDA", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional")
    without = [
        operation
        for operation in operations.seen
        if not any(
            torch._C._dispatch_has_kernel_for_dispatch_key(operation.name(), key) for key in keys
        )
    ]
    assert without == []


def test_fitting_brings_the_transformer_to_the_sum() -> None:
    torch.manual_seed(0)
    network = LossTransformer(TASKS, width=64, scale_width=32, feedforward=64)
    points = 4 * torch.rand(200, 3, generator=torch.Generator().manual_seed(9))

    def error() -> float:
        with torch.no_grad():
            return float((network(points, TASKS) - points.sum(dim=1)).square().mean())

    before, start = error(), ParameterVector(network).values.clone()
    fit_to_sum(network, TASKS, steps=0, most=4.0, seed=1)
    assert torch.equal(ParameterVector(network).values, start)
    fit_to_sum(network, TASKS, steps=400, most=4.0, seed=1)
    variance = float(points.sum(dim=1).var())
    assert error() < 0.5 * variance < before


def test_sizes_and_names_that_do_not_do_are_refused() -> None:
    with pytest.raises(ValueError, match="width 10 must be a multiple of the 8 heads"):
        LossTransformer(TASKS, width=10)
    for name in ("a.b", "", "values"):
        with pytest.raises(ValueError, match=f"task '{name}' cannot name a parameter"):
            LinearLoss([name])
    with pytest.raises(ValueError, match="name one twice"):
        LinearLoss(["a", "a"])
    with pytest.raises(AssertionError, match="one loss for each task"):
        LinearLoss(["a", "b"])(torch.ones(1), ["a", "b"])
