"""Workloads under every strategy that averages weights, and what of a model stays where it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from core.errors import ConfigError
from core.records import RunFolder
from core.wire import Record
from experiments.run import resume
from pairing.configuration import parse_config
from server.prediction import predict_bytes
from server.preparation import Preparation, prepare
from server.progress import PlainProgress
from strategies.base import Reply, ServerTask
from strategies.table import STRATEGIES
from tests.conftest import Federate, tiny_keys
from tests.integration.meltr import MELTR
from tests.integration.test_engines_agree import assert_same_run

AVERAGING = sorted(name for name, kind in STRATEGIES.items() if kind.averages_weights)


def keys_of(strategy: str = "fedavg", **keys: object) -> dict[str, object]:
    return {
        **tiny_keys(strategy),
        **MELTR,
        **{k.replace("__", ".").replace("_", "-"): v for k, v in keys.items()},
    }


def tensors(path: Path, round: int = 2) -> dict[str, torch.Tensor]:
    held = load_file(RunFolder.open(path).checkpoint(round))
    return {n.removeprefix("weights/"): v for n, v in held.items() if n.startswith("weights/")}


def kept(path: Path, client: int, round: int = 2) -> dict[str, torch.Tensor]:
    own = RunFolder.open(path).clients / f"partition-{client:05d}"
    return load_file(own / f"round-{round:05d}.safetensors")


def test_every_method_that_averages_is_known_to() -> None:
    assert sorted(STRATEGIES.keys() - {"feddm", "real-images", "local", "centralized"}) == AVERAGING


@pytest.mark.parametrize("strategy", [*AVERAGING, "local", "centralized"])
def test_meltr_runs_under_every_strategy_that_has_its_objective(
    strategy: str, federate: Federate
) -> None:
    path = federate(keys_of(strategy))
    last = RunFolder.open(path).read_rounds()[-1]
    assert last.test is not None and 0 <= last.test.primary <= 1
    assert last.server["meta_updates"] >= 1
    assert {"sensitivity/rotation", "loss/mixup", "learned_loss_gap"} <= last.server.keys()
    if strategy not in ("local", "centralized"):
        first, final = tensors(path, 1), tensors(path)
        moved = {name for name, value in final.items() if not torch.equal(value, first[name])}
        assert any(name.startswith("phi.") for name in moved)
        assert any(name.startswith("w.backbone.") for name in moved)


@pytest.mark.parametrize("scheme", ["iid", "pathological", "quantity"])
def test_meltr_runs_with_every_partitioner(scheme: str, federate: Federate) -> None:
    keys = {k: v for k, v in keys_of(rounds=1).items() if k != "partition.alpha"}
    classes = {"partition.classes-per-client": 4} if scheme == "pathological" else {}
    path = federate({**keys, **classes, "partition.scheme": scheme})
    assert RunFolder.open(path).read_json("run")["status"] == "complete"


def folded(
    preparation: Preparation, arrays: Mapping[int, Mapping[str, np.ndarray]]
) -> dict[str, torch.Tensor]:
    """FedAvg's next weights when clients send these."""
    strategy, state = preparation.strategy, preparation.initial_state()
    accumulator = strategy.begin(state)
    for shape in preparation.client_shapes():
        sent = {n: a for n, a in arrays[shape.partition_id].items() if n in shape.trained.weights}
        record = Record(sent, {"num_examples": shape.num_examples, "train_loss": 1.0})
        weights = preparation.workload.weights(shape.num_examples)
        accumulator = strategy.add(accumulator, Reply(shape.partition_id, record, weights))
    task = ServerTask(1, 0, None, preparation.workload, torch.device("cpu"), lambda: None)  # type: ignore[arg-type]
    return dict(strategy.finish(state, accumulator, task).state.weights)


def test_each_group_is_averaged_by_weights_of_its_own() -> None:
    """w by training images, phi by those held out, an entry of a task over its clients alone."""
    keys = keys_of(meltr__tasks="rotation;mixup", meltr__meta_fraction=0.3)
    preparation = prepare(parse_config(keys))
    initial = preparation.initial_state().weights
    arrays = {
        k: {name: np.full(value.shape, k + 1.0, np.float32) for name, value in initial.items()}
        for k in range(3)
    }
    found = folded(preparation, arrays)
    counts = [shape.num_examples for shape in preparation.client_shapes()]
    held = [round(0.3 * count) for count in counts]
    kept_back = [count - meta for count, meta in zip(counts, held, strict=True)]

    def mean(weights: list[int], clients: tuple[int, ...] = (0, 1, 2)) -> float:
        return sum(weights[k] * (k + 1) for k in clients) / sum(weights[k] for k in clients)

    expected = {
        "w.backbone.classifier.weight": mean(kept_back),
        "w.heads.rotation.weight": mean(kept_back, (0, 2)),
        "phi.head.weight": mean(held),
        "phi.task_embedding.rotation": mean(held, (0, 2)),
        "phi.task_embedding.mixup": 2.0,
    }
    for name, value in expected.items():
        torch.testing.assert_close(found[name], torch.full_like(found[name], value))


def test_a_task_that_no_reply_has_keeps_its_entries() -> None:
    preparation = prepare(parse_config(keys_of(meltr__tasks="rotation;mixup;mixup")))
    initial = preparation.initial_state().weights
    arrays = {k: {n: v.numpy() + 1 for n, v in initial.items()} for k in range(3)}
    shapes = preparation.client_shapes()
    assert preparation.owners()["w.heads.rotation.weight"] == 1
    assert "w.heads.rotation.weight" not in shapes[1].trained.weights
    found = folded(preparation, arrays)
    torch.testing.assert_close(found["w.heads.rotation.bias"], initial["w.heads.rotation.bias"] + 1)


def test_fednova_carries_an_entry_as_far_as_its_own_clients_went() -> None:
    """A head that one client trains ends where that one left it, whatever steps others took."""
    preparation = prepare(parse_config(keys_of("fednova", meltr__tasks="rotation;mixup;mixup")))
    strategy, state = preparation.strategy, preparation.initial_state()
    rate, norms = preparation.config.train.learning_rate, (10.0, 100.0, 40.0)
    accumulator = strategy.begin(state)
    for shape, norm in zip(preparation.client_shapes(), norms, strict=True):
        arrays = {  # every entry has moved by -1
            name: np.full(spec.shape, 1 / (rate * norm), spec.dtype)
            if name.startswith("direction/")
            else np.zeros(spec.shape, spec.dtype)
            for name, spec in strategy.reply_spec(shape, 1).arrays.items()
        }
        metrics = {"num_examples": shape.num_examples, "train_loss": 1.0, "a_norm": norm}
        weights = preparation.workload.weights(shape.num_examples)
        reply = Reply(shape.partition_id, Record(arrays, metrics), weights)
        accumulator = strategy.add(accumulator, reply)
    task = ServerTask(1, 0, None, preparation.workload, torch.device("cpu"), lambda: None)  # type: ignore[arg-type]
    outcome = strategy.finish(state, accumulator, task)
    counts = [shape.num_training_examples for shape in preparation.client_shapes()]
    shares = [count / sum(counts) for count in counts]
    effective = sum(p * a for p, a in zip(shares, norms, strict=True))
    assert outcome.metrics["effective_steps"] == pytest.approx(effective)
    expected = {
        "w.heads.rotation.bias": -1.0,
        "w.backbone.classifier.bias": -effective
        * sum(p / a for p, a in zip(shares, norms, strict=True)),
    }
    for name, moved in expected.items():
        found = outcome.state.weights[name] - state.weights[name]
        torch.testing.assert_close(found, torch.full_like(found, moved), rtol=1e-5, atol=1e-6)


def test_personal_entries_never_leave_their_clients(federate: Federate) -> None:
    path = federate(keys_of(groups__personal="phi"))
    whole = prepare(parse_config(keys_of()))
    part = prepare(parse_config(keys_of(groups__personal="phi")))
    phi = {name for name in whole.initial_state().weights if name.startswith("phi.")}
    saved = sum(4 * whole.initial_state().weights[name].numel() for name in phi)
    down = [predict_bytes(p).down[0][0] for p in (whole, part)]
    assert down[0] - down[1] > saved
    for name, value in tensors(path).items():
        same = torch.equal(value, part.initial_state().weights[name])
        assert same or not name.startswith("phi."), name
    states = [kept(path, client) for client in range(3)]
    assert all({f"personal/{name}" for name in phi} == set(state) for state in states)
    key = "personal/phi.scale_embedding.0.weight"
    assert not torch.equal(states[0][key], states[1][key])
    assert not torch.equal(states[0][key], kept(path, 0, 1)[key])
    record = RunFolder.open(path).read_rounds()[-1]
    assert record.bytes_up == sum(predict_bytes(part).up[1])
    assert record.test is not None and record.test.num_examples > 0


def test_frozen_entries_are_not_sent_and_stay(federate: Federate) -> None:
    keys = keys_of(groups__frozen="phi,w.backbone.blocks")
    path, preparation = federate(keys), prepare(parse_config(keys))
    assert not (RunFolder.open(path).clients).exists()
    for name, value in tensors(path).items():
        frozen = name.startswith(("phi.", "w.backbone.blocks"))
        assert torch.equal(value, preparation.initial_state().weights[name]) == frozen, name
    record = RunFolder.open(path).read_rounds()[-1]
    assert record.server["meta_updates"] == 0
    assert record.bytes_up == sum(predict_bytes(preparation).up[1])


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold", "fedadam"])
def test_clients_with_heads_of_their_own_judge_their_own_models(
    strategy: str, federate: Federate
) -> None:
    path = federate(tiny_keys(strategy, groups__personal="classifier"))
    records = RunFolder.open(path).read_rounds()
    assert records[-1].test is not None and records[-1].test.confusion is not None
    images = sum(map(sum, records[-1].test.confusion))
    assert images == 3 * records[0].test.num_examples  # type: ignore[union-attr]
    assert records[-1].client_scores is not None and None not in records[-1].client_scores
    assert all("own_score" in client.metrics for client in records[-1].clients)
    personal = [kept(path, client)["personal/classifier.weight"] for client in range(3)]
    assert not torch.equal(personal[0], personal[1])


@pytest.mark.parametrize("option", ["I", "II"])
def test_a_client_of_scaffold_judges_the_model_that_it_trained(
    option: str, federate: Federate
) -> None:
    """Of one client and eta_g = 1 the server's weights are the client's own."""
    keys = tiny_keys("scaffold", scaffold__option=option, groups__personal="classifier", rounds=1)
    dealt = {k: v for k, v in keys.items() if k != "partition.alpha"}
    keys = {**dealt, "partition.clients": 1, "partition.scheme": "iid"}
    path, preparation = federate(keys), prepare(parse_config(keys))
    own = kept(path, 0, 1)
    personal = {n.removeprefix("personal/"): v for n, v in own.items() if n.startswith("personal/")}
    model = preparation.workload.build_model(0)
    model.load_state_dict(tensors(path, 1) | personal)
    told = RunFolder.open(path).read_rounds()[-1].test
    assert told is not None
    expected = preparation.workload.evaluate(model, "test")
    assert told.loss == pytest.approx(expected.loss, rel=1e-6)
    assert told.confusion == expected.confusion


def test_a_personal_head_is_trained_as_if_it_were_shared(federate: Federate) -> None:
    """With one client nothing is averaged, so that what is personal makes no difference."""
    one = {"partition.clients": 1, "partition.scheme": "iid"}
    dealt = {k: v for k, v in tiny_keys("fedavg").items() if k != "partition.alpha"}
    shared = federate({**dealt, **one, "name": "shared"})
    own = federate({**dealt, **one, "name": "own", "groups.personal": "classifier"})
    expected, found, state = tensors(shared), tensors(own), kept(own, 0)
    for name, value in expected.items():
        other = state[f"personal/{name}"] if name.startswith("classifier") else found[name]
        torch.testing.assert_close(other, value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "keys",
    [keys_of(groups__personal="phi"), keys_of("scaffold", meltr__tasks="rotation;mixup")],
    ids=["personal", "scaffold-tasks"],
)
def test_engines_agree_and_a_run_goes_on(
    keys: dict[str, object], federate: Federate, tmp_path: Path
) -> None:
    in_process = federate({**keys, "name": "here"})
    forked = federate({**keys, "name": "there", "engine.kind": "processes", "engine.workers": 2})
    assert_same_run(in_process, forked)
    cut = RunFolder.open(federate({**keys, "name": "cut"}))
    cut.checkpoint(2).unlink()
    status = cut.read_json("run")
    cut.write_json("run", {**status, "status": "running"})
    resume(cut.path, PlainProgress())
    assert_same_run(in_process, cut.path)


def test_meltr_at_client_level_is_private_and_tells_no_measures(federate: Federate) -> None:
    private = {
        "privacy.mechanism": "client",
        "privacy.noise-multiplier": 1.0,
        "privacy.delta": 1e-2,
        "privacy.accountant": "rdp",
    }
    path = federate({**keys_of(), **private})
    last = RunFolder.open(path).read_rounds()[-1]
    assert last.server["epsilon"] > 0
    assert not any("/" in name for name in last.server)
    assert all(
        not client.metrics.keys() & {"loss/mixup", "num_examples"} for client in last.clients
    )


CLASSIFIERS = """
import dataclasses

from core.scores import ACCURACY, MACRO_F1, Score, Scores
from workloads.vision import ImageClassification


class Topped(ImageClassification):
    name = "topped"
    scores = Scores([Score("top_all", "top-10", is_percent=True), ACCURACY])

    def evaluate(self, model, split):
        found = super().evaluate(model, split)
        own = {"top_all": 1.0, "accuracy": found.scores["accuracy"]}
        return dataclasses.replace(found, scores=own)


class Plain(ImageClassification):
    name = "plain"
    scores = Scores([ACCURACY])
    classifies = False

    def evaluate(self, model, split):
        found = super().evaluate(model, split)
        own = {"accuracy": found.scores["accuracy"]}
        return dataclasses.replace(found, scores=own, confusion=None, per_class_accuracy=None)


class Mute(Plain):
    name = "mute"
    classifies = True
"""


@pytest.mark.parametrize("name", ["Topped", "Plain"])
@pytest.mark.parametrize("strategy", ["local", "fedavg"])
def test_what_clients_tell_goes_by_the_workloads_scores(
    name: str, strategy: str, federate: Federate, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(CLASSIFIERS)
    personal = {"groups.personal": "classifier"} if strategy == "fedavg" else {}
    keys = {**tiny_keys(strategy, rounds=1), **personal}
    last = RunFolder.open(federate({**keys, "workload": f"{tmp_path}/own.py:{name}"})).read_rounds()
    record = last[-1]
    assert [client.outcome for client in record.clients] == ["counted"] * 3
    assert record.test is not None and record.client_scores is not None
    assert (record.test.confusion is not None) == (name == "Topped")
    if name == "Topped":
        assert record.test.scores["top_all"] == 1.0 and record.client_scores == [1.0] * 3
    else:
        assert record.test.scores["accuracy"] == pytest.approx(sum(record.client_scores) / 3)  # type: ignore[arg-type]


def test_an_evaluation_that_is_not_what_was_announced_is_refused(
    federate: Federate, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(CLASSIFIERS)
    with pytest.raises(ConfigError, match="has no confusion matrix, and it says that it classif"):
        federate({**tiny_keys("local"), "workload": f"{tmp_path}/own.py:Mute"})
