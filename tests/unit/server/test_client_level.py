"""Client-level privacy at the server: what is folded, who pays, who is asked, what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from safetensors.torch import load_file

from core.config import RunConfig
from core.errors import ConfigError, PrivacyError, RecordError, RunError
from core.parameters import ParameterVector
from core.records import RunFolder
from core.wire import ArraySpec, Record, RecordSpec
from data.dataset import image_dataset
from engine.flwr_seam import run_identity
from pairing.configuration import parse_config
from privacy.ledger import SEEDED, Budget, Charge, Ledger, owner_of, read_ledgers
from privacy.noise import injected_noise
from server.client_level import PaidRound, TrustedServer
from server.cohort import Cohort, draw_cohort
from server.preparation import Preparation, prepare
from strategies.base import (
    ClientShape,
    ClientTask,
    ClientUpdate,
    Reply,
    RoundOutcome,
    ServerState,
    ServerTask,
    tensors_of,
)
from strategies.fedavg import FedAvg, FedAvgClient, WeightedSum
from strategies.private import fits
from strategies.table import STRATEGIES
from tests.conftest import Federate, tiny_keys
from tests.unit.privacy.noises import NoNoise

FITTING = ["fedadagrad", "fedadam", "fedavg", "fedavgm", "fedprox", "fedyogi", "scaffold"]
CLIENT = {"privacy.mechanism": "client", "privacy.noise-multiplier": 1.0}


def private(strategy: str, **keys: object) -> dict[str, object]:
    return {**CLIENT, **tiny_keys(strategy, **keys)}


def state_of(path: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(RunFolder.open(path).checkpoint(2))
    return {name: value for name, value in tensors.items() if name != "acknowledged"}


STEADY = {name: {f"{name}.epsilon": 0.1} for name in ("fedadagrad", "fedadam", "fedyogi")}
"""Adaptive steps divide by the root of a mean square that may be near 0; they enlarge the rounding
of the clip by the learning rate over this, which by default is a hundredfold and more."""


def test_these_methods_fit() -> None:
    assert sorted(name for name, kind in STRATEGIES.items() if fits(kind, "client")) == FITTING


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        *((name, STEADY.get(name, {})) for name in FITTING),
        ("scaffold", {"scaffold.option": "I", "train.momentum": 0.5}),
        ("fedavg", {"cohort.size": 2}),
    ],
)
def test_without_noise_and_clip_it_is_the_plain_method(
    strategy: str, options: Mapping[str, object], federate: Federate
) -> None:
    plain = federate({**tiny_keys(strategy, train__weighting="equal"), **options})
    with injected_noise(NoNoise()):
        path = federate({**private(strategy, privacy__clip=1e6), **options})
    expected, found = state_of(plain), state_of(path)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)
    last = RunFolder.open(path).read_rounds()[-1]
    assert all(client.outcome == "counted" for client in last.clients)
    assert all(set(client.metrics) <= {"epsilon"} for client in last.clients)
    told = RunFolder.open(path).read_json("privacy")["spent"]
    assert (told["epsilon"], told["note"]) == (None, SEEDED)


def test_a_private_run_learns_its_cost(federate: Federate) -> None:
    folder = RunFolder.open(federate(private("fedavg")))
    records = folder.read_rounds()
    first, last = records[1].server, records[2].server
    assert first["epsilon"] == last["epsilon_round"] < last["epsilon"]
    assert "snr" in records[1].server
    identity = folder.read_json("run")["identity"]
    ledgers = read_ledgers(folder.ledgers, f"{folder.path.name}/{identity}")
    assert sorted(ledgers) == [0, 1, 2]
    for (charges,) in ledgers.values():
        assert [(c.round, c.unit, c.sampling_rate, c.steps) for c in charges] == [
            (1, "client", 1.0, 1),
            (2, "client", 1.0, 1),
        ]


class Spy(FedAvg):
    """FedAvg that keeps what it was handed."""

    handed: list[Reply]

    def begin(self, state: ServerState) -> WeightedSum:
        self.handed = []
        return super().begin(state)

    def add(self, accumulator: WeightedSum, reply: Reply) -> WeightedSum:
        self.handed.append(reply)
        return super().add(accumulator, reply)


def prepared(tmp_path: Path, **keys: object) -> tuple[Preparation, TrustedServer]:
    config = parse_config({"runs": str(tmp_path), **private("fedavg", **keys)})
    preparation = prepare(config)
    assert preparation.privacy is not None
    folder = RunFolder(tmp_path / "run")
    return preparation, TrustedServer(preparation, folder, preparation.privacy)


def cohort_of(config: RunConfig, round: int = 1) -> Cohort:
    return draw_cohort(config, [0, 1, 2], round)


def server_task(preparation: Preparation) -> ServerTask:
    return ServerTask(
        round=1,
        seed=5,
        parameters=ParameterVector(preparation.workload.build_model(98)),
        workload=preparation.workload,
        device=torch.device("cpu"),
        count_step=lambda: None,
    )


def fold(
    half: PaidRound, preparation: Preparation, replies: Mapping[int, Record]
) -> tuple[ServerState, RoundOutcome]:
    state = preparation.initial_state()
    accumulator = half.begin(state)
    for k, record in replies.items():
        accumulator = half.add(accumulator, Reply(k, record))
    return state, half.finish(state, accumulator, server_task(preparation))


def moved(state: ServerState, by: float) -> Record:
    """The weights, each entry moved by `by`."""
    return Record({name: (value + by).numpy() for name, value in state.weights.items()})


def test_updates_are_clipped_and_a_lost_client_leaves_the_denominator(tmp_path: Path) -> None:
    with injected_noise(NoNoise()):
        preparation, trusted = prepared(tmp_path, privacy__clip=0.5)
        half = trusted.charge(cohort_of(preparation.config), 1)
    start = preparation.initial_state()
    d = sum(value.numel() for value in start.weights.values())
    small = 0.1 / d**0.5
    replies = {0: moved(start, 1000 * small), 2: moved(start, -small)}
    state, outcome = fold(half, preparation, replies)
    for name, value in state.weights.items():
        expected = value.double() + (5 * small - small) / 3
        torch.testing.assert_close(
            outcome.state.weights[name].double(), expected, atol=1e-6, rtol=0
        )


def test_without_a_reply_the_model_stays_as_it_was(tmp_path: Path) -> None:
    preparation, trusted = prepared(tmp_path)
    half = trusted.charge(cohort_of(preparation.config), 1)
    state, outcome = fold(half, preparation, {})
    for name, value in state.weights.items():
        assert torch.equal(outcome.state.weights[name], value)


def test_the_strategy_sees_nothing_but_the_noised_mean(tmp_path: Path) -> None:
    preparation, trusted = prepared(tmp_path)
    spy = Spy(preparation.config)
    paid = trusted.charge(cohort_of(preparation.config), 1)
    half = PaidRound(
        dataclasses.replace(preparation, strategy=spy), paid.mechanism, paid.cohort, 1, paid.shape
    )
    start = preparation.initial_state()
    fold(half, preparation, {0: moved(start, 0.1), 1: moved(start, 0.2)})
    assert sorted(reply.partition_id for reply in spy.handed) == [0, 1, 2]
    first = spy.handed[0].record
    for reply in spy.handed:
        assert not reply.record.metrics
        for name, array in reply.record.arrays.items():
            assert array.dtype == np.float32
            assert np.array_equal(array, first.arrays[name])


def test_the_model_is_noised_as_stated(tmp_path: Path) -> None:
    """Noise of the mean is sigma C / m on every coordinate, m the clients asked for."""
    preparation, trusted = prepared(tmp_path, privacy__clip=3.0)
    half = trusted.charge(cohort_of(preparation.config), 1)
    start = preparation.initial_state()
    _, outcome = fold(half, preparation, {1: moved(start, 0.0)})
    noise = torch.cat(
        [(outcome.state.weights[n] - v).double().flatten() for n, v in start.weights.items()]
    )
    assert float(noise.std()) == pytest.approx(1.0 * 3.0 / 3, rel=6 / (2 * len(noise)) ** 0.5)
    again = trusted.charge(cohort_of(preparation.config), 1)
    _, other = fold(again, preparation, {1: moved(start, 0.0)})
    assert any(not torch.equal(other.state.weights[n], w) for n, w in outcome.state.weights.items())


def test_every_client_asked_has_paid_before_any_trains(
    federate: Federate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ledgers = tmp_path / "ledgers"
    paid: list[dict[int, int]] = []
    before = FedAvgClient.client_update

    def client_update(self: FedAvgClient, task: ClientTask) -> ClientUpdate:
        files = [json.loads(path.read_text()) for path in ledgers.glob("partition-*.json")]
        paid.append({file["partition_id"]: len(file["charges"]) for file in files})
        return before(self, task)

    monkeypatch.setattr(FedAvgClient, "client_update", client_update)
    federate({**private("fedavg"), "privacy.ledger": str(ledgers), "faults.dropout-rate": 0.3})
    assert paid
    assert all(sorted(counts) == [0, 1, 2] for counts in paid)
    assert {count for counts in paid for count in counts.values()} <= {1, 2}
    assert all(len(set(counts.values())) == 1 for counts in paid)


def spend(preparation: Preparation, folder: Path, partition_id: int, sigma: float) -> None:
    """A charge of another run."""
    indices = torch.from_numpy(preparation.partition.clients[partition_id])
    own = image_dataset(preparation.workload.dataset).train.take(indices)
    owner = owner_of(own.images, own.labels)
    charge = Charge(
        run="another",
        round=1,
        unit="client",
        mechanism="client",
        noise_multiplier=sigma,
        sampling_rate=1.0,
        steps=1,
        system_noise=True,
    )
    Ledger(folder, partition_id, owner).charge(charge, Budget(0.0, 1e-5, "rdp"))


BUDGET = {
    "privacy.mechanism": "client",
    "privacy.epsilon": 4.0,
    "privacy.accountant": "rdp",
    "privacy.clip": 1e6,
}


def test_a_client_without_budget_is_not_asked(federate: Federate, tmp_path: Path) -> None:
    keys = {**tiny_keys("fedavg"), **BUDGET, "privacy.ledger": str(tmp_path / "ledgers")}
    spend(prepare(parse_config(keys)), tmp_path / "ledgers", 1, sigma=1.0)
    records = RunFolder.open(federate(keys)).read_rounds()[1:]
    for record in records:
        barred = record.clients[1]
        assert (barred.outcome, barred.bytes_down, barred.bytes_up) == ("failed", 0, 0)
        assert "client 1 has no budget left" in str(barred.failure)
        assert [record.clients[k].outcome for k in (0, 2)] == ["counted"] * 2
    file = json.loads(next((tmp_path / "ledgers").glob("partition-00001-*.json")).read_text())
    assert [charge["run"] for charge in file["charges"]] == ["another"]


def test_nobody_with_budget_is_a_run_that_ends(federate: Federate, tmp_path: Path) -> None:
    keys = {**tiny_keys("fedavg"), **BUDGET, "privacy.ledger": str(tmp_path / "ledgers")}
    for k in range(3):
        spend(prepare(parse_config(keys)), tmp_path / "ledgers", k, sigma=1.0)
    with pytest.raises(RunError, match="no budget left"):
        federate(keys)


def test_who_has_not_paid_is_not_added(tmp_path: Path) -> None:
    preparation, trusted = prepared(tmp_path)
    paid = trusted.charge(cohort_of(preparation.config), 1)
    half = PaidRound(
        paid.preparation, paid.mechanism, paid.cohort.without({1: "spent"}), 1, paid.shape
    )
    start = preparation.initial_state()
    with pytest.raises(AssertionError, match="has paid"):
        fold(half, preparation, {1: moved(start, 0.1)})


class CountsSteps(FedAvg):
    """Sends an integer beside its update, and vouches for its halves nevertheless."""

    def reply_spec(self, client: ClientShape, round: int) -> RecordSpec:
        form = super().reply_spec(client, round)
        return RecordSpec({**form.arrays, "steps": ArraySpec((), "int64")}, form.metrics)


def test_nobody_pays_for_replies_that_cannot_be_noised(tmp_path: Path) -> None:
    preparation, _ = prepared(tmp_path)
    unfit = replace(preparation, strategy=CountsSteps(preparation.config))
    assert unfit.privacy is not None
    trusted = TrustedServer(unfit, RunFolder(tmp_path / "run"), unfit.privacy)
    with pytest.raises(PrivacyError, match=r"'steps' .* torch.int64"):
        trusted.charge(cohort_of(preparation.config), 1)
    assert not list((tmp_path / "run/ledgers").glob("partition-*.json"))


def test_a_round_that_is_done_again_is_charged_again(tmp_path: Path) -> None:
    preparation, trusted = prepared(tmp_path)
    for _ in range(2):
        trusted.charge(cohort_of(preparation.config), 1)
    resumed = prepared(tmp_path)[1]
    resumed.charge(cohort_of(preparation.config), 1)
    files = [json.loads(path.read_text()) for path in (tmp_path / "run/ledgers").glob("*.json")]
    assert [[charge["round"] for charge in file["charges"]] for file in files] == [[1, 1, 1]] * 3


def test_a_client_pays_for_the_rounds_that_ask_it(tmp_path: Path) -> None:
    preparation, trusted = prepared(tmp_path, rounds=6, cohort__size=2, seed=1)
    asked = dict.fromkeys(range(3), 0)
    for number in range(1, 7):
        cohort = cohort_of(preparation.config, number)
        trusted.charge(cohort, number)
        for k in cohort.asked:
            asked[k] += 1
    files = [json.loads(path.read_text()) for path in (tmp_path / "run/ledgers").glob("*.json")]
    assert {file["partition_id"]: len(file["charges"]) for file in files} == asked
    assert preparation.privacy is not None
    assert preparation.privacy.rounds == max(asked.values())


def test_a_damaged_ledger_ends_the_run(tmp_path: Path) -> None:
    preparation, trusted = prepared(tmp_path)
    trusted.charge(cohort_of(preparation.config), 1)
    path = next((tmp_path / "run/ledgers").glob("*.json"))
    path.write_text(path.read_text().replace('"round": 1', '"round": 9'))
    with pytest.raises(RecordError, match="damaged"):
        trusted.charge(cohort_of(preparation.config), 2)


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"strategy": "fednova"}, r"a_norm of each client.*strategy=fedavg.*dp-sgd"),
        ({"strategy": "trimmed-mean"}, "but add them up"),
        ({"strategy": "feddm"}, "gradient or feature"),
        ({"strategy": "local"}, "no mechanism makes it private"),
        (
            {"strategy": "fedavg", "cohort.size": 2, "cohort.over-sampling": 0.5},
            "a spare client in where another fails",
        ),
        ({"strategy": "fedavg", "train.weighting": "examples"}, "train.weighting"),
    ],
)
def test_what_would_leak_is_refused(keys: Mapping[str, object], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        parse_config({**CLIENT, **keys})


def flowers_mean(
    start: Mapping[str, torch.Tensor], replies: Sequence[Record], clip: float, sigma: float
) -> dict[str, torch.Tensor]:
    """Flower's wrapper around its own FedAvg."""
    wrapper = DifferentialPrivacyServerSideFixedClipping(FlowerFedAvg(), sigma, clip, len(replies))
    wrapper.current_arrays = ArrayRecord(dict(start))
    with run_identity(1):
        messages = [
            Message(
                RecordDict(
                    {
                        "arrays": ArrayRecord(tensors_of(record.arrays)),
                        "metrics": MetricRecord({"num-examples": 1}),
                    }
                ),
                reply_to=Message(RecordDict(), dst_node_id=k + 1, message_type="train"),
            )
            for k, record in enumerate(replies)
        ]
        arrays, _ = wrapper.aggregate_train(1, messages)
    assert arrays is not None
    return dict(arrays.to_torch_state_dict())


def test_flowers_wrapper_makes_the_same_model(tmp_path: Path) -> None:
    with injected_noise(NoNoise()):
        preparation, trusted = prepared(tmp_path, privacy__clip=0.5)
        half = trusted.charge(cohort_of(preparation.config), 1)
    start = preparation.initial_state()
    replies = [moved(start, by) for by in (0.1, -0.001, 0.05)]
    _, outcome = fold(half, preparation, dict(enumerate(replies)))
    theirs = flowers_mean(start.weights, replies, clip=0.5, sigma=0.0)
    for name, value in theirs.items():
        torch.testing.assert_close(outcome.state.weights[name], value, atol=1e-6, rtol=0)


def test_flowers_wrapper_noises_as_much(tmp_path: Path) -> None:
    preparation, trusted = prepared(tmp_path, privacy__clip=3.0)
    half = trusted.charge(cohort_of(preparation.config), 1)
    start = preparation.initial_state()
    replies = [moved(start, by) for by in (1e-6, 1e-6, 1e-6)]
    _, outcome = fold(half, preparation, dict(enumerate(replies)))
    noises = [
        torch.cat([(after[n] - v).double().flatten() for n, v in start.weights.items()])
        for after in (outcome.state.weights, flowers_mean(start.weights, replies, 3.0, 1.0))
    ]
    ratio = float(noises[0].std() / noises[1].std())
    assert ratio == pytest.approx(1, rel=6 / len(noises[0]) ** 0.5)
