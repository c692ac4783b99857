"""The loop of gradient steps against torch's own optimizer."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from core.config import TrainConfig
from core.examples import Examples
from core.parameters import ParameterVector
from core.seeds import torch_generator
from strategies.local_sgd import train_locally
from tests.unit.strategies.toy import ToyObjective


class Workload:
    """Cross-entropy, all that the loop asks for."""

    def loss(self, model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(model(inputs), labels, reduction="none")


class WithUnused(nn.Module):
    """A network of which one parameter takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.unused = nn.Parameter(torch.ones(3))
        self.last = nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(torch.tanh(self.first(x)))
        return logits


def make() -> tuple[WithUnused, Examples]:
    torch.manual_seed(0)
    return WithUnused(), Examples(torch.randn(22, 5), torch.arange(22) % 3)


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.5, 0.1)])
def test_steps_are_those_of_torchs_optimizer_bit_by_bit(
    momentum: float, weight_decay: float
) -> None:
    config = TrainConfig(
        learning_rate=0.1,
        momentum=momentum,
        weight_decay=weight_decay,
        local_epochs=2,
        batch_size=8,
    )
    found = []
    for correction in (None, torch.zeros_like):
        model, examples = make()
        parameters = ParameterVector(model)
        objective = ToyObjective(Workload(), model, examples)
        train_locally(parameters, objective, config, seed=4, correction=correction)
        found.append(parameters.values.clone())
        views = [parameter.grad for parameter in model.parameters()]
        parameters.gradient.fill_(2.0)
        assert all(view is not None and (view == 2.0).all() for view in views)
    model, examples = make()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=momentum, weight_decay=weight_decay
    )
    shuffler = torch_generator(4)
    for _ in range(2):
        for batch in torch.randperm(22, generator=shuffler).split(8):
            model.zero_grad()
            model.unused.grad = torch.zeros(3)
            functional.cross_entropy(
                model(examples.inputs[batch]), examples.labels[batch]
            ).backward()
            optimizer.step()
    expected = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    assert torch.equal(found[0], expected)
    assert torch.equal(found[1], expected)
