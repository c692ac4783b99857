from __future__ import annotations

import math
from typing import cast

import pytest
import torch

from core.errors import ConfigError
from core.examples import Examples, labelled
from core.groups import EntryWeights
from core.parameters import ParameterVector, weights_of
from data.dataset import ImageDataset, LabelledImages
from models.registry import embedding_of
from pairing.configuration import parse_config
from strategies.local_sgd import train_locally
from workloads.meta.meltr import (
    AUXILIARY,
    PRIMARY,
    Meltr,
    MeltrModel,
    MeltrObjective,
    TaskBatch,
    measured,
    turned,
)
from workloads.table import open_workload

CPU = torch.device("cpu")
ALL = ",".join(AUXILIARY)
SMALL = {"meltr.width": 16, "meltr.scale-width": 8, "meltr.feedforward": 16, "meltr.fit-steps": 5}


def workload_of(**keys: object) -> Meltr:
    flat = {k.replace("__", ".").replace("_", "-"): v for k, v in keys.items()}
    small = {} if flat.get("meltr.optimizer") == "multi-task" or "meltr.loss" in flat else SMALL
    base = {"strategy": "fedavg", "workload": "meltr", "model.width": 4, "train.batch-size": 8}
    config = parse_config({**base, **small, **flat})
    return cast(Meltr, open_workload(config, CPU))


def objective_of(
    workload: Meltr, count: int = 40, seed: int = 3, partition_id: int | None = 0
) -> tuple[MeltrObjective, MeltrModel, Examples]:
    model = cast(MeltrModel, workload.build_model(1))
    examples = labelled(workload.examples(torch.arange(count)))
    found = workload.objective(model, examples, seed=seed, partition_id=partition_id)
    return cast(MeltrObjective, found), model, examples


def train(workload: Meltr, **keys: int) -> tuple[MeltrObjective, MeltrModel]:
    objective, model, _ = objective_of(workload, **keys)
    train_locally(ParameterVector(model), objective, workload.config.train, seed=5)
    return objective, model


def batch_of(tasks: tuple[str, ...], share: float = 0.25) -> TaskBatch:
    generator = torch.Generator().manual_seed(4)
    return TaskBatch(
        torch.randn(6, 1, 8, 8, generator=generator),
        torch.tensor([0, 1, 2, 3, 4, 5]),
        torch.tensor([0, 1, 2, 3, 1, 0]),
        torch.tensor([1, 2, 3, 4, 5, 0]),
        torch.tensor(share),
        torch.tensor([9, 8, 7, 6, 5, 4]),
        tasks,
    )


def test_quarter_turns_by_hand() -> None:
    image = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    found = turned(image.expand(4, 1, 2, 2), torch.arange(4)).flatten(1).tolist()
    assert found == [[1, 2, 3, 4], [2, 4, 1, 3], [4, 3, 2, 1], [3, 1, 4, 2]]


def test_losses_are_the_tasks() -> None:
    workload = workload_of(meltr__tasks=ALL)
    model = cast(MeltrModel, workload.build_model(0)).eval()
    batch = batch_of((PRIMARY, *AUXILIARY))
    own, rotation, mixup, harmful = model(batch).tolist()
    logits = model(batch.inputs).log_softmax(dim=1)
    rows = torch.arange(6)
    assert own == pytest.approx(-float(logits[rows, batch.labels].mean()), rel=1e-5)
    assert harmful == pytest.approx(-float(logits[rows, batch.random_labels].mean()), rel=1e-5)
    mixed = 0.25 * batch.inputs + 0.75 * batch.inputs[batch.partners]
    of_mixed = model(mixed).log_softmax(dim=1)
    parts = [
        -float(of_mixed[rows, labels].mean())
        for labels in (batch.labels, batch.labels[batch.partners])
    ]
    assert mixup == pytest.approx(0.25 * parts[0] + 0.75 * parts[1], rel=1e-5)
    heads = cast(torch.nn.ModuleDict, model.w["heads"])
    features = embedding_of(model.w["backbone"]).embed(turned(batch.inputs, batch.turns))
    told = heads["rotation"](features).log_softmax(dim=1)
    assert rotation == pytest.approx(-float(told[rows, batch.turns].mean()), rel=1e-5)
    assert list(heads) == ["rotation"]


def test_a_step_follows_the_gradient_of_the_learned_loss() -> None:
    objective, model, _ = objective_of(workload_of(meltr__tasks=ALL))
    parameters = ParameterVector(model)
    loss = objective.losses(torch.arange(8))
    loss.backward()
    ours = parameters.gradient.clone()
    parameters.zero_gradient()
    again, model_again, _ = objective_of(workload_of(meltr__tasks=ALL))
    theirs = ParameterVector(model_again)
    batch = again._task_batch(again._training_pool[torch.arange(8)])
    learned = model_again.phi(model_again(batch), batch.tasks)
    learned.backward()
    assert float(loss) == pytest.approx(float(learned), rel=1e-6)
    torch.testing.assert_close(ours, theirs.gradient, rtol=1e-4, atol=1e-7)


def test_multi_task_takes_the_plain_sum() -> None:
    objective, model, _ = objective_of(workload_of(meltr__optimizer="multi-task", meltr__tasks=ALL))
    loss = objective.losses(torch.arange(8))
    assert not hasattr(model, "phi")
    assert float(loss) == pytest.approx(float(objective._last[0].sum()))  # type: ignore[index]
    assert objective.num_examples == 40


@pytest.mark.parametrize("optimizer", ["aid-fp-lite", "aid-fp", "aid-cg", "stocbio", "itd"])
@pytest.mark.parametrize("meta_batch", ["holdout", "replay"])
def test_phi_moves_every_k_steps_and_nothing_else_does(optimizer: str, meta_batch: str) -> None:
    """36 or 40 images in batches of 8 are five steps; itd moves phi before, others after."""
    keys = {"meltr__optimizer": optimizer, "meltr__meta_batch": meta_batch}
    workload = workload_of(**keys, meltr__update_every=2, train__learning_rate=1e-3)
    objective, model = train(workload)
    expected = 3 if optimizer == "itd" else 2
    if (optimizer, meta_batch) == ("itd", "replay"):
        expected = 2  # before the first step there is nothing to replay
    assert objective.metrics()["meta_updates"] == expected
    start = weights_of(workload.build_model(1))
    moved = {n for n, v in weights_of(model).items() if not torch.equal(v, start[n])}
    assert {name for name in start if name.startswith("phi.")} - moved <= {
        "phi.head.weight"
    } or moved
    assert any(name.startswith("phi.") for name in moved)
    assert any(name.startswith("w.") for name in moved)


def test_the_first_step_of_adam_is_the_sign_of_the_hypergradient() -> None:
    """phi descends: after one update each entry has moved by beta against its gradient."""
    workload = workload_of(meltr__update_every=1, meltr__learning_rate=1e-3, meltr__clip=0.0)
    objective, model, _ = objective_of(workload)
    before = {name: value.clone() for name, value in model.phi.named_parameters()}
    batch = torch.arange(8)
    objective.losses(batch)
    state = objective._generator.get_state()
    objective.after_step(batch)
    twin, twin_model, _ = objective_of(workload)
    twin._generator.set_state(state)
    primary_at = {n: p for n, p in twin_model.w.named_parameters() if p.requires_grad}
    training, meta = twin.training_batch, twin._meta_batch
    meta_batch = meta()
    losses = twin_model(meta_batch)
    learned = twin_model.phi(losses, meta_batch.tasks)
    primary = losses[0] + 0.1 * (learned - losses.sum()).abs()
    v = torch.autograd.grad(primary, list(primary_at.values()))
    twin_model.phi.requires_grad_(True)
    batch_g = training()
    aux = twin_model.phi(twin_model(batch_g), batch_g.tasks)
    g = torch.autograd.grad(aux, list(primary_at.values()), create_graph=True)
    along = sum((a * b).sum() for a, b in zip(v, g, strict=True))
    assert isinstance(along, torch.Tensor)
    mixed = torch.autograd.grad(along, list(twin_model.phi.parameters()), allow_unused=True)
    checked = 0
    for (name, value), part in zip(model.phi.named_parameters(), mixed, strict=True):
        if part is None:
            continue
        clear = part.abs() > 1e-4
        expected = before[name] + 1e-3 * part.sign()
        torch.testing.assert_close(value[clear], expected[clear], rtol=0, atol=2e-6)
        checked += int(clear.sum())
    assert checked > 50


def test_what_is_held_out_is_never_trained_on_and_stays_the_same() -> None:
    workload = workload_of()
    pools = [objective_of(workload, seed=seed)[0] for seed in (3, 4)]
    for objective in pools:
        held, kept = (set(p.tolist()) for p in (objective._meta_pool, objective._training_pool))
        assert len(held) == 4 and held | kept == set(range(40)) and not held & kept
    assert torch.equal(pools[0]._meta_pool, pools[1]._meta_pool)
    other, _, _ = objective_of(workload, partition_id=1)
    assert not torch.equal(other._meta_pool, pools[0]._meta_pool)


def test_a_hypergradient_leaves_running_statistics_alone() -> None:
    keys = {"workload": "meltr", "strategy": "fedavg", "model.name": "resnet32", **SMALL}
    workload = cast(Meltr, open_workload(parse_config(keys), CPU))
    objective, model, _ = objective_of(workload, count=20)
    model.train()
    objective.losses(torch.arange(8))
    before = {name: value.clone() for name, value in model.named_buffers()}
    objective._recent.append(torch.arange(8))
    objective._update_phi(torch.arange(8))
    assert objective.metrics()["meta_updates"] == 1 and before
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_a_round_repeats_and_its_seed_matters() -> None:
    workload = workload_of(meltr__tasks=ALL)
    weights = [weights_of(train(workload, seed=seed)[1]) for seed in (3, 3, 4)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert any(not torch.equal(value, weights[2][name]) for name, value in weights[0].items())


def test_clients_have_tasks_in_turn_and_send_what_they_train() -> None:
    workload = workload_of(meltr__tasks="rotation;mixup,random-labels;")
    assert [workload.tasks_of(k) for k in range(4)] == [
        (PRIMARY, "rotation"),
        (PRIMARY, "mixup", "random-labels"),
        (PRIMARY,),
        (PRIMARY, "rotation"),
    ]
    assert workload.tasks_of(None) == (PRIMARY, "rotation", "mixup", "random-labels")
    names = list(workload.build_model(0).state_dict())
    sent = {k: {n for n in names if workload.is_trained(n, k)} for k in range(3)}
    assert set(names) - sent[0] == {"phi.task_embedding.mixup", "phi.task_embedding.random-labels"}
    assert set(names) - sent[1] == {
        "phi.task_embedding.rotation",
        "w.heads.rotation.weight",
        "w.heads.rotation.bias",
    }
    assert set(names) - sent[2] == (set(names) - sent[0]) | (set(names) - sent[1])
    objective, model = train(workload, partition_id=1)
    start = weights_of(workload.build_model(1))
    for name in set(names) - sent[1]:
        assert torch.equal(model.state_dict()[name], start[name]), name
    assert set(objective.metrics()) == set(measured(workload.tasks_of(1)))


@pytest.mark.parametrize(
    ("keys", "weights"),
    [
        ({}, EntryWeights(36, {"phi": 4})),
        ({"meltr__meta_fraction": 0.5}, EntryWeights(20, {"phi": 20})),
        ({"meltr__meta_batch": "replay"}, EntryWeights(40)),
        ({"meltr__optimizer": "multi-task"}, EntryWeights(40)),
        ({"groups__frozen": "phi"}, EntryWeights(40)),
    ],
)
def test_w_weighs_by_training_images_and_phi_by_those_held_out(
    keys: dict[str, object], weights: EntryWeights
) -> None:
    workload = workload_of(**keys)
    assert workload.weights(40) == weights
    assert workload.num_training_examples(40) == weights.default
    assert workload_of().weights(1) == EntryWeights(1, {"phi": 0})


def test_a_frozen_loss_stays_as_it_was() -> None:
    workload = workload_of(groups__frozen="phi")
    objective, model = train(workload)
    start = weights_of(workload.build_model(1))
    moved = {n for n, value in weights_of(model).items() if not torch.equal(value, start[n])}
    assert "w.heads.rotation.weight" in moved
    assert not any(name.startswith("phi.") for name in moved)
    assert objective.metrics()["meta_updates"] == 0


def test_measures_are_means_over_the_steps() -> None:
    objective, _ = train(workload_of(meltr__optimizer="multi-task", meltr__tasks="rotation"))
    found = objective.metrics()
    assert found["sensitivity/classification"] == found["sensitivity/rotation"] == 1.0
    assert found["learned_loss_gap"] == pytest.approx(0.0, abs=1e-5)
    assert 0 < found["loss/classification"] < 2 * math.log(10)
    assert objective.metrics().keys() == set(measured((PRIMARY, "rotation")))


@pytest.fixture
def wide() -> Meltr:
    config = parse_config({"strategy": "fedavg", "workload": "meltr", **SMALL})
    images = LabelledImages(torch.zeros(20, 1, 8, 10, dtype=torch.uint8), torch.arange(20) % 2)
    dataset = ImageDataset("wide", ("a", "b"), (0.5,), (0.5,), images, images, images)
    return Meltr(config, dataset, CPU)


def test_images_that_cannot_be_turned_are_refused(wide: Meltr) -> None:
    with pytest.raises(ConfigError, match="turns images by quarters, and these are 8x10"):
        wide.build_model(0)


@pytest.mark.parametrize("loss", ["linear", "scale-only"])
def test_variants_of_the_loss_train(loss: str) -> None:
    small = {} if loss == "linear" else {"meltr__width": 16, "meltr__fit_steps": 0}
    workload = workload_of(meltr__loss=loss, **small)
    objective, model = train(workload)
    assert objective.metrics()["meta_updates"] == 1
    names = {name for name in model.state_dict() if name.startswith("phi.")}
    per_task = {name for name in names if name.split(".")[1] in ("coefficient", "task_embedding")}
    assert len(per_task) == (3 if loss == "linear" else 0)
