"""Private federations as a whole: what they send, what they spend, and what a kill costs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import client.app
import server.federation
from core.config import RunConfig
from core.errors import RecordError, RunError
from core.records import RunFolder
from core.wire import Record
from experiments.run import resume
from pairing.configuration import parse_config
from privacy.accounting import Segment, epsilon
from privacy.ledger import SEEDED, Charge, read_ledgers
from privacy.noise import SeededNoise, injected_noise
from report.loading import load_run
from server.prediction import predict_bytes, request_settings
from server.preparation import prepare
from server.progress import PlainProgress
from strategies.flower import to_flower
from strategies.private import fits
from strategies.table import STRATEGIES
from tests.conftest import Federate, tiny_keys
from tests.integration.test_resume import KILLED, ROUNDS, Driver, resume_words, words_of

EXAMPLE_LEVEL = ("dp-sgd", "gradient", "feature")
PAIRS = [
    (name, mechanism)
    for name, kind in STRATEGIES.items()
    for mechanism in EXAMPLE_LEVEL
    if fits(kind, mechanism)
]
SIGMA, RATE, STEPS = 2.0, 0.1, 3


def private_keys(name: str, mechanism: str, **keys: object) -> dict[str, object]:
    """A tiny private federation on digits, whose noise is given."""
    flat = tiny_keys(name) | {
        "privacy.mechanism": mechanism,
        "privacy.noise-multiplier": SIGMA,
        "privacy.sampling-rate": RATE,
        "privacy.delta": 1e-4,
        "privacy.accountant": "rdp",
    }
    if mechanism != "gradient":
        flat["privacy.steps"] = STEPS  # the tiny FedDM takes three iterations too
    if name == "feddm":
        flat["feddm.initialisation"] = "noise"
        if mechanism == "feature":
            del flat["feddm.real-batch"]
    return flat | {k.replace("__", ".").replace("_", "-"): v for k, v in keys.items()}


def charges_of(path: Path) -> dict[int, list[Charge]]:
    folder = RunFolder.open(path)
    run = f"{path.name}/{folder.read_json('run')['identity']}"
    ledgers = read_ledgers(folder.ledgers, run)
    return {k: [charge for file in files for charge in file] for k, files in ledgers.items()}


def cost(steps: int, delta: float = 1e-4) -> float:
    return epsilon([Segment(SIGMA, RATE, steps)], delta, "rdp").value


@pytest.mark.parametrize(("name", "mechanism"), PAIRS)
def test_a_private_run_charges_every_client_for_every_round(
    name: str, mechanism: str, federate: Federate
) -> None:
    """And what a client sends is as long as predicted, and has the same form whatever it holds."""
    keys = private_keys(name, mechanism, partition__alpha=0.1)
    path = federate(keys)
    folder = RunFolder.open(path)
    charges = charges_of(path)
    assert charges.keys() == {0, 1, 2}
    for own in charges.values():
        assert [(c.round, c.steps, c.noise_multiplier, c.sampling_rate) for c in own] == [
            (1, STEPS, SIGMA, RATE),
            (2, STEPS, SIGMA, RATE),
        ]
        assert all(c.unit == "example" and c.system_noise for c in own)
    records = folder.read_rounds()
    for number, record in enumerate(records[1:], start=1):
        assert record.server["epsilon"] == pytest.approx(cost(STEPS * number))
        assert record.server["epsilon_round"] == pytest.approx(cost(STEPS))
        assert record.server["snr"] >= 0
        for one in record.clients:
            assert one.outcome == "counted"
            assert one.metrics.keys() <= {"epsilon", "snr", "a_norm"}
            assert one.metrics["epsilon"] == pytest.approx(cost(STEPS * number))
        assert record.seconds["client_sum"] > 0
    assert records[0].server["epsilon"] == 0
    told = folder.read_json("privacy")["spent"]
    assert told["epsilon"] == pytest.approx(cost(2 * STEPS))
    assert told["all_runs"] == told["epsilon"]
    assert set(told["clients"]) == {"0", "1", "2"}
    predicted = predict_bytes(prepare(parse_config(keys)))
    assert predicted.up == [[c.bytes_up for c in r.clients] for r in records[1:]]
    assert predicted.down == [[c.bytes_down for c in r.clients] for r in records[1:]]
    assert all(len(set(clients)) == 1 for clients in predicted.up)


@pytest.mark.parametrize(("name", "mechanism"), PAIRS)
def test_what_is_sent_depends_on_the_sampled_images_alone(
    name: str, mechanism: str, federate: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With equal noise and samples that hold no image, clients of unlike data send the same."""
    sent: list[list[Record]] = []

    def keep(record: Record) -> object:
        sent[-1].append(record)
        return to_flower(record)

    monkeypatch.setattr(client.app, "to_flower", keep)
    monkeypatch.setattr(
        client.app, "derive_seed", lambda seed, *names: 7 if names[0] == "client" else 8
    )
    for alpha in (0.1, 100.0):
        sent.append([])
        with injected_noise(_Restarting(3)):
            keys = private_keys(
                name, mechanism, rounds=1, partition__alpha=alpha, privacy__sampling_rate=1e-12
            )
            federate(keys)
    first, *others = [record for run in sent for record in run]
    assert len(others) == 5
    for other in others:
        assert first.arrays.keys() == other.arrays.keys()
        assert dict(first.metrics) == dict(other.metrics)
        for key, array in first.arrays.items():
            assert (array == other.arrays[key]).all(), key


class _Restarting(SeededNoise):
    """The same noise in every release; samples nothing."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._seed = seed

    def normal(self, reference: torch.Tensor, std: float) -> torch.Tensor:
        return SeededNoise(self._seed).normal(reference, std)

    def uniform(self, count: int) -> torch.Tensor:
        return torch.ones(count, dtype=torch.float64)


@pytest.mark.parametrize("mechanism", EXAMPLE_LEVEL)
def test_runs_with_the_systems_noise_do_not_repeat(mechanism: str, federate: Federate) -> None:
    name = "fedavg" if mechanism == "dp-sgd" else "feddm"
    keys = private_keys(name, mechanism)
    weights = [load_file(RunFolder.open(federate(keys)).checkpoint(2)) for _ in range(2)]
    assert any(not torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_a_run_with_seeded_noise_repeats_and_has_no_epsilon(federate: Federate) -> None:
    weights = []
    for _ in range(2):
        with injected_noise(SeededNoise(5)):
            path = federate(private_keys("fedavg", "dp-sgd"))
        folder = RunFolder.open(path)
        weights.append(load_file(folder.checkpoint(2)))
        told = folder.read_json("privacy")["spent"]
        assert told["epsilon"] is None and told["note"] == SEEDED
        assert set(told["clients"].values()) == {None} and told["all_runs"] is None
        for record in folder.read_rounds()[1:]:
            assert "epsilon" not in record.server
            assert all("epsilon" not in one.metrics for one in record.clients)
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_scaffold_spends_what_fedavg_spends(federate: Federate) -> None:
    """Its variates are made of the noised steps, so that they cost nothing."""
    spent = []
    for name in ("fedavg", "scaffold"):
        spent.append(charges_of(federate(private_keys(name, "dp-sgd"))))
    for k, charges in spent[0].items():
        strip = [replace(charge, at="", run="") for charge in charges]
        assert strip == [replace(charge, at="", run="") for charge in spent[1][k]]


def test_a_budget_that_is_kept_calibrates_and_one_that_is_spent_stops(
    federate: Federate, tmp_path: Path
) -> None:
    """One ledger over two runs: the first spends the whole budget, the second noises nothing."""
    keys = private_keys(
        "fedavg", "dp-sgd", privacy__epsilon=3.0, privacy__ledger=str(tmp_path / "l")
    )
    del keys["privacy.noise-multiplier"]
    path = federate(keys)
    told = RunFolder.open(path).read_json("privacy")["spent"]
    assert 2.99 < told["epsilon"] <= 3.0
    with pytest.raises(RunError, match="no budget left: round 1 would bring it to epsilon"):
        federate(keys | {"seed": 0, "cohort.max-empty-rounds": 1})
    ledgers = sorted((tmp_path / "l").glob("partition-*.json"))
    assert [len(json.loads(file.read_text())["charges"]) for file in ledgers] == [2, 2, 2]


def test_a_shared_ledger_refuses_another_deal_before_anything_starts(
    federate: Federate, tmp_path: Path
) -> None:
    keys = private_keys("fedavg", "dp-sgd", privacy__ledger=str(tmp_path / "l"))
    first = federate(keys)
    with pytest.raises(RecordError, match="other examples were dealt"):
        federate(keys | {"seed": 1})
    assert [path.name for path in first.parent.iterdir()] == [first.name]


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), 1.5])
def test_a_client_refuses_less_noise_than_it_was_promised(
    wrong: float, federate: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def less_noise(*args: object) -> dict[str, object]:
        return {**request_settings(*args), "noise-multiplier": wrong}  # type: ignore[arg-type]

    monkeypatch.setattr(server.federation, "request_settings", less_noise)
    with pytest.raises(RunError, match="nothing was noised"):
        federate(private_keys("fedavg", "dp-sgd", cohort__max_empty_rounds=1))


def test_why_a_private_client_fails_stays_with_it(
    federate: Federate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ValueError("pixel 7 of image 3 is 255")

    monkeypatch.setattr("strategies.fedavg.train_locally", fail)
    with pytest.raises(RunError) as caught:
        federate(private_keys("fedavg", "dp-sgd", cohort__max_empty_rounds=1))
    assert "pixel" not in str(caught.value)
    (path,) = (tmp_path / "runs").iterdir()
    folder = RunFolder.open(path)
    record = folder.read_rounds()[1]
    assert all("told in its own" in str(one.failure) for one in record.clients)
    assert "pixel" not in json.dumps(record.to_json())
    assert "pixel 7" in (folder.clients / "partition-00000.failure.txt").read_text()
    assert record.server["epsilon"] == pytest.approx(cost(STEPS)), "it was charged all the same"


FORGETFUL = """
from strategies.fedavg import FedAvg

class Mine(FedAvg):
    name = "mine"
    client_half = "gradient-steps"

    def client_update(self, task):
        import dataclasses
        {body}
"""


@pytest.mark.parametrize(
    "body",
    [
        "return super().client_update(dataclasses.replace(task, mechanism=None))",
        "super().client_update(task); return super().client_update(task)",
    ],
)
def test_a_strategy_that_vouches_wrongly_sends_nothing(
    body: str, federate: Federate, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(FORGETFUL.format(body=body))
    keys = private_keys("fedavg", "dp-sgd", cohort__max_empty_rounds=1)
    with pytest.raises(RunError, match=r"released 0 noised sums|3 noised sums were charged"):
        federate(keys | {"strategy": f"{tmp_path / 'mine.py'}:Mine"})


def test_a_ledger_over_runs_adds_up(federate: Federate, tmp_path: Path) -> None:
    keys = private_keys("fedavg", "dp-sgd", privacy__ledger=str(tmp_path / "l"))
    first, second = (RunFolder.open(federate(keys)).read_json("privacy")["spent"] for _ in "12")
    assert first["epsilon"] == second["epsilon"] == pytest.approx(cost(2 * STEPS))
    assert first["all_runs"] == pytest.approx(cost(2 * STEPS))
    assert second["all_runs"] == pytest.approx(cost(4 * STEPS))


def test_clients_of_a_cohort_are_charged_for_the_rounds_they_are_in(federate: Federate) -> None:
    path = federate(
        private_keys("fedavg", "dp-sgd", rounds=5, cohort__size=2, partition__clients=6)
    )
    records = RunFolder.open(path).read_rounds()
    charged = {k: len(own) for k, own in charges_of(path).items()}
    assert sum(charged.values()) == 10
    plan = prepare(parse_config(RunFolder.open(path).read_json("config"))).privacy
    assert plan is not None and plan.rounds == max(charged.values())
    assert min(charged.values()) < plan.rounds
    assert records[-1].server["epsilon"] == pytest.approx(cost(STEPS * plan.rounds))
    assert plan.whole_run.value == pytest.approx(records[-1].server["epsilon"])


@pytest.fixture(scope="module")
def tessera(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    driver = Driver(tmp_path_factory.mktemp("driver") / "log")
    yield driver
    driver.close()


def private_words(path: Path, name: str, mechanism: str, **keys: object) -> list[str]:
    words = words_of(name, path)
    kept = {word.partition("=")[0] for word in words}
    own: Mapping[str, object] = private_keys(name, mechanism, rounds=ROUNDS, **keys)
    dropped = {"feddm.real-batch"} if mechanism == "feature" else set()
    words = [word for word in words if word.partition("=")[0] not in dropped]
    return words + [f"{k}={v}" for k, v in own.items() if k not in kept]


KILLS = {
    "in the ledger": 0,
    "after the charge": 1,
    "in the client state": 1,
    "after keeping the reply": 0,
    "after a reply": 0,
    "before the commit": 0,
    "between checkpoint and record": 0,
    "in the record": 0,
    "after the record": 0,
}
"""Where a run is killed, and how many charges that costs beside those of a run that is not."""


@pytest.mark.parametrize(
    ("name", "mechanism", "point"),
    [("scaffold", "dp-sgd", point) for point in KILLS]
    + [("feddm", "feature", point) for point in ("after the charge", "after keeping the reply")],
)
def test_a_killed_run_goes_on_and_tells_all_it_has_spent(
    tessera: Driver, tmp_path: Path, name: str, mechanism: str, point: str
) -> None:
    path = tmp_path / "run"
    words = private_words(path, name, mechanism)
    nth = 5 if point in ("in the ledger", "after the charge", "after keeping the reply") else 2
    if point == "in the client state":
        nth = 9  # a state and a reply for each client and round
    assert tessera(*words, kill=[point, nth]) == KILLED
    before = charges_of(path)
    cut_off = load_run(path).privacy
    assert cut_off is not None and cut_off.noised is not None
    assert cut_off.noised.spent.epsilon == pytest.approx(
        cost(STEPS * max(len(own) for own in before.values()))
    ), "what was charged after the last record is told too"
    assert tessera(*resume_words(path)) == 0, tessera.log.read_text()[-3_000:]
    charges = charges_of(path)
    for k, own in before.items():
        assert charges[k][: len(own)] == own, "a charge is never taken back"
    number = sum(map(len, charges.values()))
    assert number == 3 * ROUNDS + KILLS[point]
    folder = RunFolder.open(path)
    assert folder.read_json("run")["status"] == "complete"
    most = max(len(own) for own in charges.values())
    statement = folder.read_json("privacy")
    told = statement["spent"]["epsilon"]
    assert told == pytest.approx(cost(STEPS * most))
    assert statement["epsilon_whole_run"] >= told, "no less is claimed than was released"
    assert f"epsilon {told:.4g} at delta" in statement["guarantee"]
    assert ("done again" in statement["text"]) == (KILLS[point] > 0)
    assert folder.read_rounds()[-1].server["epsilon"] == told
    assert told >= cost(STEPS * ROUNDS) - 1e-12


def test_a_run_resumed_from_an_older_checkpoint_sends_the_same_replies_again(
    tessera: Driver, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    words = private_words(path, "scaffold", "dp-sgd", checkpoint_every=3)
    assert tessera(*words, kill=["after the record", 3]) == KILLED
    first = RunFolder.open(path).read_rounds()
    assert tessera(*resume_words(path)) == 0, tessera.log.read_text()[-3_000:]
    again = RunFolder.open(path).read_rounds()
    assert [r.test for r in again[: len(first)]] == [r.test for r in first]
    assert {k: len(own) for k, own in charges_of(path).items()} == dict.fromkeys(range(3), ROUNDS)


def test_a_run_whose_ledger_is_lost_does_not_go_on(federate: Federate) -> None:
    keys = private_keys("fedavg", "dp-sgd")
    path = federate(keys)
    folder = RunFolder.open(path)
    folder.write_json("run", folder.read_json("run") | {"status": "interrupted"})
    ledger = next(iter(sorted(folder.ledgers.glob("*.json"))))
    content = ledger.read_bytes()
    for damage in (None, content[:-40]):
        if damage is None:
            ledger.unlink()
        else:
            ledger.write_bytes(damage)
        with pytest.raises(RecordError, match="ledger"):
            resume(path, PlainProgress())
    ledger.write_bytes(content)
    resume(path, PlainProgress())


def test_the_configuration_says_what_is_private() -> None:
    config = parse_config(private_keys("fedavg", "dp-sgd"))
    assert config.hides_counts and config.weighs_equally and config.privacy.is_example_level
    assert not RunConfig().hides_counts and not RunConfig().weighs_equally
