"""Methods that send images: how many, what they weigh, and training inside the ball."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import strategies.mosaic
from core.examples import labelled
from core.parameters import ParameterVector
from core.records import RunFolder
from core.wire import Array, Record
from pairing.configuration import parse_config
from privacy.mechanism import GaussianSums
from privacy.noise import SeededNoise
from server.preparation import Preparation, prepare
from strategies.base import ClientTask, Reply, ServerState, ServerTask
from strategies.mosaic import (
    PIXEL_LIMIT,
    MosaicConfig,
    MosaicStrategy,
    ReceivedSet,
    cap_sets,
    capped,
    decode,
    encode,
    image_workload,
    images_per_class,
    train_on_mosaic,
)
from tests.conftest import Federate, tiny_keys


def prepare_tiny(strategy: str, **keys: object) -> Preparation:
    return prepare(parse_config(tiny_keys(strategy, **keys)))


def prepare_private(mechanism: str, **keys: object) -> Preparation:
    """FedDM with hidden counts."""
    flat = tiny_keys(
        "feddm",
        feddm__initialisation="noise",
        privacy__mechanism=mechanism,
        privacy__noise_multiplier=1.0,
        privacy__delta=1e-4,
        privacy__accountant="rdp",
        **keys,
    )
    if mechanism == "feature":
        del flat["feddm.real-batch"]
        flat["privacy.steps"] = 3
    return prepare(parse_config(flat))


def client_task(preparation: Preparation, partition_id: int = 0, **changes: object) -> ClientTask:
    workload = preparation.workload
    indices = torch.from_numpy(preparation.partition.clients[partition_id])
    examples = workload.examples(indices)
    parameters = ParameterVector(workload.build_model(3))
    task = ClientTask(
        round=1,
        partition_id=partition_id,
        seed=4,
        received=Record(preparation.strategy.broadcast(ServerState(preparation.initial_weights))),
        examples=examples,
        state=None,
        parameters=parameters,
        workload=workload,
        objective=workload.objective(parameters.model, examples, seed=4, partition_id=partition_id),
        device=torch.device("cpu"),
        count_step=lambda: None,
    )
    return dataclasses.replace(task, **changes)  # type: ignore[arg-type]


def server_task(preparation: Preparation) -> ServerTask:
    return ServerTask(
        round=1,
        seed=5,
        parameters=ParameterVector(preparation.workload.build_model(3)),
        workload=preparation.workload,
        device=torch.device("cpu"),
        count_step=lambda: None,
    )


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(1, 12), st.integers(1, 5))
def test_a_class_sends_no_more_images_than_it_has(
    counts: list[int], per_class: int, least: int
) -> None:
    config = MosaicConfig(images_per_class=per_class, min_examples=least)
    for count, limited, filled in zip(
        counts,
        images_per_class(counts, config, fill=False),
        images_per_class(counts, config, fill=True),
        strict=True,
    ):
        assert limited == (min(count, per_class) if count >= least else 0)
        assert filled == (per_class if count >= least else 0)


def test_real_images_are_the_clients_own_pixels() -> None:
    preparation = prepare_tiny("real-images", mosaic__image_dtype="uint8")
    task = client_task(preparation)
    update = preparation.strategy.client_update(task)
    own = {
        image.tobytes()
        for image in image_workload(preparation.workload)
        .to_pixels(labelled(task.examples).inputs)
        .numpy()
    }
    sent = [image.tobytes() for image in update.arrays["images"]]
    assert set(sent) <= own
    assert len(sent) == len(update.arrays["labels"]) > 0


def test_real_images_are_drawn_anew_each_round() -> None:
    preparation = prepare_tiny("real-images")
    first, second = (
        preparation.strategy.client_update(client_task(preparation, seed=seed)).arrays["images"]
        for seed in (1, 2)
    )
    assert not np.array_equal(first, second)


def test_synthetic_images_start_from_real_ones_or_from_noise() -> None:
    real = prepare_tiny("feddm", feddm__learning_rate=1e-30)
    task = client_task(real)
    sent = real.strategy.client_update(task).arrays["images"]
    own = {image.numpy().tobytes() for image in labelled(task.examples).inputs}
    assert all(image.tobytes() in own for image in sent)
    noise = prepare_tiny(
        "feddm",
        feddm__learning_rate=1e-30,
        feddm__initialisation="noise",
        mosaic__images_per_class=60,
        feddm__short_classes="noise",
    )
    drawn = noise.strategy.client_update(client_task(noise)).arrays["images"]
    assert abs(float(drawn.mean())) < 0.05
    assert abs(float(drawn.std()) - 1) < 0.05


def test_short_classes_send_what_they_have_or_are_filled_from_noise() -> None:
    keys: dict[str, object] = {
        "partition__clients": 10,
        "partition__alpha": 0.1,
        "mosaic__images_per_class": 30,
    }
    for rule in ("cap", "noise"):
        preparation = prepare_tiny("feddm", feddm__short_classes=rule, **keys)
        for shape in preparation.client_shapes()[:3]:
            update = preparation.strategy.client_update(
                client_task(preparation, shape.partition_id)
            )
            sent = np.bincount(update.arrays["labels"], minlength=10)
            expected = [
                (30 if rule == "noise" else min(30, n)) if n else 0 for n in shape.class_counts
            ]
            assert sent.tolist() == expected


def test_warm_start_begins_where_the_last_round_ended() -> None:
    preparation = prepare_tiny("feddm", feddm__warm_start=True)
    first = preparation.strategy.client_update(client_task(preparation))
    assert first.state is not None
    frozen = prepare_tiny("feddm", feddm__warm_start=True, feddm__learning_rate=1e-30)
    again = frozen.strategy.client_update(client_task(frozen, state=first.state, seed=9))
    assert np.array_equal(again.arrays["images"], first.arrays["images"])


@pytest.mark.parametrize("kind", ["gradient", "feature"])
def test_private_warm_start_begins_with_what_was_sent(kind: str) -> None:
    """Nothing else than what was released may be kept: not the images before they are clamped."""

    def mechanism(clip: float) -> GaussianSums:
        return GaussianSums(
            kind,
            clip=clip,
            noise_multiplier=1.0,
            sampling_rate=0.1,
            steps=3,
            source=SeededNoise(3),
        )

    preparation = prepare_private(kind, feddm__warm_start=True, feddm__learning_rate=1e5)
    task = client_task(preparation, mechanism=mechanism(100.0))
    first = preparation.strategy.client_update(task)
    assert first.state is not None and first.state.keys() == {"images"}
    assert np.array_equal(first.state["images"].numpy(), first.arrays["images"])
    assert np.abs(first.arrays["images"]).max() == PIXEL_LIMIT
    still = prepare_private(kind, feddm__warm_start=True, feddm__learning_rate=1e-30)
    for state in (first.state, None):
        task = client_task(still, round=2, seed=9, state=state, mechanism=mechanism(1.0))
        again = still.strategy.client_update(task).arrays["images"]
        assert np.array_equal(again, first.arrays["images"]) == (state is not None)


def test_fresh_networks_replace_the_first_rounds_draws_only() -> None:
    changed = {}
    for round_number in (1, 2):
        images = []
        for rule in ("current", "fresh"):
            preparation = prepare_tiny("feddm", feddm__first_round=rule)
            task = client_task(preparation, round=round_number)
            images.append(preparation.strategy.client_update(task).arrays["images"])
        changed[round_number] = not np.array_equal(images[0], images[1])
    assert changed == {1: True, 2: False}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0), ("float16", 2e-3), ("uint8", 0)])
def test_images_survive_the_wire_within_their_type(dtype: str, tolerance: float) -> None:
    workload = prepare_tiny("feddm").workload
    images = labelled(workload.training_examples()).inputs[:20]
    array = encode(images, dtype, image_workload(workload))
    assert array.dtype.name == dtype
    assert (decode(array, image_workload(workload)) - images).abs().max() <= tolerance


def test_counts_weigh_each_image_by_the_real_ones_it_stands_for() -> None:
    preparation = prepare_tiny("real-images", mosaic__weighting="counts")
    strategy = preparation.strategy
    assert isinstance(strategy, MosaicStrategy)
    update = strategy.client_update(client_task(preparation))
    received = strategy.received_set(
        Reply(0, Record(dict(update.arrays))), image_workload(preparation.workload)
    )
    counts = preparation.partition.class_counts[0]
    for label in received.labels.unique().tolist():
        total = received.weights[received.labels == label].sum().item()
        assert total == pytest.approx(counts[label])


@pytest.fixture(scope="module")
def hidden_counts() -> Preparation:
    return prepare_private("feature", mosaic__weighting="counts")


def with_counts(preparation: Preparation, counts: list[float]) -> Reply:
    """Two images of each of ten classes, of which `counts` are told."""
    shape = preparation.client_shapes()[0]
    arrays: dict[str, Array] = {
        "images": np.zeros((20, *shape.input_shape), dtype=np.float32),
        "labels": np.repeat(np.arange(10), 2),
        "class_counts": np.array(counts, dtype=np.float32),
    }
    reply = Reply(0, Record(arrays))
    form = preparation.strategy.reply_spec(shape, 1)
    assert {n: (s.shape, s.dtype) for n, s in form.arrays.items()} == {
        n: (a.shape, str(a.dtype)) for n, a in arrays.items()
    }
    return reply


@pytest.mark.parametrize(
    ("counts", "reasons"),
    [
        ([0.25, 31.5, *[0.0] * 8], []),  # not those that the client holds, which nobody may know
        ([3.0, -0.5, *[1.0] * 8], ["holds a class count of -0.5, expected at least 0"]),
        ([0.0] * 10, ["class_counts tell no image of any label"]),
    ],
)
def test_noised_counts_are_believed_unless_they_make_no_sense(
    hidden_counts: Preparation, counts: list[float], reasons: list[str]
) -> None:
    reply = with_counts(hidden_counts, counts)
    shape = hidden_counts.client_shapes()[0]
    assert hidden_counts.strategy.check_reply(reply, shape) == reasons


def test_counts_of_classes_that_are_not_sent_do_not_make_up_for_the_others(
    hidden_counts: Preparation,
) -> None:
    reply = with_counts(hidden_counts, [0.0, 0.0, *[5.0] * 8])
    reply.record.arrays["labels"][:] %= 2
    reasons = hidden_counts.strategy.check_reply(reply, hidden_counts.client_shapes()[0])
    assert reasons == ["class_counts tell no image of any label"]


def test_noised_counts_weigh_each_image_by_the_estimate_it_stands_for(
    hidden_counts: Preparation,
) -> None:
    strategy = hidden_counts.strategy
    assert isinstance(strategy, MosaicStrategy)
    reply = with_counts(hidden_counts, [0.0, 0.5, 7.0, *[1.25] * 7])
    reply.record.arrays["labels"][4] = 1  # three of class 1, one of class 2
    weights = strategy.received_set(reply, image_workload(hidden_counts.workload)).weights
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx(
        [0.0, 0.0, 0.5 / 3, 0.5 / 3, 0.5 / 3, 7.0, *[0.625] * 14]
    )


def test_without_the_ball_the_server_is_torchs_sgd() -> None:
    keys: dict[str, object] = {
        "mosaic__ball": False,
        "mosaic__epochs": 4,
        "mosaic__learning_rate": 0.1,
        "mosaic__lr_decay": "half",
    }
    preparation = prepare_tiny("real-images", **keys)
    workload = preparation.workload
    pooled = labelled(workload.training_examples())
    inputs, labels = pooled.inputs[:50], pooled.labels[:50]
    task = server_task(preparation)
    task.parameters.load(preparation.initial_weights)
    config = preparation.config.section(MosaicConfig)
    metrics = train_on_mosaic(task, inputs, labels, torch.ones(50), config)
    model = workload.build_model(3)
    model.load_state_dict(dict(preparation.initial_weights))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for epoch in range(4):
        optimizer.param_groups[0]["lr"] = 0.1 if epoch < 2 else 0.01
        optimizer.zero_grad()
        image_workload(workload).loss(model, inputs, labels).mean().backward()
        optimizer.step()
    trained = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.allclose(task.parameters.values, trained, atol=1e-5)
    assert metrics["ball_bound"] == 0


@pytest.mark.parametrize("rho", [0.05, 0.5])
def test_the_server_stays_in_the_ball_and_says_how_often_it_bound(rho: float) -> None:
    preparation = prepare_tiny(
        "real-images", mosaic__rho=rho, mosaic__epochs=30, mosaic__learning_rate=0.1
    )
    task = server_task(preparation)
    task.parameters.load(preparation.initial_weights)
    centre = task.parameters.values.clone()
    pooled = labelled(preparation.workload.training_examples())
    metrics = train_on_mosaic(
        task,
        pooled.inputs[:50],
        pooled.labels[:50],
        torch.ones(50),
        preparation.config.section(MosaicConfig),
    )
    distance = float((task.parameters.values - centre).norm())
    assert distance <= rho * (1 + 1e-5)
    assert distance == pytest.approx(metrics["displacement"])
    assert 0 < metrics["ball_bound"] <= 1


def test_a_client_without_images_is_refused_with_the_reason() -> None:
    preparation = prepare_tiny("feddm", mosaic__min_examples=1000)
    update = preparation.strategy.client_update(client_task(preparation))
    reasons = preparation.strategy.check_reply(
        Reply(0, Record(dict(update.arrays))), preparation.client_shapes()[0]
    )
    assert "mosaic.min-examples=1000" in reasons[0]


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_out_of_range_is_refused(label: int) -> None:
    preparation = prepare_tiny("real-images")
    update = preparation.strategy.client_update(client_task(preparation))
    labels = update.arrays["labels"].copy()
    labels[0] = label
    record = Record({**update.arrays, "labels": labels})
    reasons = preparation.strategy.check_reply(Reply(0, record), preparation.client_shapes()[0])
    assert reasons == [f"holds label {label}, expected 0 to 9"]


def test_a_class_that_matches_from_the_start_is_sent_as_it_is() -> None:
    """What the privacy statement says of classes no larger than images-per-class."""
    preparation = prepare_tiny("feddm", partition__alpha=0.1, mosaic__images_per_class=4)
    small = [
        (k, label)
        for k, counts in enumerate(preparation.partition.class_counts.tolist())
        for label, count in enumerate(counts)
        if 1 <= count <= 4
    ]
    assert small
    for partition_id, label in small:
        task = client_task(preparation, partition_id)
        update = preparation.strategy.client_update(task)
        sent = update.arrays["images"][update.arrays["labels"] == label]
        own = labelled(task.examples)
        real = own.inputs[own.labels == label].numpy()
        gaps = np.abs(sent[:, None] - real[None]).max(axis=(2, 3, 4)).min(axis=1)
        assert gaps.max() < 1e-3


@pytest.mark.parametrize(
    ("totals", "max_share", "expected"),
    [
        ([8, 1, 1], 0.5, [2, 1, 1]),  # 2 of 4
        ([1, 8, 1], 0.75, [1, 6, 1]),  # 6 of 8
        ([2, 10, 8], 0.4, [2, 4, 4]),  # one alone would come to 20/3, below the 8: both, 4 of 10
        ([5, 5, 5], 0.5, [5, 5, 5]),
        ([8, 1, 3], 0.25, [1, 1, 1]),  # three cannot all have less than a third
        ([7, 2], 0.5, [2, 2]),
        ([7], 0.1, [7]),
        ([7, 2, 1], 1.0, [7, 2, 1]),
    ],
)
def test_shares_above_the_cap_are_lowered_to_it(
    totals: list[float], max_share: float, expected: list[float]
) -> None:
    assert capped(totals, max_share) == pytest.approx(expected, rel=1e-12)


@given(
    st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=12), st.floats(0.001, 1, exclude_min=True)
)
def test_no_share_is_above_the_cap_and_no_more_is_lowered_than_must_be(
    totals: list[float], max_share: float
) -> None:
    lowered = capped(totals, max_share)
    exact = [Fraction(value) for value in lowered]
    shares = [float(value / sum(exact)) for value in exact]
    if max_share * len(totals) <= 1:
        assert lowered == [min(totals)] * len(totals)
        return
    assert max(shares) <= max_share * (1 + 1e-9)
    for old, new, share in zip(totals, lowered, shares, strict=True):
        assert new == old or (new < old and share == pytest.approx(max_share, rel=1e-6))


def received_set(partition_id: int, weights: list[float]) -> ReceivedSet:
    labels = torch.zeros(len(weights), dtype=torch.int64)
    inputs = torch.zeros(len(weights), 1, 2, 2)
    return ReceivedSet(inputs, labels, torch.tensor(weights), partition_id)


def test_a_clients_images_are_lowered_by_one_factor() -> None:
    sets = [received_set(0, [6.0, 2.0]), received_set(1, [1.0]), received_set(2, [0.25, 0.75])]
    scaled, largest = cap_sets(sets, 0.5)
    assert [s.weights.tolist() for s in scaled] == [[1.5, 0.5], [1.0], [0.25, 0.75]]
    assert largest == 0.5
    loose, largest = cap_sets(sets, 0.9)
    assert all(after is before for after, before in zip(loose, sets, strict=True))
    assert largest == 0.8


def test_the_server_trains_under_the_cap_and_records_the_largest_share(
    federate: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three clients with all images of their classes; what weighs in the loss is what is told."""
    weighed: list[torch.Tensor] = []
    trained = strategies.mosaic.train_on_mosaic

    def watched(
        task: ServerTask,
        inputs: torch.Tensor,
        labels: torch.Tensor,
        weights: torch.Tensor,
        config: MosaicConfig,
    ) -> dict[str, float]:
        weighed.append(weights)
        return trained(task, inputs, labels, weights, config)

    monkeypatch.setattr(strategies.mosaic, "train_on_mosaic", watched)
    told: dict[float, tuple[object, float | None]] = {}
    for cap in (1.0, 0.99, 0.36):
        keys: dict[str, object] = {
            "partition__alpha": 0.1,
            "mosaic__max_client_share": cap,
            "mosaic__weighting": "counts",
        }
        weighed.clear()
        record = RunFolder.open(federate(tiny_keys("real-images", **keys))).read_rounds()[1]
        told[cap] = (record.test, record.server.get("max_client_share"))
        preparation = prepare_tiny("real-images", **keys)
        sizes = [
            sum(images_per_class(shape.class_counts, MosaicConfig(images_per_class=2), fill=False))
            for shape in (preparation.client_shapes()[k] for k in preparation.hand_out_order())
        ]
        totals = [part.sum().item() for part in weighed[0].split(sizes)]
        share = max(totals) / sum(totals)
        if cap == 0.36:
            assert share == pytest.approx(0.36, rel=1e-5)
        else:
            assert 0.36 < share < 0.99
        if cap < 1:
            assert record.server["max_client_share"] == pytest.approx(share, rel=1e-5)
    assert told[1.0][1] is None
    assert told[1.0][0] == told[0.99][0] != told[0.36][0]


def test_a_label_that_the_counts_deny_is_refused() -> None:
    """Its weight would be zero, and of a client alone the whole sum."""
    preparation = prepare_tiny("real-images", mosaic__weighting="counts", partition__alpha=0.1)
    shape = next(shape for shape in preparation.client_shapes() if 0 in shape.class_counts)
    task = client_task(preparation, shape.partition_id)
    update = preparation.strategy.client_update(task)
    missing = shape.class_counts.index(0)
    labels = update.arrays["labels"].copy()
    labels[-1] = missing
    record = Record({**update.arrays, "labels": labels})
    reasons = preparation.strategy.check_reply(Reply(shape.partition_id, record), shape)
    assert reasons == [f"holds label {missing}, of which class_counts tell no image"]
