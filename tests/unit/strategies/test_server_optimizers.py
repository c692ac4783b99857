"""FedAvgM, FedAdam, FedYogi, FedAdagrad: rounds by hand, and Flower's strategies as an oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torchvision
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy.fedopt import FedOpt
from torch import nn

from core.config import RunConfig
from core.examples import Examples
from core.seeds import torch_generator
from core.wire import Record
from engine.flwr_seam import run_identity
from strategies.base import ServerState
from strategies.table import STRATEGIES, build_strategy
from tests.unit.strategies.toy import ToyFederation, ToyWorkload, config_of, fold, initial_state

OPTIMIZERS = ["fedavgm", "fedadam", "fedyogi", "fedadagrad"]


def replies_moving(weights: torch.Tensor, difference: Sequence[float]) -> list[Record]:
    """Clients of 1 and 3 examples whose mean by examples is w + D, each far from it."""
    mean, apart = weights + torch.tensor(difference), torch.tensor([1.0, 2.0, -1.0])
    return [
        Record(
            {"w": y.numpy(), "steps": np.array(steps)}, {"num_examples": count, "train_loss": loss}
        )
        for count, y, steps, loss in ((1, mean + 3 * apart, 2, 0.5), (3, mean - apart, 3, 1.5))
    ]


# Chosen so that every root is a whole number or a plain fraction; elements that do not move in a
# round have D = 0. Each row: settings, the two rounds' D, weights and slots after each.
BY_HAND = {
    # v = 0.5 v - D, w -= 2 v
    "fedavgm": (
        {"momentum": 0.5, "server_learning_rate": 2.0},
        [[1.0, -2.0, 0.0], [0.0, 4.0, 1.0]],
        [[2.0, -4.0, 0.0], [3.0, 2.0, 2.0]],
        [{"velocity": [-1.0, 2.0, 0.0]}, {"velocity": [-0.5, -3.0, -1.0]}],
    ),
    # v = (v + D^2) / 2 from 9; w += 6 m / (sqrt(v) + 3)
    "fedadam": (
        {"beta1": 0.5, "beta2": 0.5, "epsilon": 3.0, "server_learning_rate": 6.0},
        [[3.0, -21.0, 0.0], [-21.0, 15.0, 6.0]],
        [[1.5, -3.5, 0.0], [1.5 - 3.25, -3.5 + 0.75, 2.4]],
        [
            {"momentum": [1.5, -10.5, 0.0], "second-moment": [9.0, 225.0, 4.5]},
            {"momentum": [-9.75, 2.25, 3.0], "second-moment": [225.0, 225.0, 20.25]},
        ],
    ),
    # v = v - D^2 sign(v - D^2) / 2 from 81; w += m / (sqrt(v) + 9); the third v meets D^2 = v
    "fedyogi": (
        {"beta1": 0.5, "beta2": 0.5, "epsilon": 9.0, "server_learning_rate": 1.0},
        [[8.0, -36.0, 9.0], [8.0, 24.0, -8.0]],
        [[0.25, -0.5, 0.25], [0.25 + 6 / 18, -0.5 + 3 / 30, 0.25 - 1.75 / 16]],
        [
            {"momentum": [4.0, -18.0, 4.5], "second-moment": [49.0, 729.0, 81.0]},
            {"momentum": [6.0, 3.0, -1.75], "second-moment": [81.0, 441.0, 49.0]},
        ],
    ),
    # v = v + D^2 from 9; w += D / (sqrt(v) + 3)
    "fedadagrad": (
        {"epsilon": 3.0, "server_learning_rate": 1.0},
        [[4.0, -4.0, 0.0], [12.0, 0.0, 4.0]],
        [[0.5, -0.5, 0.0], [1.25, -0.5, 0.5]],
        [{"second-moment": [25.0, 25.0, 9.0]}, {"second-moment": [169.0, 25.0, 25.0]}],
    ),
}


def options(strategy: str, settings: Mapping[str, float]) -> RunConfig:
    return config_of(strategy, **{f"{strategy}__{key}": value for key, value in settings.items()})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_rounds_by_hand(name: str) -> None:
    settings, differences, weights, slots = BY_HAND[name]
    strategy = build_strategy(options(name, settings))
    initial = {"w": torch.zeros(3), "steps": torch.tensor(0)}
    state = ServerState(initial, strategy.initial_slots(initial, ("w",)))
    for difference, expected, expected_slots in zip(differences, weights, slots, strict=True):
        outcome = fold(strategy, state, replies_moving(state.weights["w"], difference))
        state = outcome.state
        assert state.weights["w"].tolist() == pytest.approx(expected, abs=1e-6)
        assert state.slots.keys() == {f"{slot}/w" for slot in expected_slots}
        for slot, values in expected_slots.items():
            assert state.slots[f"{slot}/w"].tolist() == pytest.approx(values, rel=1e-6)
        assert state.weights["steps"].item() == 3  # (1*2 + 3*3) / 4 = 2.75, rounded
        assert outcome.metrics == {"train_loss": 1.25}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_replies_weights_and_slots_stay(name: str) -> None:
    strategy = build_strategy(config_of(name))
    weights = {"w": torch.ones(3)}
    state = ServerState(weights, strategy.initial_slots(weights, ("w",)))
    assert fold(strategy, state, []).state is state


def test_slots_start_as_algorithm_two_has_them() -> None:
    weights = {"w": torch.ones(2), "mean": torch.ones(2)}
    for name in ("fedadam", "fedyogi"):
        strategy = build_strategy(options(name, {"epsilon": 0.5}))
        slots = strategy.initial_slots(weights, ("w",))
        assert {key: slot.tolist() for key, slot in slots.items()} == {
            "momentum/w": [0.0, 0.0],
            "second-moment/w": [0.25, 0.25],
        }
    slots = build_strategy(options("fedadagrad", {"epsilon": 0.5})).initial_slots(weights, ("w",))
    assert {key: slot.tolist() for key, slot in slots.items()} == {"second-moment/w": [0.25, 0.25]}


def test_defaults_are_the_papers() -> None:
    flat = config_of("fedadam").flat() | config_of("fedyogi").flat()
    for name in ("fedadam", "fedyogi"):
        keys = {"beta1": 0.9, "beta2": 0.99, "epsilon": 1e-3, "server-learning-rate": 0.1}
        assert {key: flat[f"{name}.{key}"] for key in keys} == keys


def test_fedavgm_without_momentum_is_fedavg() -> None:
    """To the last bit but one: w + (mean - w) is rounded once more than the mean."""
    keys = {"train__batch_size": 4, "train__local_epochs": 2}
    ours = ToyFederation(config_of("fedavgm", fedavgm__momentum=0.0, **keys))
    other = ToyFederation(config_of("fedavgm", **keys))
    average = ToyFederation(config_of("fedavg", **keys))
    for _ in range(3):
        for federation in (ours, other, average):
            federation.round()
    for name, value in average.state.weights.items():
        assert torch.allclose(ours.state.weights[name], value, rtol=1e-6, atol=1e-7), name
    assert any(
        not torch.allclose(other.state.weights[name], value, atol=1e-3)
        for name, value in average.state.weights.items()
    )


def flower_message(weights: npt.NDArray[np.float64], num_examples: int) -> Message:
    content = RecordDict(
        {
            "arrays": ArrayRecord({"w": Array(weights)}),
            "metrics": MetricRecord({"num-examples": num_examples}),
        }
    )
    return Message(content, dst_node_id=1, message_type="train")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_flowers_strategy_makes_the_same_rounds(name: str) -> None:
    """In float64, five rounds of three clients.

    Flower starts the second moment at zero, so it is given ours; its FedAdam corrects for bias, by
    a factor that its learning rate is divided by here. Its FedAvgM keeps the weights itself.
    """
    references: dict[str, FedOpt | flower.FedAvgM] = {
        "fedavgm": flower.FedAvgM(server_learning_rate=0.7, server_momentum=0.8),
        "fedadam": flower.FedAdam(eta=0.05, beta_1=0.8, beta_2=0.9, tau=0.01),
        "fedyogi": flower.FedYogi(eta=0.05, beta_1=0.8, beta_2=0.9, tau=0.01),
        "fedadagrad": flower.FedAdagrad(eta=0.05, tau=0.01),
    }
    reference = references[name]
    settings = {
        "fedavgm": {"server_learning_rate": 0.7, "momentum": 0.8},
        "fedadagrad": {"server_learning_rate": 0.05, "epsilon": 0.01},
    }.get(name, {"server_learning_rate": 0.05, "beta1": 0.8, "beta2": 0.9, "epsilon": 0.01})
    strategy = build_strategy(options(name, settings))
    generator = np.random.default_rng(3)
    start = generator.normal(size=4)
    weights = {"w": torch.from_numpy(start.copy())}
    state = ServerState(weights, strategy.initial_slots(weights, ("w",)))
    if isinstance(reference, FedOpt):
        reference.v_t = {"w": np.full(4, 0.01**2)}
    else:
        reference.current_arrays = ArrayRecord({"w": Array(start.copy())})
    for number in range(1, 6):
        before = state.weights["w"].numpy()
        sent = [(n, before + generator.normal(size=4) / number**2) for n in (2, 7, 4)]
        if isinstance(reference, FedOpt):
            reference.current_arrays = {"w": before.copy()}
        if isinstance(reference, flower.FedAdam):
            factor = np.sqrt(1 - 0.9 ** (number + 1)) / (1 - 0.8 ** (number + 1))
            reference.eta = 0.05 / factor
        with run_identity(1):
            messages = [flower_message(y, n) for n, y in sent]
        theirs, _ = reference.aggregate_train(number, messages)
        records = [Record({"w": y}, {"num_examples": n, "train_loss": 0.0}) for n, y in sent]
        state = fold(strategy, state, records).state
        assert theirs is not None
        expected = theirs["w"].numpy()
        assert not np.allclose(expected, before, atol=1e-4)
        assert np.allclose(state.weights["w"].numpy(), expected, rtol=0, atol=1e-12)


def build_resnet(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net: nn.Module = torchvision.models.resnet18(num_classes=2)
        return net


@pytest.mark.parametrize("name", ["fednova", "scaffold", *OPTIMIZERS])
def test_resnet18_with_batch_norm_runs_a_round(name: str) -> None:
    """Buffers are averaged by examples whatever is done to the parameters."""
    assert name in STRATEGIES
    generator = torch_generator(0)
    clients = [
        Examples(torch.randn(size, 3, 16, 16, generator=generator), torch.arange(size) % 2)
        for size in (4, 6)
    ]
    config = config_of(name, train__batch_size=4, train__learning_rate=0.01, partition__clients=2)
    federation = ToyFederation(config, clients, ToyWorkload(build=build_resnet))
    start = dict(federation.state.weights)
    sent = federation.round()
    trainable = {name for name, _ in build_resnet(0).named_parameters()}
    for key, value in federation.state.weights.items():
        assert value.isfinite().all(), key
        assert value.dtype == start[key].dtype, key
        if key in trainable:
            assert not torch.equal(value, start[key]), key
        else:
            arrays = [torch.from_numpy(np.array(update.arrays[key])).double() for update in sent]
            mean = (4 * arrays[0] + 6 * arrays[1]) / 10
            assert torch.allclose(
                value.double(), mean if value.is_floating_point() else mean.round()
            )
    # One batch and two: (4 * 1 + 6 * 2) / 10, rounded.
    assert federation.state.weights["bn1.num_batches_tracked"] == 2
    slots = initial_state(federation.strategy, build_resnet(0)).slots
    assert {key.partition("/")[2] for key in slots} == (trainable if slots else set())
