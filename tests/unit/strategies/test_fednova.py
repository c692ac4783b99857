"""FedNova: the normalisers against what a run does, the server on three numbers, reductions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from core.config import TrainConfig
from core.errors import ConfigError
from core.examples import Examples
from core.seeds import torch_generator
from core.wire import Record
from strategies.base import ClientShape, ModelForm, Reply, ServerState
from strategies.fednova import FedNova, accumulation_vector
from tests.unit.strategies.toy import (
    ToyFederation,
    ToyWorkload,
    build_linear,
    client_task,
    config_of,
    fold,
    initial_state,
    toy_data,
)


def train_config(learning_rate: float, momentum: float = 0.0) -> TrainConfig:
    return TrainConfig(learning_rate=learning_rate, momentum=momentum)


@given(st.integers(1, 40), st.floats(0.01, 0.99))
def test_with_momentum_alone_the_coefficients_are_the_papers(steps: int, rho: float) -> None:
    vector = accumulation_vector(steps, train_config(0.1, rho), 0.0)
    expected = [(1 - rho ** (steps - i)) / (1 - rho) for i in range(steps)]
    assert vector.tolist() == pytest.approx(expected, rel=1e-9)
    norm = (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
    assert float(vector.abs().sum()) == pytest.approx(norm, rel=1e-9)


@given(st.integers(1, 40), st.floats(0.01, 1.0), st.floats(0.001, 1.0))
def test_with_the_proximal_term_alone_the_coefficients_are_the_papers(
    steps: int, learning_rate: float, weight: float
) -> None:
    pull = learning_rate * weight
    vector = accumulation_vector(steps, train_config(learning_rate), weight)
    expected = [(1 - pull) ** (steps - 1 - i) for i in range(steps)]
    assert vector.tolist() == pytest.approx(expected, rel=1e-9)
    norm = (1 - (1 - pull) ** steps) / pull
    assert float(vector.abs().sum()) == pytest.approx(norm, rel=1e-6)


def test_with_both_the_coefficients_are_those_computed_by_hand() -> None:
    """A unit gradient at eta = 0.5, mu = 1, rho = 0.5, displacement in units of -eta.

    Velocity 1, 0.5 - 0.5 = 0, 0 - 0.5 = -0.5, -0.25 - 0.25 = -0.5; displacement 1, 1, 0.5, 0.
    """
    vector = accumulation_vector(4, train_config(0.5, 0.5), 1.0)
    assert vector.tolist() == [0.0, 0.5, 1.0, 1.0]


def test_plain_steps_count_one_each() -> None:
    assert accumulation_vector(3, train_config(0.3), 0.0).tolist() == [1.0, 1.0, 1.0]


STEPS = 7


class LinearLoss(ToyWorkload):
    """The gradient of example i is the unit vector e_i wherever the weights are."""

    def loss(self, model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = model(inputs)
        return outputs.squeeze(1)


def build_scalar(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(STEPS, 1, bias=False))


@pytest.mark.parametrize(
    ("momentum", "weight"), [(0.0, 0.0), (0.9, 0.0), (0.0, 0.8), (0.9, 0.8), (0.5, 7.0)]
)
def test_the_coefficients_are_those_of_a_real_run(momentum: float, weight: float) -> None:
    """One example a step: the displacement along e_i is the coefficient of the step that saw i."""
    keys = {"train__momentum": momentum, "fednova__proximal_weight": weight}
    config = config_of("fednova", train__batch_size=1, train__learning_rate=0.25, **keys)
    strategy, workload = FedNova(config), LinearLoss(build=build_scalar)
    examples = Examples(torch.eye(STEPS).view(STEPS, 1, 1, STEPS), torch.zeros(STEPS).long())
    state = initial_state(strategy, build_scalar(0))
    task = client_task(strategy, state, examples, workload=workload)
    update = strategy.client_update(task)
    order = torch.randperm(STEPS, generator=torch_generator(task.seed))
    start = state.weights["1.weight"].flatten()
    moved = ((start - task.parameters.values) / 0.25)[order]
    vector = accumulation_vector(STEPS, config.train, weight)
    assert torch.allclose(moved.double(), vector, atol=1e-5)
    assert update.metrics["a_norm"] == pytest.approx(float(moved.abs().sum()), rel=1e-5)
    assert np.abs(update.arrays["direction/1.weight"]).sum() == pytest.approx(1.0, rel=1e-5)
    assert update.arrays.keys() == {"direction/1.weight"}


@pytest.mark.parametrize(
    ("momentum", "weight", "same_as"),
    [(0.0, 0.0, "fedavg"), (0.9, 0.0, "fedavg"), (0.0, 0.5, "fedprox"), (0.9, 0.5, "fedprox")],
)
def test_at_equal_steps_it_is_fedavg(momentum: float, weight: float, same_as: str) -> None:
    """Sizes differ, numbers of batches do not."""
    keys = {"train__batch_size": 4, "train__local_epochs": 3, "train__momentum": momentum}
    clients = [toy_data(k, size) for k, size in enumerate((5, 8, 6))]
    prox = {"fedprox__proximal_weight": weight} if same_as == "fedprox" else {}
    nova = ToyFederation(config_of("fednova", fednova__proximal_weight=weight, **keys), clients)
    average = ToyFederation(config_of(same_as, **prox, **keys), clients)
    for _ in range(2):
        nova.round()
        average.round()
    for name, value in average.state.weights.items():
        assert torch.allclose(nova.state.weights[name], value, atol=1e-6, rtol=0), name


def test_at_unequal_steps_displacements_count_per_step() -> None:
    """With plain steps ||a_k||_1 = tau_k: d_k is FedAvg's displacement over tau_k."""
    keys = {"train__batch_size": 2, "train__learning_rate": 0.3}
    nova = ToyFederation(config_of("fednova", **keys))
    average = ToyFederation(config_of("fedavg", **keys))
    start = dict(nova.state.weights)
    sent, counts, steps = average.round(), np.array([5, 12, 3]), np.array([3, 6, 2])
    nova.round()
    p = counts / counts.sum()
    different = False
    for name, w in start.items():
        moves = [torch.from_numpy(update.arrays[name]) - w for update in sent]
        mean = sum(p_k / tau_k * move for p_k, tau_k, move in zip(p, steps, moves, strict=True))
        expected = w + float(p @ steps) * mean
        assert torch.allclose(nova.state.weights[name], expected, atol=1e-6), name
        different |= not torch.allclose(average.state.weights[name], expected, atol=1e-4)
    assert different
    assert nova.outcome.metrics["effective_steps"] == pytest.approx(float(p @ steps))


def test_the_server_on_three_elements() -> None:
    """p = 1/4, 3/4; tau_eff = 2/4 + 3*4/4 = 3.5; eta = 0.5; sum p d = (1, -1, 2)."""
    strategy = FedNova(config_of("fednova", train__learning_rate=0.5))
    state = ServerState({"w": torch.tensor([1.0, 2.0, 3.0]), "steps": torch.tensor(0)})
    replies = [(1, 2.0, [4.0, -1.0, 2.0], 2, 0.5), (3, 4.0, [0.0, -1.0, 2.0], 3, 1.5)]
    records = [
        Record(
            {"direction/w": np.array(d, np.float32), "steps": np.array(steps)},
            {"num_examples": count, "a_norm": a_norm, "train_loss": loss},
        )
        for count, a_norm, d, steps, loss in replies
    ]
    outcome = fold(strategy, state, records)
    assert outcome.state.weights["w"].tolist() == [1 - 1.75, 2 + 1.75, 3 - 3.5]
    assert outcome.state.weights["steps"].item() == 3  # (1*2 + 3*3) / 4 = 2.75, rounded
    assert outcome.metrics == {"train_loss": 1.25, "effective_steps": 3.5}


def test_a_norm_must_be_that_of_the_clients_steps() -> None:
    config = config_of("fednova", train__batch_size=4, train__momentum=0.5)
    strategy, shape = FedNova(config), ClientShape(0, (4, 5), ModelForm(), (1, 2, 2))
    honest = 1 + 1.5 + 1.75  # three steps

    def reasons(num_examples: int, a_norm: float) -> list[str]:
        metrics = {"num_examples": num_examples, "a_norm": a_norm, "train_loss": 0.0}
        return strategy.check_reply(Reply(0, Record({}, metrics)), shape)

    assert reasons(9, honest) == []
    assert reasons(9, 42.5) == ["a_norm is 42.5, but 3 steps give 4.25"]
    assert reasons(8, honest) == ["num_examples is 8, but the client holds 9"]
    assert len(reasons(9, -honest)) == 1


def test_a_proximal_term_under_which_local_steps_diverge_is_refused() -> None:
    """The bound is where a unit gradient's effect stops fading."""
    config_of("fednova", train__learning_rate=0.5, fednova__proximal_weight=3.99)
    config = config_of("fednova", train__learning_rate=0.5, train__momentum=0.5)
    with pytest.raises(ConfigError, match=r"fednova.proximal-weight=4: must be below .* = 4, or"):
        config_of("fednova", train__learning_rate=0.5, fednova__proximal_weight=4.0)
    with pytest.raises(ConfigError, match="= 6, or"):
        config_of(
            "fednova",
            train__learning_rate=0.5,
            train__momentum=0.5,
            fednova__proximal_weight=6.0,
        )
    fading = accumulation_vector(2000, config.train, 5.9)[0]
    growing = accumulation_vector(2000, config.train, 6.1)[0]
    assert abs(float(fading)) < 1e-6
    assert abs(float(growing)) > 1e6


def test_a_frozen_parameter_is_sent_as_a_weight() -> None:

    def build(seed: int) -> nn.Module:
        model = build_linear(seed)
        next(model.parameters()).requires_grad_(False)
        return model

    federation = ToyFederation(config_of("fednova"), workload=ToyWorkload(build=build))
    frozen = federation.state.weights["1.weight"].clone()
    sent = federation.round()[0]
    names = {"1.weight", "direction/1.bias", "direction/3.weight", "direction/3.bias"}
    assert sent.arrays.keys() == names
    form = ModelForm.of(build(0))
    shape = ClientShape(0, (2, 3), form, (1, 2, 2))
    spec = federation.strategy.reply_spec(shape, 1)
    assert dataclasses.replace(spec, metrics=()).violations(Record(sent.arrays)) == []
    assert torch.equal(federation.state.weights["1.weight"], frozen)
