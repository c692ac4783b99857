"""What the methods' equations say, checked on models small enough to do it another way."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch.nn import functional

from core.config import RunConfig
from core.parameters import weights_of
from core.seeds import torch_generator
from core.wire import Record
from strategies.base import ClientShape, ModelForm, Reply, ServerState
from strategies.centralized import Centralized
from strategies.fedavg import FedAvg
from strategies.fedprox import FedProx
from tests.unit.strategies.toy import (
    ToyFederation,
    ToyWorkload,
    build_linear,
    client_data,
    client_task,
    config_of,
    fold,
    server_task,
)


def federated_round(config: RunConfig, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One round of all clients, without any transport."""
    federation = ToyFederation(config)
    for name, value in federation.state.weights.items():
        assert torch.equal(value, weights[name])
    federation.round()
    return dict(federation.state.weights)


@pytest.fixture
def initial() -> Iterator[dict[str, torch.Tensor]]:
    weights = weights_of(build_linear(0))
    before = {name: value.clone() for name, value in weights.items()}
    yield weights
    assert all(torch.equal(weights[name], before[name]) for name in before)


def test_one_full_batch_step_of_fedavg_is_sgd(initial: dict[str, torch.Tensor]) -> None:
    config = config_of("fedavg", train__batch_size=100, train__learning_rate=0.3)
    model = build_linear(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    pooled = ToyWorkload().training_examples()
    functional.cross_entropy(model(pooled.inputs), pooled.labels).backward()
    optimizer.step()
    averaged = federated_round(config, initial)
    for name, value in weights_of(model).items():
        assert not torch.equal(value, initial[name])
        assert torch.allclose(averaged[name], value, atol=1e-6), name


def test_centralized_is_minibatch_sgd(initial: dict[str, torch.Tensor]) -> None:
    """Two epochs of a hand-written loop with torch's optimizer and the same shuffles."""
    config = config_of(
        "centralized",
        train__batch_size=8,
        train__learning_rate=0.3,
        train__local_epochs=2,
        train__momentum=0.5,
    )
    strategy = Centralized(config)
    outcome = strategy.finish(ServerState(initial), None, server_task())
    model, pooled, shuffler = build_linear(0), ToyWorkload().training_examples(), torch_generator(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.5)
    for _ in range(2):
        for batch in torch.randperm(20, generator=shuffler).split(8):
            optimizer.zero_grad()
            functional.cross_entropy(model(pooled.inputs[batch]), pooled.labels[batch]).backward()
            optimizer.step()
    for name, value in weights_of(model).items():
        assert torch.allclose(outcome.state.weights[name], value, atol=1e-6), name


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fedprox_without_its_term_is_fedavg(
    initial: dict[str, torch.Tensor], momentum: float
) -> None:
    keys: dict[str, object] = {
        "train__batch_size": 4,
        "train__local_epochs": 3,
        "train__momentum": momentum,
    }
    prox = federated_round(config_of("fedprox", fedprox__proximal_weight=0.0, **keys), initial)
    average = federated_round(config_of("fedavg", **keys), initial)
    other = federated_round(config_of("fedprox", fedprox__proximal_weight=0.5, **keys), initial)
    for name in average:
        assert torch.equal(prox[name], average[name]), name
    assert any(not torch.equal(other[name], average[name]) for name in average)


def test_fedprox_steps_on_the_papers_objective(initial: dict[str, torch.Tensor]) -> None:
    """Autograd of f(w) + mu/2 ||w - w_r||^2, against our gradient correction."""
    config = config_of(
        "fedprox",
        fedprox__proximal_weight=0.7,
        train__local_epochs=4,
        train__batch_size=100,
        train__learning_rate=0.2,
    )
    data, model, start = client_data(1), build_linear(0), build_linear(0)
    for _ in range(4):
        distance = sum(
            ((w - w_r.detach()) ** 2).sum()
            for w, w_r in zip(model.parameters(), start.parameters(), strict=True)
        )
        loss = functional.cross_entropy(model(data.inputs), data.labels) + 0.7 / 2 * distance
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.sub_(gradient, alpha=0.2)
    strategy = FedProx(config)
    update = strategy.client_update(client_task(strategy, ServerState(initial), data))
    for name, value in weights_of(model).items():
        assert np.allclose(update.arrays[name], value, atol=1e-6), name


def test_fedavg_weighs_by_examples_on_three_elements() -> None:
    state = ServerState({"w": torch.zeros(3), "steps": torch.tensor(0)})
    strategy = FedAvg(config_of("fedavg"))
    replies = [(1, [1.0, 0.0, -4.0], 2, 0.5), (3, [5.0, 0.0, 4.0], 3, 1.5)]
    records = [
        Record(
            {"w": np.array(w, np.float32), "steps": np.array(steps)},
            {"num_examples": count, "train_loss": loss},
        )
        for count, w, steps, loss in replies
    ]
    outcome = fold(strategy, state, records)
    assert outcome.state.weights["w"].tolist() == [4.0, 0.0, 2.0]
    assert outcome.state.weights["steps"].item() == 3  # (1*2 + 3*3) / 4 = 2.75, rounded
    assert outcome.state.weights["steps"].dtype == torch.int64
    assert outcome.metrics == {"train_loss": 1.25}


@pytest.mark.parametrize("count", [0, -3])
def test_fedavg_refuses_a_reply_without_examples(count: int) -> None:
    reply = Reply(0, Record({}, {"num_examples": count, "train_loss": 0.0}))
    assert FedAvg(config_of("fedavg")).check_reply(
        reply, ClientShape(0, (5, 5), ModelForm(), (1, 2, 2))
    )


def test_local_steps_are_counted_as_announced(initial: dict[str, torch.Tensor]) -> None:
    config = config_of("fedavg", train__batch_size=5, train__local_epochs=3)
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    counted: Callable[[], None] = count
    strategy = FedAvg(config)
    task = client_task(strategy, ServerState(initial), client_data(1), count_step=counted)
    strategy.client_update(task)
    assert steps == strategy.client_steps(ClientShape(1, (6, 6), ModelForm(), (1, 2, 2))) == 9
