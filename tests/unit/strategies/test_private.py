from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import pytest
import torch
from scipy import stats
from torch import nn

from core.config import GroupsConfig, RunConfig
from core.errors import ConfigError
from core.examples import Examples, ExampleSet, labelled
from core.parameters import ParameterVector
from core.seeds import torch_generator
from core.workload import Objective
from models.convnet import ConvNet
from pairing.configuration import parse_config
from privacy.mechanism import GaussianSums
from privacy.noise import SeededNoise
from server.preparation import prepare
from strategies.base import ClientUpdate
from strategies.fedavg import FedAvg
from strategies.feddm import FedDM
from strategies.local_sgd import num_steps, train_locally
from strategies.private import (
    fits,
    noised_steps,
    private_problems,
    refuse_large_delta,
    refuse_unfit_model,
)
from strategies.table import STRATEGIES
from tests.conftest import tiny_keys
from tests.unit.privacy.noises import NoNoise
from tests.unit.strategies.toy import ToyObjective, ToyWorkload


@dataclass(frozen=True)
class Eight(ToyWorkload):
    """Images that are 8 pixels wide."""

    input_shape: tuple[int, int, int] = (1, 8, 8)

    def training_examples(self) -> Examples:
        inputs = torch.randn(20, 1, 8, 8, generator=torch_generator(1))
        return Examples(inputs, torch.arange(20) % 2)


EIGHT = Eight()
DP_SGD = {"privacy.mechanism": "dp-sgd", "privacy.epsilon": 4.0}
MATCHING = {"feddm.initialisation": "noise", "privacy.epsilon": 4.0}


def refused(**keys: object) -> str:
    flat = {k.replace("__", ".").replace("_", "-"): v for k, v in keys.items()}
    with pytest.raises(ConfigError) as caught:
        parse_config(flat)
    return str(caught.value)


def test_which_methods_can_be_made_private_by_what() -> None:
    table = {
        mechanism: {name for name, kind in STRATEGIES.items() if fits(kind, mechanism)}
        for mechanism in ("dp-sgd", "gradient", "feature", "client")
    }
    averaging = {"fedavg", "fedprox", "scaffold", "fedavgm", "fedadam", "fedyogi", "fedadagrad"}
    assert table["dp-sgd"] == averaging | {"fednova", "trimmed-mean", "median", "multi-krum"}
    assert table["gradient"] == table["feature"] == {"feddm"}
    assert table["client"] == averaging


@pytest.mark.parametrize("name", ["local", "centralized", "real-images"])
def test_what_nothing_makes_private_says_so(name: str) -> None:
    text = refused(strategy=name, privacy__mechanism="dp-sgd", privacy__epsilon=4)
    assert "no mechanism makes it private; take another strategy" in text


@pytest.mark.parametrize(
    ("keys", "way_out"),
    [
        ({"strategy": "fedavg", "privacy.mechanism": "dp-sgd"}, "set privacy.epsilon=4"),
        ({"strategy": "fedavg", "privacy.mechanism": "gradient"}, "privacy.mechanism=dp-sgd"),
        ({"strategy": "feddm", **MATCHING, "privacy.mechanism": "dp-sgd"}, "gradient or feature"),
        (
            {"strategy": "feddm", "privacy.epsilon": 4, "privacy.mechanism": "gradient"},
            "set feddm.initialisation=noise",
        ),
        (
            {
                "strategy": "feddm",
                **MATCHING,
                "privacy.mechanism": "gradient",
                "mosaic.weighting": "counts",
            },
            "privacy.mechanism=feature, which tells noised ones",
        ),
        (
            {
                "strategy": "feddm",
                **MATCHING,
                "privacy.mechanism": "feature",
                "mosaic.min-examples": 5,
            },
            "a private run sends every class",
        ),
        ({"strategy": "fedavg", **DP_SGD, "train.weighting": "examples"}, "auto weighs equally"),
        ({"strategy": "fedavg", **DP_SGD, "train.local-epochs": 2}, "set privacy.steps"),
        ({"strategy": "scaffold", **DP_SGD, "scaffold.option": "I"}, "set scaffold.option=II"),
        ({"strategy": "fedavg", **DP_SGD, "privacy.accountant": "gdp"}, "understates epsilon"),
        ({"strategy": "fedavg", "privacy.clip": 2.0}, "read only with privacy.mechanism"),
        (
            {
                "strategy": "fedavg",
                **DP_SGD,
                "privacy.mechanism": "client",
                "canaries.kind": "noise",
            },
            "before the server noises them",
        ),
        ({"strategy": "fedavg", "privacy.ledger": "x"}, "nothing is charged without"),
        ({"strategy": "fedavg", **DP_SGD, "privacy.clip": 1e-9}, "at least 1e-06"),
        (
            {"strategy": "fedavg", **DP_SGD, "privacy.mechanism": "client", "privacy.steps": 3},
            "read only with privacy.mechanism=dp-sgd or feature",
        ),
        (
            {
                "strategy": "feddm",
                **MATCHING,
                "privacy.mechanism": "feature",
                "privacy.steps": 30,
                "feddm.iterations": 20,
            },
            "raise feddm.iterations",
        ),
    ],
)
def test_what_would_leak_is_refused_with_the_way_out(keys: dict[str, object], way_out: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(keys)
    assert way_out in str(caught.value)


def test_a_private_run_that_keeps_the_rules_is_accepted() -> None:
    assert parse_config({"strategy": "fedavg", **DP_SGD}).weighs_equally
    feature = {
        "strategy": "feddm",
        **MATCHING,
        "privacy.mechanism": "feature",
        "mosaic.weighting": "counts",
    }
    assert noised_steps(parse_config(feature)) == 20
    gradient = {"strategy": "feddm", **MATCHING, "privacy.mechanism": "gradient"}
    assert noised_steps(parse_config(gradient | {"feddm.iterations": 7})) == 7
    client = {"strategy": "fedavg", "privacy.mechanism": "client", "privacy.epsilon": 4}
    assert noised_steps(parse_config(client)) == 1


class Sends(FedAvg):
    """A user's own half, under a base that promises gradient steps."""

    name = "sends"

    def client_update(self, task):  # type: ignore[no-untyped-def]
        return ClientUpdate({}, {})


class Vouches(Sends):
    client_half = "gradient-steps"


class OwnServer(FedAvg):
    name = "own-server"

    def finish(self, state, accumulator, task):  # type: ignore[no-untyped-def]
        return super().finish(state, accumulator, task)


class RealOnes(FedDM):
    """A user's own images under FedDM's name for its half."""

    name = "real-ones"

    def images(self, task, wanted):  # type: ignore[no-untyped-def]
        return None


class Tells(FedAvg):
    name = "tells"

    def sent_metrics(self, names):  # type: ignore[no-untyped-def]
        return tuple(names)


class Checks(FedAvg):
    """Writes nothing anew that changes what a client sends."""

    name = "checks"

    def check_reply(self, reply, client):  # type: ignore[no-untyped-def]
        return []


def test_what_a_base_calls_belongs_to_its_half() -> None:
    assert not fits(RealOnes, "gradient") and not fits(RealOnes, "feature")
    assert not fits(Tells, "dp-sgd") and not fits(Tells, "client")
    assert fits(Checks, "dp-sgd") and fits(Checks, "client")


def test_a_half_that_is_written_anew_must_be_vouched_for() -> None:
    assert fits(FedAvg, "dp-sgd") and not fits(Sends, "dp-sgd") and fits(Vouches, "dp-sgd")
    assert fits(FedAvg, "client") and not fits(OwnServer, "client") and fits(OwnServer, "dp-sgd")
    config = parse_config({"strategy": "fedavg", **DP_SGD})
    assert "no mechanism" in next(iter(private_problems(Sends, config))).rule


@pytest.mark.parametrize("mechanism", ["dp-sgd", "client"])
def test_batch_norm_is_refused(mechanism: str) -> None:
    config = parse_config(
        {"strategy": "fedavg", "privacy.mechanism": mechanism, "privacy.epsilon": 4}
    )
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    with pytest.raises(ConfigError, match="GroupNorm"):
        refuse_unfit_model(config, model, EIGHT)
    refuse_unfit_model(config, ConvNet((1, 8, 8), 3, width=4, depth=2), EIGHT)
    refuse_unfit_model(RunConfig(), model, EIGHT)


class Centring(nn.Module):
    """Takes the mean over the batch off its features: no batch norm, and couples examples."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 5)
        self.drop = nn.Dropout(0.5)
        self.classifier = nn.Linear(5, 3)
        self.centres = True

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        h: torch.Tensor = self.drop(self.layer(x.flatten(1)))
        return h - h.mean(0) if self.centres else h

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.embed(x))
        return logits


@pytest.mark.parametrize(
    "keys",
    [
        {"strategy": "fedavg", **DP_SGD},
        {"strategy": "feddm", **MATCHING, "privacy.mechanism": "gradient"},
        {"strategy": "feddm", **MATCHING, "privacy.mechanism": "feature"},
    ],
)
def test_a_model_that_couples_examples_is_refused(keys: dict[str, object]) -> None:
    config, model = parse_config(keys), Centring()
    with pytest.raises(ConfigError, match="beside other examples"):
        refuse_unfit_model(config, model, EIGHT)
    model.centres = False
    refuse_unfit_model(config, model, EIGHT)
    assert model.training and model.drop.training


class Compared(ToyObjective):
    """Of each example, how much worse it is than the mean of its batch."""

    def losses(self, batch: torch.Tensor) -> torch.Tensor:
        found = super().losses(batch)
        return found - found.mean()


class OfBatch(ToyObjective):
    def losses(self, batch: torch.Tensor) -> torch.Tensor:
        return super().losses(batch).mean()


@pytest.mark.parametrize(
    ("kind", "told"),
    [(Compared, "beside other examples"), (OfBatch, "makes one loss of a batch")],
)
def test_a_loss_that_couples_examples_is_refused_though_its_model_does_not(
    kind: type[ToyObjective], told: str
) -> None:
    class Coupling(Eight):
        def objective(
            self, model: nn.Module, examples: ExampleSet, *, seed: int, partition_id: int | None
        ) -> Objective:
            return kind(self, model, labelled(examples))

    model = ConvNet((1, 8, 8), 3, width=4, depth=2)
    config = parse_config({"strategy": "fedavg", **DP_SGD})
    refuse_unfit_model(config, model, EIGHT)
    with pytest.raises(ConfigError, match=told):
        refuse_unfit_model(config, model, Coupling())


def test_noise_at_client_level_spares_what_nobody_moves() -> None:
    """A parameter that is held fixed would wander off with the noise, round after round."""
    config = parse_config(
        {"strategy": "fedavg", "privacy.mechanism": "client", "privacy.epsilon": 4}
    )
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    refuse_unfit_model(config, model, EIGHT)
    model[0].weight.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"0\.weight\), which noise would spoil.*groups\.frozen"):
        refuse_unfit_model(config, model, EIGHT)
    frozen = dataclasses.replace(config, groups=GroupsConfig(frozen="0.weight"))
    refuse_unfit_model(config, model, Eight(frozen))

    class Moving(Eight):
        def is_moved(self, entry: str) -> bool:
            return entry == "0.weight"

    refuse_unfit_model(config, model, Moving())


def test_untrained_entries_that_would_be_sent_are_refused() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.register_buffer("seen", torch.zeros(()))

    config = parse_config({"strategy": "fedavg", **DP_SGD})
    with pytest.raises(ConfigError, match="seen"):
        refuse_unfit_model(config, Counting(), EIGHT)


def test_delta_must_be_below_one_over_the_examples() -> None:
    privacy = parse_config({"strategy": "fedavg", **DP_SGD, "privacy.delta": 1e-3}).privacy
    refuse_large_delta(privacy, [10, 999])
    with pytest.raises(ConfigError, match="must be below 1/1000"):
        refuse_large_delta(privacy, [10, 1000])
    with pytest.raises(ConfigError, match="1e-05 would do"):
        refuse_large_delta(privacy, [5000])


def local(
    mechanism: GaussianSums | None, num_inputs: int = 3, **keys: object
) -> tuple[torch.Tensor, float, int]:
    """Weights after local training on ten examples, its loss and its steps."""
    torch.manual_seed(0)
    model = nn.Linear(num_inputs, 2)
    parameters = ParameterVector(model)
    examples = Examples(torch.randn(10, num_inputs), torch.randint(2, (10,)))
    config = parse_config({"strategy": "fedavg", "train.batch-size": 10, **keys})
    count = 0

    def counted() -> None:
        nonlocal count
        count += 1

    loss = train_locally(
        parameters,
        ToyObjective(ToyWorkload(), model, examples),
        config.train,
        seed=3,
        mechanism=mechanism,
        correction=(lambda values: 0.1 * values) if "corrected" in keys else None,
        count_step=counted,
    )
    return parameters.values.clone(), loss, count


def sums(rate: float, steps: int, sigma: float = 0.0, clip: float = math.inf) -> GaussianSums:
    return GaussianSums(
        "dp-sgd",
        clip=clip,
        noise_multiplier=sigma,
        sampling_rate=rate,
        steps=steps,
        source=SeededNoise(1) if sigma else NoNoise(),
    )


def test_without_noise_and_clip_full_samples_are_full_batches() -> None:
    plain, _, _ = local(None, **{"train.local-epochs": 4})
    noised, loss, count = local(sums(1.0, 4))
    assert torch.allclose(noised, plain, atol=1e-6)
    assert math.isnan(loss), "a private loop tells no loss"
    assert count == 4


def test_noise_is_added_once_a_step_at_the_stated_scale() -> None:
    """With empty samples a step is noise alone: the rate times sigma C / batch-size."""
    steps, num_inputs = 50, 1000
    start, _, _ = local(sums(1e-12, 1), num_inputs)
    noise = sums(1e-12, steps, sigma=2.0, clip=0.5)
    moved, _, _ = local(noise, num_inputs, **{"train.learning-rate": 0.1})
    variance = (0.1 * 2.0 * 0.5 / 10) ** 2 * steps
    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], len(start))
    assert len(start) == 2002 and high < 1.2 * len(start)
    assert low < float((moved - start).double().square().sum() / variance) < high


def test_an_objective_is_told_of_noised_steps_as_of_others() -> None:
    told: list[str] = []

    class Listening(ToyObjective):
        def before_step(self, batch: torch.Tensor) -> None:
            told.append("before")

        def after_step(self, batch: torch.Tensor) -> None:
            told.append("after")

    config = parse_config({"strategy": "fedavg", **DP_SGD})
    model = ConvNet((1, 8, 8), 3, width=4, depth=2)
    objective = Listening(EIGHT, model, EIGHT.training_examples())
    vector, mechanism = ParameterVector(model), sums(0.5, 3)
    train_locally(vector, objective, config.train, seed=0, mechanism=mechanism)
    assert told == ["before", "after"] * 3


def test_steps_are_a_constant_of_the_configuration() -> None:
    config = parse_config({"strategy": "fedavg", **DP_SGD, "privacy.steps": 7})
    assert {num_steps(count, config) for count in (1, 10, 5000)} == {7}
    client = parse_config(
        {"strategy": "fedavg", "privacy.mechanism": "client", "privacy.epsilon": 1}
    )
    assert num_steps(65, client) == 3
    nova = parse_config(tiny_keys("fednova") | {**DP_SGD, "privacy.delta": 1e-4})
    strategy = prepare(nova).strategy
    shapes = prepare(nova).client_shapes()
    assert len({shape.num_examples for shape in shapes}) > 1
    assert len({strategy._a_norm(shape.num_examples) for shape in shapes}) == 1  # type: ignore[attr-defined]
