from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.errors import PrivacyError, RecordError
from privacy.accounting import Segment, epsilon
from privacy.ledger import (
    SEEDED,
    Budget,
    Charge,
    Ledger,
    bind_ledgers,
    owner_of,
    read_ledgers,
    refuse_other_deal,
    spent_each,
)

OPEN = Budget(0.0, 1e-5, "rdp")
CHARGE = Charge(
    run="a/1",
    round=1,
    unit="example",
    mechanism="dp-sgd",
    noise_multiplier=2.0,
    sampling_rate=0.1,
    steps=20,
    system_noise=True,
)


def cost(*charges: Charge) -> float:
    return epsilon([c.segment for c in charges], 1e-5, "rdp").value


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledgers", 3, "f" * 64)


def test_charges_are_kept_in_order_over_rounds_and_runs(ledger: Ledger) -> None:
    assert ledger.charges() == ()
    charges = [CHARGE, replace(CHARGE, round=2), replace(CHARGE, run="b/2", steps=5)]
    for charge in charges:
        ledger.charge(charge, OPEN)
    kept = Ledger(ledger.folder, 3, "f" * 64).charges()
    assert [replace(charge, at="") for charge in kept] == charges
    assert all(charge.at for charge in kept)
    assert spent_each([kept], 1e-5, "rdp")[0].epsilon == pytest.approx(cost(*charges))
    assert cost(*charges) > cost(*charges[:2]) > cost(CHARGE)


def test_a_repeated_round_is_charged_again(ledger: Ledger) -> None:
    ledger.charge(CHARGE, OPEN)
    ledger.charge(CHARGE, OPEN)
    twice = spent_each([ledger.charges()], 1e-5, "rdp")[0].epsilon
    assert twice == pytest.approx(epsilon([Segment(2.0, 0.1, 40)], 1e-5, "rdp").value)


def test_what_would_exceed_the_budget_is_not_written(ledger: Ledger) -> None:
    budget = Budget(cost(CHARGE, CHARGE) + 1e-6, 1e-5, "rdp")
    ledger.charge(CHARGE, budget)
    ledger.charge(replace(CHARGE, round=2), budget)
    before = ledger.path.read_bytes()
    with pytest.raises(PrivacyError, match=r"client 3 has no budget left: round 3 .* not started"):
        ledger.charge(replace(CHARGE, round=3), budget)
    assert ledger.path.read_bytes() == before
    smaller = replace(CHARGE, round=3, steps=1, noise_multiplier=1e4)
    ledger.charge(smaller, Budget(budget.epsilon + 1e-3, 1e-5, "rdp"))


def test_a_charge_without_noise_exceeds_every_budget(ledger: Ledger) -> None:
    with pytest.raises(PrivacyError, match="inf"):
        ledger.charge(replace(CHARGE, noise_multiplier=0.0), Budget(1e9, 1e-5, "rdp"))


def test_unlike_units_do_not_add_up(ledger: Ledger) -> None:
    ledger.charge(CHARGE, OPEN)
    with pytest.raises(PrivacyError, match="they do not add up"):
        ledger.charge(replace(CHARGE, unit="client"), OPEN)
    assert len(ledger.charges()) == 1


def test_seeded_noise_has_no_epsilon(ledger: Ledger) -> None:
    ledger.charge(CHARGE, OPEN)
    ledger.charge(replace(CHARGE, round=2, system_noise=False), OPEN)
    found = spent_each([ledger.charges()], 1e-5, "rdp")[0]
    assert found.epsilon is None and found.note == SEEDED == "refused: seeded noise"


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"steps": 20', '"steps": 1'),
        lambda text: text.replace('"schema": 1', '"schema": 7'),
        lambda text: "[]",
        lambda text: "",
    ],
)
def test_a_damaged_ledger_is_refused_by_name_and_left_alone(ledger: Ledger, damage) -> None:  # type: ignore[no-untyped-def]
    ledger.charge(CHARGE, OPEN)
    text = damage(ledger.path.read_text())
    ledger.path.write_text(text)
    with pytest.raises(RecordError, match=str(ledger.path)):
        ledger.charge(replace(CHARGE, round=2), OPEN)
    with pytest.raises(RecordError, match="damaged"):
        read_ledgers(ledger.folder, "a/1")
    assert ledger.path.read_text() == text


def test_another_clients_ledger_is_refused(ledger: Ledger) -> None:
    ledger.charge(CHARGE, OPEN)
    other = Ledger(ledger.folder, 3, "f" * 63 + "e")
    assert other.path == ledger.path
    with pytest.raises(RecordError, match="other data"):
        other.charges()


def test_ledgers_of_a_run_are_found_with_all_they_hold(ledger: Ledger, tmp_path: Path) -> None:
    ledger.charge(CHARGE, OPEN)
    ledger.charge(replace(CHARGE, run="b/2"), OPEN)
    Ledger(ledger.folder, 4, "a" * 64).charge(replace(CHARGE, run="b/2"), OPEN)
    assert read_ledgers(ledger.folder, "a/1").keys() == {3}
    assert {k: len(files[0]) for k, files in read_ledgers(ledger.folder, "b/2").items()} == {
        3: 2,
        4: 1,
    }
    assert read_ledgers(tmp_path / "nowhere", "a/1") == {}


def test_the_owner_is_known_by_its_images_and_labels() -> None:
    images = torch.randint(256, (3, 1, 2, 2), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2])
    owner = owner_of(images, labels)
    assert owner == owner_of(images.clone(), labels.clone())
    assert owner != owner_of(images + 1, labels)
    assert owner != owner_of(images, labels.flip(0))
    assert owner != owner_of(images[:2], labels[:2])


def test_shared_ledgers_are_bound_to_one_deal(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    refuse_other_deal(folder, "a")
    assert not folder.exists(), "a check writes nothing"
    bind_ledgers(folder, "a")
    bind_ledgers(folder, "a")
    refuse_other_deal(folder, "a")
    for check in (bind_ledgers, refuse_other_deal):
        with pytest.raises(
            RecordError, match=r"give another privacy\.ledger, or the same partition"
        ):
            check(folder, "b")
    (folder / "deal.json").write_text("{")
    with pytest.raises(RecordError, match="damaged"):
        bind_ledgers(folder, "a")


def test_the_file_is_plain_json(ledger: Ledger) -> None:
    ledger.charge(CHARGE, OPEN)
    content = json.loads(ledger.path.read_text())
    assert content["partition_id"] == 3 and content["charges"][0]["noise_multiplier"] == 2.0
