from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from core.config import RunConfig
from core.errors import RecordError
from core.records import RunFolder
from core.scores import CLASSIFICATION
from report.loading import Resumption, load_run, load_runs, read_tesserae
from report.methods import compare
from tests.unit.report.conftest import RETRIEVAL, make_private, make_retrieval

MakeRun = Callable[..., Path]


def edit_json(path: Path, **changes: Any) -> None:
    value = json.loads(path.read_text())
    value.update(changes)
    path.write_text(json.dumps(value))


def edit_last_round(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    lines = (path / "rounds.jsonl").read_text().splitlines()
    record = json.loads(lines[-1])
    change(record)
    (path / "rounds.jsonl").write_text("\n".join([*lines[:-1], json.dumps(record)]) + "\n")


def edit_rounds(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    lines = [json.loads(line) for line in (path / "rounds.jsonl").read_text().splitlines()]
    for record in lines:
        change(record)
    (path / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_loads_what_was_written(make_run: MakeRun) -> None:
    run = load_run(make_run("fedavg", 3, rounds=4))
    assert (run.strategy, run.seed, run.status, run.rounds_planned) == ("fedavg", 3, "complete", 4)
    assert [record.round for record in run.rounds] == [0, 1, 2, 3, 4]
    assert run.final is run.rounds[-1]
    assert run.class_names == tuple("0123456789")
    assert run.partition is not None and run.partition.class_counts.shape == (10, 10)
    assert run.environment["cpu.model"] == "AMD EPYC 7B13"
    assert run.environment["gpus"] == "none"
    assert run.finished and not run.sends_raw_images


def as_schema(number: int, path: Path) -> None:
    """Make a run folder what an earlier version wrote.

    Both before 3 knew the scores of classification alone; 1 no outcomes, cohorts, faults, attacks.
    """
    edit_json(path / "run.json", schema=number)
    lines = [json.loads(line) for line in (path / "rounds.jsonl").read_text().splitlines()]
    for record in lines:
        record["schema"] = number
        record["client_accuracy"] = record.pop("client_scores")
        record["worst_client_accuracy"] = record.pop("worst_client_score")
        for split in ("validation", "test"):
            record[split] |= record[split].pop("scores")
        for client in record["clients"] if number == 1 else ():
            del client["outcome"]
    (path / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_run_of_schema_1_is_read(make_run: MakeRun) -> None:
    failures = {(1, 2): ("failed", "gave up"), (2, 5): ("failed", "no reply")}
    path = make_run("fedavg", rounds=2, client_failures=failures)
    newer = load_run(path)
    as_schema(1, path)
    older = load_run(path)
    assert older.rounds == newer.rounds
    outcomes = {
        (record.round, client.partition_id): (client.outcome, client.failure)
        for record in older.rounds
        for client in record.clients
        if client.outcome != "counted"
    }
    assert outcomes == failures
    assert older.config["attack.kind"] == "none" and older.attack is None
    assert older.config["cohort.size"] == 0 and older.config["faults.dropout-rate"] == 0.0


def test_a_run_of_schema_2_is_read(make_run: MakeRun) -> None:
    path = make_run("fedavg", rounds=2)
    newer = load_run(path)
    as_schema(2, path)
    older = load_run(path)
    assert older.rounds == newer.rounds
    assert older.scores == CLASSIFICATION


def test_a_run_without_classes_is_read(make_run: MakeRun) -> None:
    path = make_retrieval(make_run("fedavg", rounds=1), [0.1, 0.25])
    run = load_run(path)
    assert run.scores == RETRIEVAL
    assert not run.has_classes and not run.tells_clients_apart
    assert run.final is not None and run.final.test is not None
    assert run.final.test.scores == {"recall_at_1": 0.25, "recall_at_5": 0.5, "median_rank": 4.0}
    classified = load_run(make_run("fedprox", rounds=1))
    assert classified.has_classes and classified.tells_clients_apart


def test_an_older_run_and_a_newer_of_equal_settings_are_one_method(make_run: MakeRun) -> None:
    new_keys = {
        key: value
        for key, value in RunConfig().flat().items()
        if key.partition(".")[0] in {"cohort", "faults", "attack"}
    }
    older, newer = (
        make_run("fedavg", 0, rounds=1),
        make_run("fedavg", 1, rounds=1, settings=new_keys),
    )
    as_schema(1, older)
    (method,) = compare(load_runs([older, newer])).methods
    assert method.seeds == (0, 1)


@pytest.mark.parametrize(
    ("settings", "attack"),
    [
        ({}, None),
        ({"attack.kind": "none", "attack.fraction": 0.2, "attack.factor": 10.0}, None),
        (
            {"attack.kind": "scale", "attack.fraction": 0.2, "attack.factor": 10.0},
            "scale x10, 20% of clients",
        ),
        (
            {"attack.kind": "sign-flip", "attack.fraction": 0.125, "attack.factor": 10.0},
            "sign-flip, 12.5% of clients",
        ),
    ],
)
def test_an_attack_is_told_in_words(
    make_run: MakeRun, settings: dict[str, Any], attack: str | None
) -> None:
    assert load_run(make_run(rounds=1, settings=settings)).attack == attack


def test_an_attack_without_its_share_is_refused(make_run: MakeRun) -> None:
    path = make_run(rounds=1, settings={"attack.kind": "scale", "attack.factor": 2.0})
    with pytest.raises(RecordError, match=r"config\.json has attack\.fraction=None"):
        load_run(path)


def test_resumptions_are_read(make_run: MakeRun) -> None:
    at = "2026-11-21T10:00:00+00:00"
    run = load_run(make_run(rounds=5, resumed=[{"after_round": 3, "at": at}]))
    assert run.resumed == (Resumption(3, datetime(2026, 11, 21, 10, tzinfo=UTC)),)
    assert load_run(make_run("fedavg", rounds=1)).resumed == ()


def test_what_changed_before_a_run_went_on_is_read(make_run: MakeRun) -> None:
    changed = {"torch": "2.14 -> 2.15", "cpu": "a -> b"}
    entry = {"after_round": 3, "at": "2026-11-21T10:00:00+00:00"}
    entries = [entry, {**entry, "changed": {}}, {**entry, "changed": changed}]
    resumed = load_run(make_run(rounds=5, resumed=entries)).resumed
    assert [dict(taken_up.changed) for taken_up in resumed] == [{}, {}, changed]
    assert [taken_up.changed_line for taken_up in resumed] == [
        "", "", "torch 2.14 -> 2.15, cpu a -> b"
    ]  # fmt: skip


def test_class_names_are_taken_from_the_run(make_run: MakeRun) -> None:
    assert load_run(make_run(class_names=["cat", "dog"])).class_names == ("cat", "dog")


def test_a_user_strategy_that_sends_raw_images_is_told_by_its_statement(make_run: MakeRun) -> None:
    path = make_run("mine.py:Mine")
    assert not load_run(path).sends_raw_images
    edit_json(path / "privacy.json", images_sent="raw")
    assert load_run(path).sends_raw_images


def test_a_run_that_just_began_is_read_as_far_as_it_got(make_run: MakeRun) -> None:
    path = make_run(status="running", done=0)
    for name in ("partition.json", "privacy.json", "environment.json", "rounds.jsonl"):
        (path / name).unlink()
    run = load_run(path)
    assert (run.rounds, run.final, run.rounds_done) == ((), None, 0)
    assert (run.partition, run.privacy, run.environment, run.class_names) == (None, None, {}, ())


def test_a_torn_last_line_is_left_out(make_run: MakeRun) -> None:
    path = make_run(status="running", done=3)
    with (path / "rounds.jsonl").open("a") as file:
        file.write('{"round": 4, "validat')
    assert load_run(path).rounds_done == 3


def test_the_final_round_is_the_last_evaluated_one(make_run: MakeRun) -> None:
    path = make_run(status="running", done=5)
    edit_last_round(path, lambda record: record.update(test=None, validation=None))
    run = load_run(path)
    assert run.rounds_done == 5
    assert run.final is run.rounds[4]


def test_a_folder_given_twice_is_read_once(make_run: MakeRun) -> None:
    path = make_run()
    assert len(load_runs([path, path / ".." / path.name])) == 1


def test_no_folder_is_an_error() -> None:
    with pytest.raises(RecordError, match="no run folder was given"):
        load_runs([])


@pytest.mark.parametrize(
    "name", ["run.json", "partition.json", "privacy.json", "environment.json", "config.json"]
)
@pytest.mark.parametrize("content", [None, "", "[]", "{", '{"schema": 1}'])
def test_a_missing_or_damaged_file_is_named(
    make_run: MakeRun, name: str, content: str | None
) -> None:
    path = make_run(rounds=1)
    if content is None:
        (path / name).unlink()
    else:
        (path / name).write_text(content)
    if name == "environment.json" and content == '{"schema": 1}':
        assert load_run(path).environment == {"schema": "1"}
        return
    with pytest.raises(RecordError, match=name):
        load_run(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": 99},
        {"status": "done"},
        {"name": 5},
        {"command": None},
        {"started": "yesterday"},
        {"class_names": ["just one"]},
        {"class_names": "0123456789"},
        {"scores": []},
        {"scores": [{"name": "accuracy"}]},
        {"resumed": 3},
        {"resumed": [{"at": "2026-11-21T10:00:00+00:00"}]},
        {"resumed": [{"after_round": 1, "at": "2026-11-21T10:00:00+00:00", "changed": "torch"}]},
    ],
)
def test_a_run_file_that_does_not_fit_is_named(make_run: MakeRun, changes: dict[str, Any]) -> None:
    path = make_run(rounds=1)
    edit_json(path / "run.json", **changes)
    with pytest.raises(RecordError, match=f"run.json has {next(iter(changes))}"):
        load_run(path)


@pytest.mark.parametrize("change", [{"seed": "x"}, {"rounds": None}, {"strategy": 1}, {"a": [1]}])
def test_a_config_that_does_not_fit_is_named(make_run: MakeRun, change: dict[str, Any]) -> None:
    path = make_run(rounds=1)
    edit_json(path / "config.json", **change)
    with pytest.raises(RecordError, match=r"config\.json"):
        load_run(path)


DAMAGE: dict[str, Callable[[dict[str, Any]], object]] = {
    "schema": lambda record: record.update(schema=9),
    "test": lambda record: record.pop("test"),
    "no whole number": lambda record: record.update(round=2.0),
    "its failure no text": lambda record: record["clients"][0].update(failure=["x"]),
    "client 0 has outcome 'lost'": lambda record: record["clients"][0].update(outcome="lost"),
    "client 0 is counted, and yet failed": lambda record: record["clients"][0].update(failure="x"),
    "round 2: 'list'": lambda record: record.update(seconds=[1]),
    "round 2: object of type 'int'": lambda record: record["test"].update(per_class_accuracy=3),
    "holds round 0": lambda record: record.update(round=0),
    "seconds lack elapsed": lambda record: record["seconds"].pop("elapsed"),
    "seconds lack server": lambda record: record["seconds"].update(server=float("nan")),
    "bytes": lambda record: record.update(bytes_up="many"),
    "client scores": lambda record: record["client_scores"].append("high"),
    "worst client": lambda record: record.update(worst_client_score="low"),
    "accuracy or macro-F1 on test": lambda record: record["test"]["scores"].update(accuracy="high"),
    "scores on test are accuracy; run.json names accuracy, macro_f1": (
        lambda record: record["test"]["scores"].pop("macro_f1")
    ),
    "scores on validation are macro_f1, accuracy": lambda record: record["validation"].update(
        scores=dict(reversed(record["validation"]["scores"].items()))
    ),
    "of per-class figures and the confusion matrix on test one is missing": (
        lambda record: record["test"].update(confusion=None)
    ),
    "confusion matrix on validation": lambda record: record["validation"]["confusion"].pop(),
    "per-class figures on test": lambda record: record["test"]["confusion"][0].__setitem__(0, "x"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_round_is_named(make_run: MakeRun, damage: str) -> None:
    path = make_run(rounds=2)
    edit_last_round(path, DAMAGE[damage])
    with pytest.raises(RecordError, match=rf"(?s)rounds\.jsonl.*{damage}"):
        load_run(path)


@pytest.mark.parametrize("content", ["[1]\n", "null\n", b"\xff\xfe\n", "\n"])
def test_rounds_that_are_no_records_are_named(make_run: MakeRun, content: str | bytes) -> None:
    path = make_run(rounds=1)
    raw = content if isinstance(content, bytes) else content.encode()
    (path / "rounds.jsonl").write_bytes(raw)
    with pytest.raises(RecordError, match=r"rounds\.jsonl"):
        load_run(path)


def test_a_complete_run_without_any_evaluation_is_refused(make_run: MakeRun) -> None:
    path = make_run(rounds=1)
    edit_rounds(path, lambda record: record.update(test=None))
    with pytest.raises(RecordError, match="no evaluated round"):
        load_run(path)


def lose_last_round(path: Path) -> None:
    lines = (path / "rounds.jsonl").read_text().splitlines(keepends=True)
    (path / "rounds.jsonl").write_text("".join(lines[:-1]))


LOSSES: dict[str, Callable[[Path], object]] = {
    "ends at round 2.*rounds_done=3 of rounds=3": lose_last_round,
    "holds no round.*rounds_done=3 of rounds=3": lambda p: (p / "rounds.jsonl").unlink(),
    "ends at round 3.*rounds_done=2 of rounds=3": lambda p: edit_json(
        p / "run.json", rounds_done=2
    ),
    "ends at round 3.*rounds_done=None of rounds=3": lambda p: edit_json(
        p / "run.json", rounds_done=None
    ),
    "ends at round 3.*rounds_done=3 of rounds=4": lambda p: edit_json(p / "config.json", rounds=4),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_complete_run_that_lacks_rounds_is_refused(make_run: MakeRun, loss: str) -> None:
    path = make_run(rounds=3)
    assert load_run(path).rounds_done == 3
    LOSSES[loss](path)
    with pytest.raises(RecordError, match=rf"rounds\.jsonl {loss}"):
        load_run(path)
    edit_json(path / "run.json", status="interrupted")
    assert load_run(path).rounds_done <= 3


@pytest.mark.parametrize(
    ("failure", "line"),
    [
        ("RunError: gave up\n  File x\n", "RunError: gave up"),
        ("\n gave up", "gave up"),
        ("", None),
        (None, None),
    ],
)
def test_the_first_line_of_a_failure_is_told(
    make_run: MakeRun, failure: str | None, line: str | None
) -> None:
    run = load_run(make_run(rounds=2, done=1, status="failed", failure=failure))
    assert run.failure_line == line


def test_an_evaluation_without_some_clients_is_told(make_run: MakeRun) -> None:
    path = make_run("local", rounds=2, clients=3)
    assert not load_run(path).lacks_clients
    edit_last_round(path, lambda record: record.update(client_scores=None))
    assert not load_run(path).lacks_clients
    edit_last_round(path, lambda record: record.update(client_scores=[0.5, None, 0.25]))
    assert load_run(path).lacks_clients


def test_records_of_unequal_class_counts_are_refused(make_run: MakeRun) -> None:
    path = make_run(rounds=1)
    edit_json(path / "partition.json", class_counts=[[100] * 3] * 10)
    with pytest.raises(RecordError, match=r"\[3, 10\] classes"):
        load_run(path)


def test_class_counts_of_one_axis_are_refused(make_run: MakeRun) -> None:
    path = make_run(rounds=1)
    edit_json(path / "partition.json", class_counts=[100] * 10)
    with pytest.raises(RecordError, match="whole numbers in 2 dimensions"):
        load_run(path)


def test_tesserae_are_read_back(make_run: MakeRun) -> None:
    run = load_run(make_run("real-images", rounds=2))
    sent = read_tesserae(run, 2)
    assert sent.images.shape[1:] == (1, 8, 8)
    np.testing.assert_array_equal(sent.images, sent.nearest_images)
    np.testing.assert_array_equal(sent.nearest_distances, 0)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"images": np.zeros((2, 1, 8, 8), np.float32)},
        {"nearest_images": np.zeros((2, 1, 8, 9), np.uint8)},
        {"labels": np.array([0, 10])},
        {"labels": np.array([0, -1])},
        {"partition_ids": np.array([0])},
    ],
)
def test_damaged_tesserae_are_named(make_run: MakeRun, tensors: dict[str, Any]) -> None:
    run = load_run(make_run(rounds=1))
    path = RunFolder(run.folder.path).tesserae(1)
    good = {
        "images": np.zeros((2, 1, 8, 8), np.uint8),
        "nearest_images": np.zeros((2, 1, 8, 8), np.uint8),
        "labels": np.array([0, 1]),
        "partition_ids": np.array([0, 1]),
        "nearest_distances": np.zeros(2, np.float32),
    }
    save_file(good, path)
    assert len(read_tesserae(run, 1).labels) == 2
    if tensors:
        save_file(good | tensors, path)
    else:
        path.write_bytes(b"not a tensor file")
    with pytest.raises(RecordError, match="round-0001"):
        read_tesserae(run, 1)


def test_privacy_of_a_private_run_is_read_with_what_it_has_spent(make_run: MakeRun) -> None:
    path = make_private(make_run("fedavg", rounds=2), [0, 1.5, 2.5], all_runs=3.5)
    run = load_run(path)
    assert run.noised is not None
    assert run.noised.terms == ("example", 1e-5)
    assert (run.noised.noise_multiplier, run.noised.steps_per_round) == (1.25, 17)
    assert run.epsilon == 2.5
    assert run.noised.spent.clients == {0: 2.5}
    assert run.noised.spent.all_runs == 3.5
    assert load_run(make_run("fedprox", rounds=1)).noised is None


def test_before_the_first_round_nothing_is_spent(make_run: MakeRun) -> None:
    path = make_private(make_run("fedavg", rounds=1), [0, 1.5])
    statement = json.loads((path / "privacy.json").read_text())
    del statement["spent"]
    (path / "privacy.json").write_text(json.dumps(statement))
    run = load_run(path)
    assert run.noised is not None
    assert run.epsilon is None and run.noised.spent.note == ""


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"delta": "1e-5"}, "delta"),
        ({"unit": None}, "unit"),
        ({"budget": True}, "budget"),
        ({"spent": {"epsilon": 1.0}}, "spent"),
        ({"spent": []}, "spent"),
        (
            {"spent": {"epsilon": "low", "accountant": "prv", "note": "", "clients": {},
                       "all_runs": None}},
            "spent",
        ),
    ],
)  # fmt: skip
def test_a_damaged_promise_is_refused_by_name(
    make_run: MakeRun, changes: dict[str, Any], named: str
) -> None:
    path = make_private(make_run("fedavg", rounds=1), [0, 1.5])
    edit_json(path / "privacy.json", **changes)
    with pytest.raises(RecordError, match=rf"privacy.json has {named}="):
        load_run(path)


@pytest.mark.parametrize("part", ["server", "client"])
def test_an_epsilon_that_is_no_number_is_refused(make_run: MakeRun, part: str) -> None:
    path = make_private(make_run("fedavg", rounds=1), [0, 1.5])
    lines = [json.loads(line) for line in (path / "rounds.jsonl").read_text().splitlines()]
    where = lines[1]["server"] if part == "server" else lines[1]["clients"][0]["metrics"]
    where["epsilon"] = "low"
    (path / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(RecordError, match="not numbers"):
        load_run(path)
