"""Malicious clients: who they are, what they send, and that nobody else changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import load_file

from client.attacks import malicious_clients, poison, tamper
from core.config import AttackConfig, RunConfig
from core.examples import Examples
from core.records import RoundRecord, RunFolder
from core.wire import Array, Record
from pairing.configuration import parse_config
from server.preparation import prepare
from strategies.base import ClientUpdate
from tests.conftest import Federate, tiny_keys

SIGN_FLIP = AttackConfig(kind="sign-flip")
LABEL_FLIP = AttackConfig(kind="label-flip")


def scale(factor: float) -> AttackConfig:
    return AttackConfig(kind="scale", factor=factor)


def sent(
    arrays: Mapping[str, Array], received: Mapping[str, Array], attack: AttackConfig
) -> Mapping[str, Array]:
    return tamper(ClientUpdate(arrays, {}), received, attack).arrays


def config_of(**keys: object) -> RunConfig:
    return parse_config({k.replace("__", ".").replace("_", "-"): v for k, v in keys.items()})


def attackers(seed: int = 0, clients: int = 10, fraction: float = 0.2) -> frozenset[int]:
    return malicious_clients(
        config_of(
            seed=seed,
            partition__clients=clients,
            attack__kind="sign-flip",
            attack__fraction=fraction,
        )
    )


@pytest.mark.parametrize(
    ("clients", "fraction", "count"),
    [(10, 0.2, 2), (10, 0.0, 0), (10, 1.0, 10), (3, 0.2, 1), (7, 0.5, 4), (12, 0.3, 4)],
)
def test_the_rounded_share_of_the_clients_is_malicious(
    clients: int, fraction: float, count: int
) -> None:
    chosen = attackers(clients=clients, fraction=fraction)
    assert len(chosen) == count
    assert chosen <= set(range(clients))


def test_they_are_drawn_from_the_seed_and_from_nothing_else() -> None:
    assert attackers(seed=3) == attackers(seed=3)
    assert len({attackers(seed=seed) for seed in range(20)}) > 5
    assert attackers(fraction=0.2) < attackers(fraction=0.5)
    label = malicious_clients(config_of(attack__kind="label-flip", rounds=99, model__width=8))
    assert label == attackers()
    assert malicious_clients(config_of()) == frozenset()


def test_every_client_is_as_likely_to_be_malicious() -> None:
    """Over 400 seeds each of 10 clients 80 times, give or take 5 standard deviations."""
    base = config_of(attack__kind="sign-flip")
    chosen = [malicious_clients(dataclasses.replace(base, seed=seed)) for seed in range(400)]
    counts = np.bincount([k for clients in chosen for k in clients], minlength=10)
    assert counts.sum() == 800
    assert np.abs(counts - 80).max() < 5 * np.sqrt(400 * 0.2 * 0.8)


W = np.array([1, 2, 3], np.float32)
V = np.array([2, 0, 3], np.float32)


def test_weights_move_from_those_received() -> None:
    assert sent({"w": V}, {"w": W}, SIGN_FLIP)["w"].tolist() == [0, 4, 3]
    assert sent({"w": V}, {"w": W}, scale(10))["w"].tolist() == [11, -18, 3]
    assert sent({"w": V}, {"w": W}, scale(0))["w"].tolist() == [1, 2, 3]
    assert sent({"w": V}, {"w": W}, scale(1))["w"].tolist() == [2, 0, 3]


def test_what_bears_another_name_is_an_update_itself() -> None:
    assert sent({"delta/w": V}, {"w": W}, SIGN_FLIP)["delta/w"].tolist() == [-2, 0, -3]
    assert sent({"images": V}, {}, scale(10))["images"].tolist() == [20, 0, 30]


def test_pixels_are_scaled_around_the_middle_of_their_range() -> None:
    pixels = np.array([0, 1, 100, 127, 128, 200, 255], np.uint8)
    flipped = sent({"images": pixels}, {}, SIGN_FLIP)["images"]
    assert flipped.tolist() == [255, 254, 155, 128, 127, 55, 0]
    tripled = sent({"images": pixels}, {}, scale(3))["images"]
    assert tripled.tolist() == [0, 0, 45, 126, 129, 255, 255]
    assert flipped.dtype == tripled.dtype == np.uint8


def test_integers_stay() -> None:
    arrays: dict[str, Array] = {
        "labels": np.array([0, 9]),
        "steps": np.array(7),
        "mask": np.array([True, False]),
        "table": np.array([3, 250], np.uint8),
    }
    received: dict[str, Array] = {"steps": np.array(5), "table": np.array([1, 2], np.uint8)}
    for attack in (SIGN_FLIP, scale(10)):
        for name, array in sent(arrays, received, attack).items():
            assert array is arrays[name]


def test_a_single_number_stays_an_array() -> None:
    gain = sent({"gain": np.array(2.0, np.float32)}, {}, SIGN_FLIP)["gain"]
    assert isinstance(gain, np.ndarray)
    assert gain.item() == -2
    assert gain.shape == ()
    assert gain.dtype == np.float32


def test_metrics_and_the_clients_own_state_stay_honest() -> None:
    state = {"variate/w": torch.tensor([5.0])}
    update = ClientUpdate({"w": V}, {"num_examples": 4, "train_loss": 0.5}, state)
    tampered = tamper(update, {"w": W}, scale(10))
    assert tampered.state is state
    assert tampered.metrics == {"num_examples": 4, "train_loss": 0.5}
    assert update.arrays["w"].tolist() == [2, 0, 3]
    assert tamper(update, {"w": W}, LABEL_FLIP) is update


FLOATS: list[npt.DTypeLike] = [np.float16, np.float32, np.float64]


@given(st.data(), st.sampled_from(FLOATS), st.floats(-1e300, 1e300), st.booleans())
def test_what_is_sent_is_finite_and_of_the_same_form(
    data: st.DataObject, dtype: npt.DTypeLike, factor: float, is_weight: bool
) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=2, max_side=3))
    elements = hnp.from_dtype(np.dtype(dtype), allow_nan=False, allow_infinity=False)
    value, start = (data.draw(hnp.arrays(dtype, shape, elements=elements)) for _ in range(2))
    for attack in (SIGN_FLIP, scale(factor)):
        array = sent({"w": value}, {"w": start} if is_weight else {}, attack)["w"]
        assert (array.shape, array.dtype) == (value.shape, value.dtype)
        assert np.isfinite(array).all()


def test_too_large_numbers_are_sent_as_the_largest() -> None:
    value = np.array([60_000, -60_000, 1], np.float16)
    assert sent({"x": value}, {}, scale(10))["x"].tolist() == [65504, -65504, 10]


def test_flipped_labels_count_from_the_other_end() -> None:
    examples = Examples(torch.zeros(3, 1, 2, 2), torch.tensor([0, 3, 9]))
    flipped = poison(examples, 10, LABEL_FLIP)
    assert isinstance(flipped, Examples)
    assert flipped.labels.tolist() == [9, 6, 0]
    assert flipped.inputs is examples.inputs
    assert examples.labels.tolist() == [0, 3, 9]
    assert poison(examples, 10, SIGN_FLIP) is examples


def rounds_of(path: Path) -> list[RoundRecord]:
    return RunFolder.open(path).read_rounds()[1:]


def weights_after_a_round(path: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(RunFolder.open(path).checkpoint(1))
    return {k.removeprefix("weights/"): v for k, v in tensors.items() if k.startswith("weights/")}


METHODS: dict[str, dict[str, object]] = {
    "fedavg": {"strategy": "fedavg"},
    "fednova": {"strategy": "fednova"},
    "scaffold": {"strategy": "scaffold"},
    "feddm": {"strategy": "feddm"},
    "feddm-uint8": {"strategy": "feddm", "mosaic.image-dtype": "uint8"},
}


@pytest.mark.parametrize("method", ["fedavg", "fednova", "scaffold"])
@pytest.mark.parametrize(("attack", "factor"), [("sign-flip", -1.0), ("scale", 3.0)])
def test_where_all_attack_the_model_moves_by_that_factor(
    method: str, attack: str, factor: float, federate: Federate
) -> None:
    """Weights, directions and deltas alike: the mean update is linear in what is sent."""
    keys = {**tiny_keys(method, rounds=1), **METHODS[method]}
    honest = weights_after_a_round(federate(keys))
    extra = {"attack.factor": factor} if attack == "scale" else {}
    bad = weights_after_a_round(
        federate({**keys, "attack.kind": attack, "attack.fraction": 1.0, **extra})
    )
    start = prepare(parse_config(keys)).initial_weights
    moved = {name: honest[name] - w for name, w in start.items()}
    assert sum(change.abs().max() > 1e-3 for change in moved.values()) > 3
    for name, w in start.items():
        assert torch.allclose(bad[name] - w, factor * moved[name], atol=1e-5), name


@pytest.mark.parametrize("attack", ["sign-flip", "scale", "label-flip"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_an_attacked_federation_runs_and_every_reply_counts(
    method: str, attack: str, federate: Federate
) -> None:
    keys = {**tiny_keys(str(METHODS[method]["strategy"])), **METHODS[method]}
    paths = [federate(extra) for extra in ({**keys, "attack.kind": attack}, keys)]
    attacked, honest = (rounds_of(path) for path in paths)
    assert all(client.failure is None for record in attacked for client in record.clients)
    (bad,) = malicious_clients(parse_config({**keys, "attack.kind": attack}))
    for one, other in zip(attacked[0].clients, honest[0].clients, strict=True):
        same = one.partition_id != bad or attack != "label-flip"
        assert (one.metrics == other.metrics) == same
        assert (one.bytes_up, one.bytes_down) == (other.bytes_up, other.bytes_down)
    after, after_honest = (weights_after_a_round(path) for path in paths)
    assert any(not torch.equal(after[name], after_honest[name]) for name in after)


def test_nobody_attacks_where_the_share_is_zero(federate: Federate) -> None:
    keys = tiny_keys("fedavg", rounds=1)
    plain = weights_after_a_round(federate(keys))
    nobody = weights_after_a_round(
        federate({**keys, "attack.kind": "sign-flip", "attack.fraction": 0.0})
    )
    assert all(torch.equal(plain[name], nobody[name]) for name in plain)


def test_a_malicious_client_keeps_its_honest_state(federate: Federate) -> None:
    """SCAFFOLD's variates after a round in which everybody received the same."""
    keys = tiny_keys("scaffold", rounds=1)
    kept = []
    for extra in ({}, {"attack.kind": "scale", "attack.fraction": 1.0}):
        folder = RunFolder.open(federate({**keys, **extra}))
        kept.append(
            {
                p.relative_to(folder.clients): load_file(p)
                for p in sorted(folder.clients.rglob("*.safetensors"))
            }
        )
    assert len(kept[0]) == 3
    assert kept[0].keys() == kept[1].keys()
    for name, tensors in kept[0].items():
        assert tensors
        assert all(torch.equal(value, kept[1][name][entry]) for entry, value in tensors.items())


def test_flipped_labels_give_themselves_away_where_counts_are_sent(federate: Federate) -> None:
    keys = {**tiny_keys("feddm", mosaic__weighting="counts"), "attack.kind": "label-flip"}
    (bad,) = malicious_clients(parse_config(keys))
    for client in rounds_of(federate(keys))[0].clients:
        told = client.failure or ""
        assert ("class_counts are not those" in told) == (client.partition_id == bad)


def test_a_reply_under_attack_keeps_its_bytes() -> None:
    arrays: dict[str, Array] = {"w": V, "images": np.zeros((2, 1, 2, 2), np.uint8)}
    before = Record(arrays).num_bytes()
    assert Record(sent(arrays, {"w": W}, scale(7))).num_bytes() == before
