"""SCAFFOLD: local steps and variates against autograd and torch.optim, the server by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from core.config import RunConfig
from core.errors import ConfigError
from core.examples import Examples
from core.parameters import ParameterVector
from core.seeds import torch_generator
from core.wire import Record
from strategies.base import ClientShape, ClientUpdate, ModelForm, ServerState
from strategies.scaffold import Scaffold
from tests.unit.strategies.toy import (
    ToyFederation,
    ToyWorkload,
    build_linear,
    client_data,
    client_task,
    config_of,
    fold,
    initial_state,
    toy_data,
)

NAMES = [name for name, _ in build_linear(0).named_parameters()]
ETA, DECAY = 0.3, 0.1


def flat(update: ClientUpdate, prefix: str) -> torch.Tensor:
    """What was sent under `prefix` as one vector."""
    arrays = update.arrays
    return torch.cat([torch.from_numpy(arrays[f"{prefix}/{name}"]).flatten() for name in NAMES])


def option_config(option: str, **keys: object) -> RunConfig:
    settings = {"train__batch_size": 5, "train__local_epochs": 2, "train__learning_rate": ETA}
    return config_of("scaffold", scaffold__option=option, **{**settings, **keys})


def corrected_steps(
    examples: Examples, shift: torch.Tensor, seed: int, momentum: float
) -> torch.Tensor:
    """y_k of two epochs in batches of 5 with torch's optimizer, the gradient shifted by c - c_k."""
    model = build_linear(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=ETA, momentum=momentum, weight_decay=DECAY)
    shuffler = torch_generator(seed)
    sizes = [p.numel() for p in model.parameters()]
    for _ in range(2):
        for batch in torch.randperm(len(examples), generator=shuffler).split(5):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(examples.inputs[batch]), examples.labels[batch])
            loss.backward()
            for parameter, part in zip(model.parameters(), shift.split(sizes), strict=True):
                assert parameter.grad is not None
                parameter.grad += part.view_as(parameter)
            optimizer.step()
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def one_update(config: RunConfig) -> tuple[ClientUpdate, torch.Tensor, torch.Tensor, torch.Tensor]:
    """An update of client 1 from variates that are not zero, with w_r, c and c_k."""
    strategy = Scaffold(config)
    state = initial_state(strategy, build_linear(0))
    vector = ParameterVector(build_linear(0))
    c, c_k = torch.randn(2, len(vector.values), generator=torch_generator(4)) / 10
    slots = {f"variate/{name}": part for name, part in vector.named(c).items()}
    task = client_task(
        strategy,
        ServerState(state.weights, slots),
        client_data(1),
        partition_id=1,
        kept={"variate": c_k},
    )
    return strategy.client_update(task), vector.values, c, c_k


@pytest.mark.parametrize(("option", "momentum"), [("II", 0.0), ("I", 0.0), ("I", 0.9)])
def test_local_steps_are_torch_optims_on_the_corrected_gradient(
    option: str, momentum: float
) -> None:
    config = option_config(option, train__momentum=momentum, train__weight_decay=DECAY)
    update, start, c, c_k = one_update(config)
    expected = corrected_steps(client_data(1), c - c_k, 1, momentum) - start
    plain = corrected_steps(client_data(1), torch.zeros_like(c), 1, momentum) - start
    assert torch.allclose(flat(update, "delta"), expected, atol=1e-6)
    assert not torch.allclose(flat(update, "delta"), plain, atol=1e-3)


def test_option_two_takes_the_mean_step() -> None:
    """Twelve images in batches of 5, two epochs: tau = 6."""
    update, start, c, c_k = one_update(option_config("II", train__weight_decay=DECAY))
    y = corrected_steps(client_data(1), c - c_k, 1, 0.0)
    expected = c_k - c + (start - y) / (6 * ETA)
    assert update.state is not None
    assert torch.allclose(update.state["variate"], expected, atol=1e-6)
    assert torch.allclose(flat(update, "variate-delta"), expected - c_k, atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, DECAY])
def test_option_one_takes_the_full_gradient(decay: float) -> None:
    """By autograd, of the mean loss over all twelve images and lambda/2 ||w||^2."""
    update, _, _, c_k = one_update(option_config("I", train__weight_decay=decay))
    model, data = build_linear(0), client_data(1)
    loss = functional.cross_entropy(model(data.inputs), data.labels)
    loss = loss + decay / 2 * sum(p.square().sum() for p in model.parameters())
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    expected = torch.cat([g.flatten() for g in gradients])
    assert update.state is not None
    assert torch.allclose(update.state["variate"], expected, atol=1e-6)
    assert torch.allclose(flat(update, "variate-delta"), expected - c_k, atol=1e-6)


@pytest.mark.parametrize("option", ["I", "II"])
@pytest.mark.parametrize("equal", [True, False])
def test_the_first_round_is_fedavg_at_equal_sizes(option: str, equal: bool) -> None:
    clients = [toy_data(k, size) for k, size in enumerate((6, 6, 6) if equal else (2, 6, 12))]
    ours = ToyFederation(option_config(option), clients)
    keys = {"train__batch_size": 5, "train__local_epochs": 2, "train__learning_rate": ETA}
    average = ToyFederation(config_of("fedavg", **keys), clients)
    ours.round()
    average.round()
    agree = all(
        torch.allclose(ours.state.weights[name], value, atol=1e-6)
        for name, value in average.state.weights.items()
    )
    assert agree == equal


def kept_sum(federation: ToyFederation) -> torch.Tensor:
    kept = [state["variate"] for state in federation.kept.values() if state is not None]
    return torch.stack(kept).sum(0)


def server_variate(federation: ToyFederation) -> torch.Tensor:
    return torch.cat([federation.state.slots[f"variate/{name}"].flatten() for name in NAMES])


@pytest.mark.parametrize("option", ["I", "II"])
def test_c_stays_the_mean_of_the_clients_variates(option: str) -> None:
    federation = ToyFederation(option_config(option, partition__clients=3))
    before = server_variate(federation)
    assert not before.any()
    for _ in range(4):
        federation.round()
        after = server_variate(federation)
        assert torch.allclose(after, kept_sum(federation) / 3, atol=1e-6)
        assert not torch.allclose(after, before, atol=1e-4)
        before = after


def test_under_partial_participation_absent_clients_count_with_what_they_kept() -> None:
    """c = 1/K sum c_k with K = 3 whoever replies; a client that never did has c_k = 0."""
    federation = ToyFederation(option_config("II", partition__clients=3))
    for cohort in ([0, 2], [2], [0, 2], [1]):
        federation.round(cohort)
        assert torch.allclose(server_variate(federation), kept_sum(federation) / 3, atol=1e-6)


def test_the_server_on_three_elements() -> None:
    """Two of K = 4 reply: clients count equally, buffers by examples; eta_g = 0.5."""
    config = config_of("scaffold", partition__clients=4, scaffold__server_learning_rate=0.5)
    state = ServerState(
        {"w": torch.tensor([1.0, 2.0, 3.0]), "steps": torch.tensor(0)},
        {"variate/w": torch.tensor([0.0, 1.0, -1.0])},
    )
    replies = [
        (1, [2.0, 0.0, -4.0], [1.0, 2.0, 0.0], 2, 0.5),
        (3, [6.0, 0.0, 8.0], [3.0, 2.0, -4.0], 3, 1.5),
    ]
    records = [
        Record(
            {
                "delta/w": np.array(delta, np.float32),
                "variate-delta/w": np.array(variate_delta, np.float32),
                "steps": np.array(steps),
            },
            {"num_examples": count, "train_loss": loss},
        )
        for count, delta, variate_delta, steps, loss in replies
    ]
    outcome = fold(Scaffold(config), state, records)
    assert outcome.state.weights["w"].tolist() == [1 + 2, 2.0, 3 + 1]
    assert outcome.state.slots["variate/w"].tolist() == [1.0, 2.0, -2.0]
    assert outcome.state.weights["steps"].item() == 3  # (1*2 + 3*3) / 4 = 2.75, rounded
    assert outcome.metrics == {"train_loss": 1.25}


def test_without_replies_weights_and_c_stay() -> None:
    strategy = Scaffold(config_of("scaffold"))
    state = ServerState({"w": torch.ones(3)}, {"variate/w": torch.ones(3)})
    assert fold(strategy, state, []).state is state


def test_momentum_goes_with_option_one_only() -> None:
    with pytest.raises(ConfigError, match=r"train.momentum=0.9: must be 0 with scaffold.option=II"):
        config_of("scaffold", train__momentum=0.9)
    assert config_of("scaffold", train__momentum=0.9, scaffold__option="I").train.momentum == 0.9


@pytest.mark.parametrize(("option", "expected"), [("II", 6), ("I", 9)])
def test_steps_are_counted_as_announced(option: str, expected: int) -> None:
    counted: list[None] = []
    strategy = Scaffold(option_config(option))
    state = initial_state(strategy, build_linear(0))
    strategy.client_update(
        client_task(strategy, state, client_data(1), count_step=lambda: counted.append(None))
    )
    shape = ClientShape(1, (6, 6), ModelForm(), (1, 2, 2))
    assert len(counted) == strategy.client_steps(shape) == expected


def build_normed(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def test_the_pass_of_option_one_leaves_no_trace_but_the_variate() -> None:
    """Buffers are those of the local steps, and the gradient is taken in train() mode."""
    workload = ToyWorkload(build=build_normed)
    keys = {"train__batch_size": 4, "train__learning_rate": ETA}
    sent = {}
    for option in ("I", "II"):
        config = config_of("scaffold", scaffold__option=option, **keys)
        federation = ToyFederation(config, [client_data(1)], workload)
        sent[option] = federation.round()[0].arrays
    for name, array in sent["II"].items():
        if not name.startswith("variate-delta/"):
            assert np.array_equal(array, sent["I"][name]), name
    assert sent["I"]["2.num_batches_tracked"] == 3
    model, data = build_normed(0).train(), client_data(1)
    total = torch.zeros(())
    for start in (0, 4, 8):
        window = slice(start, start + 4)
        total = total + functional.cross_entropy(
            model(data.inputs[window]), data.labels[window], reduction="sum"
        )
    (gradient,) = torch.autograd.grad(total / 12, [model.get_parameter("1.weight")])
    assert np.allclose(sent["I"]["variate-delta/1.weight"], gradient, atol=1e-6)
