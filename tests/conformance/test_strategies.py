"""What every strategy must do. A new strategy is one more row here, by way of the table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from core.config import RunConfig
from core.parameters import NamedTensors, ParameterVector
from core.records import RoundRecord, RunFolder
from core.wire import Record, RecordSpec
from server.prediction import predict_bytes, reply_spec
from server.preparation import Preparation, prepare
from strategies.base import (
    ClientTask,
    ClientUpdate,
    Reply,
    RoundOutcome,
    ServerState,
    ServerTask,
)
from strategies.flower import from_flower, to_flower
from strategies.table import STRATEGIES, parse_config
from tests.conftest import Federate, tiny_keys

ALL = sorted(STRATEGIES)
ASKING = sorted(name for name, strategy in STRATEGIES.items() if strategy.asks_clients)


def timeless(path: Path) -> list[dict[str, object]]:
    """The round records without what may differ between equal runs."""
    records = [record.to_json() for record in RunFolder.open(path).read_rounds()]
    for record in records:
        del record["seconds"]
    return records


def client_update(
    preparation: Preparation,
    partition_id: int,
    *,
    seed: int = 7,
    round: int = 1,
    state: ServerState | None = None,
    kept: NamedTensors | None = None,
) -> ClientUpdate:
    """One client's update, made directly from what came over the wire."""
    strategy, workload = preparation.strategy, preparation.workload
    state = state or preparation.initial_state()
    task = ClientTask(
        round=round,
        partition_id=partition_id,
        seed=seed,
        received=from_flower(to_flower(Record(strategy.broadcast(state)))),
        examples=workload.examples(torch.from_numpy(preparation.partition.clients[partition_id])),
        state=kept,
        parameters=ParameterVector(workload.build_model(99)),
        workload=workload,
        device=torch.device("cpu"),
        count_step=lambda: None,
    )
    return strategy.client_update(task)


def sent(update: ClientUpdate, round: int) -> Record:
    """The reply as it arrives."""
    record = Record(update.arrays, {**update.metrics, "train_s": 0.0}, {"round": round})
    return from_flower(to_flower(record))


def client_reply(
    preparation: Preparation, partition_id: int, *, seed: int = 7, round: int = 1
) -> Record:
    """One client's reply to the first broadcast, sent over the wire."""
    return sent(client_update(preparation, partition_id, seed=seed, round=round), round)


def server_task(preparation: Preparation, seed: int = 5) -> ServerTask:
    return ServerTask(
        round=1,
        seed=seed,
        parameters=ParameterVector(preparation.workload.build_model(98)),
        workload=preparation.workload,
        device=torch.device("cpu"),
        count_step=lambda: None,
    )


@pytest.fixture
def prepared(request: pytest.FixtureRequest) -> Preparation:
    return prepare(parse_config(tiny_keys(request.param)))


@pytest.mark.parametrize("name", ALL)
def test_declares_who_it_is(name: str) -> None:
    strategy = STRATEGIES[name]
    assert strategy.name == name
    assert strategy.images_sent in {"none", "synthetic", "raw"}
    module = __import__(strategy.__module__, fromlist=["x"])
    assert {"client", "server"} <= set((module.__doc__ or "").split())


@pytest.mark.parametrize("name", ALL)
def test_a_federation_ends_with_records_of_every_round(name: str, federate: Federate) -> None:
    folder = RunFolder.open(federate(tiny_keys(name)))
    records = folder.read_rounds()
    assert [record.round for record in records] == [0, 1, 2]
    assert folder.read_json("run")["status"] == "complete"
    for record in records:
        assert record.test is not None
        assert record.client_scores is not None
        assert len(record.client_scores) == 3
        assert all(client.failure is None for client in record.clients)
    assert len(records[1].clients) == (3 if STRATEGIES[name].asks_clients else 0)
    assert json.loads((folder.path / "privacy.json").read_text())["guarantee"] == "none"


@pytest.mark.parametrize("name", ALL)
def test_predicted_bytes_are_the_measured_ones(name: str, federate: Federate) -> None:
    keys = tiny_keys(name, evaluate_every=2)
    predicted = predict_bytes(prepare(parse_config(keys)))
    measured = RunFolder.open(federate(keys)).read_rounds()[1:]
    down = [[client.bytes_down for client in record.clients] for record in measured]
    up = [[client.bytes_up for client in record.clients] for record in measured]
    assert (predicted.down, predicted.up) == (down, up)
    assert predicted.total_up == sum(record.bytes_up for record in measured)
    assert predicted.total_down == sum(record.bytes_down for record in measured)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("feddm", {"mosaic.image-dtype": "uint8", "mosaic.weighting": "counts"}),
        ("feddm", {"mosaic.image-dtype": "float16", "feddm.short-classes": "noise"}),
        ("feddm", {"feddm.warm-start": True, "feddm.initialisation": "noise"}),
        ("feddm", {"feddm.augmentation": "dsa", "feddm.weight-sampling": "ball"}),
        ("feddm", {"feddm.first-round": "fresh", "feddm.perturb-norm-affine": False}),
        ("real-images", {"mosaic.image-dtype": "uint8", "mosaic.min-examples": 5}),
        ("fedavg", {"model.name": "resnet18", "partition.scheme": "iid"}),
    ],
)
def test_options_take_effect_and_are_predicted(
    name: str, options: dict[str, object], federate: Federate
) -> None:
    plain = {k: v for k, v in tiny_keys(name, rounds=2).items() if k != "model.width"}
    plain["partition.alpha"] = 0.1 if "partition.scheme" not in options else 0.5
    keys = {**plain, **options}
    predicted = predict_bytes(prepare(parse_config(keys)))
    records = RunFolder.open(federate(keys)).read_rounds()[1:]
    assert predicted.up == [[c.bytes_up for c in record.clients] for record in records]
    assert predicted.down == [[c.bytes_down for c in record.clients] for record in records]
    assert all(c.failure is None for record in records for c in record.clients)
    others = RunFolder.open(federate(plain)).read_rounds()[1:]
    assert [record.test for record in records] != [record.test for record in others]


@pytest.mark.parametrize("name", ALL)
def test_same_seed_same_records_other_seed_other_records(name: str, federate: Federate) -> None:
    first, again = (federate(tiny_keys(name)) for _ in range(2))
    other = federate(tiny_keys(name, seed=1))
    assert timeless(first) == timeless(again)
    assert timeless(first) != timeless(other)
    checkpoints = [load_file(RunFolder.open(path).checkpoint(2)) for path in (first, again)]
    for key, value in checkpoints[0].items():
        assert torch.equal(value, checkpoints[1][key]), key


@pytest.mark.parametrize("prepared", ASKING, indirect=True)
def test_every_reply_fits_its_form(prepared: Preparation) -> None:
    for shape in prepared.client_shapes():
        record = client_reply(prepared, shape.partition_id)
        assert reply_spec(prepared.strategy, shape, 1).violations(record) == []
        assert prepared.strategy.check_reply(Reply(shape.partition_id, record), shape) == []


@pytest.mark.parametrize("prepared", ASKING, indirect=True)
def test_a_client_depends_on_its_seed_alone(prepared: Preparation) -> None:
    torch.manual_seed(0)
    first = client_reply(prepared, 0)
    torch.manual_seed(1)
    again = client_reply(prepared, 0)
    for name, array in first.arrays.items():
        assert np.array_equal(array, again.arrays[name]), name
    assert first.metrics == again.metrics


@pytest.mark.parametrize("prepared", ASKING, indirect=True)
def test_the_broadcast_fits_its_form(prepared: Preparation) -> None:
    form = prepared.client_shapes()[0].model
    broadcast = Record(prepared.strategy.broadcast(prepared.initial_state()))
    spec = RecordSpec(prepared.strategy.broadcast_spec(form))
    assert spec.violations(from_flower(to_flower(broadcast))) == []


@pytest.mark.parametrize("prepared", ASKING, indirect=True)
def test_two_rounds_pass_on_all_state_there_is(prepared: Preparation) -> None:
    """Slots and what clients keep have the same form after every round, and clients go on."""
    strategy, state = prepared.strategy, prepared.initial_state()
    forms = {name: (slot.shape, slot.dtype) for name, slot in state.slots.items()}
    kept: dict[int, NamedTensors | None] = dict.fromkeys(range(3))
    for number in (1, 2):
        accumulator = strategy.begin(state)
        for shape in prepared.client_shapes():
            k = shape.partition_id
            update = client_update(prepared, k, round=number, state=state, kept=kept[k])
            assert (update.state is not None) == strategy.keeps_client_state()
            kept[k] = update.state
            reply = Reply(k, sent(update, number))
            assert reply_spec(strategy, shape, number).violations(reply.record) == []
            assert strategy.check_reply(reply, shape) == []
            accumulator = strategy.add(accumulator, reply)
        state = strategy.finish(state, accumulator, server_task(prepared)).state
        assert {name: (slot.shape, slot.dtype) for name, slot in state.slots.items()} == forms


@pytest.mark.parametrize(
    "prepared",
    ["feddm", "fedavg", "fedprox", "fednova", "scaffold", "fedadam", "real-images"],
    indirect=True,
)
def test_a_client_uses_its_seed(prepared: Preparation) -> None:
    first, other = client_reply(prepared, 0), client_reply(prepared, 0, seed=8)
    assert any(not np.array_equal(a, other.arrays[name]) for name, a in first.arrays.items())


@pytest.mark.parametrize("prepared", ASKING, indirect=True)
def test_the_server_half_leaves_its_state_alone(prepared: Preparation) -> None:
    strategy = prepared.strategy
    initial = prepared.initial_state()
    state = ServerState(
        {k: v.clone() for k, v in initial.weights.items()},
        {k: v.clone() for k, v in initial.slots.items()},
    )
    outcomes: list[RoundOutcome] = []
    for _ in range(2):
        accumulator = strategy.begin(state)
        for partition_id in range(3):
            reply = Reply(partition_id, client_reply(prepared, partition_id))
            accumulator = strategy.add(accumulator, reply)
        outcomes.append(strategy.finish(state, accumulator, server_task(prepared)))
    for name, value in prepared.initial_weights.items():
        assert torch.equal(state.weights[name], value), name
        assert torch.equal(outcomes[0].state.weights[name], outcomes[1].state.weights[name]), name
        assert outcomes[0].state.weights[name].dtype == value.dtype
    for name, value in initial.slots.items():
        assert torch.equal(state.slots[name], value), name
        assert torch.equal(outcomes[0].state.slots[name], outcomes[1].state.slots[name]), name
    assert outcomes[0].metrics == outcomes[1].metrics


@pytest.mark.parametrize("prepared", ASKING, indirect=True)
def test_without_replies_the_model_stays_as_it_was(prepared: Preparation) -> None:
    state = prepared.initial_state()
    strategy = prepared.strategy
    outcome = strategy.finish(state, strategy.begin(state), server_task(prepared))
    for name, value in prepared.initial_weights.items():
        assert torch.equal(outcome.state.weights[name], value), name
    assert outcome.state.slots.keys() == state.slots.keys()
    for name, value in state.slots.items():
        assert torch.equal(outcome.state.slots[name], value), name


@pytest.mark.parametrize("name", ALL)
def test_the_initial_model_is_the_same_for_every_strategy(name: str) -> None:
    weights = prepare(parse_config(tiny_keys(name))).initial_weights
    reference = prepare(parse_config(tiny_keys("fedavg"))).initial_weights
    for key, value in reference.items():
        assert torch.equal(weights[key], value), key


def test_records_read_back_as_written(federate: Federate) -> None:
    folder = RunFolder.open(federate(tiny_keys("feddm")))
    for record in folder.read_rounds():
        assert RoundRecord.from_json(json.loads(json.dumps(record.to_json()))) == record
    assert (
        parse_config(folder.read_json("config")).identity() == folder.read_json("run")["identity"]
    )
    assert isinstance(parse_config(folder.read_json("config")), RunConfig)


@pytest.mark.parametrize("prepared", ["feddm", "real-images", "centralized"], indirect=True)
def test_a_server_that_trains_uses_its_seed(prepared: Preparation) -> None:
    """Shuffles are all that the server draws; batches must be smaller than the set."""
    config = parse_config(
        {**prepared.config.flat(), "train.batch-size": 16}
        | ({} if prepared.config.strategy == "centralized" else {"mosaic.batch-size": 4})
    )
    again = prepare(config)
    state, strategy = again.initial_state(), again.strategy
    trained = []
    for seed in (5, 5, 6):
        accumulator = strategy.begin(state)
        if strategy.asks_clients:
            accumulator = strategy.add(accumulator, Reply(0, client_reply(again, 0)))
        trained.append(strategy.finish(state, accumulator, server_task(again, seed)).state.weights)
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])
    assert any(not torch.equal(trained[0][name], trained[2][name]) for name in trained[0])


DROPOUT = """
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.5))
        self.classifier = nn.Linear(16, classes)

    def embed(self, x):
        return self.body(x)

    def forward(self, x):
        return self.classifier(self.embed(x))

def build(image_shape, num_classes):
    return Net(num_classes)
"""


@pytest.mark.parametrize("name", ALL)
def test_layers_that_draw_repeat_too(name: str, federate: Federate, tmp_path: Path) -> None:
    (tmp_path / "dropping.py").write_text(DROPOUT)
    keys = {k: v for k, v in tiny_keys(name).items() if k != "model.width"}
    keys["model.name"] = f"{tmp_path / 'dropping.py'}:build"
    first = federate(keys)
    torch.rand(7)
    assert timeless(first) == timeless(federate(keys))
