"""Audits of run folders: what they make, what they write, and what they refuse."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

import client.app
from cli.main import app
from core.errors import ConfigError, RecordError
from core.records import RoundRecord, RunFolder
from experiments import run as running
from experiments.audit import FEWEST_CANARIES, audit
from experiments.canary_scores import score_canaries
from experiments.run import resume, run
from pairing.configuration import parse_config
from privacy.audit import OUTSIDE, PROVES_NOTHING, TOO_FEW, most_that_canaries_show
from server.prediction import predict_bytes
from server.preparation import prepare
from server.progress import PlainProgress
from server.transcript import Transcript
from tests.conftest import Federate, tiny_keys

CANARIES = {"canaries.kind": "noise", "canaries.count": 40}
PRIVATE = {
    "privacy.mechanism": "dp-sgd",
    "privacy.noise-multiplier": 2.0,
    "privacy.steps": 2,
    "privacy.delta": 1e-4,
    "privacy.accountant": "rdp",
}


class _CutOff(PlainProgress):
    """Interrupts once the first round of a run is on record."""

    def round_ended(self, record: RoundRecord) -> None:
        super().round_ended(record)
        if record.round == 1:
            raise KeyboardInterrupt


def test_an_audit_is_written_down_and_not_made_twice(
    federate: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "randbelow", lambda bound: bound - 5)
    folder = federate(tiny_keys("fedavg", name="run", rounds=1) | PRIVATE)
    before = (folder / "config.json").read_bytes()
    found = audit(folder, PlainProgress(), canaries=40, confidence=0.9, shadow_runs=4)
    plan = prepare(parse_config(json.loads(before))).privacy
    assert plan is not None
    assert found.verdict.claim == plan.whole_run.value
    assert found.verdict.delta == 1e-4 and found.verdict.num_canaries == 40
    assert found.membership is not None and found.membership.num_runs == 4
    written = json.loads((folder / "audit.json").read_text())
    assert written == json.loads(json.dumps(found.to_json()))
    assert written["outcome"] in ("refuted", "not refuted") and PROVES_NOTHING in written["text"]
    made = RunFolder(folder / "audit" / "canaries-40").read_json("config")
    assert written["coins"] == made["canaries.coins"] == 2**31 - 5
    assert written["seed"] == made["canaries.seed"] and written["num_canaries"] == 40
    assert written["versions"]["torch"] == importlib.metadata.version("torch")
    assert datetime.fromisoformat(written["time"]).tzinfo == UTC
    assert written["outside_the_guarantee"] == OUTSIDE
    names = sorted(path.name for path in (folder / "audit").iterdir())
    assert names == ["canaries-40", *(f"shadow-40-00{i}" for i in range(4))]
    assert (folder / "config.json").read_bytes() == before
    assert (folder / "audit" / "canaries-40" / "ledgers").is_dir()

    def refuse(*args: object, **more: object) -> Path:
        raise AssertionError("a complete audit run is made again")

    monkeypatch.setattr(secrets, "randbelow", lambda bound: 7)
    monkeypatch.setattr(running, "run", refuse)
    monkeypatch.setattr(running, "resume", refuse)
    again = audit(folder, PlainProgress(), canaries=40, confidence=0.9, shadow_runs=4)
    assert again == found


def test_an_audit_that_was_cut_off_goes_on(federate: Federate) -> None:
    folder = federate(tiny_keys("fedavg", name="run"))
    with pytest.raises(KeyboardInterrupt):
        audit(folder, _CutOff(), canaries=40)
    assert not (folder / "audit.json").exists()
    coins = RunFolder(folder / "audit" / "canaries-40").read_json("config")["canaries.coins"]
    found = audit(folder, PlainProgress(), canaries=40)
    assert found.verdict.outcome == "nothing claimed"
    assert RunFolder(folder / "audit" / "canaries-40").read_json("run")["resumed"]
    assert found.canaries.coins == coins


def test_what_a_run_says_it_spent_is_the_claim(federate: Federate) -> None:
    path = federate(tiny_keys("fedavg", name="run", rounds=1) | PRIVATE)
    folder, warnings = RunFolder(path), list[str]()
    stated = folder.read_json("privacy")

    def claim(epsilon: float | None, note: str) -> tuple[float | None, str]:
        spent = {**stated["spent"], "epsilon": epsilon, "note": note}
        folder.write_json("privacy", {**stated, "spent": spent})
        found = audit(path, PlainProgress(), canaries=14, warn=warnings.append)
        return found.verdict.claim, found.text

    planned = stated["epsilon_whole_run"]
    assert claim(planned / 2, "by RDP, for PRV fails")[0] == planned
    warnings.clear()
    more, text = claim(planned + 100, "")
    assert more == planned + 100 and TOO_FEW in text
    assert len(warnings) == 1 and "14 canaries" in warnings[0] and "cannot refute" in warnings[0]
    nothing, text = claim(None, "refused: seeded noise")
    assert nothing is None and text.startswith("Nothing is claimed: refused: seeded noise.")
    assert len(warnings) == 1


@pytest.mark.parametrize("strategy", ["fedavg", "feddm"])
def test_scores_do_not_depend_on_the_coins_that_they_are_to_tell(
    federate: Federate, strategy: str
) -> None:
    folder = federate(tiny_keys(strategy, name="run", rounds=1) | CANARIES)
    config = parse_config(RunFolder(folder).read_json("config"))
    transcript = Transcript(folder / "transcript")
    own = prepare(config)
    other = prepare(
        dataclasses.replace(config, canaries=dataclasses.replace(config.canaries, coins=1))
    )
    assert own.canaries is not None and other.canaries is not None
    assert not np.array_equal(own.canaries.included, other.canaries.included)
    scores = score_canaries(own, transcript)
    assert all(len(np.unique(values)) > 1 for values in scores.values())
    for name, values in score_canaries(other, transcript).items():
        np.testing.assert_array_equal(values, scores[name])


def test_a_run_with_canaries_that_goes_on_ends_with_the_same_transcript(
    federate: Federate, tmp_path: Path
) -> None:
    keys = tiny_keys("scaffold", name="whole") | CANARIES
    whole = federate(keys)
    cut = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        run(parse_config({**keys, "runs": str(tmp_path), "name": "cut"}), _CutOff())
    stale = cut / "transcript" / "round-0002"
    stale.mkdir()
    (stale / "partition-00002.safetensors").write_bytes(b"of a round that was not recorded")
    resume(cut, PlainProgress())
    files = _transcript(whole)
    assert len(files) == 2 * (1 + 3)
    assert files == _transcript(cut)


def _transcript(folder: Path) -> Mapping[str, Mapping[str, bytes]]:
    return {
        str(path.relative_to(folder)): {
            name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()
        }
        for path in sorted((folder / "transcript").rglob("*.safetensors"))
    }


def test_a_run_without_canaries_keeps_no_transcript(federate: Federate) -> None:
    assert not (federate(tiny_keys("fedavg", name="run")) / "transcript").exists()


@pytest.mark.parametrize("kind", ["noise", "mislabelled", "members"])
@pytest.mark.parametrize("strategy", ["fedavg", "feddm"])
def test_what_clients_send_is_what_was_predicted(
    federate: Federate, strategy: str, kind: str
) -> None:
    keys = tiny_keys(strategy, name="run") | {"canaries.kind": kind, "canaries.count": 60}
    if strategy == "feddm":
        keys |= {"mosaic.images-per-class": 40, "mosaic.weighting": "counts"}
    folder = RunFolder.open(federate(keys))
    preparation = prepare(parse_config(folder.read_json("config")))
    predicted = predict_bytes(preparation)
    records = folder.read_rounds()[1:]
    assert [[c.bytes_up for c in record.clients] for record in records] == predicted.up
    if strategy == "fedavg":
        told = [client.metrics["num_examples"] for client in records[0].clients]
        assert told == [len(own) for own in preparation.partition.clients]


def test_canaries_leave_a_ledger_where_it_was(federate: Federate, tmp_path: Path) -> None:
    """Charges for the same client's data add up, whatever canaries joined it."""
    keys = tiny_keys("fedavg", rounds=1) | PRIVATE | {"privacy.ledger": str(tmp_path / "ledgers")}
    federate({**keys, "name": "plain"})
    client.app.forget_run()
    before = sorted(path.name for path in (tmp_path / "ledgers").glob("*.json"))
    for kind in ("noise", "members"):
        federate({**keys, "name": kind, "canaries.kind": kind, "canaries.count": 40})
    assert sorted(path.name for path in (tmp_path / "ledgers").glob("*.json")) == before


@pytest.mark.parametrize(
    ("strategy", "keys", "reason"),
    [
        ("local", {}, "neither weights"),
        ("centralized", {}, "neither weights"),
        ("median", {"canaries.kind": "noise"}, "audit's own"),
        (
            "fedavg",
            {"privacy.mechanism": "client", "privacy.noise-multiplier": 1.0},
            "protects whole clients",
        ),
    ],
)
def test_what_cannot_be_audited_is_refused_with_the_reason(
    tmp_path: Path, strategy: str, keys: Mapping[str, object], reason: str
) -> None:
    config = parse_config({**tiny_keys(strategy), **keys})
    folder = RunFolder.create(tmp_path, "run", config.flat())
    with pytest.raises(ConfigError, match=reason):
        audit(folder.path, PlainProgress())
    assert not folder.audit.exists()


def test_numbers_out_of_bounds_are_refused_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        audit(tmp_path, PlainProgress(), canaries=3, confidence=1.0, shadow_runs=2)
    assert len(refused.value.problems) == 3


def test_the_fewest_canaries_are_the_fewest_that_show_anything() -> None:
    assert most_that_canaries_show(FEWEST_CANARIES, 1e-5, 0.99, 2) > 0
    assert most_that_canaries_show(FEWEST_CANARIES - 1, 1e-5, 0.99, 2) == 0


def test_more_members_than_there_are_are_refused_before_any_run(tmp_path: Path) -> None:
    config = parse_config(tiny_keys("fedavg"))
    folder = RunFolder.create(tmp_path, "run", config.flat())
    with pytest.raises(ConfigError, match=r"--canaries.*images that clients hold"):
        audit(folder.path, PlainProgress(), canaries=5000, shadow_runs=4)
    assert not folder.audit.exists()


def test_what_lies_in_an_audit_runs_place_is_not_touched(federate: Federate) -> None:
    folder = federate(tiny_keys("fedavg", name="run", rounds=1))
    federate(
        tiny_keys("fedavg", rounds=1, seed=1, name="canaries-40") | {"runs": str(folder / "audit")}
    )
    with pytest.raises(RecordError, match="move it away"):
        audit(folder, PlainProgress(), canaries=40)


def test_the_help_tells_what_canaries_show() -> None:
    told = " ".join(CliRunner().invoke(app, ["privacy", "audit", "--help"]).output.split())
    for m, figure in ((256, "3.5"), (1000, "4.7")):
        assert f"{most_that_canaries_show(m, 1e-5, 0.99):.1f}" == figure
        assert f"{m} " in told and figure in told
    assert "outside the guarantee" in told


def test_the_command_tells_claim_canaries_confidence_and_verdict(federate: Federate) -> None:
    folder = federate(tiny_keys("feddm", name="run", rounds=1))
    words = ["privacy", "audit", str(folder), "--canaries", "40"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    plain = " ".join(shown.output.split())
    for told in ("No epsilon is claimed", "99% confidence", "40 canaries", PROVES_NOTHING):
        assert told in plain
    value = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert value["claim"] is None and value["num_canaries"] == 40
    assert value["lower_bound"] >= 0 and value["findings"]


def test_canaries_are_seen_through_parts_that_are_frozen(federate: Federate) -> None:
    """Of one full step the change is the sum of the gradients, at the frozen parts as they are."""
    keys = {
        **{k: v for k, v in tiny_keys("fedavg", rounds=1).items() if k != "partition.alpha"},
        "partition.clients": 1,
        "partition.scheme": "iid",
        "data.train-examples": 60,
        "train.batch-size": 100_000,
        "train.local-epochs": 1,
        "groups.frozen": "classifier",
        "canaries.kind": "noise",
        "canaries.count": 12,
    }
    path = federate(keys)
    preparation = prepare(parse_config(keys))
    (scores,) = score_canaries(preparation, Transcript(RunFolder.open(path).transcript)).values()
    assert preparation.canaries is not None
    included = preparation.canaries.included
    assert 0 < included.sum() < len(included)
    assert scores[included].min() > scores[~included].max()
